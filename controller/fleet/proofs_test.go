package fleet_test

import (
	"testing"
	"time"

	agentv1 "github.com/cassandra-security-manager/csm/protocol/agent/v1"

	"github.com/cassandra-security-manager/csm/controller/fleet"
)

// moved is a ring whose n1 has written a new leaf under an open claim.
func moved(t *testing.T, nodes ...string) (*world, map[string]*member, string) {
	w := newWorld(t)
	r := w.ring(nodes...)
	c, err := r["n1"].claim(renew)
	r["n1"].must(err)
	r["n1"].write(c, "second of n1")
	return w, r, c
}

func TestProvenNeedsANeighboursEyesOnEveryPort(t *testing.T) {
	w, r, c := moved(t, "n1", "n2")
	m := r["n1"]
	own := []*agentv1.Proof{accepted(m.store.Ports[0], m.store.LeafSha256), accepted(m.store.Ports[1], m.store.LeafSha256)}
	wantReason(t, m.report(c, proven, own...), "not-proved")
	tasks, prober := m.ask(c)
	if prober != r["n2"].name || len(tasks) != 2 {
		t.Fatalf("asked %s for %v", prober, tasks)
	}
	m.must(w.RecordProof(ctx, r["n2"].uid, 1, tasks[0], accepted(m.store.Ports[0], m.store.LeafSha256)))
	wantReason(t, m.report(c, proven, own...), "not-proved")
	m.must(w.RecordProof(ctx, r["n2"].uid, 1, tasks[1], accepted(m.store.Ports[1], m.store.LeafSha256)))
	m.must(m.report(c, proven, own...))
	m.must(m.report(c, proven, own...))
	wantReason(t, m.report(c, failed), "claim-closed")
	s := m.view().Stores[0]
	if s.State != "proven" || s.Installed != s.Generation || s.Unproved || s.Wanted != s.Leaf || s.Proven != s.Leaf || s.RenewAt.IsZero() {
		t.Errorf("store = %+v", s)
	}
	moves, _, err := w.ListMoves(ctx, m.name, fleet.Page{Size: 1})
	if err != nil || len(moves) != 1 || moves[0].Outcome != "proven" || len(moves[0].Proofs) != 4 || moves[0].Before == moves[0].After || moves[0].Before == "" {
		t.Errorf("moves = %+v, %v", moves, err)
	}
}

func TestOneNodeAloneProvesItself(t *testing.T) {
	w := newWorld(t)
	m := w.installed("n1")
	m.instance.Running = true
	m.must(m.connect())
	c, err := m.claim(first)
	m.must(err)
	if tasks, prober := m.ask(c); prober != "" || len(tasks) != 0 {
		t.Fatalf("asked %s", prober)
	}
	wantReason(t, m.report(c, proven, accepted(m.store.Ports[0], m.store.LeafSha256)), "not-proved")
	wantReason(t, m.report(c, proven, accepted(m.store.Ports[0], m.store.LeafSha256), accepted(m.store.Ports[1], leafOf("other"))), "not-proved")
	m.must(m.report(c, proven, accepted(m.store.Ports[0], m.store.LeafSha256), accepted(m.store.Ports[1], m.store.LeafSha256)))
}

func TestOnlyWhatWasIssuedUnderTheClaimCountsAsInstalled(t *testing.T) {
	_, r, c := moved(t, "n1", "n2")
	m := r["n1"]
	m.store.LeafSha256 = leafOf("smuggled")
	wantReason(t, m.report(c, unproven), "leaf-not-issued")
}

func TestAProverThatDoesNotAnswerGetsItsTurnLast(t *testing.T) {
	w, r, c := moved(t, "n1", "n2", "n3")
	m := r["n1"]
	_, one := m.ask(c)
	w.log.Clock.Advance(fleet.ProofTTL)
	_, two := m.ask(c)
	if one == two || one == m.name || two == m.name {
		t.Errorf("asked %s, then %s", one, two)
	}
	open, err := w.OpenTasks(ctx, one)
	if err != nil || len(open) != 0 {
		t.Errorf("tasks past their deadline are still open: %v, %v", open, err)
	}
	if open, err = w.OpenTasks(ctx, two); err != nil || len(open) != 2 || open[0].TargetNode != m.name {
		t.Errorf("open tasks = %v, %v", open, err)
	}
}

func TestWhoMayNotProveIsNotAsked(t *testing.T) {
	for name, change := range map[string]func(w *world, n2 *member) fleet.Present{
		"away": func(*world, *member) fleet.Present { return func(string, string) bool { return false } },
		"suspended": func(w *world, n2 *member) fleet.Present {
			n2.must(w.Suspend(ctx, n2.name, "odd", ann))
			return everywhere
		},
		"only observing": func(_ *world, n2 *member) fleet.Present {
			n2.agent.Mode = agentv1.Mode_MODE_OBSERVE
			n2.must(n2.connect())
			return everywhere
		},
	} {
		t.Run(name, func(t *testing.T) {
			w, r, c := moved(t, "n1", "n2")
			present := change(w, r["n2"])
			m := r["n1"]
			tasks, prober, err := w.RequestProofs(ctx, fleet.Caller{UID: m.uid, Incarnation: 1, Node: m.name, Cluster: cluster},
				&agentv1.RequestProofsRequest{Claim: c, Store: "node", Ports: m.store.Ports, LeafSha256: m.store.LeafSha256}, present)
			if err != nil || prober != "" || len(tasks) != 0 {
				t.Errorf("asked %q for %v, %v", prober, tasks, err)
			}
			if name == "away" {
				wantReason(t, m.report(c, proven, accepted(m.store.Ports[0], m.store.LeafSha256), accepted(m.store.Ports[1], m.store.LeafSha256)), "not-proved")
			}
		})
	}
}

func TestEachProofThatIsNoneIsRefused(t *testing.T) {
	w, r, c := moved(t, "n1", "n2", "n3")
	m := r["n1"]
	tasks, prober := m.ask(c)
	by, other := r["n2"], r["n3"]
	if prober != by.name {
		by, other = other, by
	}
	good := accepted(m.store.Ports[0], m.store.LeafSha256)
	wantReason(t, w.RecordProof(ctx, other.uid, 1, tasks[0], good), "not-your-task")
	wantReason(t, w.RecordProof(ctx, m.uid, 1, tasks[0], good), "not-your-task")
	wantReason(t, w.RecordProof(ctx, by.uid, 1, "no such task", good), "not-your-task")
	wantReason(t, w.RecordProof(ctx, by.uid, 1, tasks[0], &agentv1.Proof{}), "no-verdict")
	wantReason(t, w.RecordProof(ctx, by.uid, 1, tasks[0], accepted(m.store.Ports[0], leafOf("old"))), "proof-contradicts")
	m.must(w.RecordProof(ctx, by.uid, 1, tasks[0], &agentv1.Proof{Verdict: agentv1.Verdict_VERDICT_UNKNOWN}))
	m.must(w.RecordProof(ctx, by.uid, 1, tasks[1], accepted(m.store.Ports[1], m.store.LeafSha256)))
	m.must(w.RecordProof(ctx, by.uid, 1, tasks[0], good)) // the first answer stands
	wantReason(t, m.report(c, proven), "not-proved")
	results, last, err := w.Results(ctx, m.name, 0)
	if err != nil || len(results) < 2 || last == 0 {
		t.Errorf("results = %v up to %d, %v", results, last, err)
	}
	if more, again, err := w.Results(ctx, m.name, last); err != nil || len(more) != 0 || again != last {
		t.Errorf("results after the last = %v, %d, %v", more, again, err)
	}
}

func TestAnOldProofDoesNotProveANewLeaf(t *testing.T) {
	_, r, c := moved(t, "n1", "n2")
	m := r["n1"]
	m.prove(r, c)
	m.write(c, "third of n1")
	wantReason(t, m.report(c, proven), "not-proved")
}

func TestAReportAloneMakesNothingProven(t *testing.T) {
	w := newWorld(t)
	m := w.installed("n1")
	m.store.State = agentv1.InstallState_INSTALL_STATE_PROVEN
	m.must(m.connect())
	if s := m.view().Stores[0]; s.State != "installed-unproven" {
		t.Errorf("state = %s", s.State)
	}
}

func TestWhatARollbackLeavesBehindBlocksNobody(t *testing.T) {
	for outcome, want := range map[agentv1.MoveOutcome]string{rolledBack: "rolled-back", failed: "failed"} {
		_, r, c := moved(t, "n1", "n2")
		r["n1"].must(r["n1"].report(c, outcome))
		if s := r["n1"].view().Stores[0]; s.State != want || s.Unproved != (outcome == failed) || s.Installed == 0 {
			t.Errorf("%v: store = %+v", outcome, s)
		}
		_, err := r["n2"].claim(renew)
		if outcome == failed {
			wantReason(t, err, "wave-busy")
		} else if err != nil {
			t.Errorf("after a rollback: %v", err)
		}
	}
}

func TestTheHistoryIsForgottenAfterNinetyDays(t *testing.T) {
	w, r, c := moved(t, "n1", "n2")
	m := r["n1"]
	m.must(m.report(c, rolledBack))
	w.log.Clock.Advance(91 * 24 * time.Hour)
	c, err := m.claim(renew)
	m.must(err)
	m.must(m.report(c, rolledBack))
	moves, _, err := w.ListMoves(ctx, cluster, fleet.Page{})
	if err != nil || len(moves) != 1 || moves[0].Claim != c {
		t.Errorf("moves = %d, %v", len(moves), err)
	}
}
