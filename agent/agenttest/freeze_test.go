package agenttest

import (
	"os"
	"testing"
	"time"

	"github.com/cassandra-security-manager/csm/agent/node"
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
