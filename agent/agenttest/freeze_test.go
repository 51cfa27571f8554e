package agenttest

import (
	"os"
	"testing"
	"time"

	"github.com/cassandra-security-manager/csm/agent/node"
	"github.com/cassandra-security-manager/csm/controller/fleet"
)

// next is what the newest status says of the only store.
func (h *host) next() node.Action {
	s := h.status()
	if len(s.Stores) != 1 {
		return node.Action{}
	}
	return s.Stores[0].Next
}

func TestAFreezeOutlivesARestartWithoutControllers(t *testing.T) {
	t.Parallel()
	w, a, _ := ring(t)
	must(t, w.fleet.Freeze(t.Context(), cluster, "incident", time.Time{}, ann))
	w.await("the node knows", func() bool { return a.status().Frozen != "" })
	address := w.address
	must(t, a.end())
	w.stop()
	must(t, os.Truncate(a.cass.Store.KeystorePath, 10))
	reloads := a.cass.Reloads()
	a.start()
	w.await("offline and frozen, the broken file is left", func() bool {
		n, s := a.next(), a.status()
		return !s.Link.Connected && s.Link.Error != "" && n.Wants == node.Restore && n.Reason == "frozen"
	})
	if fi, err := os.Stat(a.cass.Store.KeystorePath); err != nil || fi.Size() != 10 || a.cass.Reloads() != reloads {
		t.Errorf("a frozen node was changed: %v %v, %d reloads", fi, err, a.cass.Reloads()-reloads)
	}
	w.listen(address)
	must(t, w.fleet.Unfreeze(t.Context(), cluster, "over", ann))
	a.did("restore done")
	if a.leaf() == nil {
		t.Error("the keystore is still broken")
	}
}

// A stopped node looks on: who loses his identity could not be released, and whose neighbours are not proved could not renew.
func TestAStoppedNodeRenewsItsIdentityAndProvesItsNeighbour(t *testing.T) {
	t.Parallel()
	const n1, n2 = cluster + "/nodes/n1", cluster + "/nodes/n2"
	for reason, stop := range map[string]func(*world, *host){
		"held":   func(_ *world, a *host) { must(a.t, os.WriteFile(a.conf.HoldFile, []byte("maintenance\n"), 0o600)) },
		"frozen": func(w *world, a *host) { must(a.t, w.fleet.Freeze(a.t.Context(), n1, "incident", time.Time{}, ann)) },
	} {
		t.Run(reason, func(t *testing.T) {
			t.Parallel()
			w, a, b := ring(t)
			stop(w, a)
			w.await("the node knows", func() bool { return a.status().Hold+a.status().Frozen != "" })
			before, identity := a.leaf(), a.status().IdentityNotAfter
			for _, n := range []string{n1, n2} {
				_, err := w.fleet.RequestRenewal(t.Context(), n, "", "test", ann)
				must(t, err)
			}
			b.await("renewed, proved by the stopped node", func(s fleet.Store) bool {
				return s.State == "proven" && s.Installed == s.Generation && s.Proven == s.Leaf
			})
			moves, _, err := w.fleet.ListMoves(t.Context(), n2, fleet.Page{})
			must(t, err)
			by := 0
			for _, p := range moves[0].Proofs {
				if p.Prober == n1 && p.Verdict == "accepted" {
					by++
				}
			}
			if by != 2 {
				t.Errorf("the stopped node proved %d ports: %+v", by, moves[0].Proofs)
			}
			w.leap(25 * 24 * time.Hour) // an identity lives 30 days and is renewed after about 20
			w.await("the controller's clock too", func() bool { return w.now().Sub(w.log.Clock.Now()) < time.Second })
			_, err = w.fleet.RequestRenewal(t.Context(), n1, "", "wakes the agent", ann)
			must(t, err)
			w.await("its identity is renewed", func() bool { s := a.status(); return s.Link.Connected && s.IdentityNotAfter.After(identity) })
			w.await("it says why it waits", func() bool { n := a.next(); return n.Wants == node.Install && n.Reason == reason })
			if !a.leaf().Equal(before) {
				t.Error("a stopped node was changed")
			}
		})
	}
}
