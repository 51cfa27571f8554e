package agenttest

import (
	"crypto/x509"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/cassandra-security-manager/csm/agent/cassandra/cassandratest"
	"github.com/cassandra-security-manager/csm/agent/node"
	"github.com/cassandra-security-manager/csm/controller/fleet"
	"github.com/cassandra-security-manager/csm/shared/certificate"
	"github.com/cassandra-security-manager/csm/shared/keystore"
)

func TestACopiedDiskStopsBothAndIsPutRight(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	bin := program(t)
	a := newHost(w, "n1", keystore.PKCS12)
	a.start()
	a.await("installed", func(s fleet.Store) bool { return s.State == "installed-unproven" })

	// The disk is copied while the agent runs, and started on another machine.
	b := newHost(w, "n2", keystore.PKCS12)
	must(t, os.CopyFS(b.conf.StateDir, os.DirFS(a.conf.StateDir)))
	b.start()
	w.await("the controllers notice", func() bool { return a.view().State == fleet.Suspended })
	w.await("both know", func() bool {
		return a.status().Suspended != "" && b.status().Copied && b.status().Node == a.status().Node
	})
	if alarms, err := w.fleet.Alarms(t.Context(), 10); err != nil || len(alarms) != 1 || alarms[0].Kind != "copied-state" || alarms[0].Resource != a.view().Name {
		t.Errorf("alarms: %+v %v", alarms, err)
	}
	generation, err := w.fleet.RequestRenewal(t.Context(), a.view().Name, "", "while suspended", ann)
	must(t, err)
	before := a.leaf()
	must(t, b.end())

	// One command on the copy, one for the original.
	conf := b.file()
	if out, errs, exit := run(t, bin, "seal-image", "--config", conf); exit != 3 || !strings.Contains(errs, "--yes") {
		t.Errorf("seal-image without a word: %d %s %s", exit, out, errs)
	}
	if out, errs, exit := run(t, bin, "seal-image", "--yes", "--config", conf); exit != 0 {
		t.Fatalf("seal-image: %d %s %s", exit, out, errs)
	}
	if entries, _ := os.ReadDir(b.conf.StateDir); len(entries) != 0 {
		t.Errorf("a sealed image keeps %v", entries)
	}
	if !a.leaf().Equal(before) {
		t.Error("a suspended agent has changed its store")
	}
	must(t, w.fleet.Resume(t.Context(), a.view().Name, "the copy is sealed", ann))
	a.await("the original works again", func(s fleet.Store) bool { return s.Installed >= generation })
	b.start()
	w.await("the copy is a node of its own", func() bool { return b.view().Incarnation == 1 && b.view().State == fleet.Active })
	if a.view().State != fleet.Active || a.view().Incarnation != 1 {
		t.Errorf("the original is %s, incarnation %d", a.view().State, a.view().Incarnation)
	}
}

func TestEnsureSaysWhatCassandraMustNotStartWith(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	bin := program(t)
	h := newHost(w, "n1", keystore.PKCS12)
	conf := h.file()
	ensure := func(what string, want int, word string) {
		t.Helper()
		out, errs, exit := run(t, bin, "ensure", "--before-start", "--config", conf)
		if exit != want || !strings.Contains(out, word) {
			t.Errorf("%s: exit %d\n%s%s", what, exit, out, errs)
		}
	}
	ensure("no stores yet", 3, "store-absent")
	h.start()
	h.await("installed", func(s fleet.Store) bool { return s.State == "installed-unproven" })
	w.await("the status knows what is wanted", func() bool { return len(h.status().Wanted) > 0 })
	ensure("installed by CSM, agent running", 0, "")
	must(t, h.end())
	w.stop()
	ensure("neither agent nor controller", 0, "")

	keep, err := os.ReadFile(h.cass.Store.TruststorePath)
	must(t, err)
	stranger := cassandratest.NewCA(t, "stranger")
	ts, err := keystore.EncodeTrustStore(keystore.PKCS12, []*x509.Certificate{stranger.Root}, h.cass.Store.TruststorePassword)
	must(t, err)
	must(t, os.WriteFile(h.cass.Store.TruststorePath, ts, 0o600))
	ensure("a truststore of somebody else", 3, "trust-behind")
	must(t, os.WriteFile(h.cass.Store.TruststorePath, keep, 0o600))
	must(t, os.WriteFile(h.cass.Store.KeystorePath, []byte("cut"), 0o600))
	ensure("a keystore that was cut", 3, "")

	expired := stranger.Leaf(func(c *x509.Certificate) {
		c.NotBefore, c.NotAfter = time.Now().Add(-48*time.Hour), time.Now().Add(-time.Hour)
	})
	cassandratest.Write(t, h.cass.Store, expired, stranger.Root)
	ensure("expired", 3, "expired")
	cassandratest.Write(t, h.cass.Store, stranger.Leaf(), stranger.Root)
	if _, errs, exit := run(t, bin, "ensure", "--before-start", "--config", "/nowhere/agent.yaml"); exit != 2 && exit != 4 {
		t.Errorf("without a configuration: %d %s", exit, errs)
	}
}

func TestMetricsLieInTheStateFolder(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	h := newHost(w, "n1", keystore.PEM)
	h.start()
	h.await("installed", func(s fleet.Store) bool { return s.State == "installed-unproven" })
	path := filepath.Join(h.conf.StateDir, "metrics", "cassandra.prom")
	w.await("the file tells of the store and of the link", func() bool {
		data, err := os.ReadFile(path)
		return err == nil && strings.Contains(string(data), `csm_agent_store_not_after_timestamp_seconds{instance="cassandra",store="node"} 1`) &&
			!strings.Contains(string(data), `csm_agent_last_sync_timestamp_seconds{instance="cassandra"} 0`)
	})
	if fi, err := os.Stat(path); err != nil || fi.Mode().Perm() != 0o644 {
		t.Errorf("%v %v", fi, err)
	}
}

func TestAnAgentThatWasAwayRenewsItsExpiredIdentityOrSaysWhatToType(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	h := newHost(w, "n1", keystore.PEM)
	h.conf.Mode = "observe"
	h.start()
	w.await("joined", func() bool { return h.view().Agent.Connected })
	away := func(d time.Duration) {
		must(t, h.end())
		w.stop()
		w.leap(d)
		w.await("the controller's clock too", func() bool { return w.now().Sub(w.log.Clock.Now()) < time.Second })
		w.listen(w.address)
		h.start()
	}
	away(60 * 24 * time.Hour) // an identity lives 30 days
	w.await("back with a renewed identity", func() bool {
		s := h.status()
		return s.Link.Connected && s.IdentityNotAfter.After(w.now()) && s.Incarnation == 1
	})
	away(365 * 24 * time.Hour) // longer than the grace of 180
	w.await("it says what to type", func() bool {
		s := h.status()
		level, notes := node.Health(s, true, w.now())
		return !s.Link.Connected && s.Link.Error != "" && level == node.Red && slices.ContainsFunc(notes, func(n node.Note) bool {
			return strings.Contains(n.Message, "identity expired") && strings.Contains(n.Remedy, "csm cluster join-command prod/n1 --rejoin")
		})
	})
	// What it says, done.
	secret, _, err := w.fleet.CreateToken(t.Context(), cluster, fleet.TokenSpec{Node: "n1", Rejoin: true}, ann)
	must(t, err)
	must(t, h.end())
	must(t, os.WriteFile(h.token, []byte(secret+"\n"), 0o600))
	must(t, os.Remove(filepath.Join(h.conf.Folder(h.conf.Cassandra[0]), "identity.json")))
	h.start()
	w.await("joined anew", func() bool { s := h.status(); return s.Link.Connected && s.Incarnation == 2 })
}

// A host that was rebuilt around its files, or lost its state folder, knows nothing of what it installed. The controllers do.
func TestANodeWhoseStateFolderIsLostRejoinsAndIsRenewed(t *testing.T) {
	t.Parallel()
	w, a, b := ring(t)
	must(t, a.end())
	must(t, os.RemoveAll(a.conf.StateDir))
	before := a.leaf()
	secret, _, err := w.fleet.CreateToken(t.Context(), cluster, fleet.TokenSpec{Node: "n1", Rejoin: true}, ann)
	must(t, err)
	must(t, os.WriteFile(a.token, []byte(secret+"\n"), 0o600))
	a.start()
	a.await("its files are CSM's again", func(s fleet.Store) bool {
		return s.State == "proven" && s.Proven == s.Leaf && s.Installed == s.Generation && s.Leaf != certificate.Hex(certificate.Fingerprint(before.Raw))
	})
	if v := a.view(); v.Incarnation != 2 || v.State != fleet.Active {
		t.Errorf("incarnation %d, %s", v.Incarnation, v.State)
	}
	for _, h := range []*host{a, b} {
		if n := len(trusts(t, h)); n != 1 {
			t.Errorf("%s trusts %d anchors", h.name, n)
		}
	}
	if moves, _, err := w.fleet.ListMoves(t.Context(), cluster+"/nodes/n1", fleet.Page{}); err != nil || moves[0].Kind != "renew" || moves[0].Outcome != "proven" {
		t.Errorf("%+v %v", moves, err)
	}
	must(t, os.Truncate(a.cass.Store.KeystorePath, 10)) // and defended again
	a.did("restore done")
}
