package agenttest

import (
	"bytes"
	"log/slog"
	"os"
	"path/filepath"
	"testing"

	"github.com/cassandra-security-manager/csm/agent/cassandra/cassandratest"
	"github.com/cassandra-security-manager/csm/agent/install"
	"github.com/cassandra-security-manager/csm/controller/fleet"
	"github.com/cassandra-security-manager/csm/controller/ledger"
	"github.com/cassandra-security-manager/csm/shared/certificate"
	"github.com/cassandra-security-manager/csm/shared/fault"
	"github.com/cassandra-security-manager/csm/shared/keystore"
)

// ring is two nodes, installed before Cassandra's first start, started, and proved by each other. The first may be changed
// before its agent starts.
func ring(t *testing.T, change ...func(*world, *host)) (*world, *host, *host) {
	t.Helper()
	w := newWorld(t)
	a, b := newHost(w, "n1", keystore.PKCS12), newHost(w, "n2", keystore.PEM)
	for _, c := range change {
		c(w, a)
	}
	for _, h := range []*host{a, b} {
		h.start()
	}
	for _, h := range []*host{a, b} {
		h.await("installed before the first start", func(s fleet.Store) bool { return s.State == "installed-unproven" })
		h.cass.Restart(t)
	}
	for _, h := range []*host{a, b} {
		h.await("proved after the first start", func(s fleet.Store) bool { return s.State == "proven" && s.Proven == s.Leaf })
	}
	return w, a, b
}

func TestANodeIsObservedThenInstalledThenProvedByItsNeighbour(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	a, b := newHost(w, "n1", keystore.JKS), newHost(w, "n2", keystore.PEM)
	a.conf.Mode = "observe"
	a.start()
	w.await("joined", func() bool { return a.view().Incarnation == 1 })
	a.await("seen", func(s fleet.Store) bool { return s.State == "absent" })
	if entries, _ := os.ReadDir(a.conf.Cassandra[0].StoreRoots[0]); len(entries) != 0 {
		t.Fatalf("mode observe wrote %v", entries)
	}
	w.await("status says what would be done", func() bool {
		s := a.status()
		return s.Node != "" && len(s.Stores) == 1 && s.Stores[0].Next.Wants == "install" && s.Stores[0].Next.Reason == "observe"
	})
	must(t, a.end())

	a.conf.Mode = "manage"
	a.start()
	b.start()
	for _, h := range []*host{a, b} {
		h.await("installed", func(s fleet.Store) bool { return s.State == "installed-unproven" })
		if h.leaf() == nil {
			t.Fatalf("%s has no leaf on disk", h.name)
		}
	}
	a.cass.Restart(t)
	b.cass.Restart(t)
	for _, h := range []*host{a, b} {
		h.await("proved", func(s fleet.Store) bool { return s.State == "proven" })
		moves, _, err := w.fleet.ListMoves(t.Context(), cluster+"/nodes/"+h.name, fleet.Page{})
		must(t, err)
		byOther := 0
		for _, p := range moves[0].Proofs {
			if p.Verdict == "accepted" && p.Prober != cluster+"/nodes/"+h.name {
				byOther++
			}
		}
		if byOther != 2 {
			t.Errorf("%s: %d ports proved by the neighbour, want 2: %+v", h.name, byOther, moves[0].Proofs)
		}
		if h.cass.LoggedErrors() != 0 {
			t.Errorf("%s: passing probes wrote %d errors into Cassandra's log", h.name, h.cass.LoggedErrors())
		}
	}
	if inc := a.view().Incarnation; inc != 1 {
		t.Errorf("a restarted agent is incarnation %d", inc)
	}
}

func TestARenewalIsServedAndProvedByTheNeighbour(t *testing.T) {
	t.Parallel()
	w, a, _ := ring(t)
	before := a.leaf()
	_, err := w.fleet.RequestRenewal(t.Context(), cluster+"/nodes/n1", "", "test", ann)
	must(t, err)
	a.await("renewed", func(s fleet.Store) bool {
		return s.State == "proven" && s.Installed == s.Generation && s.Proven == s.Leaf && s.Leaf != certificate.Hex(certificate.Fingerprint(before.Raw))
	})
	if after := a.leaf(); certificate.SameKey(before.PublicKey, after.PublicKey) || bytes.Equal(before.Raw, after.Raw) {
		t.Error("the key or the leaf is still the old one")
	}
}

func TestAReloadThatDoesNothingIsRolledBack(t *testing.T) {
	t.Parallel()
	w, a, _ := ring(t)
	before := a.leaf()
	a.cass.IgnoreReloads(true)
	_, err := w.fleet.RequestRenewal(t.Context(), cluster+"/nodes/n1", "", "test", ann)
	must(t, err)
	a.await("rolled back", func(s fleet.Store) bool { return s.State == "rolled-back" })
	if !a.leaf().Equal(before) {
		t.Error("the old leaf is not back on disk")
	}
	a.did("install failed")
	a.cass.IgnoreReloads(false)
	_, err = w.fleet.RequestRenewal(t.Context(), cluster+"/nodes/n1", "", "test again", ann)
	must(t, err)
	a.await("renewed after all", func(s fleet.Store) bool { return s.State == "proven" && s.Installed == s.Generation })
	if a.leaf().Equal(before) {
		t.Error("nothing was renewed")
	}
}

func TestACertificateWithWrongNamesIsNotWritten(t *testing.T) {
	t.Parallel()
	w, a, _ := ring(t)
	before := a.leaf()
	must(t, w.fleet.SetNames(t.Context(), cluster+"/nodes/n1", fleet.Names{DNS: []string{"elsewhere.example"}}, ann))
	_, err := w.fleet.RequestRenewal(t.Context(), cluster+"/nodes/n1", "", "test", ann)
	must(t, err)
	w.await("a refused move", func() bool {
		moves, _, err := w.fleet.ListMoves(t.Context(), cluster+"/nodes/n1", fleet.Page{})
		must(t, err)
		return len(moves) > 0 && moves[0].Outcome == "refused"
	})
	if !a.leaf().Equal(before) {
		t.Error("the store was changed")
	}
}

func TestATruncatedStoreIsRestoredOnceThenContested(t *testing.T) {
	t.Parallel()
	_, a, _ := ring(t)
	before := a.leaf()
	must(t, os.Truncate(a.cass.Store.KeystorePath, 10))
	a.did("restore done")
	if l := a.leaf(); l == nil || !l.Equal(before) {
		t.Fatal("the store is not restored")
	}
	a.await("proven again", func(s fleet.Store) bool { return s.State == "proven" })
	must(t, os.Truncate(a.cass.Store.KeystorePath, 10))
	a.await("contested", func(s fleet.Store) bool { return s.State == "contested" })
	if data, _ := os.ReadFile(a.cass.Store.KeystorePath); len(data) != 10 {
		t.Error("a contested store was written")
	}

	// What `csm-agent release` does beside the running agent is taken up at once.
	foreign := cassandratest.NewCA(t, "the other tool's")
	cassandratest.Write(t, a.cass.Store, foreign.Leaf(), foreign.Root)
	other, err := install.New(install.Options{StateDir: filepath.Join(a.conf.Folder(a.conf.Cassandra[0]), "install"), Hold: a.conf.HoldFile, Reloader: a.cass, Logger: slog.New(slog.DiscardHandler)})
	must(t, err)
	must(t, other.Release(t.Context(), install.Site{Instance: a.cass.Instance(), Store: a.cass.Store}))
	a.await("foreign", func(s fleet.Store) bool { return s.State == "foreign" })
}

func TestAHeldNodeDoesNothingUntilReleased(t *testing.T) {
	t.Parallel()
	w, a, _ := ring(t)
	before := a.leaf()
	must(t, os.WriteFile(a.conf.HoldFile, []byte("maintenance\n"), 0o600))
	w.await("the hold is known", func() bool { return a.view().Agent.Hold == "maintenance" })
	_, err := w.fleet.RequestRenewal(t.Context(), cluster+"/nodes/n1", "", "test", ann)
	must(t, err)
	w.await("the wish is seen and not done", func() bool {
		s := a.status()
		return len(s.Stores) == 1 && s.Stores[0].Next.Wants == "install" && s.Stores[0].Next.Reason == "held"
	})
	if !a.leaf().Equal(before) {
		t.Fatal("a held node was changed")
	}
	must(t, os.Remove(a.conf.HoldFile))
	a.await("renewed when released", func(s fleet.Store) bool { return s.State == "proven" && s.Installed == s.Generation })
}

func TestAnAgentOutlivesItsControllers(t *testing.T) {
	t.Parallel()
	w, a, _ := ring(t)
	address := w.address
	w.stop()
	w.await("offline is said", func() bool { s := a.status(); return !s.Link.Connected && s.Link.Error != "" })
	must(t, os.Truncate(a.cass.Store.KeystorePath, 10))
	a.did("restore done") // offline it still looks after its files
	must(t, a.end())
	a.start() // and it starts without a controller, by the identity it has
	w.listen(address)
	_, err := w.fleet.RequestRenewal(t.Context(), cluster+"/nodes/n1", "", "test", ann)
	must(t, err)
	a.await("renewed after the controllers came back", func(s fleet.Store) bool { return s.State == "proven" && s.Installed == s.Generation })
	if got := a.view().Agent.Mode; got != "manage" {
		t.Errorf("mode = %s", got)
	}
}

func TestAUsedTokenLetsNobodyElseIn(t *testing.T) {
	t.Parallel()
	w, a, _ := ring(t)
	thief := newHost(w, "n3", keystore.PEM)
	thief.conf.Join.File = a.token
	thief.start()
	if err := thief.gave(); !fault.HasReason(err, "token-used") {
		t.Errorf("a used token: %v", err)
	}
	w.await("an alarm", func() bool { al, err := w.fleet.Alarms(t.Context(), 10); must(t, err); return len(al) > 0 })
	if a.view().State != fleet.Active {
		t.Error("the real agent lost its identity")
	}
}

func TestFoundCertificatesAreTold(t *testing.T) {
	t.Parallel()
	w, a, _ := ring(t)
	records := ledger.NewReplicated(w.log.Store, w.log.Clock)
	want := certificate.Hex(certificate.Fingerprint(a.leaf().Raw))
	w.await("the leaf in the keystore is found, and known as issued here", func() bool {
		found, _, err := records.Found(t.Context(), ledger.FoundFilter{}, ledger.Page{})
		must(t, err)
		for _, f := range found {
			if f.SHA256 == want && f.Path == a.cass.Store.KeystorePath && f.HasPrivateKey && f.Known != "" {
				return true
			}
		}
		return false
	})
}
