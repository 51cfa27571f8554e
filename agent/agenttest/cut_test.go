package agenttest

import (
	"context"
	"os"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/cassandra-security-manager/csm/agent/install"
	"github.com/cassandra-security-manager/csm/agent/probe"
	"github.com/cassandra-security-manager/csm/controller/fleet"
	"github.com/cassandra-security-manager/csm/controller/ledger"
	"github.com/cassandra-security-manager/csm/shared/certificate"
	"github.com/cassandra-security-manager/csm/shared/fault"
	"github.com/cassandra-security-manager/csm/shared/keystore"
)

// severed is a ring whose first node reaches the controllers over a link, and is about to be renewed.
type severed struct {
	*testing.T
	w    *world
	a    *host
	link *link
	old  string
	// moves and certificates there were before.
	moves, certificates int
	step                atomic.Pointer[func(install.Op)]
	// gone is closed when the network was cut, in the phase that a case is about.
	gone chan struct{}
	once sync.Once
}

// newSevered bounds how long claims are tried again and the neighbour's proof is awaited; 0 is what others wait.
func newSevered(t *testing.T, claimFor, neighbourFor time.Duration) *severed {
	t.Helper()
	s := &severed{T: t, gone: make(chan struct{})}
	s.w, s.a, _ = ring(t, func(w *world, h *host) {
		s.link = newLink(t, w.address)
		h.conf.Controllers, h.neighbourFor, h.claimFor = []string{s.link.address}, neighbourFor, claimFor
		h.hook = func(op install.Op) error {
			if f := s.step.Load(); f != nil {
				(*f)(op)
			}
			return nil
		}
	})
	s.old = certificate.Hex(certificate.Fingerprint(s.a.leaf().Raw))
	s.moves, s.certificates = len(s.since(0)), s.issued()
	return s
}

// since are the moves of the node after the first n, the oldest first.
func (s *severed) since(n int) []fleet.Move {
	s.Helper()
	moves, _, err := s.w.fleet.ListMoves(s.Context(), cluster+"/nodes/n1", fleet.Page{})
	must(s.T, err)
	slices.Reverse(moves)
	return moves[n:]
}

func (s *severed) issued() int {
	s.Helper()
	all, _, err := ledger.NewReplicated(s.w.log.Store, s.w.log.Clock).List(s.Context(), ledger.Filter{Node: cluster + "/nodes/n1", Store: "node"}, ledger.Page{})
	must(s.T, err)
	return len(all)
}

// sever cuts the network, once.
func (s *severed) sever(how func()) {
	s.once.Do(func() { how(); close(s.gone) })
}

// atStep cuts when the install is about to do a thing.
func (s *severed) atStep(step install.Step, do string, how func()) {
	f := func(op install.Op) {
		if op.Step == step && op.Do == do {
			s.sever(how)
		}
	}
	s.step.Store(&f)
}

// atCall cuts when a call has arrived, or when it was worked on and its answer is on its way.
func (s *severed) atCall(method string, answered bool, how func()) {
	f := func(_ context.Context, called string, done bool) error {
		if called != method || done != answered {
			return nil
		}
		s.sever(how)
		return fault.New(fault.Unavailable, "cut", "the network is cut")
	}
	s.w.spy.Store(&f)
}

// leafOnDisk fails unless the pair on disk is whole and trusted.
func (s *severed) leafOnDisk() string {
	s.Helper()
	st := s.a.cass.Store
	data, err := os.ReadFile(st.KeystorePath)
	must(s.T, err)
	ks, err := keystore.DecodeKeyStore(st.Format, data, st.KeystorePassword)
	must(s.T, err)
	if problems := keystore.Check(ks, install.Trusted(st), keystore.Expect{Now: s.w.now()}); keystore.Fatal(problems) {
		s.Fatalf("a mixture lies on disk: %v", problems)
	}
	return certificate.Hex(certificate.Fingerprint(ks.Chain[0].Raw))
}

// served asks both ports, as a neighbour and a client would, and gives the leaf of each.
func (s *severed) served() (leaves []string) {
	s.Helper()
	own, err := install.Certificate(s.a.cass.Store)
	must(s.T, err)
	for _, p := range s.a.cass.Store.Ports {
		r := probe.Probe(s.Context(), probe.Request{Kind: p.Kind, Address: p.Address.String(), Port: p.Port, Local: p.Address, Certificate: own, Now: s.w.now})
		if !r.Proven() {
			s.Errorf("port %d does not serve: %s %s", p.Port, r.Verdict, r.Detail)
		}
		leaves = append(leaves, certificate.Hex(r.Served))
	}
	return leaves
}

func (s *severed) restart() {
	s.Helper()
	must(s.T, s.a.end())
	s.a.start()
}

func TestACutFromAllControllersInEachPhaseOfAnInstall(t *testing.T) {
	t.Parallel()
	const tried = "tried"
	cut, silence := (*link).cut, (*link).silence
	atCall := func(method string, answered bool, how func(*link)) func(*severed) {
		return func(s *severed) { s.atCall(method, answered, func() { how(s.link) }) }
	}
	atStep := func(step install.Step, do string, how func(*link)) func(*severed) {
		return func(s *severed) { s.atStep(step, do, func() { how(s.link) }) }
	}
	for what, c := range map[string]struct {
		arm func(*severed)
		// until is when the network comes back: at once when the agent has tried to connect again, or when it has done a thing.
		until   string
		restart bool
		// renewed says whether the new pair lies on disk by then; only asked when the agent has done a thing.
		renewed bool
		// outcomes of all moves that were made in the end.
		outcomes []string
	}{
		"before the claim":                {atCall("ClaimMove", false, cut), "install failed", false, false, []string{"proven"}},
		"after the claim":                 {atCall("ClaimMove", true, cut), tried, false, false, []string{"proven"}},
		"while the certificate is issued": {atCall("IssueCertificate", true, cut), tried, false, false, []string{"proven"}},
		"while the certificate is issued, and the agent is restarted": {atCall("IssueCertificate", true, silence), "", true, false, []string{"refused", "proven"}},
		"after the write":                                        {atStep(install.StepReload, "begin", cut), "install failed", false, false, []string{"rolled-back", "proven"}},
		"during the proof":                                       {atStep(install.StepProve, "probe", cut), tried, false, false, []string{"proven"}},
		"while the neighbour's proof is awaited":                 {atCall("RequestProofs", true, silence), "install failed", false, false, []string{"rolled-back", "proven"}},
		"as the outcome is reported, and the agent is restarted": {atStep(install.StepCommit, "begin", cut), "install done", true, true, []string{"proven"}},
	} {
		t.Run(what, func(t *testing.T) {
			t.Parallel()
			var claimFor, neighbourFor time.Duration
			switch c.until { // where the agent is to give up, it does so soon; elsewhere a slow machine must not make it
			case tried:
			case "install failed":
				claimFor, neighbourFor = 2*time.Second, 8*time.Second
			default:
				claimFor = 2 * time.Second
			}
			s := newSevered(t, claimFor, neighbourFor)
			c.arm(s)
			for len(s.a.acts) > 0 {
				<-s.a.acts
			}
			generation, err := s.w.fleet.RequestRenewal(t.Context(), cluster+"/nodes/n1", "", "test", ann)
			must(t, err)
			select {
			case <-s.gone:
			case <-time.After(patience):
				t.Fatal("the phase never came")
			}
			began := time.Now()
			s.served()
			switch c.until {
			case "":
			case tried:
				select {
				case <-s.link.refused:
				case <-time.After(patience):
					t.Fatal("the agent does not try to connect again")
				}
			default:
				s.a.did(c.until)
			}
			if c.restart {
				s.restart()
			}
			if took := time.Since(began); took > 30*time.Second {
				t.Errorf("cut off, the agent needed %s to come to an end", took)
			}
			disk := s.leafOnDisk()
			if c.until != tried {
				if (disk != s.old) != c.renewed {
					t.Errorf("renewed = %v on disk, want %v", disk != s.old, c.renewed)
				}
				for _, leaf := range s.served() {
					if leaf != disk {
						t.Errorf("%s is served, %s lies on disk", leaf, disk)
					}
				}
			}
			s.healed(generation, c.outcomes)
		})
	}
}

// healed restores the network: the agent renews, tells every outcome, and all agree on what is served.
func (s *severed) healed(generation uint64, want []string) {
	s.Helper()
	s.w.spy.Store(nil)
	s.w.leap(50 * time.Second) // a step that failed is tried again after a while; a clock set by a minute would open every stream anew, the neighbour's too
	s.link.heal()
	s.a.await("renewed when the network is back", func(st fleet.Store) bool {
		return st.State == "proven" && st.Installed == st.Generation && st.Installed >= generation && st.Proven == st.Leaf && st.Leaf != s.old
	})
	s.w.await("all outcomes are told", func() bool {
		return !slices.ContainsFunc(s.since(s.moves), func(m fleet.Move) bool { return m.State != "closed" }) && s.a.status().Unreported == 0
	})
	var outcomes []string
	for _, m := range s.since(s.moves) {
		outcomes = append(outcomes, m.Outcome)
	}
	if !slices.Equal(outcomes, want) {
		s.Errorf("moves ended %v, want %v: %+v", outcomes, want, s.since(s.moves))
	}
	if n := s.issued() - s.certificates; n != len(want) {
		s.Errorf("%d certificates were issued by %d moves", n, len(want))
	}
	disk := s.leafOnDisk()
	if leaves := s.served(); s.a.store().Leaf != disk || leaves[0] != disk || leaves[1] != disk {
		s.Errorf("the controllers know %s, %s lies on disk, %v is served", s.a.store().Leaf, disk, leaves)
	}
}
