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
	// handshakesPerCore is how many are worked on at a time for each core. When thousands of agents come at once and all are worked on,
	// none is done before its agent gives up, and all of the work is lost.
	handshakesPerCore = 2
	// handshakeWait is how long a peer waits for its turn; then it is better off with another controller. Agents give up after twice that.
	handshakeWait = 5 * time.Second
	// The first record of a TLS connection is a ClientHello (RFC 8446, 5.1).
	recordHeader, maxHello, handshakeRecord = 5, 1 << 14, 22
)

var (
	errCrowded = errors.New("too many peers shake hands: this one waited too long for its turn")
	errIdle    = errors.New("this controller has heard of no leader for a while: a peer is better off with another")
	errNoTLS   = errors.New("this is no TLS handshake")
)

// door begins handshakes in the order in which peers come, a few at a time. A peer takes a turn when it has sent a whole ClientHello and
// gives it back when it is waited for, so that who says nothing stands in nobody's way.
type door struct {
	credentials.TransportCredentials
	turns chan struct{}
	ready func() bool
	done  <-chan struct{}
}

func newDoor(c credentials.TransportCredentials, ready func() bool, done <-chan struct{}) door {
	return door{c, make(chan struct{}, handshakesPerCore*runtime.GOMAXPROCS(0)), ready, done}
}

// Clone is of credentials.TransportCredentials.
func (d door) Clone() credentials.TransportCredentials {
	d.TransportCredentials = d.TransportCredentials.Clone()
	return d
}

// ServerHandshake is of credentials.TransportCredentials. gRPC bounds it in time and closes the connection after an error.
func (d door) ServerHandshake(c net.Conn) (net.Conn, credentials.AuthInfo, error) {
	if !d.ready() {
		return nil, nil, errIdle
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
	end := sync.OnceFunc(func() { <-d.turns })
	defer end()
	return d.TransportCredentials.ServerHandshake(&begun{Conn: c, hello: hello, waits: end})
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
	// waits is called before the peer is waited for.
	waits func()
}

func (b *begun) Read(p []byte) (int, error) {
	if len(b.hello) > 0 && len(p) > 0 {
		n := copy(p, b.hello)
		b.hello = b.hello[n:]
		return n, nil
	}
	if b.waits != nil {
		b.waits()
		b.hello, b.waits = nil, nil
	}
	return b.Conn.Read(p)
}
