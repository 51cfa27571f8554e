package agenttest

import (
	"strings"
	"testing"
	"time"

	"github.com/cassandra-security-manager/csm/agent/install"
	"github.com/cassandra-security-manager/csm/controller/fleet"
	"github.com/cassandra-security-manager/csm/shared/keystore"
)

// polled is a member of the ring whose agent may only wait for Cassandra's own look at its files.
func polled(w *world) *host {
	w.t.Helper()
	h := newHost(w, "n1", keystore.PKCS12)
	h.conf.Cassandra[0].Reload.Way = "poll"
	h.start()
	h.await("installed", func(s fleet.Store) bool { return s.State == "installed-unproven" })
	h.cass.Restart(w.t)
	h.await("proven", func(s fleet.Store) bool { return s.State == "proven" && s.Leaf == s.Proven })
	return h
}

// renewal asks for one and waits until its files are written and waited for.
func (h *host) renewal() (claim fleet.Move) {
	h.t.Helper()
	_, err := h.w.fleet.RequestRenewal(h.t.Context(), cluster+"/nodes/n1", "", "for the test", ann)
	must(h.t, err)
	h.w.await("the controllers know what is waited for", func() bool {
		v := h.view()
		return v.Claim != nil && v.Instance.Reload != nil && v.Instance.Reload.Waits == v.Claim.Store
	})
	return *h.view().Claim
}

func TestANodeWithoutAWayToReloadIsGivenTheTimeOfCassandrasOwnLook(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	h := polled(w)
	before := h.store().Leaf
	claim := h.renewal()
	v := h.view()
	if left := claim.Expires.Sub(claim.Opened); left < fleet.ClaimTTL+2*install.PollBound {
		t.Errorf("the claim lives for %s", left)
	}
	if v.Instance.Reload.Way != "poll" || !strings.Contains(v.Why, "wait for Cassandra's own look at them, at most until "+v.Instance.Reload.Until.Format(time.RFC3339)) {
		t.Errorf("%+v, %s", v.Instance.Reload, v.Why)
	}
	if s := h.status(); s.Stores[0].Next.Reason != "poll-awaited" || !strings.Contains(s.Stores[0].Next.Message, "waits for Cassandra's own look at its files, at most until") {
		t.Errorf("csm-agent status says %+v", s.Stores[0].Next)
	}

	w.leap(fleet.ClaimTTL + time.Minute) // a claim of any other node has lapsed
	if v := h.view(); v.Claim == nil || v.Claim.Claim != claim.Claim {
		t.Fatalf("the claim is %+v", v.Claim)
	}
	h.cass.Poll()
	h.await("renewed and proved", func(s fleet.Store) bool { return s.State == "proven" && s.Leaf == s.Proven && s.Leaf != before })
	w.await("it waits no longer", func() bool { v := h.view(); return v.Claim == nil && v.Instance.Reload.Waits == "" })
	if n := h.cass.Reloads(); n != 0 {
		t.Errorf("Cassandra was reloaded %d times", n)
	}
}

func TestACassandraThatNeverLooksKeepsItsOldCertificate(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	h := polled(w)
	before := h.leaf()
	h.renewal()
	w.leap(install.PollBound + time.Second)
	h.await("turned back", func(s fleet.Store) bool { return s.State == "rolled-back" })
	if now := h.leaf(); !now.Equal(before) {
		t.Errorf("the certificate on disk is %s, not %s", now.SerialNumber, before.SerialNumber)
	}
}

func TestAnAgentThatStopsWhileItWaitsGoesOnAfterItsStart(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	h := polled(w)
	before := h.store().Leaf
	h.renewal()
	began := time.Now()
	must(t, h.end())
	if took := time.Since(began); took > patience {
		t.Errorf("it stopped after %s", took)
	}
	h.start()
	h.await("written, and not proved", func(s fleet.Store) bool { return s.State == "installed-unproven" && s.Leaf != before })
	h.cass.Poll()
	w.leap(2 * install.Again)
	h.await("proved", func(s fleet.Store) bool { return s.State == "proven" && s.Leaf == s.Proven && s.Leaf != before })
}
