// Package probe proves over the network what a Cassandra node serves and whether it takes our certificate.
//
// It owns the bytes of the two probes: an Initiate frame answered by an Accept frame on the internode port, and OPTIONS
// answered by SUPPORTED on the CQL port. It refuses to take silence for consent: under TLS 1.3 a refusal of the client's
// certificate comes after the handshake, and a stalled JVM sends nothing at all, so only an application-level answer is
// counted as accepted. The invariant: a Result is ACCEPTED only if the expected leaf was served by a peer that proved
// possession of its key, and that peer answered after having seen our certificate.
package probe

import (
	"context"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"strconv"
	"strings"
	"time"

	agentv1 "github.com/cassandra-security-manager/csm/protocol/agent/v1"
)

// DefaultTimeout bounds a whole probe: connect, handshake and answer. A healthy node answers in milliseconds.
const DefaultTimeout = 5 * time.Second

// Request says what to probe and with what.
type Request struct {
	// Kind chooses the language spoken after the handshake: PORT_KIND_INTERNODE or PORT_KIND_CQL.
	Kind agentv1.PortKind
	// Address is an IP address or a host name; Port is the TCP port.
	Address string
	Port    uint16
	// Local is the source address, if valid. An internode port with endpoint verification takes a certificate only from
	// an address that the certificate names, so an agent binds its node's listen address here.
	Local netip.Addr
	// Certificate is presented whatever the server's list of authorities says. Nil presents none: on an internode port
	// that asks for one this writes an ERROR into Cassandra's log, so do it only to such as do not ask.
	Certificate *tls.Certificate
	// Roots are the anchors the served chain is verified against; empty leaves the chain unverified.
	Roots []*x509.Certificate
	// ExpectLeaf is the SHA-256 of the leaf that should be served; zero takes any leaf.
	ExpectLeaf [32]byte
	// Timeout bounds the probe; 0 is DefaultTimeout.
	Timeout time.Duration
	// Now is the clock for the chain's validity; nil is time.Now.
	Now func() time.Time
}

// Result is what was seen. Served and Chain are filled as soon as the server has sent its certificate, also when the
// probe is refused later.
type Result struct {
	Verdict agentv1.Verdict
	// Served is the SHA-256 of the served leaf's DER; zero when none was seen.
	Served [32]byte
	// Chain is what was served, leaf first.
	Chain []*x509.Certificate
	// Anchor is the one of Roots that the served chain leads to; nil when none was given or found.
	Anchor *x509.Certificate
	// Asked says that the server asked for a client certificate. Only then does its answer say that it trusts ours.
	Asked bool
	asks  *tls.CertificateRequestInfo
	// Untrusted says why the served chain does not verify against Roots; empty when it does or when none were given.
	Untrusted string
	// Accepted says that the peer answered at application level, whatever leaf it served.
	Accepted bool
	// TLS is the negotiated version, 0 before the handshake ended.
	TLS uint16
	// Took is the time from dialling to the verdict.
	Took time.Duration
	// Detail is for people: the alert, the error, or the answer.
	Detail string
}

// Proven reports whether the result is a proof: accepted, the right leaf, and a chain that verifies where anchors were given.
func (r Result) Proven() bool {
	return r.Verdict == agentv1.Verdict_VERDICT_ACCEPTED && r.Untrusted == ""
}

// Probe runs one probe. It never fails: what went wrong is the Result.
func Probe(ctx context.Context, q Request) Result {
	start := time.Now()
	timeout := q.Timeout
	if timeout <= 0 {
		timeout = DefaultTimeout
	}
	ctx, cancel := context.WithTimeout(ctx, timeout)
	defer cancel()
	r := q.run(ctx)
	if r.Verdict != agentv1.Verdict_VERDICT_DOWN && r.Served != ([32]byte{}) && q.ExpectLeaf != ([32]byte{}) && r.Served != q.ExpectLeaf {
		r.Verdict = agentv1.Verdict_VERDICT_WRONG_LEAF
		r.Detail = fmt.Sprintf("served leaf %x, expected %x; %s", r.Served[:6], q.ExpectLeaf[:6], r.Detail)
	}
	r.Took = time.Since(start)
	return r
}

func (q Request) run(ctx context.Context) (r Result) {
	r.Verdict = agentv1.Verdict_VERDICT_UNKNOWN
	var say func(net.Conn) (string, error)
	switch q.Kind {
	case agentv1.PortKind_PORT_KIND_INTERNODE:
		say = initiate
	case agentv1.PortKind_PORT_KIND_CQL:
		say = options
	default:
		r.Detail = fmt.Sprintf("no probe for port kind %v", q.Kind)
		return r
	}
	raw, err := q.dial(ctx)
	if err != nil {
		if isRefused(err) {
			r.Verdict = agentv1.Verdict_VERDICT_DOWN
		}
		r.Detail = short(err)
		return r
	}
	defer raw.Close()
	stop := context.AfterFunc(ctx, func() { raw.SetDeadline(time.Unix(1, 0)) })
	defer stop()

	conn := tls.Client(raw, q.config(&r))
	if err := conn.HandshakeContext(ctx); err != nil {
		r.judge(err)
		return r
	}
	r.TLS = conn.ConnectionState().Version
	answer, err := say(conn)
	if err != nil {
		r.judge(err)
		return r
	}
	r.Accepted, r.Verdict, r.Detail = true, agentv1.Verdict_VERDICT_ACCEPTED, answer
	return r
}

func (q Request) dial(ctx context.Context) (net.Conn, error) {
	d := net.Dialer{}
	if q.Local.IsValid() {
		d.LocalAddr = net.TCPAddrFromAddrPort(netip.AddrPortFrom(q.Local, 0))
	}
	return d.DialContext(ctx, "tcp", net.JoinHostPort(q.Address, strconv.Itoa(int(q.Port))))
}

// config captures the served chain in r before the handshake can fail on our certificate. Trust is judged apart from
// the handshake: a probe must see what an untrusted peer serves.
func (q Request) config(r *Result) *tls.Config {
	name := q.Address
	return &tls.Config{
		MinVersion:         tls.VersionTLS12, // Cassandra's side decides; 4.0 on Java 8 speaks no more
		ServerName:         name,
		InsecureSkipVerify: true,
		VerifyConnection: func(cs tls.ConnectionState) error {
			if len(cs.PeerCertificates) == 0 {
				return errors.New("the server sent no certificate")
			}
			r.Chain = cs.PeerCertificates
			r.Served = sha256.Sum256(cs.PeerCertificates[0].Raw)
			r.Anchor, r.Untrusted = q.leads(cs.PeerCertificates)
			return nil
		},
		GetClientCertificate: func(asks *tls.CertificateRequestInfo) (*tls.Certificate, error) {
			r.Asked, r.asks = true, asks
			if q.Certificate == nil {
				return &tls.Certificate{}, nil
			}
			return q.Certificate, nil
		},
	}
}

// Takes says why the server could not take a certificate from a client, whoever issued it: its TLS library verifies no signature of that
// kind of key. BoringSSL, which Cassandra uses where it can, verifies none of P-521. Nil where no certificate was asked for.
func (r Result) Takes(c *tls.Certificate) error {
	if r.asks == nil || c == nil {
		return nil
	}
	asks := *r.asks
	asks.AcceptableCAs = nil
	return asks.SupportsCertificate(c)
}

// leads finds the anchor of a served chain, or says why there is none.
func (q Request) leads(chain []*x509.Certificate) (anchor *x509.Certificate, untrusted string) {
	if len(q.Roots) == 0 {
		return nil, ""
	}
	roots, inter := x509.NewCertPool(), x509.NewCertPool()
	for _, c := range q.Roots {
		roots.AddCert(c)
	}
	for _, c := range chain[1:] {
		inter.AddCert(c)
	}
	o := x509.VerifyOptions{Roots: roots, Intermediates: inter, KeyUsages: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth}}
	if q.Now != nil {
		o.CurrentTime = q.Now()
	}
	found, err := chain[0].Verify(o)
	if err != nil {
		return nil, clip(err.Error())
	}
	return found[0][len(found[0])-1], ""
}

// Issuer is the certificate in the served chain that signed the leaf; the anchor where nothing was served between the two.
// Nil when neither is known.
func (r Result) Issuer() *x509.Certificate {
	if len(r.Chain) > 1 {
		return r.Chain[1]
	}
	return r.Anchor
}

// judge turns an error after the connection stood into a verdict: an alert is a refusal, all else is not known.
func (r *Result) judge(err error) {
	var header tls.RecordHeaderError
	switch {
	case isRemote(err):
		r.Verdict, r.Detail = agentv1.Verdict_VERDICT_REFUSED, "alert: "+short(err)
	case errors.As(err, &header):
		r.Detail = "not-tls: the port does not speak TLS"
	case errors.Is(err, io.EOF), errors.Is(err, io.ErrUnexpectedEOF):
		r.Detail = "closed without an answer"
	case isTimeout(err):
		r.Detail = "silence until the time was up"
	default:
		r.Detail = short(err)
	}
}

// isRemote tells an alert that the peer sent from one that we sent: crypto/tls wraps both in a net.OpError around an
// unexported type (tls.AlertError is QUIC's alone), so the operation is all there is to go by.
func isRemote(err error) bool {
	var op *net.OpError
	return errors.As(err, &op) && op.Op == "remote error"
}

func isTimeout(err error) bool {
	var n net.Error
	return errors.Is(err, context.DeadlineExceeded) || errors.Is(err, context.Canceled) || errors.As(err, &n) && n.Timeout()
}

func short(err error) string { return clip(err.Error()) }

func clip(s string) string {
	s = strings.ToValidUTF8(s, "?")
	if len(s) > 300 {
		return s[:300]
	}
	return s
}
