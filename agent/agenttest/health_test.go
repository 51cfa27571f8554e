package agenttest

import (
	"testing"

	"github.com/cassandra-security-manager/csm/controller/fleet"
)

func TestEachAgentAnswersHowItFindsItsRingWhenControllersAsk(t *testing.T) {
	t.Parallel()
	w, _, _ := ring(t)
	look, err := w.fleet.AskHealth(t.Context(), cluster, ann)
	must(t, err)
	var h fleet.RingHealth
	w.await("both answer", func() bool {
		h, err = w.fleet.Health(t.Context(), cluster)
		must(t, err)
		for _, m := range h.Members {
			if m.Look < look {
				return false
			}
		}
		return len(h.Members) == 2
	})
	seen, err := w.fleet.Clients(t.Context(), cluster)
	must(t, err)
	for _, l := range seen.Looks {
		// This Cassandra speaks no more CQL than OPTIONS: it is told so, and is no reason not to answer.
		if l.Reason != "cql-protocol" || l.Unseen == "" || l.Time.IsZero() {
			t.Errorf("%+v", l)
		}
	}
}
