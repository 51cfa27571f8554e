package agenttest

import (
	"bytes"
	"crypto/x509"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/cassandra-security-manager/csm/agent/cassandra/cassandratest"
	"github.com/cassandra-security-manager/csm/agent/config"
	agentv1 "github.com/cassandra-security-manager/csm/protocol/agent/v1"

	"github.com/cassandra-security-manager/csm/controller/fleet"
	"github.com/cassandra-security-manager/csm/controller/state"
	"github.com/cassandra-security-manager/csm/shared/certificate"
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

// onboarded is a ring of another CA whose nodes have joined by possession and may take our anchors.
func onboarded(t *testing.T, ca *cassandratest.CA, names ...string) (*world, []*host) {
	t.Helper()
	w := newWorld(t)
	_, err := w.fleet.AddAnchor(t.Context(), trustDomain, fleet.AnchorSpec{Certificate: ca.Root, Owner: "pki", Reason: "the ring of today", Expires: time.Now().Add(time.Hour),
		Rule: fleet.Rule{FirstNodes: 2}}, ann)
	must(t, err)
	var hosts []*host
	for i, n := range names {
		h := foreign(w, ca, n, []keystore.Format{keystore.PKCS12, keystore.PEM, keystore.JKS}[i%3])
		h.start()
		h.await("observed", func(s fleet.Store) bool { return s.State == "foreign" && s.Installed == 0 })
		hosts = append(hosts, h)
	}
	return w, hosts
}

func trusts(t *testing.T, h *host) []*x509.Certificate {
	t.Helper()
	b, err := os.ReadFile(h.cass.Store.TruststorePath)
	must(t, err)
	cs, err := keystore.DecodeTrustStore(h.cass.Store.Format, b, h.cass.Store.TruststorePassword)
	must(t, err)
	return cs
}

func TestARingOfAnotherCATakesOurTrustAndKeepsItsLeavesAndAnchors(t *testing.T) {
	t.Parallel()
	ca, unknown := cassandratest.NewCA(t, "old"), cassandratest.NewCA(t, "unknown")
	w, hosts := onboarded(t, ca, "p1", "p2")
	for _, h := range hosts {
		if got := trusts(t, h); len(got) != 1 {
			t.Fatalf("%s was changed before anybody said so: %d anchors", h.name, len(got))
		}
	}
	before := map[string]*x509.Certificate{}
	for _, h := range hosts {
		must(t, h.end())
		cassandratest.Write(t, h.cass.Store, ca.Leaf(), ca.Root, unknown.Root)
		h.cass.Restart(t)
		before[h.name] = h.leaf()
		h.start()
	}
	must(t, w.fleet.Onboard(t.Context(), cluster, "trust first", ann))
	for _, h := range hosts {
		h.await("trust first", func(s fleet.Store) bool { return s.State == "foreign" && s.Installed > 0 && s.Proven == s.Leaf })
		got := trusts(t, h)
		if len(got) != 3 || !slices.ContainsFunc(got, ca.Root.Equal) || !slices.ContainsFunc(got, unknown.Root.Equal) {
			t.Errorf("%s trusts %d anchors", h.name, len(got))
		}
		if !h.leaf().Equal(before[h.name]) {
			t.Errorf("%s has another leaf", h.name)
		}
		moves, _, err := w.fleet.ListMoves(t.Context(), cluster+"/nodes/"+h.name, fleet.Page{})
		must(t, err)
		if len(moves) != 1 || moves[0].Kind != "trust" || moves[0].Outcome != "proven" || moves[0].Certificate != "" {
			t.Errorf("%s moved so: %+v", h.name, moves)
		}
		if v := h.view(); !strings.Contains(v.Why, "trusts our CA") {
			t.Errorf("%s: %s", h.name, v.Why)
		}
	}

	must(t, w.fleet.Release(t.Context(), cluster, "handed over", ann))
	h := hosts[0]
	w.await("the agent knows that it was let go", func() bool { s := h.status(); return len(s.Stores) == 1 && s.Stores[0].Next.Reason == "released" })
	cassandratest.Write(t, h.cass.Store, ca.Leaf(), ca.Root) // their own renewal: nobody puts anything back
	leaf := h.leaf()
	h.await("their new leaf", func(s fleet.Store) bool { return s.Leaf == certificate.Hex(certificate.Fingerprint(leaf.Raw)) })
	if got := trusts(t, h); len(got) != 1 {
		t.Errorf("a released node was changed: %d anchors", len(got))
	}
	_, err := w.fleet.RequestRenewal(t.Context(), cluster+"/nodes/p1", "", "try", ann)
	must(t, err)
	if v := h.view(); v.Claim != nil {
		t.Errorf("a released node claims %+v", v.Claim)
	}
}

// A rotation replaces the leaf of another CA, and only a rotation: a failure leaves that leaf served and the store theirs.
func TestTheLeafOfAnotherCAIsTakenOverWhenItIsAsked(t *testing.T) {
	t.Parallel()
	ca := cassandratest.NewCA(t, "old")
	w, hosts := onboarded(t, ca, "p1", "p2")
	must(t, w.fleet.Onboard(t.Context(), cluster, "trust first", ann))
	for _, h := range hosts {
		h.await("trust first", func(s fleet.Store) bool { return s.State == "foreign" && s.Installed > 0 && s.Proven == s.Leaf })
	}
	h, before := hosts[0], hosts[0].leaf()
	h.cass.IgnoreReloads(true)
	w.takeOver(h)
	h.await("rolled back", func(s fleet.Store) bool {
		return s.State == "rolled-back" || s.State == "foreign" && s.Installed < s.Generation
	})
	h.did("install failed")
	if !h.leaf().Equal(before) || len(trusts(t, h)) != 2 {
		t.Fatal("what was there before the failed take-over is not there again")
	}
	h.cass.IgnoreReloads(false)
	for _, h := range hosts {
		w.takeOver(h)
		h.await("taken over", done)
		if got := trusts(t, h); len(got) != 2 || !slices.ContainsFunc(got, ca.Root.Equal) {
			t.Errorf("%s trusts %d anchors: those of others stay", h.name, len(got))
		}
		if bytes.Equal(h.leaf().RawIssuer, before.RawIssuer) {
			t.Errorf("%s serves a leaf of the CA before", h.name)
		}
	}
	_, err := w.fleet.RequestRenewal(t.Context(), cluster+"/nodes/p1", "", "from now on a renewal is one like any other", ann)
	must(t, err)
	taken := h.leaf()
	h.await("renewed", func(s fleet.Store) bool {
		return done(s) && s.Leaf != certificate.Hex(certificate.Fingerprint(taken.Raw))
	})
}

func (w *world) takeOver(h *host) {
	w.t.Helper()
	w.inApply(func(a *state.Apply) error {
		_, err := fleet.RaiseStore(a, fleet.Wish{Node: cluster + "/nodes/" + h.name, Store: "node", Move: agentv1.MoveKind_MOVE_KIND_RENEW, TakeOver: true, Reason: "take-over"})
		return err
	})
}

// Puppet knows nothing of us: each run puts its own truststore back.
func TestOurAnchorTakenOutTwiceWithinADayIsContested(t *testing.T) {
	t.Parallel()
	ca := cassandratest.NewCA(t, "old")
	w, hosts := onboarded(t, ca, "p1", "p2")
	h := hosts[0]
	theirs, err := os.ReadFile(h.cass.Store.TruststorePath)
	must(t, err)
	must(t, w.fleet.Onboard(t.Context(), cluster, "trust first", ann))
	for _, h := range hosts {
		h.await("trust first", func(s fleet.Store) bool { return s.Installed > 0 && s.Proven == s.Leaf })
	}
	moves := func() int {
		all, _, err := w.fleet.ListMoves(t.Context(), cluster+"/nodes/p1", fleet.Page{})
		must(t, err)
		return len(all)
	}
	once := moves()
	must(t, os.WriteFile(h.cass.Store.TruststorePath, theirs, 0o600))
	w.await("put in once more, by a move of its own", func() bool { return moves() > once && len(trusts(t, h)) == 2 })
	h.await("proved", func(s fleet.Store) bool { return s.Installed > 0 && s.Proven == s.Leaf })
	must(t, os.WriteFile(h.cass.Store.TruststorePath, theirs, 0o600))
	h.await("contested", func(s fleet.Store) bool { return s.State == "contested" })
	w.await("the agent says so", func() bool { return h.next().Reason == "store-contested" })
	if got := trusts(t, h); len(got) != 1 {
		t.Errorf("a contested store was written: %d anchors", len(got))
	}
	if v := h.view(); !strings.Contains(v.Why, "contested") && !strings.Contains(v.Why, "another tool") {
		t.Errorf("the controllers say %q", v.Why)
	}
	// The tool is stopped, and an operator says so.
	must(t, h.end())
	if out, errs, exit := run(t, program(t), "release", "--config", h.file()); exit != 0 {
		t.Fatalf("release: %d %s %s", exit, out, errs)
	}
	h.start()
	h.await("trusted again", func(s fleet.Store) bool { return s.State == "foreign" && s.Installed > 0 && s.Proven == s.Leaf })
	w.await("in the files", func() bool { return len(trusts(t, h)) == 2 })
}
