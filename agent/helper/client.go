package helper

import (
	"context"
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

// Client is the agent's side: a connection to one helper process. Requests go one at a time.
type Client struct {
	open   func() (io.ReadWriteCloser, error)
	remedy string
	turn   chan struct{}
	// once ends the helper after each answer: systemd starts the next one.
	once bool

	mu     sync.Mutex
	closed bool
	conn   io.ReadWriteCloser
	next   uint64
}

// Start runs program as a child and connects to its stdin and stdout. A helper that has died is started again at the next
// request. remedy is what a person does about a helper that cannot be reached.
func Start(remedy, program string, args ...string) (*Client, error) {
	return Over(remedy, func() (io.ReadWriteCloser, error) { return startChild(program, args) })
}

// Dial uses a unix socket on which systemd starts a helper for each connection. It connects for each request and no longer,
// so that nothing stays in memory between two, and a socket that is not there yet is no reason not to start.
func Dial(remedy, socket string) *Client {
	dial := func() (io.ReadWriteCloser, error) { return net.DialTimeout("unix", socket, 5*time.Second) }
	return &Client{open: dial, remedy: remedy, turn: make(chan struct{}, 1), once: true}
}

// Spawn starts program as a child for each request.
func Spawn(remedy, program string, args ...string) *Client {
	return &Client{open: func() (io.ReadWriteCloser, error) { return startChild(program, args) }, remedy: remedy, turn: make(chan struct{}, 1), once: true}
}

// Over uses any connection maker, and makes the first connection at once.
func Over(remedy string, dial func() (io.ReadWriteCloser, error)) (*Client, error) {
	c := &Client{open: dial, remedy: remedy, turn: make(chan struct{}, 1)}
	conn, err := dial()
	if err != nil {
		return nil, c.unreached(err)
	}
	c.conn = conn
	return c, nil
}

// Check says whether the helper can be reached now.
func (c *Client) Check() error {
	conn, _, err := c.connect()
	if err == nil && c.once {
		c.drop(conn)
	}
	return err
}

func (c *Client) unreached(err error) error {
	return fault.Wrap(err, fault.Unavailable, "no-helper", "the helper cannot be reached").Do("%s", c.remedy)
}

// Close ends the helper.
func (c *Client) Close() error {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.closed = true
	if c.conn == nil {
		return nil
	}
	err := c.conn.Close()
	c.conn = nil
	return err
}

// Call asks one thing. What the helper answers is in answer even where it also reports a fault.
func (c *Client) Call(ctx context.Context, request, answer any) error {
	select {
	case c.turn <- struct{}{}:
		defer func() { <-c.turn }()
	case <-ctx.Done():
		return fault.From(ctx.Err())
	}
	conn, id, err := c.connect()
	if err != nil {
		return err
	}
	// A caller that gives up breaks the connection: the answer that still comes must not be taken for the next one's.
	stop := context.AfterFunc(ctx, func() { c.drop(conn) })
	defer stop()
	if c.once {
		defer c.drop(conn)
	}
	got, err := exchange(conn, id, request)
	if err == nil && len(got.Body) > 0 {
		err = json.Unmarshal(got.Body, answer)
	}
	if err != nil {
		c.drop(conn)
		if ctx.Err() != nil {
			return fault.From(ctx.Err())
		}
		return c.unreached(err)
	}
	if got.Error != "" {
		return fault.New(fault.Unavailable, got.Reason, "%s", got.Error).Do("%s", got.Remedy)
	}
	return nil
}

func exchange(conn io.ReadWriter, id uint64, request any) (got message, err error) {
	body, err := json.Marshal(request)
	if err == nil {
		err = send(conn, message{ID: id, Body: body})
	}
	if err == nil {
		err = receive(conn, &got)
	}
	if err == nil && got.ID != id {
		err = errors.New("answer to another request")
	}
	return got, err
}

func (c *Client) connect() (io.ReadWriteCloser, uint64, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.closed {
		return nil, 0, c.unreached(os.ErrClosed)
	}
	c.next++
	if c.conn == nil {
		conn, err := c.open()
		if err != nil {
			return nil, 0, c.unreached(err)
		}
		c.conn = conn
	}
	return c.conn, c.next, nil
}

func (c *Client) drop(conn io.ReadWriteCloser) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.conn == conn {
		c.conn = nil
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
