//go:build linux

package survey_test

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"net/netip"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	gocql "github.com/apache/cassandra-gocql-driver/v2"

	"github.com/cassandra-security-manager/csm/agent/cql"
	"github.com/cassandra-security-manager/csm/agent/survey"
	agentv1 "github.com/cassandra-security-manager/csm/protocol/agent/v1"
	"github.com/cassandra-security-manager/csm/shared/fault"
	"github.com/cassandra-security-manager/csm/test/handmade"
	"github.com/cassandra-security-manager/csm/test/process"
	"github.com/cassandra-security-manager/csm/test/ring"
)

const patience = 3 * time.Minute

// grants are the statements of docs/agent.md.
var grants = []string{
	`CREATE ROLE csm_agent WITH PASSWORD = 'agent-password' AND LOGIN = true`,
	`GRANT SELECT ON system_views.clients TO csm_agent`,
	`GRANT SELECT ON system_views.streaming TO csm_agent`,
	`GRANT SELECT ON system_views.repairs TO csm_agent`,
	`GRANT SELECT ON system_distributed.view_build_status TO csm_agent`,
}

type realRing struct {
	t    *testing.T
	ca   *handmade.CA
	ring *ring.Ring
	ctx  context.Context
}

func startRing(t *testing.T, passwords bool, nodes int) *realRing {
	t.Helper()
	if testing.Short() {
		t.Skip("a real Cassandra ring is left out of -short runs")
	}
	ctx, cancel := context.WithTimeout(t.Context(), 5*time.Minute)
	t.Cleanup(cancel)
	dist, err := ring.Prepare(ctx, "../../build/cassandra/"+ring.Version, false, func(s string) { t.Log(s) })
	if err != nil {
		t.Fatal(err)
	}
	loopback, err := process.Claim(120, nodes, ring.StoragePort, ring.NativePort)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(loopback.Release)
	o := ring.Options{Dir: t.TempDir(), Cluster: "survey-test", Passwords: passwords, PlaintextClients: true}
	for i := range nodes {
		o.Addresses = append(o.Addresses, loopback.Host(i+1))
	}
	r, err := ring.New(dist, o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(r.Kill)
	ca := handmade.New(t)
	for _, n := range r.Nodes {
		ca.Equip(n)
	}
	if err := r.Start(ctx); err != nil {
		t.Fatal(err)
	}
	return &realRing{t: t, ca: ca, ring: r, ctx: ctx}
}

func (r *realRing) tls() *tls.Config {
	pool := x509.NewCertPool()
	pool.AddCert(r.ca.Root())
	return &tls.Config{RootCAs: pool, MinVersion: tls.VersionTLS12}
}

// open connects to a node as the agent does.
func (r *realRing) open(n int, encrypted bool, user, password string) (*cql.Conn, error) {
	o := cql.Options{Address: netip.AddrPortFrom(r.ring.Nodes[n].Address, ring.NativePort).String(), Username: user, Password: []byte(password)}
	if encrypted {
		o.TLS = r.tls()
		o.TLS.ServerName = r.ring.Nodes[n].Address.String()
	}
	ctx, cancel := context.WithTimeout(r.ctx, 20*time.Second)
	defer cancel()
	return cql.Open(ctx, o)
}

// application is a client of the ring with the project's driver, connected to one node.
func (r *realRing) application(n int, encrypted bool, user, password string) *gocql.Session {
	r.t.Helper()
	c := gocql.NewCluster(r.ring.Nodes[n].Address.String())
	c.ProtoVersion, c.Timeout, c.ConnectTimeout, c.NumConns = 5, 20*time.Second, 20*time.Second, 1
	c.DisableInitialHostLookup, c.Metadata.CacheMode = true, gocql.Disabled
	if user != "" {
		c.Authenticator = gocql.PasswordAuthenticator{Username: user, Password: password}
	}
	if encrypted {
		c.SslOpts = &gocql.SslOptions{Config: r.tls(), EnableHostVerification: true}
	}
	var last error
	for end := time.Now().Add(patience); time.Now().Before(end); time.Sleep(500 * time.Millisecond) {
		s, err := c.CreateSession()
		if err == nil {
			r.t.Cleanup(func() { go s.Close() })
			return s
		}
		last = err
	}
	r.t.Fatalf("no application can connect: %v", last)
	return nil
}

// eventually asks again until the ring gives what is right: a ring that has just started is not at rest.
func (r *realRing) eventually(what string, do func() error) {
	r.t.Helper()
	var last error
	for end := time.Now().Add(patience); time.Now().Before(end); time.Sleep(300 * time.Millisecond) {
		if last = do(); last == nil {
			return
		}
	}
	r.t.Fatalf("%s: %v", what, last)
}

func TestARealRingAsARoleThatMayOnlyReadIt(t *testing.T) {
	r := startRing(t, true, 3)
	admin := r.application(0, true, "cassandra", "cassandra")
	for _, s := range append(slices.Clone(grants), `CREATE ROLE stranger WITH PASSWORD = 'stranger' AND LOGIN = true`,
		`CREATE KEYSPACE lonely WITH replication = {'class': 'NetworkTopologyStrategy', 'dc1': 1}`) {
		r.eventually(s, func() error {
			err := admin.Query(s).ExecContext(r.ctx)
			if err != nil && strings.Contains(err.Error(), "already exists") {
				return nil
			}
			return err
		})
	}
	r.application(0, false, "cassandra", "cassandra") // somebody who speaks plaintext, and stays

	var conn *cql.Conn
	r.eventually("the agent logs in", func() (err error) {
		conn, err = r.open(0, true, "csm_agent", "agent-password")
		return err
	})
	defer conn.Close()

	t.Run("clients, without the agent itself", func(t *testing.T) {
		f, err := survey.Clients(r.ctx, conn, nil)
		if err != nil {
			t.Fatal(err)
		}
		if f.Plaintext == 0 || f.Encrypted == 0 || len(f.Seen) != 2 || f.Seen[0].Tls != "" || !strings.HasPrefix(f.Seen[1].Tls, "TLSv1.") || f.Seen[0].User != "cassandra" || f.Seen[0].Protocol != 5 {
			t.Errorf("%v", f)
		}
		if len(f.PlaintextClients) != 1 || f.PlaintextClients[0].Address != "127.0.0.1" && !strings.HasPrefix(f.PlaintextClients[0].Address, "127.") {
			t.Errorf("plaintext: %v", f.PlaintextClients)
		}
	})

	t.Run("ranges of the two others answer at every quorum", func(t *testing.T) {
		r.eventually("all answer", func() error {
			f, err := survey.Ring(r.ctx, conn, "")
			if err != nil {
				return err
			}
			return answers(f, 2, "LOCAL_QUORUM ok, QUORUM ok, ALL ok")
		})
		f, err := survey.Ring(r.ctx, conn, "")
		if err != nil || !slices.Contains(f.SingleReplica, "lonely") || slices.Contains(f.SingleReplica, "system_distributed") {
			t.Errorf("%v %v", f.GetSingleReplica(), err)
		}
	})

	t.Run("what is under way", func(t *testing.T) {
		if works, err := survey.Works(r.ctx, conn); err != nil || len(works) != 0 {
			t.Errorf("at rest: %v %v", works, err)
		}
	})

	t.Run("plaintext to one's own host works too", func(t *testing.T) {
		c, err := r.open(0, false, "csm_agent", "agent-password")
		if err != nil {
			t.Fatal(err)
		}
		c.Close()
	})

	t.Run("a wrong password, no user, no grant", func(t *testing.T) {
		if _, err := r.open(0, true, "csm_agent", "wrong"); !fault.HasReason(err, "cql-login-refused") {
			t.Errorf("a wrong password: %v", err)
		}
		if _, err := r.open(0, true, "", ""); !fault.HasReason(err, "cql-no-login") {
			t.Errorf("no user: %v", err)
		}
		c, err := r.open(0, true, "stranger", "stranger")
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		if _, err := survey.Clients(r.ctx, c, nil); !fault.HasReason(err, "cql-not-granted") {
			t.Errorf("no grant: %v", err)
		}
		if f, err := survey.Ring(r.ctx, c, ""); err != nil || f.Reason != "cql-not-granted" || len(f.Probes) != 0 {
			t.Errorf("no grant: %v %v", f, err)
		}
		if _, err := survey.Ring(r.ctx, conn, "load.none"); !fault.HasReason(err, "cql-no-table") {
			t.Errorf("a table that is not there: %v", err)
		}
	})

	t.Run("replicas that there are not are missed at once, at each level that needs them", func(t *testing.T) {
		for keyspace, c := range map[string]struct{ replicas, want string }{
			"five":  {"5", "LOCAL_QUORUM ok, QUORUM ok, ALL no"},
			"seven": {"7", "LOCAL_QUORUM no, QUORUM no, ALL no"},
		} {
			for _, s := range []string{`CREATE KEYSPACE IF NOT EXISTS ` + keyspace + ` WITH replication = {'class': 'NetworkTopologyStrategy', 'dc1': ` + c.replicas + `}`,
				`CREATE TABLE IF NOT EXISTS ` + keyspace + `.t (a text, b int, c int, PRIMARY KEY ((a, b), c))`, `GRANT SELECT ON ` + keyspace + `.t TO csm_agent`} {
				r.eventually(s, func() error { return admin.Query(s).ExecContext(r.ctx) })
			}
			r.eventually(keyspace, func() error {
				f, err := survey.Ring(r.ctx, conn, keyspace+".t")
				if err != nil {
					return err
				}
				return answers(f, 2, c.want)
			})
		}
	})

	t.Run("a member that is gone does not answer ALL", func(t *testing.T) {
		r.ring.Nodes[2].Kill()
		r.eventually("ALL fails where node 3 has a replica", func() error {
			f, err := survey.Ring(r.ctx, conn, "")
			if err != nil {
				return err
			}
			for _, p := range f.Probes {
				if n := len(p.Answers); n != 3 || p.Answers[n-1].Ok {
					return errors.New(f.String())
				}
			}
			return nil
		})
	})
}

func answers(f *agentv1.HealthFacts, members int, want string) error {
	if f.Unprobed != "" || len(f.Probes) != members {
		return errors.New(f.String())
	}
	for _, p := range f.Probes {
		var got []string
		for _, a := range p.Answers {
			got = append(got, a.Consistency+map[bool]string{true: " ok", false: " no"}[a.Ok])
		}
		if strings.Join(got, ", ") != want {
			return errors.New(f.String())
		}
	}
	return nil
}

func TestARealCassandraThatAsksForNoLogin(t *testing.T) {
	if os.Getenv("CSM_TEST_FULL") == "" {
		t.Skip("a Cassandra of its own for one question: `make test-full` runs it")
	}
	r := startRing(t, false, 1)
	app := r.application(0, false, "", "")
	if err := app.Query(`SELECT key FROM system.local`).ExecContext(r.ctx); err != nil {
		t.Fatal(err)
	}
	conn, err := r.open(0, true, "", "")
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	f, err := survey.Clients(r.ctx, conn, nil)
	if err != nil || f.Plaintext == 0 || f.Encrypted != 0 || f.PlaintextClients[0].User != "anonymous" {
		t.Errorf("%v %v", f, err)
	}
	h, err := survey.Ring(r.ctx, conn, "")
	if err != nil || len(h.Probes) != 0 || h.Unprobed != "" {
		t.Errorf("%v %v", h, err)
	}

}
