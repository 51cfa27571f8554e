// Package cassandratest is a Cassandra node for unit tests as far as TLS goes: real sockets, real stores, and the
// caching of Cassandra 5.0 (SSLFactory): a context is built at the first handshake of a side and kept; a good reload
// empties the cache, so the files are read again at the next handshake; a bad one is only logged and exits 0.
//
// It is rude on purpose: each port can fall silent, reset, stall, answer nonsense or serve another leaf, and a reload can
// do nothing and say that all is well. The real ring proves what this one claims.
package cassandratest

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/binary"
	"errors"
	"hash/crc32"
	"io"
	"net"
	"net/netip"
	"os"
	"sync"
	"testing"
	"time"

	"github.com/cassandra-security-manager/csm/agent/cassandra"
	"github.com/cassandra-security-manager/csm/agent/reload"
	agentv1 "github.com/cassandra-security-manager/csm/protocol/agent/v1"
	"github.com/cassandra-security-manager/csm/shared/keystore"
	"github.com/cassandra-security-manager/csm/test/port"
)

// Mode is how a port behaves.
type Mode int

// The modes.
const (
	Honest  Mode = iota
	Silent       // handshake, then nothing: a JVM stalled by its collector
	Stalled      // accepts the connection and says nothing at all
	Reset        // handshake, then a TCP reset
	Garbage      // handshake, then an answer that is none
	Plain        // no TLS: answers the ClientHello with a CQL error
	Other        // serves the leaf given by ServeOther
	Closing      // handshake, then an orderly close
)

// Node is one fake Cassandra.
type Node struct {
	Store    *cassandra.Store
	instance *cassandra.Instance

	mu        sync.Mutex
	listeners map[agentv1.PortKind]net.Listener
	cached    map[agentv1.PortKind]*tls.Config
	times     map[agentv1.PortKind]map[string]time.Time // of the files, as each side's poll last saw them
	mode      map[agentv1.PortKind]Mode
	other     *tls.Certificate
	ignore    bool
	broken    error
	reloads   int
	errors    int
	wg        sync.WaitGroup
	closed    bool
}

// Start opens both ports on 127.0.0.1 over the store's files, which need not exist before the first handshake.
func Start(t testing.TB, s *cassandra.Store) *Node {
	t.Helper()
	n := &Node{Store: s, listeners: map[agentv1.PortKind]net.Listener{}, cached: map[agentv1.PortKind]*tls.Config{}, times: map[agentv1.PortKind]map[string]time.Time{}, mode: map[agentv1.PortKind]Mode{}}
	loop := netip.MustParseAddr("127.0.0.1")
	n.instance = &cassandra.Instance{ConfigPath: "/etc/cassandra/cassandra.yaml", Listen: loop, Broadcast: loop, RPC: loop, BroadcastRPC: loop,
		NativeTransport: true, Stores: []*cassandra.Store{s}}
	for _, k := range []agentv1.PortKind{agentv1.PortKind_PORT_KIND_INTERNODE, agentv1.PortKind_PORT_KIND_CQL} {
		l, err := port.Listen()
		if err != nil {
			t.Fatal(err)
		}
		number := l.Addr().(*net.TCPAddr).AddrPort().Port()
		if k == agentv1.PortKind_PORT_KIND_CQL {
			n.instance.NativePort = number
		} else {
			n.instance.StoragePort = number
		}
		n.serve(k, l)
	}
	s.Ports = []cassandra.Port{n.instance.InternodePort(), n.instance.CQLPort()}
	t.Cleanup(n.Stop)
	return n
}

// Instance is the node as its configuration would read.
func (n *Node) Instance() *cassandra.Instance { return n.instance }

// Set changes how a port behaves.
func (n *Node) Set(k agentv1.PortKind, m Mode) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.mode[k] = m
}

// ServeOther is the certificate of ports in mode Other.
func (n *Node) ServeOther(c *tls.Certificate) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.other = c
}

// IgnoreReloads makes nodetool exit 0 and nothing happen.
func (n *Node) IgnoreReloads(yes bool) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.ignore = yes
}

// BreakReloads makes the reload command itself fail.
func (n *Node) BreakReloads(err error) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.broken = err
}

// Reloads is how often a reload was asked for; LoggedErrors how many ERROR lines Cassandra would have written.
func (n *Node) Reloads() int {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.reloads
}

// LoggedErrors counts what would be ERROR lines in Cassandra's log.
func (n *Node) LoggedErrors() int {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.errors
}

// Reload is `nodetool reloadssl` of 4.1.4 and later.
func (n *Node) Reload(context.Context) (reload.Output, error) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.reloads++
	if n.broken != nil {
		return reload.Output{ExitCode: -1}, n.broken
	}
	if n.ignore {
		return reload.Output{}, nil
	}
	for k := range n.cached {
		if _, err := n.build(); err != nil {
			n.errors++ // Failed to hot reload the SSL Certificates!
			continue
		}
		delete(n.cached, k)
	}
	return reload.Output{}, nil
}

// Restart forgets every context and opens the ports again.
func (n *Node) Restart(t testing.TB) {
	t.Helper()
	n.Stop()
	n.mu.Lock()
	n.closed, n.cached, n.times = false, map[agentv1.PortKind]*tls.Config{}, map[agentv1.PortKind]map[string]time.Time{}
	n.mu.Unlock()
	for _, p := range n.Store.Ports {
		l, err := net.Listen("tcp", netip.AddrPortFrom(p.Address, p.Port).String())
		if err != nil {
			t.Fatal(err)
		}
		n.serve(p.Kind, l)
	}
}

// Stop closes both ports.
func (n *Node) Stop() {
	n.mu.Lock()
	n.closed = true
	for _, l := range n.listeners {
		l.Close()
	}
	n.mu.Unlock()
	n.wg.Wait()
}

// StopPort closes one port: what a joining or draining node looks like.
func (n *Node) StopPort(k agentv1.PortKind) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.listeners[k].Close()
}

func (n *Node) serve(k agentv1.PortKind, l net.Listener) {
	n.mu.Lock()
	n.listeners[k] = l
	n.mu.Unlock()
	n.wg.Add(1)
	go func() {
		defer n.wg.Done()
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			n.wg.Add(1)
			go func() {
				defer n.wg.Done()
				defer c.Close()
				c.SetDeadline(time.Now().Add(3 * time.Second))
				n.speak(k, c)
			}()
		}
	}()
}

func (n *Node) speak(k agentv1.PortKind, raw net.Conn) {
	n.mu.Lock()
	mode := n.mode[k]
	n.mu.Unlock()
	switch mode {
	case Stalled:
		io.Copy(io.Discard, raw)
		return
	case Plain:
		io.ReadFull(raw, make([]byte, 9))
		raw.Write([]byte{0x84, 0, 0, 0, 0, 0, 0, 0, 0})
		return
	}
	cfg, err := n.context(k, mode)
	if err != nil {
		raw.(*net.TCPConn).SetLinger(0)
		return
	}
	c := tls.Server(raw, cfg)
	if err := c.Handshake(); err != nil {
		if !errors.Is(err, io.EOF) {
			n.mu.Lock()
			n.errors++
			n.mu.Unlock()
		}
		return
	}
	switch mode {
	case Silent:
		io.Copy(io.Discard, c)
	case Reset:
		raw.(*net.TCPConn).SetLinger(0)
	case Closing:
		c.Close()
	case Garbage:
		c.Write([]byte("HTTP/1.1 400 Bad Request\r\n\r\n"))
		io.Copy(io.Discard, c)
	default:
		if k == agentv1.PortKind_PORT_KIND_CQL {
			answerOptions(c)
		} else {
			answerInitiate(c)
		}
	}
}

// context returns the cached TLS context of a side, building it from the files when there is none.
func (n *Node) context(k agentv1.PortKind, mode Mode) (*tls.Config, error) {
	n.mu.Lock()
	defer n.mu.Unlock()
	if mode == Other {
		return &tls.Config{Certificates: []tls.Certificate{*n.other}, ClientAuth: tls.RequireAnyClientCert}, nil
	}
	if c := n.cached[k]; c != nil {
		return c, nil
	}
	c, err := n.build()
	if err == nil {
		n.cached[k] = c
		if n.times[k] == nil {
			n.times[k] = n.changes()
		}
	}
	return c, err
}

func (n *Node) changes() map[string]time.Time {
	out := map[string]time.Time{}
	for _, path := range []string{n.Store.KeystorePath, n.Store.TruststorePath} {
		if i, err := os.Stat(path); err == nil {
			out[path] = i.ModTime()
		}
	}
	return out
}

// Poll is what Cassandra does each ten minutes by itself: a side that finds a file with another time of change than it remembers builds
// its context from both files, and remembers the time of that one file.
func (n *Node) Poll() {
	n.mu.Lock()
	defer n.mu.Unlock()
	now := n.changes()
	for k := range n.cached {
		for _, path := range []string{n.Store.KeystorePath, n.Store.TruststorePath} {
			if now[path].Equal(n.times[k][path]) {
				continue
			}
			n.times[k][path] = now[path]
			if _, err := n.build(); err != nil {
				n.errors++
			} else {
				delete(n.cached, k)
			}
			break
		}
	}
}

// build reads the files as a JVM does: an empty truststore or an expired leaf is no error.
func (n *Node) build() (*tls.Config, error) {
	kd, err := os.ReadFile(n.Store.KeystorePath)
	if err != nil {
		return nil, err
	}
	td, err := os.ReadFile(n.Store.TruststorePath)
	if err != nil {
		return nil, err
	}
	ks, err := keystore.DecodeKeyStore(n.Store.Format, kd, n.Store.KeystorePassword)
	if err != nil {
		return nil, err
	}
	anchors, err := keystore.DecodeTrustStore(n.Store.Format, td, n.Store.TruststorePassword)
	if err != nil {
		return nil, err
	}
	roots := x509.NewCertPool()
	for _, a := range anchors {
		roots.AddCert(a)
	}
	cert := tls.Certificate{PrivateKey: ks.Key}
	for _, c := range ks.Chain {
		cert.Certificate = append(cert.Certificate, c.Raw)
	}
	return &tls.Config{Certificates: []tls.Certificate{cert}, ClientAuth: tls.RequireAndVerifyClientCert, ClientCAs: roots, SessionTicketsDisabled: true}, nil
}

func crc(b []byte) uint32 {
	return crc32.ChecksumIEEE(append([]byte{0xFA, 0x2D, 0x55, 0xCA}, b...))
}

// answerInitiate reads an Initiate frame and answers with the versions of 5.0: at most 13, used 13.
func answerInitiate(c net.Conn) {
	h := make([]byte, 9)
	if _, err := io.ReadFull(c, h); err != nil || binary.BigEndian.Uint32(h) != 0xCA552DFA {
		return
	}
	rest := make([]byte, int(h[8])+4)
	if _, err := io.ReadFull(c, rest); err != nil {
		return
	}
	body := append(h, rest[:len(rest)-4]...)
	if crc(body) != binary.BigEndian.Uint32(rest[len(rest)-4:]) {
		return
	}
	b := binary.BigEndian.AppendUint32(nil, 13)
	b = binary.BigEndian.AppendUint32(b, 13)
	c.Write(binary.BigEndian.AppendUint32(b, crc(b)))
}

func answerOptions(c net.Conn) {
	h := make([]byte, 9)
	if _, err := io.ReadFull(c, h); err != nil || h[4] != 5 {
		return
	}
	body := []byte{0, 0}
	c.Write(append([]byte{0x84, 0, h[2], h[3], 6, 0, 0, 0, byte(len(body))}, body...))
}
