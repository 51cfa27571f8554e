package node

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"io"
	"log/slog"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/jonboulle/clockwork"

	"github.com/cassandra-security-manager/csm/agent/cassandra"
	"github.com/cassandra-security-manager/csm/agent/cassandra/cassandratest"
	"github.com/cassandra-security-manager/csm/agent/config"
	"github.com/cassandra-security-manager/csm/agent/cql/cqltest"
	"github.com/cassandra-security-manager/csm/agent/reload"
	shared "github.com/cassandra-security-manager/csm/shared/config"
)

// asked is a node's agent as far as it reads its Cassandra over CQL, which is a server of the test in plaintext.
type asked struct {
	*Node
	clock  *clockwork.FakeClock
	server *cqltest.Server
	inst   *cassandra.Instance
	pass   string // file of the password
	tool   *netstats
}

// netstats stands for nodetool.
type netstats struct {
	out   string
	asked int
}

func (n *netstats) Reload(context.Context) (reload.Output, error) { return reload.Output{}, nil }
func (n *netstats) Netstats(context.Context) (string, error)      { n.asked++; return n.out, nil }

func newAsked(t *testing.T, s *cqltest.Server, authenticator string) *asked {
	t.Helper()
	if s.Answer == nil {
		s.Answer = func(q string, _ uint16) cqltest.Answer {
			if strings.Contains(q, "FROM system.local") {
				return cqltest.Answer{Columns: []cqltest.Column{{Name: "partitioner", Type: cqltest.Varchar}}, Rows: [][][]byte{{[]byte("x.RandomPartitioner")}}}
			}
			return cqltest.Answer{Columns: []cqltest.Column{{Name: "x", Type: cqltest.Int}}}
		}
	}
	s.Start(t)
	at := netip.MustParseAddrPort(s.Address())
	a := &asked{clock: clockwork.NewFakeClock(), server: s, pass: filepath.Join(t.TempDir(), "cql.password"), tool: &netstats{out: "Mode: NORMAL\nNot sending any streams.\n"},
		inst: &cassandra.Instance{RPC: at.Addr(), NativePort: at.Port(), NativeTransport: true, Authenticator: authenticator}}
	a.Node = &Node{log: slog.New(slog.NewTextHandler(io.Discard, nil)), o: Options{Clock: a.clock, Reloader: a.tool}}
	return a
}

func (a *asked) password(t *testing.T, text string) {
	t.Helper()
	a.o.Instance.CQL = config.CQL{Username: "csm_agent", Password: shared.Reference("file:" + a.pass)}
	if err := os.WriteFile(a.pass, []byte(text+"\n"), 0o600); err != nil {
		t.Fatal(err)
	}
}

func passwords() *cqltest.Server {
	return &cqltest.Server{Authenticator: "org.apache.cassandra.auth.PasswordAuthenticator", User: "csm_agent", Password: "right"}
}

func TestARefusedPasswordIsToldAndNotTriedAgainWithinTheHour(t *testing.T) {
	a := newAsked(t, passwords(), "PasswordAuthenticator")
	a.password(t, "wrong")
	for range 5 { // controllers may ask as often as they like
		h, c, finding := a.survey(t.Context(), a.inst, true)
		if h.Reason != "cql-login-refused" || c.Reason != "cql-login-refused" || finding == nil || finding.Code != "cql-login-refused" || finding.Remedy == "" {
			t.Fatalf("%v %v %v", h, c, finding)
		}
		if strings.Contains(h.Unprobed+c.Unseen+finding.Message, "wrong") {
			t.Errorf("the password is told: %v", h)
		}
		a.clock.Advance(10 * time.Minute)
	}
	if n := a.server.Logins(); n != 1 {
		t.Errorf("%d logins with one refused password in 50 minutes", n)
	}
	a.password(t, "right")
	h, c, finding := a.survey(t.Context(), a.inst, true)
	if finding != nil || c.Reason != "" || h.Reason != "partitioner" || a.server.Logins() != 2 {
		t.Errorf("another password was not tried at once: %v %v %v", h, c, finding)
	}
	a.password(t, "wrong")
	a.survey(t.Context(), a.inst, true)
	a.clock.Advance(refusedFor + time.Second)
	a.survey(t.Context(), a.inst, true)
	if n := a.server.Logins(); n != 3 {
		t.Errorf("%d logins: the hour is over, so there were 3 or 4", n)
	}
}

func TestWithoutAUserOnlyANodeThatAsksForNoneIsReached(t *testing.T) {
	a := newAsked(t, passwords(), "PasswordAuthenticator")
	h, c, finding := a.survey(t.Context(), a.inst, true)
	if h.Reason != "cql-no-login" || c.Reason != "cql-no-login" || finding != nil || a.server.Startup() != nil {
		t.Errorf("%v %v %v, connected %v", h, c, finding, a.server.Startup() != nil)
	}
	if h.Source != "nodetool" || a.tool.asked != 1 {
		t.Errorf("what is under way was not asked of nodetool: %v", h)
	}
	a = newAsked(t, &cqltest.Server{}, "AllowAllAuthenticator")
	if h, c, _ = a.survey(t.Context(), a.inst, true); c.Reason != "" || h.Source != "cql" || a.tool.asked != 0 {
		t.Errorf("%v %v", h, c)
	}
	a.o.Instance.CQL.Off = true
	if _, c, finding = a.survey(t.Context(), a.inst, true); c.Reason != "cql-off" || finding != nil {
		t.Errorf("%v %v", c, finding)
	}
	if h, c, _ = a.survey(t.Context(), a.inst, false); h.Reason != "down" || c.Reason != "down" {
		t.Errorf("%v %v", h, c)
	}
}

func TestOnlySelectsAreSent(t *testing.T) {
	a := newAsked(t, passwords(), "PasswordAuthenticator")
	a.password(t, "right")
	a.survey(t.Context(), a.inst, true)
	if len(a.server.Asked()) < 4 {
		t.Fatalf("asked %v", a.server.Asked())
	}
	for _, q := range a.server.Asked() {
		if !strings.HasPrefix(q, "SELECT ") {
			t.Errorf("sent %q", q)
		}
	}
}

func TestAMissingGrantIsAFindingAndTheRestIsRead(t *testing.T) {
	s := passwords()
	s.Answer = func(q string, _ uint16) cqltest.Answer {
		if strings.Contains(q, "system_views") {
			return cqltest.Answer{Code: 0x2100, Message: "User csm_agent has no SELECT permission on <table system_views.clients>"}
		}
		return cqltest.Answer{Columns: []cqltest.Column{{Name: "partitioner", Type: cqltest.Varchar}}, Rows: [][][]byte{{[]byte("x.RandomPartitioner")}}}
	}
	a := newAsked(t, s, "PasswordAuthenticator")
	a.password(t, "right")
	h, c, finding := a.survey(t.Context(), a.inst, true)
	if c.Reason != "cql-not-granted" || !strings.Contains(c.Unseen, "system_views.clients") || finding == nil || finding.Code != "cql-not-granted" || h.Reason != "partitioner" || h.Source != "nodetool" {
		t.Errorf("%v %v %v", h, c, finding)
	}
}

func TestAPasswordIsSaidOnlyToTheNodeItself(t *testing.T) {
	ours, other := cassandratest.NewCA(t, "ours"), cassandratest.NewCA(t, "other")
	named := func(ca *cassandratest.CA, ip string) *tls.Certificate {
		l := ca.Leaf(func(c *x509.Certificate) {
			c.IPAddresses = append(c.IPAddresses[:0:0], netip.MustParseAddr(ip).AsSlice())
		})
		out := &tls.Certificate{PrivateKey: l.Key, Leaf: l.Chain[0]}
		for _, c := range l.Chain {
			out.Certificate = append(out.Certificate, c.Raw)
		}
		return out
	}
	served := func(c *tls.Certificate) []*x509.Certificate { return append([]*x509.Certificate{c.Leaf}, rest(c)...) }
	own := named(other, "10.0.0.1") // nobody here trusts its CA
	anchors, now := []*x509.Certificate{ours.Root}, time.Now()
	for name, c := range map[string]struct {
		served *tls.Certificate
		good   bool
	}{
		"its own certificate, whatever it chains to":     {own, true},
		"a newer one of its address, of a trusted CA":    {named(ours, "10.0.0.1"), true},
		"one of another address, of a trusted CA":        {named(ours, "10.0.0.2"), false},
		"one of its address, of a CA that nobody trusts": {named(other, "10.0.0.1"), false},
	} {
		if err := itself(served(c.served), own, anchors, "10.0.0.1", now); (err == nil) != c.good {
			t.Errorf("%s: %v", name, err)
		}
	}
	if itself(nil, own, anchors, "10.0.0.1", now) == nil {
		t.Error("no certificate at all was taken")
	}
	if why := wouldRefuse(named(ours, "10.0.0.1"), anchors, now); why != "" {
		t.Errorf("a good certificate would be refused: %s", why)
	}
	for what, why := range map[string]string{"a CA that the truststore lacks": wouldRefuse(own, anchors, now), "an expired one": wouldRefuse(named(ours, "10.0.0.1"), anchors, now.AddDate(50, 0, 0)),
		"none": wouldRefuse(&tls.Certificate{}, anchors, now)} {
		if why == "" {
			t.Errorf("%s would be shown to Cassandra", what)
		}
	}
}
