// Package transport is the one port between controllers: TLS 1.3 with hybrid key exchange and certificates on both sides,
// split by ALPN into raft's streams, gossip's streams and gRPC.
//
// It keeps one invariant: a connection stands only as long as the guard lets its key in; Recheck closes at once what the
// guard no longer does. A client without a certificate reaches gRPC only, where the one open service lets it in.
package transport

import (
	"context"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"sync"
	"time"

	"github.com/cassandra-security-manager/csm/shared/fault"
	"github.com/cassandra-security-manager/csm/shared/identity"
)

// ALPN protocol names.
const (
	Raft   = "csm-raft/1"
	Gossip = "csm-gossip/1"
	GRPC   = "h2"
)

const (
	handshakeTimeout = 5 * time.Second
	maxHandshakes    = 256
	maxGuests        = 64
	guestStay        = 90 * time.Second
)

// Peer is the other side of a connection.
type Peer struct {
	ID identity.ID
	// Key is the SHA-256 of its public key (SPKI).
	Key [32]byte
}

// Guard decides who may connect.
type Guard interface {
	// Verify checks a leaf-first chain.
	Verify(chain []*x509.Certificate) (Peer, error)
	// Allowed says whether a verified key may still be connected.
	Allowed(key [32]byte) bool
	// KeyAt is the key expected at an address; false when it is not known.
	KeyAt(address string) ([32]byte, bool)
}

// Config of a Transport.
type Config struct {
	Listener net.Listener
	// Advertise is the address at which the others reach this controller.
	Advertise   string
	Certificate func() (*tls.Certificate, error)
	// Roots are sent at the end of the chain, so that a joiner who holds only their pin can check the whole.
	Roots  func() []*x509.Certificate
	Guard  Guard
	Logger *slog.Logger
}

// Transport accepts and dials.
type Transport struct {
	cfg    Config
	server *tls.Config
	lists  map[string]*listener
	slots  chan struct{}

	mu     sync.Mutex
	conns  map[*Conn]struct{}
	guests int
	closed bool
	wg     sync.WaitGroup
}

// New starts to accept.
func New(cfg Config) *Transport {
	t := &Transport{cfg: cfg, conns: map[*Conn]struct{}{}, slots: make(chan struct{}, maxHandshakes), lists: map[string]*listener{}}
	for _, p := range []string{Raft, Gossip, GRPC} {
		t.lists[p] = &listener{addr: address(cfg.Advertise), conns: make(chan net.Conn), done: make(chan struct{})}
	}
	t.server = identity.Base()
	t.server.NextProtos = []string{Raft, Gossip, GRPC}
	t.server.ClientAuth = tls.RequestClientCert
	t.server.GetCertificate = func(*tls.ClientHelloInfo) (*tls.Certificate, error) { return t.own() }
	t.server.VerifyConnection = func(cs tls.ConnectionState) error {
		if len(cs.PeerCertificates) == 0 {
			if cs.NegotiatedProtocol == GRPC {
				return nil
			}
			return fault.New(fault.Unauthenticated, "no-certificate", "only members may speak %s", cs.NegotiatedProtocol)
		}
		_, err := cfg.Guard.Verify(cs.PeerCertificates)
		return err
	}
	t.wg.Add(1)
	go t.accept()
	return t
}

// own is the certificate with the roots at its end.
func (t *Transport) own() (*tls.Certificate, error) {
	c, err := t.cfg.Certificate()
	if err != nil || t.cfg.Roots == nil {
		return c, err
	}
	out := *c
	out.Certificate = append([][]byte(nil), c.Certificate...)
	for _, r := range t.cfg.Roots() {
		have := false
		for _, der := range c.Certificate {
			have = have || string(der) == string(r.Raw)
		}
		if !have {
			out.Certificate = append(out.Certificate, r.Raw)
		}
	}
	return &out, nil
}

func (t *Transport) accept() {
	defer t.wg.Done()
	var pause time.Duration
	for {
		raw, err := t.cfg.Listener.Accept()
		if err != nil {
			if t.isClosed() || errors.Is(err, net.ErrClosed) {
				return
			}
			pause = min(max(2*pause, 5*time.Millisecond), time.Second)
			t.cfg.Logger.Warn("cannot accept on the cluster port", "error", err, "pause", pause)
			time.Sleep(pause)
			continue
		}
		pause = 0
		select {
		case t.slots <- struct{}{}:
			go func() {
				t.welcome(raw)
			}()
		default:
			raw.Close() // more handshakes at once than controllers can need
		}
	}
}

// welcome does the handshake and hands the connection over. It holds a slot only for the handshake.
func (t *Transport) welcome(raw net.Conn) {
	c, err := t.handshake(raw)
	<-t.slots
	if err != nil {
		t.cfg.Logger.Debug("a connection to the cluster port was refused", "from", raw.RemoteAddr(), "error", err)
		raw.Close()
		return
	}
	if !t.track(c) {
		raw.Close()
		return
	}
	l := t.lists[c.State.NegotiatedProtocol]
	select {
	case l.conns <- c:
	case <-l.done:
		c.Close()
	}
}

func (t *Transport) handshake(raw net.Conn) (*Conn, error) {
	raw.SetDeadline(time.Now().Add(handshakeTimeout))
	tc := tls.Server(raw, t.server)
	if err := tc.Handshake(); err != nil {
		return nil, err
	}
	raw.SetDeadline(time.Time{})
	c := &Conn{Conn: tc, State: tc.ConnectionState(), t: t}
	if t.lists[c.State.NegotiatedProtocol] == nil {
		return nil, fmt.Errorf("no known protocol")
	}
	if certs := c.State.PeerCertificates; len(certs) > 0 {
		peer, err := t.cfg.Guard.Verify(certs)
		if err != nil {
			return nil, err
		}
		c.Peer = &peer
	}
	return c, nil
}

// Dial opens a connection of a protocol to the controller at an address. If a key is known for the address, only that
// key is taken.
func (t *Transport) Dial(ctx context.Context, protocol, addr string) (*Conn, error) {
	ctx, cancel := context.WithTimeout(ctx, handshakeTimeout)
	defer cancel()
	var d net.Dialer
	raw, err := d.DialContext(ctx, "tcp", addr)
	if err != nil {
		return nil, err
	}
	var peer Peer
	cfg := identity.Base()
	cfg.NextProtos = []string{protocol}
	cfg.InsecureSkipVerify = true // VerifyConnection does the whole check: chain, identity, members table
	cfg.GetClientCertificate = func(*tls.CertificateRequestInfo) (*tls.Certificate, error) { return t.own() }
	cfg.VerifyConnection = func(cs tls.ConnectionState) (err error) {
		if peer, err = t.cfg.Guard.Verify(cs.PeerCertificates); err != nil {
			return err
		}
		if want, known := t.cfg.Guard.KeyAt(addr); known && want != peer.Key {
			return fault.New(fault.Unauthenticated, "wrong-controller", "%s answers at %s with a key of another controller", peer.ID, addr).
				Do("check the addresses in `csm system controllers`")
		}
		return nil
	}
	tc := tls.Client(raw, cfg)
	if err := tc.HandshakeContext(ctx); err != nil {
		raw.Close()
		return nil, err
	}
	c := &Conn{Conn: tc, State: tc.ConnectionState(), Peer: &peer, t: t}
	if c.State.NegotiatedProtocol != protocol {
		raw.Close()
		return nil, fmt.Errorf("%s does not speak %s", addr, protocol)
	}
	if !t.track(c) {
		raw.Close()
		return nil, net.ErrClosed
	}
	return c, nil
}

// Recheck closes every connection whose key the guard no longer lets in.
func (t *Transport) Recheck() {
	t.mu.Lock()
	var out []*Conn
	for c := range t.conns {
		if c.Peer != nil && !t.cfg.Guard.Allowed(c.Peer.Key) {
			out = append(out, c)
		}
	}
	t.mu.Unlock()
	for _, c := range out {
		t.cfg.Logger.Info("a controller that is no member any more is cut off", "controller", c.Peer.ID.Path)
		c.Close()
	}
}

func (t *Transport) track(c *Conn) bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.closed || c.Peer == nil && t.guests >= maxGuests {
		return false
	}
	if c.Peer == nil {
		t.guests++
		time.AfterFunc(guestStay, func() { c.Close() })
	} else if !t.cfg.Guard.Allowed(c.Peer.Key) {
		return false
	}
	t.conns[c] = struct{}{}
	return true
}

func (t *Transport) isClosed() bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.closed
}

// Close stops accepting and closes every connection.
func (t *Transport) Close() error {
	t.mu.Lock()
	if t.closed {
		t.mu.Unlock()
		return nil
	}
	t.closed = true
	var out []*Conn
	for c := range t.conns {
		out = append(out, c)
	}
	t.mu.Unlock()
	err := t.cfg.Listener.Close()
	for _, l := range t.lists {
		l.Close()
	}
	for _, c := range out {
		c.Close()
	}
	t.wg.Wait()
	return err
}

// Conn is one established connection. Peer is nil for a client without a certificate.
type Conn struct {
	*tls.Conn
	State tls.ConnectionState
	Peer  *Peer
	t     *Transport
}

// Close closes the TCP connection without waiting for the other side to take TLS's goodbye.
func (c *Conn) Close() error {
	c.t.mu.Lock()
	if _, have := c.t.conns[c]; have {
		delete(c.t.conns, c)
		if c.Peer == nil {
			c.t.guests--
		}
	}
	c.t.mu.Unlock()
	return c.Conn.NetConn().Close()
}

// KeyOf is the SHA-256 of a certificate's public key (SPKI).
func KeyOf(c *x509.Certificate) [32]byte { return sha256.Sum256(c.RawSubjectPublicKeyInfo) }
