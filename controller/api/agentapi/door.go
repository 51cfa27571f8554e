package agentapi

import (
	"encoding/binary"
	"errors"
	"io"
	"net"
	"runtime"
	"sync"
	"time"

	"google.golang.org/grpc/credentials"
)

const (
	// handshakesPerCore is how many are on the way at a time for each core. When thousands of agents come at once and all are worked on,
	// none is done before its agent gives up, and all of the work is lost. It is as many because peers are far away.
	handshakesPerCore = 16
	// handshakeTurn is how long one counts: a peer that says nothing more stands in the way for no longer.
	handshakeTurn = 2 * time.Second
	// handshakeWait is how long a peer waits for its turn; then it is better off with another controller. Waiting costs nothing, coming
	// again costs a connection, a ClientHello and a place in the line. Agents give up a quarter of a minute later.
	handshakeWait = 45 * time.Second
	// helloWait is how long a peer may take to send its ClientHello, shakeWait how long for the rest once it is its turn.
	helloWait, shakeWait = 10 * time.Second, 20 * time.Second
	// startWait is how long after the start peers wait for a leader: where all controllers were started, they elect one within seconds.
	startWait, lookAgain = 15 * time.Second, 250 * time.Millisecond
	// The first record of a TLS connection is a ClientHello (RFC 8446, 5.1).
	recordHeader, maxHello, handshakeRecord = 5, 1 << 14, 22
)

var (
	errCrowded = errors.New("too many peers shake hands: this one waited too long for its turn")
	errIdle    = errors.New("this controller has heard of no leader for a while: a peer is better off with another")
	errNoTLS   = errors.New("this is no TLS handshake")
)

// door begins handshakes in the order in which peers come, so many at a time as can be done with soon. A peer takes its turn when it has
// sent a whole ClientHello: who says nothing stands in nobody's way.
type door struct {
	credentials.TransportCredentials
	turns  chan struct{}
	opened time.Time
	ready  func() bool
	done   <-chan struct{}
	// met is told what became of each.
	met func(result string)
}

func newDoor(c credentials.TransportCredentials, ready func() bool, done <-chan struct{}, met func(result string)) door {
	return door{c, make(chan struct{}, handshakesPerCore*runtime.GOMAXPROCS(0)), time.Now(), ready, done, met}
}

// Clone is of credentials.TransportCredentials.
func (d door) Clone() credentials.TransportCredentials {
	d.TransportCredentials = d.TransportCredentials.Clone()
	return d
}

// ServerHandshake is of credentials.TransportCredentials. gRPC closes the connection after an error.
func (d door) ServerHandshake(c net.Conn) (net.Conn, credentials.AuthInfo, error) {
	conn, info, err := d.shake(c)
	d.met(resultOf(info, err))
	return conn, info, err
}

// resultOf is the label of a metric.
func resultOf(info credentials.AuthInfo, err error) string {
	switch {
	case errors.Is(err, errCrowded):
		return "crowded"
	case errors.Is(err, errIdle):
		return "no-leader"
	case err != nil:
		return "failed"
	}
	if t, ok := info.(credentials.TLSInfo); ok && t.State.DidResume {
		return "resumed"
	}
	return "full"
}

func (d door) shake(c net.Conn) (net.Conn, credentials.AuthInfo, error) {
	if err := d.leader(); err != nil {
		return nil, nil, err
	}
	if err := c.SetDeadline(time.Now().Add(helloWait)); err != nil {
		return nil, nil, err
	}
	hello, err := firstRecord(c)
	if err != nil {
		return nil, nil, err
	}
	t := time.NewTimer(handshakeWait)
	defer t.Stop()
	select {
	case d.turns <- struct{}{}:
	case <-t.C:
		return nil, nil, errCrowded
	case <-d.done:
		return nil, nil, errClosing
	}
	if err := c.SetDeadline(time.Now().Add(shakeWait)); err != nil {
		return nil, nil, err
	}
	end := sync.OnceFunc(func() { <-d.turns })
	defer end()
	defer time.AfterFunc(handshakeTurn, end).Stop()
	return d.TransportCredentials.ServerHandshake(&begun{Conn: c, hello: hello})
}

// leader waits until this controller can do something for a peer: not for long, and only soon after its start.
func (d door) leader() error {
	for !d.ready() {
		if time.Since(d.opened) >= startWait {
			return errIdle
		}
		select {
		case <-time.After(lookAgain):
		case <-d.done:
			return errClosing
		}
	}
	return nil
}

// firstRecord reads one TLS record.
func firstRecord(c net.Conn) ([]byte, error) {
	head := make([]byte, recordHeader)
	if _, err := io.ReadFull(c, head); err != nil {
		return nil, err
	}
	n := int(binary.BigEndian.Uint16(head[3:]))
	if head[0] != handshakeRecord || n == 0 || n > maxHello {
		return nil, errNoTLS
	}
	record := append(head, make([]byte, n)...)
	_, err := io.ReadFull(c, record[recordHeader:])
	return record, err
}

// begun is a connection of which the ClientHello has been read.
type begun struct {
	net.Conn
	hello []byte
}

func (b *begun) Read(p []byte) (int, error) {
	if len(b.hello) > 0 && len(p) > 0 {
		n := copy(p, b.hello)
		b.hello = b.hello[n:]
		return n, nil
	}
	b.hello = nil
	return b.Conn.Read(p)
}
