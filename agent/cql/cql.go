// Package cql logs in to the agent's own Cassandra and reads from it, by as much of the native protocol as that takes.
//
// It owns the frames of version 4, which every release from 4.0 to 6.0 speaks: OPTIONS (for package probe), STARTUP, a login by
// SASL PLAIN, and QUERY with pages. It refuses to say a password to anyone but the node whose certificate is the node's
// own, or, in plaintext, to an address of another host. The invariant: one connection, opened for a look and closed after it;
// each answer is bounded in size, the whole in time by the context. It prepares nothing, retries nothing and keeps nothing.
// README.md says why it is not the driver.
package cql

import (
	"context"
	"crypto/tls"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"time"

	"github.com/cassandra-security-manager/csm/shared/cli"
	"github.com/cassandra-security-manager/csm/shared/fault"
)

// DriverName is what the agent's own connection is called in system_views.clients.
const DriverName = "csm-agent"

// ErrLate is that no answer came in time. The connection is still good: what comes late is passed over.
var ErrLate = errors.New("no answer in time")

// Options of a connection.
type Options struct {
	// Address is host:port of the node's CQL port.
	Address string
	// TLS, if set, is spoken; nil is plaintext.
	TLS *tls.Config
	// Username and Password log in where the node asks. An empty Username can only speak to a node that does not ask.
	Username string
	Password []byte
}

// Conn is one connection. It is for one goroutine.
type Conn struct {
	c      net.Conn
	stream uint16
	// Authenticator is the class that asked for a login; empty when none did.
	Authenticator string
	// Leaf is the certificate that the node has shown, DER; nil in plaintext.
	Leaf []byte
}

// Open connects and logs in within ctx. Reasons: cql-unreachable, cql-tls, cql-no-login (the node asks and there is no
// user), cql-login-refused, cql-plaintext-remote, cql-protocol.
func Open(ctx context.Context, o Options) (*Conn, error) {
	d := net.Dialer{}
	raw, err := d.DialContext(ctx, "tcp", o.Address)
	if err != nil {
		return nil, fault.Wrap(err, fault.Unavailable, "cql-unreachable", "the CQL port %s cannot be reached", o.Address)
	}
	c := &Conn{c: raw}
	if o.TLS != nil {
		t := tls.Client(raw, o.TLS)
		if err := t.HandshakeContext(ctx); err != nil {
			raw.Close()
			return nil, fault.Wrap(err, fault.Unavailable, "cql-tls", "no TLS with %s", o.Address).Do("`csm-agent probe` shows what the port serves")
		}
		c.c = t
		if shown := t.ConnectionState().PeerCertificates; len(shown) > 0 {
			c.Leaf = shown[0].Raw
		}
	}
	stop := c.bound(ctx)
	defer stop()
	if err := c.login(o); err != nil {
		c.c.Close()
		return nil, err
	}
	return c, nil
}

// bound ends what is under way on the connection when ctx does. end must be called; the connection has no deadline then.
func (c *Conn) bound(ctx context.Context) (end func()) {
	d, _ := ctx.Deadline() // zero is none
	_ = c.c.SetWriteDeadline(d)
	done := make(chan struct{})
	stop := context.AfterFunc(ctx, func() {
		_ = c.c.SetReadDeadline(time.Unix(1, 0)) // a write is short, and one that was cut leaves TLS unusable
		close(done)
	})
	return func() {
		if !stop() {
			<-done
		}
		_ = c.c.SetReadDeadline(time.Time{})
	}
}

// Close ends the connection.
func (c *Conn) Close() { c.c.Close() }

func (c *Conn) login(o Options) error {
	var b body
	b.texts([2]string{"CQL_VERSION", "3.0.0"}, [2]string{"DRIVER_NAME", DriverName}, [2]string{"DRIVER_VERSION", cli.Version})
	op, answer, err := c.call(opStartup, b)
	if err != nil {
		return unspoken(err)
	}
	switch op {
	case opReady:
		return nil
	case opAuthenticate:
		c.Authenticator = (&reader{b: answer}).text()
	default:
		return unspoken(fmt.Errorf("STARTUP was answered by opcode %#02x", op))
	}
	if o.Username == "" && !byCertificate(c.Authenticator) {
		return fault.New(fault.Refused, "cql-no-login", "the node asks for a login (%.100s) and agent.yaml names none", c.Authenticator).
			Do("add cql: {username: ..., password: file:/etc/csm/cql.password} to the instance in agent.yaml")
	}
	if o.TLS == nil && !sameHost(c.c) {
		return fault.New(fault.Refused, "cql-plaintext-remote", "the CQL port %s is not on this host and speaks plaintext: the password stays here", o.Address).
			Do("turn on client_encryption_options")
	}
	b = body{}
	b.bytes(plain(o.Username, o.Password))
	op, _, err = c.call(opAuthResponse, b)
	var e *Error
	switch {
	case errors.As(err, &e) && (e.Code == codeBadCredentials || e.Code == codeUnauthorized):
		return fault.Wrap(err, fault.Refused, "cql-login-refused", "Cassandra refuses the login of role %.100q", o.Username).
			Do("correct cql.username or the password's file in agent.yaml; the same password is not tried again within the hour")
	case err != nil:
		return unspoken(err)
	case op != opAuthSuccess:
		return fault.New(fault.Refused, "cql-login-refused", "the authenticator %.100s wants more than a password", c.Authenticator)
	}
	return nil
}

func unspoken(err error) error {
	return fault.Wrap(err, fault.Unavailable, "cql-protocol", "the CQL port gave no answer that is understood")
}

// byCertificate: the certificate of the connection is the login, and what is said then counts for nothing (MutualTls of 5.0).
func byCertificate(class string) bool {
	for _, known := range []string{"org.apache.cassandra.auth.MutualTlsAuthenticator", "org.apache.cassandra.auth.MutualTlsWithPasswordFallbackAuthenticator"} {
		if class == known {
			return true
		}
	}
	return false
}

// plain is the one message of SASL PLAIN (RFC 4616) without an authorization identity.
func plain(user string, password []byte) []byte {
	out := append([]byte{0}, user...)
	return append(append(out, 0), password...)
}

// sameHost: a connection to an address of one's own has that address at both ends.
func sameHost(c net.Conn) bool {
	own, ok := c.LocalAddr().(*net.TCPAddr)
	peer, ok2 := c.RemoteAddr().(*net.TCPAddr)
	return ok && ok2 && (own.IP.Equal(peer.IP) || peer.IP.IsLoopback())
}

// call sends a request and reads its answer; an ERROR comes back as *Error.
func (c *Conn) call(op byte, b []byte) (byte, []byte, error) {
	c.stream = (c.stream + 1) & 0x7fff
	if err := writeFrame(c.c, c.stream, op, b); err != nil {
		return 0, nil, err
	}
	for {
		stream, got, answer, err := readFrame(c.c, maxAnswer)
		if err != nil {
			return 0, nil, err
		}
		if stream != c.stream {
			continue // a late answer to nobody
		}
		if got == opError {
			return got, nil, parseError(answer)
		}
		return got, answer, nil
	}
}

// Ask sends OPTIONS and says what answered. It needs no login: whoever gets as far has been accepted by TLS.
func Ask(c net.Conn) (string, error) {
	if err := writeFrame(c, 0, opOptions, nil); err != nil {
		return "", err
	}
	_, op, _, err := readFrame(c, maxAnswer)
	if err != nil {
		return "", err
	}
	if op != opSupported {
		return "", fmt.Errorf("OPTIONS was answered by opcode %#02x, not SUPPORTED", op)
	}
	return fmt.Sprintf("SUPPORTED, protocol version %d", version), nil
}

func writeFrame(w io.Writer, stream uint16, op byte, b []byte) error {
	h := []byte{version, 0, byte(stream >> 8), byte(stream), op}
	h = binary.BigEndian.AppendUint32(h, uint32(len(b)))
	_, err := w.Write(append(h, b...))
	return err
}

func readFrame(r io.Reader, limit uint32) (stream uint16, op byte, b []byte, err error) {
	h := make([]byte, 9)
	if n, err := io.ReadFull(r, h); err != nil {
		if n == 0 && errors.Is(err, os.ErrDeadlineExceeded) {
			err = fmt.Errorf("%w: %w", ErrLate, err)
		}
		return 0, 0, nil, err
	}
	size := binary.BigEndian.Uint32(h[5:])
	switch {
	case h[0]&0x80 == 0:
		return 0, 0, nil, fmt.Errorf("not an answer of the native protocol: %#02x", h[0])
	case h[1]&^0x08 != 0: // compression or tracing, which were not asked for; 0x08 is a warning
		return 0, 0, nil, fmt.Errorf("an answer with flags %#02x", h[1])
	case size > limit:
		return 0, 0, nil, fmt.Errorf("an answer of %d bytes, more than %d", size, limit)
	}
	b = make([]byte, size)
	if _, err = io.ReadFull(r, b); err != nil {
		return 0, 0, nil, err
	}
	if h[1]&0x08 != 0 { // warnings come first: a list of texts
		x := &reader{b: b}
		for n := x.short(); n > 0 && x.err == nil; n-- {
			x.text()
		}
		if x.err != nil {
			return 0, 0, nil, x.err
		}
		b = x.b
	}
	return binary.BigEndian.Uint16(h[2:]), h[4], b, nil
}
