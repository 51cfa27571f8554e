package fleet_test

import (
	"context"
	"crypto/sha256"
	"testing"
	"time"

	"google.golang.org/protobuf/types/known/wrapperspb"

	agentv1 "github.com/cassandra-security-manager/csm/protocol/agent/v1"
	clusterv1 "github.com/cassandra-security-manager/csm/protocol/cluster/v1"

	"github.com/cassandra-security-manager/csm/controller/fleet"
	"github.com/cassandra-security-manager/csm/controller/state"
	"github.com/cassandra-security-manager/csm/shared/resource"
)

const next = "tenants/default/authorities/next"

// trusting is a gate that lets everything move and names what is to be trusted. A number asks again for the proofs of n1.
type trusting struct{ list []string }

func (g *trusting) MayMove(*state.Apply, fleet.Moving) (bool, error)            { return false, nil }
func (g *trusting) Moved(*state.Apply, fleet.Moving) error                      { return nil }
func (g *trusting) MayRaise(*state.Apply, string, string) error                 { return nil }
func (g *trusting) TrustToProve(*state.Apply, string, string) ([]string, error) { return g.list, nil }

func (g *trusting) module() state.Module {
	return state.Module{Name: "trusting", Commands: func(r *state.Registry) {
		state.Handle(r, func(a *state.Apply, _ *wrapperspb.UInt32Value) (*clusterv1.Empty, error) {
			_, err := fleet.AskAgain(a, resource.Node("default", "prod", "n1"), "node", g.list)
			return &clusterv1.Empty{}, err
		})
	}}
}

// rotating is a ring whose n1 has written a truststore with the anchor of the next authority under an open claim.
func rotating(t *testing.T, change ...func(m *member)) (w *world, g *trusting, r map[string]*member, claim string) {
	t.Helper()
	g = &trusting{}
	w = worldOf(t, fleet.Module(g), recorder(), bundler(), g.module())
	r = w.ring("n1", "n2", "n3")
	m := r["n1"]
	for _, c := range change {
		c(m)
	}
	m.must(m.connect())
	m.must(w.add("anchor two"))
	g.list = []string{next}
	claim, err := m.claim(trustOnly)
	m.must(err)
	m.grows()
	return w, g, r, claim
}

func anchorTwo() []byte { s := sha256.Sum256([]byte("anchor two")); return s[:] }

func (m *member) grows() {
	m.store.TruststoreSha256 = leafOf("truststore with two")
	m.store.Anchors = [][]byte{anchorTwo()}
}

func (m *member) proven() fleet.Proven {
	m.w.t.Helper()
	var p fleet.Proven
	m.must(m.w.log.Store.View(ctx, func(ctx context.Context, q state.Querier) (err error) {
		p, err = fleet.ProvenOf(ctx, q, m.name, "node")
		return err
	}))
	return p
}

// untrusting are the codes of what lacks.
func (m *member) untrusting() (codes []string) {
	for _, g := range m.proven().Untrusting(next, [][]byte{anchorTwo()}) {
		codes = append(codes, g.Code)
	}
	return codes
}

// answer records what the prober saw of each open task of m.
func (m *member) answer(r map[string]*member, p func(t *agentv1.ProofTask) *agentv1.Proof) {
	m.w.t.Helper()
	for _, by := range r {
		tasks, err := m.w.OpenTasks(ctx, by.name)
		m.must(err)
		for _, t := range tasks {
			if t.TargetNode == m.name {
				m.must(m.w.RecordProof(ctx, by.uid, by.incarnation, t.Task, p(t)))
			}
		}
	}
}

func good(t *agentv1.ProofTask) *agentv1.Proof {
	p := accepted(t.Port, t.LeafSha256)
	p.Authority, p.Asked = t.Authority, true
	return p
}

func TestTrustIsProvedByACertificateOfEachAuthorityOnEachPort(t *testing.T) {
	w, g, r, c := rotating(t)
	m := r["n1"]
	tasks, prober := m.ask(c)
	open, err := w.OpenTasks(ctx, prober)
	m.must(err)
	if len(tasks) != 4 || len(open) != 4 {
		t.Fatalf("%d tasks were given, %d are open", len(tasks), len(open))
	}
	by := r[resource.Last(prober)]
	named := 0
	for _, o := range open {
		p := good(o)
		if o.Authority == "" {
			m.must(w.RecordProof(ctx, by.uid, by.incarnation, o.Task, p))
			continue
		}
		named++
		p.Authority = ""
		wantReason(t, w.RecordProof(ctx, by.uid, by.incarnation, o.Task, p), "proof-contradicts")
		p = good(o)
		p.Asked = false
		wantReason(t, w.RecordProof(ctx, by.uid, by.incarnation, o.Task, p), "proof-contradicts")
	}
	if named != 2 || open[0].Authority == open[1].Authority && open[0].Port.Port == open[1].Port.Port {
		t.Errorf("open = %v", open)
	}
	wantReason(t, m.report(c, proven), "not-proved")
	m.answer(r, good)
	m.must(m.report(c, proven))
	p := m.proven()
	if gaps := m.untrusting(); len(gaps) != 0 || p.Leaf == nil || len(p.Ports) != 2 || p.Ports[0].Accepted[next].Prober != prober {
		t.Errorf("proven = %+v, lacking %v", p, gaps)
	}
	if gaps := p.Serving("tenants/default/authorities/internal"); len(gaps) != 0 {
		t.Errorf("serving: %v", gaps)
	}
	if gaps := p.Serving(next); len(gaps) != 1 || gaps[0].Code != "leaf-of-another" {
		t.Errorf("serving next: %v", gaps)
	}
	moves, _, err := w.ListMoves(ctx, m.name, fleet.Page{Size: 1})
	if err != nil || len(moves[0].Proofs) != 4 || moves[0].Kind != "trust" {
		t.Errorf("moves = %+v, %v", moves, err)
	}
	g.list = nil
	if gaps := r["n2"].untrusting(); len(gaps) == 0 {
		t.Error("n2 is proved without having been asked")
	}
}

func TestATrustProofIsTakenAwayByWhatContradictsIt(t *testing.T) {
	prove := func(t *testing.T) (*world, map[string]*member, *member) {
		w, _, r, c := rotating(t)
		m := r["n1"]
		m.ask(c)
		m.answer(r, good)
		m.must(m.report(c, proven))
		if gaps := m.untrusting(); len(gaps) != 0 {
			t.Fatalf("lacking %v", gaps)
		}
		return w, r, m
	}
	again := func(w *world) error { return w.bundle(wrapperspb.UInt32(1)) }
	t.Run("the truststore was changed by hand", func(t *testing.T) {
		_, _, m := prove(t)
		m.store.TruststoreSha256 = leafOf("by hand")
		m.must(m.connect())
		if len(m.untrusting()) != 2 {
			t.Errorf("lacking %v", m.untrusting())
		}
		m.grows() // put back by the agent: what Cassandra has read meanwhile nobody knows
		m.must(m.connect())
		if len(m.untrusting()) != 2 {
			t.Errorf("lacking %v", m.untrusting())
		}
	})
	t.Run("the machine was restored from an older image", func(t *testing.T) {
		_, _, m := prove(t)
		m.store.TruststoreSha256, m.store.Anchors = leafOf("truststore"), nil
		m.store.Generation = 1
		m.must(m.connect())
		if got := m.untrusting(); len(got) != 3 || got[0] != "anchor-missing" {
			t.Errorf("lacking %v", got)
		}
	})
	t.Run("a neighbour's new certificate is refused later", func(t *testing.T) {
		w, r, m := prove(t)
		m.must(again(w))
		m.answer(r, func(o *agentv1.ProofTask) *agentv1.Proof {
			p := good(o)
			if o.Authority != "" && o.Port.Kind == agentv1.PortKind_PORT_KIND_CQL {
				p.Verdict, p.Detail = agentv1.Verdict_VERDICT_REFUSED, "alert"
			}
			return p
		})
		if got := m.untrusting(); len(got) != 1 || got[0] != "trust-not-proved" {
			t.Errorf("lacking %v", got)
		}
		m.must(again(w))
		m.answer(r, good)
		if got := m.untrusting(); len(got) != 0 {
			t.Errorf("proved again, yet lacking %v", got)
		}
	})
	t.Run("silence changes nothing", func(t *testing.T) {
		w, r, m := prove(t)
		m.must(again(w))
		m.answer(r, func(o *agentv1.ProofTask) *agentv1.Proof {
			return &agentv1.Proof{Port: o.Port, Verdict: agentv1.Verdict_VERDICT_UNKNOWN, Authority: o.Authority}
		})
		if got := m.untrusting(); len(got) != 0 {
			t.Errorf("lacking %v", got)
		}
	})
	t.Run("the node serves another leaf than it reports", func(t *testing.T) {
		w, r, m := prove(t)
		m.must(again(w))
		m.answer(r, func(o *agentv1.ProofTask) *agentv1.Proof {
			p := good(o)
			p.Verdict, p.ServedSha256 = agentv1.Verdict_VERDICT_WRONG_LEAF, leafOf("an old one")
			return p
		})
		if p := m.proven(); p.Leaf != nil || len(p.Serving("tenants/default/authorities/internal")) != 1 || len(m.untrusting()) != 2 {
			t.Errorf("proven = %+v", p)
		}
		alarms, err := w.Alarms(ctx, 1)
		if err != nil || len(alarms) != 1 || alarms[0].Kind != "served-contradicts" || alarms[0].Resource != m.name {
			t.Errorf("alarms = %v, %v", alarms, err)
		}
	})
	t.Run("the host was replaced", func(t *testing.T) {
		w, _, m := prove(t)
		spec := w.spec(w.token("n1", fleet.TokenSpec{Rejoin: true}), "another key of n1")
		if _, err := w.Join(ctx, spec); err != nil {
			t.Fatal(err)
		}
		if n := w.count(`SELECT count(*) FROM port_proofs WHERE node = ?`, m.name); n != 0 {
			t.Errorf("%d proofs of the former incarnation are left", n)
		}
	})
}

func TestAPortThatAsksForNoCertificateNeedsAMarkerLeaf(t *testing.T) {
	w, _, r, c := rotating(t, func(m *member) {
		m.instance.Internode = &agentv1.TLSSection{Enabled: true, ClientAuth: "true"}
		m.instance.Client = &agentv1.TLSSection{Enabled: true, ClientAuth: "false"}
	})
	m := r["n1"]
	if tasks, _ := m.ask(c); len(tasks) != 3 {
		t.Fatalf("%d tasks", len(tasks))
	}
	m.answer(r, good)
	m.must(m.report(c, proven))
	if got := m.untrusting(); len(got) != 1 || got[0] != "marker-not-proved" {
		t.Fatalf("lacking %v", got)
	}
	// A leaf under the old authority, whose served fingerprint shows that both files were read anew.
	c, err := m.claim(renew)
	m.must(err)
	m.must(w.propose(m.record(c, "marker")))
	m.store.LeafSha256, m.store.KeystoreSha256 = leafOf("marker"), leafOf("keystore of marker")
	m.ask(c)
	m.answer(r, good)
	m.must(m.report(c, proven))
	if got := m.untrusting(); len(got) != 0 {
		t.Errorf("lacking %v", got)
	}
}

func TestALyingNodeIsContradictedByItsNeighbour(t *testing.T) {
	w, _, r, _ := rotating(t)
	m := r["n2"]
	m.must(r["n1"].report(w.openClaim(r["n1"].name), agentv1.MoveOutcome_MOVE_OUTCOME_REFUSED))
	m.must(m.connect())
	c, err := m.claim(renew)
	m.must(err)
	old := m.store.LeafSha256
	m.write(c, "second of n2")
	m.ask(c)
	m.answer(r, func(o *agentv1.ProofTask) *agentv1.Proof {
		p := good(o)
		p.Verdict, p.ServedSha256 = agentv1.Verdict_VERDICT_WRONG_LEAF, old
		return p
	})
	own := []*agentv1.Proof{accepted(m.store.Ports[0], m.store.LeafSha256), accepted(m.store.Ports[1], m.store.LeafSha256)}
	wantReason(t, m.report(c, proven, own...), "not-proved")
	m.must(m.connect()) // its files are what it says: that alone proves nothing
	if p := m.proven(); p.Leaf != nil {
		t.Errorf("proven = %+v", p)
	}
}

func TestTheServedChainMustLeadToTheIssuerThatSigned(t *testing.T) {
	w, g, r, _ := rotating(t)
	g.list = nil
	m := r["n1"]
	m.must(m.report(w.openClaim(m.name), agentv1.MoveOutcome_MOVE_OUTCOME_REFUSED))
	c, err := m.claim(renew)
	m.must(err)
	rec := m.record(c, "second of n1")
	rec.IssuerSha256 = leafOf("issuer two")
	m.must(w.propose(rec))
	m.store.LeafSha256, m.store.KeystoreSha256 = leafOf("second of n1"), leafOf("keystore two")
	m.ask(c)
	m.answer(r, func(o *agentv1.ProofTask) *agentv1.Proof {
		p := good(o)
		p.IssuerSha256 = leafOf("issuer one")
		return p
	})
	wantReason(t, m.report(c, proven), "not-proved")
	w.log.Clock.Advance(fleet.ProofTTL)
	wantReason(t, m.report(c, proven), "not-proved")
}

func (w *world) openClaim(node string) string {
	w.t.Helper()
	n, err := w.GetNode(ctx, node)
	if err != nil || n.Claim == nil {
		w.t.Fatalf("%s has no open claim: %v", node, err)
	}
	return n.Claim.Claim
}

func TestAProbeIsIssuedForAnOpenTaskOfItsProberAlone(t *testing.T) {
	w, _, r, c := rotating(t)
	m := r["n1"]
	_, prober := m.ask(c)
	by := r[resource.Last(prober)]
	open, err := w.OpenTasks(ctx, prober)
	m.must(err)
	var own, named string
	for _, o := range open {
		if o.Authority == "" {
			own = o.Task
		} else {
			named = o.Task
		}
	}
	probe := func(change func(*clusterv1.RecordCertificate)) error {
		rec := by.record("", "probe")
		rec.Store, rec.Task, rec.Template, rec.Issuer = "", named, fleet.TemplateProbe, resource.Issuer(next, "eu")
		rec.NotAfterMs = w.log.Clock.Now().Add(fleet.MaxProbeLife).UnixMilli()
		change(rec)
		return w.propose(rec)
	}
	by.must(probe(func(*clusterv1.RecordCertificate) {}))
	for reason, change := range map[string]func(*clusterv1.RecordCertificate){
		"not-your-task": func(c *clusterv1.RecordCertificate) { c.Node = m.name },
		"no-authority":  func(c *clusterv1.RecordCertificate) { c.Task = own },
		"other-authority": func(c *clusterv1.RecordCertificate) {
			c.Issuer = resource.Issuer("tenants/default/authorities/internal", "eu")
		},
		"name-not-allowed": func(c *clusterv1.RecordCertificate) {
			c.Names = append(c.Names, &clusterv1.CertificateName{Kind: "dns", Value: "n1.example"})
		},
		"not-a-probe": func(c *clusterv1.RecordCertificate) { c.NotAfterMs += 1000 },
	} {
		wantReason(t, probe(change), reason)
	}
	wantReason(t, probe(func(c *clusterv1.RecordCertificate) { c.Template = "node" }), "not-a-probe")
	wantReason(t, probe(func(c *clusterv1.RecordCertificate) { c.Task = "" }), "not-your-task")
	if p, err := w.OpenProbe(ctx, named); err != nil || p.Prober != prober || p.Authority != next || p.Names.Empty() {
		t.Errorf("%+v, %v", p, err)
	}
	_, err = w.OpenProbe(ctx, own)
	wantReason(t, err, "no-task")
	by.must(w.Suspend(ctx, by.name, "odd", ann))
	wantReason(t, probe(func(*clusterv1.RecordCertificate) {}), "agent-suspended")
	by.must(w.Resume(ctx, by.name, "", ann))
	w.log.Clock.Advance(fleet.ProofTTL + time.Millisecond)
	wantReason(t, probe(func(*clusterv1.RecordCertificate) {}), "task-closed")
	_, err = w.OpenProbe(ctx, named)
	wantReason(t, err, "no-task")
}
