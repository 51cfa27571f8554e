package identity_test

import (
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"net"
	"strings"
	"testing"
	"time"

	"github.com/cassandra-security-manager/csm/shared/fault"
	"github.com/cassandra-security-manager/csm/shared/identity"
)

// resumption is an agent and two controllers that share the keys of their tickets.
type resumption struct {
	t       *testing.T
	clock   time.Time
	trusted []*x509.Certificate // by the controllers
	bundle  []*x509.Certificate // of the agent
	own     *tls.Certificate
	keys    *tls.Config
	away    bool
	client  *tls.Config
	servers map[string]*tls.Config
}

func newResumption(t *testing.T, system ca) *resumption {
	r := &resumption{t: t, clock: now, trusted: []*x509.Certificate{system.cert}, bundle: []*x509.Certificate{system.cert}, servers: map[string]*tls.Config{}}
	r.own = system.issue(t, now.Add(time.Hour), identity.AgentID(td, "u", 1))
	r.turn(1)
	tick := func() time.Time { return r.clock }
	for _, name := range []string{"c1", "c2"} {
		own := system.issue(t, now.Add(time.Hour), identity.ControllerID(td, name))
		v := identity.Verifier{Roots: func() []*x509.Certificate { return r.trusted }, TrustDomain: td, Kinds: []identity.Kind{identity.Agent}, Now: tick,
			Check: func(*x509.Certificate, identity.ID) error {
				if r.away {
					return fault.New(fault.Unauthenticated, "away", "it is suspended")
				}
				return nil
			}}
		c := identity.ServerConfig(func() (*tls.Certificate, error) { return own, nil }, tls.RequestClientCert, v)
		c.Time = tick
		identity.Resume(c, v, func() *tls.Config { return r.keys })
		r.servers[name] = c
	}
	v := identity.Verifier{Roots: func() []*x509.Certificate { return r.bundle }, TrustDomain: td, Kinds: []identity.Kind{identity.Controller}, Now: tick}
	r.client = identity.ClientConfig(func() (*tls.Certificate, error) { return r.own, nil }, v)
	r.client.Time, r.client.ServerName = tick, "controllers"
	r.client.ClientSessionCache = &identity.Sessions{Owner: func() [sha256.Size]byte { return identity.Mark([]*x509.Certificate{r.own.Leaf}, r.bundle) }}
	return r
}

// turn makes the keys of tickets others.
func (r *resumption) turn(n byte) {
	r.keys = &tls.Config{Time: func() time.Time { return r.clock }}
	r.keys.SetSessionTicketKeys([][32]byte{{n}})
}

// meet shakes hands with a controller, and says what became of it.
func (r *resumption) meet(server string) string {
	r.t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		r.t.Fatal(err)
	}
	defer l.Close()
	served := make(chan string, 1)
	go func() {
		raw, err := l.Accept()
		if err != nil {
			served <- err.Error()
			return
		}
		defer raw.Close()
		c := tls.Server(raw, r.servers[server])
		if err := c.Handshake(); err != nil {
			served <- err.Error()
			return
		}
		_, err = c.Write([]byte("x")) // the ticket comes before it
		if err != nil {
			served <- err.Error()
			return
		}
		who, err := identity.FromCertificate(c.ConnectionState().PeerCertificates[0])
		if err != nil {
			served <- err.Error()
			return
		}
		how := "full "
		if c.ConnectionState().DidResume {
			how = "resumed "
		}
		served <- how + who.Path
	}()
	raw, err := net.Dial("tcp", l.Addr().String())
	if err != nil {
		r.t.Fatal(err)
	}
	defer raw.Close()
	c := tls.Client(raw, identity.ForDial(r.client))
	_, err = c.Read(make([]byte, 1))
	how := <-served
	if err != nil && !strings.Contains(how, "suspended") && !strings.Contains(how, "not trusted") && !strings.Contains(how, "bad certificate") {
		r.t.Errorf("the client: %v; the server: %s", err, how)
	}
	return how
}

func (r *resumption) want(server, how string) {
	r.t.Helper()
	if got := r.meet(server); !strings.Contains(got, how) {
		r.t.Errorf("at %s: %q, want %q", server, got, how)
	}
}

func TestASessionIsResumedAtAnyControllerAndVouchesForNoMoreThanItSaw(t *testing.T) {
	system, next := makeCA(t), makeCA(t)
	r := newResumption(t, system)
	r.want("c1", "full")
	r.want("c1", "resumed")
	r.want("c2", "resumed")
	r.want("c1", "resumed")

	r.away = true
	r.want("c1", "suspended")
	r.away = false
	r.want("c1", "resumed")

	r.trusted = []*x509.Certificate{system.cert, next.cert}
	r.want("c1", "full")
	r.want("c1", "resumed")
	r.trusted = []*x509.Certificate{next.cert}
	r.want("c1", "not trusted")
	r.trusted = []*x509.Certificate{system.cert}
	r.want("c1", "full")

	r.turn(2)
	r.want("c1", "full")
	r.want("c2", "resumed")

	r.bundle = []*x509.Certificate{system.cert, next.cert}
	r.want("c2", "full")
	r.want("c2", "resumed")
	r.own = system.issue(t, now.Add(2*time.Hour), identity.AgentID(td, "u", 2))
	r.want("c2", "full u/2")
	if got := r.meet("c2"); got != "resumed u/2" {
		t.Errorf("with a new identity: %q", got)
	}

	r.bundle = []*x509.Certificate{next.cert}
	r.want("c1", "bad certificate")
	r.bundle = []*x509.Certificate{system.cert}
	r.want("c1", "full")
	r.clock = now.Add(90 * time.Minute) // the controllers' certificates have expired, the agent's has not
	r.want("c1", "bad certificate")
}

func TestASessionBelongsToWhoTheClientWasWhenItDialed(t *testing.T) {
	owner := [sha256.Size]byte{1}
	s := &identity.Sessions{Owner: func() [sha256.Size]byte { return owner }}
	c := identity.ForDial(&tls.Config{ClientSessionCache: s}).ClientSessionCache
	owner = [sha256.Size]byte{2}
	c.Put("c1", &tls.ClientSessionState{})
	if _, ok := s.Get("c1"); ok {
		t.Error("a session of the identity before is used")
	}
	s.Put("c1", &tls.ClientSessionState{})
	if _, ok := c.Get("c1"); ok {
		t.Error("a connection that was dialed as another uses a session")
	}
	offered := 0
	for range 100 {
		if _, ok := s.Get("c2"); ok {
			offered++
		}
	}
	if offered == 0 || offered > 10 {
		t.Errorf("a session is offered %d times", offered)
	}
	s.Put("c1", &tls.ClientSessionState{})
	offered = 0
	for range 100 {
		if _, ok := s.Get("c1"); ok {
			offered++
		}
		s.Put("c1", nil) // as crypto/tls does after each handshake that fails
	}
	if offered < 3 || offered > 10 {
		t.Errorf("a session whose handshakes fail is offered %d times", offered)
	}
}
