package gossip

import (
	"context"
	"encoding/binary"
	"errors"
	"io"
	"net"
	"sync"
	"time"

	"github.com/hashicorp/memberlist"
)

const (
	// Each connection begins with one byte: a flow of packets, or one of memberlist's streams.
	packets byte = 'P'
	stream  byte = 'S'

	maxPacket = 64 << 10
	queued    = 64
	firstByte = 5 * time.Second
)

// wire is memberlist's transport over our streams. A packet is four bytes of length and its content; packets to a peer
// that cannot be reached, or too many at once, are dropped as UDP would drop them.
type wire struct {
	ctx  context.Context
	cfg  Config
	ip   net.IP
	port int

	packetCh chan *memberlist.Packet
	streamCh chan net.Conn

	mu    sync.Mutex
	flows map[string]chan []byte
}

func newWire(ctx context.Context, cfg Config, ip net.IP, port int) *wire {
	w := &wire{ctx: ctx, cfg: cfg, ip: ip, port: port, packetCh: make(chan *memberlist.Packet), streamCh: make(chan net.Conn), flows: map[string]chan []byte{}}
	go w.accept()
	return w
}

// FinalAdvertiseAddr implements memberlist.Transport.
func (w *wire) FinalAdvertiseAddr(string, int) (net.IP, int, error) { return w.ip, w.port, nil }

func (w *wire) accept() {
	for {
		c, err := w.cfg.Listener.Accept()
		if err != nil {
			return
		}
		go w.serve(c)
	}
}

func (w *wire) serve(c net.Conn) {
	var kind [1]byte
	c.SetReadDeadline(time.Now().Add(firstByte))
	if _, err := io.ReadFull(c, kind[:]); err != nil {
		c.Close()
		return
	}
	c.SetReadDeadline(time.Time{})
	switch kind[0] {
	case stream:
		select {
		case w.streamCh <- c:
		case <-w.ctx.Done():
			c.Close()
		}
	case packets:
		w.receive(c)
	default:
		c.Close()
	}
}

func (w *wire) receive(c net.Conn) {
	defer c.Close()
	stop := context.AfterFunc(w.ctx, func() { c.Close() })
	defer stop()
	for {
		var size [4]byte
		if _, err := io.ReadFull(c, size[:]); err != nil {
			return
		}
		n := binary.BigEndian.Uint32(size[:])
		if n > maxPacket {
			return
		}
		p := make([]byte, n)
		if _, err := io.ReadFull(c, p); err != nil {
			return
		}
		select {
		case w.packetCh <- &memberlist.Packet{Buf: p, From: c.RemoteAddr(), Timestamp: time.Now()}:
		case <-w.ctx.Done():
			return
		}
	}
}

var errNoName = errors.New("a peer is dialled by name only")

// WriteTo and DialTimeout implement memberlist.Transport; without a name there is nobody to dial.
func (w *wire) WriteTo([]byte, string) (time.Time, error) { return time.Now(), nil }
func (w *wire) DialTimeout(string, time.Duration) (net.Conn, error) {
	return nil, errNoName
}

// WriteToAddress implements memberlist.NodeAwareTransport.
func (w *wire) WriteToAddress(b []byte, to memberlist.Address) (time.Time, error) {
	if to.Name == "" || len(b) > maxPacket {
		return time.Now(), nil
	}
	w.mu.Lock()
	flow, ok := w.flows[to.Name]
	if !ok {
		flow = make(chan []byte, queued)
		w.flows[to.Name] = flow
		go w.send(to.Name, flow)
	}
	w.mu.Unlock()
	p := binary.BigEndian.AppendUint32(make([]byte, 0, len(b)+4), uint32(len(b)))
	select {
	case flow <- append(p, b...):
	default:
	}
	return time.Now(), nil
}

// send keeps one connection to a peer and writes its packets; while there is none they are dropped.
func (w *wire) send(name string, flow chan []byte) {
	var c net.Conn
	var retry time.Time
	defer func() {
		if c != nil {
			c.Close()
		}
	}()
	for {
		var p []byte
		select {
		case p = <-flow:
		case <-w.ctx.Done():
			return
		}
		if c == nil && time.Now().After(retry) {
			retry = time.Now().Add(time.Second)
			if c = w.open(name, packets); c != nil {
				go func(c net.Conn) { // nothing is sent back: a read ends when the other side closes
					io.Copy(io.Discard, c)
					c.Close()
				}(c)
			}
		}
		if c == nil {
			continue
		}
		c.SetWriteDeadline(time.Now().Add(2 * time.Second))
		if _, err := c.Write(p); err != nil {
			c.Close()
			c = nil
		}
	}
}

func (w *wire) open(name string, kind byte) net.Conn {
	ctx, cancel := context.WithTimeout(w.ctx, 3*time.Second)
	defer cancel()
	c, err := w.cfg.Dial(ctx, name)
	if err != nil {
		return nil
	}
	c.SetWriteDeadline(time.Now().Add(2 * time.Second))
	if _, err := c.Write([]byte{kind}); err != nil {
		c.Close()
		return nil
	}
	return c
}

// DialAddressTimeout implements memberlist.NodeAwareTransport.
func (w *wire) DialAddressTimeout(to memberlist.Address, timeout time.Duration) (net.Conn, error) {
	if to.Name == "" {
		return nil, errNoName
	}
	ctx, cancel := context.WithTimeout(w.ctx, timeout)
	defer cancel()
	c, err := w.cfg.Dial(ctx, to.Name)
	if err != nil {
		return nil, err
	}
	if _, err := c.Write([]byte{stream}); err != nil {
		c.Close()
		return nil, err
	}
	return c, nil
}

// PacketCh, StreamCh and Shutdown implement memberlist.Transport.
func (w *wire) PacketCh() <-chan *memberlist.Packet { return w.packetCh }
func (w *wire) StreamCh() <-chan net.Conn           { return w.streamCh }
func (w *wire) Shutdown() error                     { return nil }

var _ memberlist.NodeAwareTransport = (*wire)(nil)
