package reload

import (
	"context"
	"encoding/binary"
	"encoding/json"
	"errors"
	"io"
	"net"
	"os"
	"os/exec"
	"sync"
	"time"

	"github.com/cassandra-security-manager/csm/shared/fault"
)

// maxFrame bounds a message between agent and helper, in bytes.
const maxFrame = 512 << 10

// request names what to do. There is no field for a program: that is the point.
type request struct {
	ID       uint64 `json:"id"`
	Do       string `json:"do"` // "reload" or "ring"
	Instance string `json:"instance"`
}

type answer struct {
	ID     uint64 `json:"id"`
	Output Output `json:"output"`
	Reason string `json:"reason,omitempty"`
	Error  string `json:"error,omitempty"`
	Remedy string `json:"remedy,omitempty"`
}

// Serve is the helper: it answers requests on rw one after the other until it is closed, and runs nothing but the
// commands given here, which `csm-agent helper` reads from its own local configuration. Keys are instance names (the path
// of cassandra.yaml). It returns nil when the agent has gone.
func Serve(ctx context.Context, rw io.ReadWriter, commands map[string]Command) error {
	for {
		var q request
		if err := receive(rw, &q); err != nil {
			if errors.Is(err, io.EOF) || errors.Is(err, os.ErrClosed) || errors.Is(err, net.ErrClosed) {
				return nil
			}
			return err
		}
		a := answer{ID: q.ID}
		c, known := commands[q.Instance]
		var err error
		switch {
		case !known:
			err = fault.New(fault.Refused, "helper-refused", "the helper has no command for %.300q", q.Instance).Do("restart the agent after changing agent.yaml")
		case q.Do == "reload":
			a.Output, err = c.run(ctx, maxOutput)
		case q.Do == "ring":
			a.Output, err = c.list(ctx)
		default:
			err = fault.New(fault.Refused, "helper-refused", "the helper does not do %.40q", q.Do).Do("agent and helper must be of one version")
		}
		if err != nil {
			f := fault.From(err)
			a.Reason, a.Error, a.Remedy = f.Reason, f.Message, f.Remedy
		}
		if err := send(rw, a); err != nil {
			return err
		}
	}
}

// Helper is the agent's side: a connection to the one helper process. Requests go one at a time, so there is never more
// than one nodetool.
type Helper struct {
	open func() (io.ReadWriteCloser, error)
	turn chan struct{}
	// once ends the helper after each answer: systemd starts the next one.
	once bool

	mu     sync.Mutex
	closed bool
	conn   io.ReadWriteCloser
	next   uint64
}

// Start runs the helper program (the agent itself with the argument "helper") as a child and connects to its stdin and stdout.
// A helper that has died is started again at the next reload.
func Start(program string, args ...string) (*Helper, error) {
	return open(func() (io.ReadWriteCloser, error) { return startChild(program, args) })
}

// Dial uses a unix socket on which systemd starts a helper for each connection. It connects for each reload and no longer,
// so that nothing stays in memory between two, and a socket that is not there yet is no reason not to start.
func Dial(socket string) *Helper {
	dial := func() (io.ReadWriteCloser, error) { return net.DialTimeout("unix", socket, 5*time.Second) }
	return &Helper{open: dial, turn: make(chan struct{}, 1), once: true}
}

// Check says whether the helper can be reached now.
func (h *Helper) Check() error {
	conn, _, err := h.connect()
	if err == nil && h.once {
		h.drop(conn)
	}
	return err
}

// Over uses any connection maker; tests and other platforms need it.
func Over(dial func() (io.ReadWriteCloser, error)) (*Helper, error) { return open(dial) }

func open(dial func() (io.ReadWriteCloser, error)) (*Helper, error) {
	h := &Helper{open: dial, turn: make(chan struct{}, 1)}
	conn, err := dial()
	if err != nil {
		return nil, noHelper(err)
	}
	h.conn = conn
	return h, nil
}

func noHelper(err error) error {
	return fault.Wrap(err, fault.Unavailable, "no-helper", "the reload helper cannot be reached").
		Do("check that csm-agent may start itself, or that csm-agent-reload.socket is enabled")
}

// Close ends the helper.
func (h *Helper) Close() error {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.closed = true
	if h.conn == nil {
		return nil
	}
	err := h.conn.Close()
	h.conn = nil
	return err
}

// Reloader is the reloader of one instance, named as in the helper's configuration.
func (h *Helper) Reloader(instance string) Reloader { return instanceReloader{h, instance} }

type instanceReloader struct {
	h        *Helper
	instance string
}

func (r instanceReloader) Reload(ctx context.Context) (Output, error) {
	return r.h.do(ctx, "reload", r.instance)
}

// Ring is of Lister.
func (r instanceReloader) Ring(ctx context.Context) (string, error) {
	out, err := r.h.do(ctx, "ring", r.instance)
	if err == nil && out.ExitCode != 0 {
		err = fault.New(fault.Unavailable, "ring-unknown", "listing the ring ended with %d: %.300s", out.ExitCode, out.Stderr).Do("run nodetool status by hand as the agent's user")
	}
	return out.Stdout, err
}

// list runs the command that lists the ring.
func (c Command) list(ctx context.Context) (Output, error) {
	l, err := c.lister()
	if err != nil {
		return Output{ExitCode: -1}, err
	}
	return l.run(ctx, maxRing)
}

func (h *Helper) do(ctx context.Context, what, instance string) (Output, error) {
	select {
	case h.turn <- struct{}{}:
		defer func() { <-h.turn }()
	case <-ctx.Done():
		return Output{}, fault.From(ctx.Err())
	}
	conn, id, err := h.connect()
	if err != nil {
		return Output{}, err
	}
	// A caller that gives up breaks the connection: the answer that still comes must not be taken for the next one's.
	stop := context.AfterFunc(ctx, func() { h.drop(conn) })
	defer stop()
	if h.once {
		defer h.drop(conn)
	}
	var a answer
	err = send(conn, request{ID: id, Do: what, Instance: instance})
	if err == nil {
		err = receive(conn, &a)
	}
	if err == nil && a.ID != id {
		err = errors.New("answer to another request")
	}
	if err != nil {
		h.drop(conn)
		if ctx.Err() != nil {
			return Output{}, fault.From(ctx.Err())
		}
		return Output{}, noHelper(err)
	}
	if a.Error != "" {
		return a.Output, fault.New(fault.Unavailable, a.Reason, "%s", a.Error).Do("%s", a.Remedy)
	}
	return a.Output, nil
}

func (h *Helper) connect() (io.ReadWriteCloser, uint64, error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.closed {
		return nil, 0, noHelper(os.ErrClosed)
	}
	h.next++
	if h.conn == nil {
		conn, err := h.open()
		if err != nil {
			return nil, 0, noHelper(err)
		}
		h.conn = conn
	}
	return h.conn, h.next, nil
}

func (h *Helper) drop(conn io.ReadWriteCloser) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.conn == conn {
		h.conn = nil
		conn.Close()
	}
}

// child is a process behind a pair of pipes.
type child struct {
	io.WriteCloser
	out io.ReadCloser
	cmd *exec.Cmd
}

func (c *child) Read(p []byte) (int, error) { return c.out.Read(p) }

// Close ends the helper by closing its stdin; one that does not go is killed.
func (c *child) Close() error {
	err := c.WriteCloser.Close()
	timer := time.AfterFunc(2*time.Second, func() { c.cmd.Process.Kill() })
	go func() {
		c.cmd.Wait()
		timer.Stop()
	}()
	return err
}

func startChild(program string, args []string) (io.ReadWriteCloser, error) {
	cmd := exec.Command(program, args...)
	cmd.Stderr = os.Stderr
	in, err := cmd.StdinPipe()
	if err != nil {
		return nil, err
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		return nil, err
	}
	if err := cmd.Start(); err != nil {
		return nil, err
	}
	return &child{in, out, cmd}, nil
}

// send and receive frame a JSON message by its length, big-endian uint32.
func send(w io.Writer, v any) error {
	b, err := json.Marshal(v)
	if err != nil {
		return err
	}
	if len(b) > maxFrame {
		return fault.New(fault.Internal, "frame-too-large", "a message of %d bytes", len(b))
	}
	_, err = w.Write(append(binary.BigEndian.AppendUint32(nil, uint32(len(b))), b...))
	return err
}

func receive(r io.Reader, v any) error {
	var h [4]byte
	if _, err := io.ReadFull(r, h[:]); err != nil {
		return err
	}
	n := binary.BigEndian.Uint32(h[:])
	if n > maxFrame {
		return fault.New(fault.Invalid, "frame-too-large", "a message of %d bytes", n)
	}
	b := make([]byte, n)
	if _, err := io.ReadFull(r, b); err != nil {
		return err
	}
	return json.Unmarshal(b, v)
}
