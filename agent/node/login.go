package node

import (
	"bytes"
	"cmp"
	"context"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"net/netip"
	"time"

	"github.com/cassandra-security-manager/csm/agent/cassandra"
	"github.com/cassandra-security-manager/csm/agent/cql"
	"github.com/cassandra-security-manager/csm/agent/install"
	agentv1 "github.com/cassandra-security-manager/csm/protocol/agent/v1"
	"github.com/cassandra-security-manager/csm/shared/fault"
)

// refusedFor is how long a login that Cassandra has refused is not tried again: an authenticator behind which a directory stands
// may lock a role that fails too often. Another password is tried at once.
const refusedFor = time.Hour

// login is how the node is logged in to, and which login was refused. It belongs to the goroutine that looks at the ring.
type login struct {
	refused  [sha256.Size]byte
	until    time.Time
	lastTold error
}

// openCQL connects to the node's own CQL port and logs in. What cannot work is not tried: a certificate that would be refused
// writes a line into Cassandra's log, and a password that was refused counts against its role.
func (n *Node) openCQL(ctx context.Context, inst *cassandra.Instance) (*cql.Conn, error) {
	conf := n.o.Instance.CQL
	switch {
	case conf.Off:
		return nil, fault.New(fault.Refused, "cql-off", "cql.off is set in agent.yaml")
	case conf.Username == "" && asksForPassword(inst.Authenticator):
		return nil, fault.New(fault.Refused, "cql-no-login", "Cassandra asks for a login (%.100s) and agent.yaml names none", inst.Authenticator).
			Do("add cql: {username: ..., password: file:/etc/csm/cql.password} to the instance in agent.yaml")
	}
	port := inst.CQLPort()
	o := cql.Options{Address: netip.AddrPortFrom(port.Address, port.Port).String(), Username: conf.Username}
	var err error
	if o.TLS, err = n.cqlTLS(inst); err != nil {
		return nil, err
	}
	if conf.Username != "" {
		if o.Password, err = conf.Password.Resolve(); err != nil {
			return nil, err
		}
		defer clear(o.Password)
	}
	now, sum := n.o.Clock.Now(), sha256.Sum256(append([]byte(conf.Username+"\x00"), o.Password...))
	if sum == n.login.refused && now.Before(n.login.until) {
		return nil, n.login.lastTold
	}
	c, err := cql.Open(ctx, o)
	if fault.HasReason(err, "cql-login-refused") {
		n.login = login{refused: sum, until: now.Add(refusedFor), lastTold: err}
	}
	return c, err
}

// asksForPassword says whether a class of authenticator is known to ask for a user: nothing is tried without one then.
func asksForPassword(class string) bool {
	switch class {
	case "", "AllowAllAuthenticator", "MutualTlsAuthenticator", "MutualTlsWithPasswordFallbackAuthenticator":
		return false
	}
	return true
}

// cqlTLS is the TLS that the node's CQL port speaks: nil where that is plaintext alone.
func (n *Node) cqlTLS(inst *cassandra.Instance) (*tls.Config, error) {
	s := inst.Client
	if !s.Active() {
		return nil, nil
	}
	if len(inst.Stores) == 0 {
		return nil, fault.New(fault.Unavailable, "cql-no-certificate", "the CQL port speaks TLS with stores that cannot be read")
	}
	store := storeFor(inst, agentv1.PortKind_PORT_KIND_CQL)
	own, err := install.Certificate(store)
	if err != nil {
		return nil, fault.Wrap(err, fault.Unavailable, "cql-no-certificate", "the node's own certificate cannot be read")
	}
	anchors := install.Trusted(store)
	now := n.o.Clock.Now()
	if s.ClientAuth == "true" {
		if why := wouldRefuse(own, anchors, now); why != "" {
			return nil, fault.New(fault.Refused, "cql-no-certificate", "the CQL port asks for a client certificate and would refuse the node's own: %s", why)
		}
	}
	address := inst.CQLPort().Address.String()
	return &tls.Config{
		MinVersion: tls.VersionTLS12, // Cassandra's side decides; 4.0 on Java 8 speaks no more
		ServerName: address,
		// The name is checked below, where the certificate is not the one in the node's own store.
		InsecureSkipVerify: true,
		VerifyConnection:   func(cs tls.ConnectionState) error { return itself(cs.PeerCertificates, own, anchors, address, now) },
		GetClientCertificate: func(*tls.CertificateRequestInfo) (*tls.Certificate, error) {
			if s.ClientAuth == "true" {
				return own, nil
			}
			return &tls.Certificate{}, nil
		},
	}, nil
}

// wouldRefuse says why Cassandra would not take the certificate of a client; empty when it would. Pure.
func wouldRefuse(own *tls.Certificate, anchors []*x509.Certificate, now time.Time) string {
	switch l := own.Leaf; {
	case l == nil:
		return "it cannot be read"
	case !usable(l):
		return "it is not for clients"
	default:
		if err := verify(append([]*x509.Certificate{l}, rest(own)...), anchors, "", now, x509.ExtKeyUsageClientAuth); err != nil {
			return clip(err.Error(), 300)
		}
	}
	return ""
}

func rest(c *tls.Certificate) (out []*x509.Certificate) {
	for _, der := range c.Certificate[min(1, len(c.Certificate)):] {
		if x, err := x509.ParseCertificate(der); err == nil {
			out = append(out, x)
		}
	}
	return out
}

// itself takes the node's own certificate, whatever it chains to, and otherwise one of the node's address that its truststore
// trusts: between two writes of an install the file may be newer than what is served. Pure.
func itself(served []*x509.Certificate, own *tls.Certificate, anchors []*x509.Certificate, address string, now time.Time) error {
	if len(served) == 0 {
		return errors.New("the server sent no certificate")
	}
	if len(own.Certificate) > 0 && bytes.Equal(served[0].Raw, own.Certificate[0]) {
		return nil
	}
	return verify(served, anchors, address, now, x509.ExtKeyUsageServerAuth)
}

func verify(chain, anchors []*x509.Certificate, name string, now time.Time, usage x509.ExtKeyUsage) error {
	o := x509.VerifyOptions{Roots: x509.NewCertPool(), Intermediates: x509.NewCertPool(), DNSName: name, CurrentTime: now, KeyUsages: []x509.ExtKeyUsage{usage}}
	for _, a := range anchors {
		o.Roots.AddCert(a)
	}
	for _, c := range chain[1:] {
		o.Intermediates.AddCert(c)
	}
	_, err := chain[0].Verify(o)
	return err
}

// loginFinding is what a person must put right before Cassandra can be read; nil when nothing is wrong, or only not set up.
func loginFinding(err error) *agentv1.Finding {
	if err == nil {
		return nil
	}
	e := fault.From(err)
	switch e.Reason {
	case "cql-login-refused", "cql-not-granted", "cql-no-table", "cql-plaintext-remote", "no-secret":
		return &agentv1.Finding{Code: e.Reason, Severity: "warning", Message: clip(e.Error(), 1000), Remedy: clip(cmp.Or(e.Remedy, "see `cql` in docs/agent.md"), 1000)}
	}
	return nil
}
