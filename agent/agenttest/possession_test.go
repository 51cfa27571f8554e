package agenttest

import (
	"testing"
	"time"

	"github.com/cassandra-security-manager/csm/agent/cassandra/cassandratest"
	"github.com/cassandra-security-manager/csm/agent/config"
	"github.com/cassandra-security-manager/csm/controller/fleet"
	"github.com/cassandra-security-manager/csm/shared/keystore"
)

const trustDomain = "tenants/default/trustDomains/prod"

// foreign is a host whose stores come from another CA, and that joins by the key in them.
func foreign(w *world, ca *cassandratest.CA, name string, f keystore.Format) *host {
	w.t.Helper()
	h := newHost(w, name, f)
	cassandratest.Write(w.t, h.cass.Store, ca.Leaf(), ca.Root)
	h.cass.Restart(w.t)
	h.conf.Join = config.Join{Method: "possession", Node: name}
	return h
}

func TestANodeJoinsByPossessionOnceAPersonApproves(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	ca := cassandratest.NewCA(t, "old")
	_, err := w.fleet.AddAnchor(t.Context(), trustDomain, fleet.AnchorSpec{Certificate: ca.Root, Owner: "pki", Reason: "the ring of today", Expires: time.Now().Add(time.Hour)}, ann)
	must(t, err)
	h := foreign(w, ca, "p1", keystore.PKCS12)
	_, err = w.fleet.GetNode(t.Context(), cluster+"/nodes/p1")
	must(t, err) // a token was made for it, so a person has set its names
	h.conf.Mode = "observe"
	h.start()
	var request fleet.JoinRequest
	w.await("its request to wait for a person", func() bool {
		all, err := w.fleet.ListJoinRequests(t.Context(), "default")
		must(t, err)
		if len(all) == 1 {
			request = all[0]
		}
		return len(all) == 1
	})
	if request.Node != cluster+"/nodes/p1" || request.State != "pending" || len(request.Doubts) != 1 {
		t.Fatalf("request = %+v", request)
	}
	_, err = w.fleet.DecideJoin(t.Context(), request.Name, true, "I know this host", ann)
	must(t, err)
	h.await("seen as another CA's", func(s fleet.Store) bool { return s.State == "foreign" })
	if v := h.view(); v.Incarnation != 1 || v.State != "active" {
		t.Errorf("node = %+v", v)
	}
}
