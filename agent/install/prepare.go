package install

import (
	"context"
	"crypto/sha256"
	"crypto/x509"
	"encoding/hex"
	"io/fs"
	"path/filepath"
	"slices"
	"time"

	agentv1 "github.com/cassandra-security-manager/csm/protocol/agent/v1"
	"github.com/cassandra-security-manager/csm/shared/algorithm"
	"github.com/cassandra-security-manager/csm/shared/certificate"
	"github.com/cassandra-security-manager/csm/shared/fault"
	"github.com/cassandra-security-manager/csm/shared/keystore"
)

func fingerprint(c *x509.Certificate) [32]byte { return sha256.Sum256(c.Raw) }

func anchorID(c *x509.Certificate) string {
	s := fingerprint(c)
	return hex.EncodeToString(s[:])
}

// open reads both files of the store and what they hold as far as it can be understood; the first fault says what not.
func (t *transaction) open() (pair, error) {
	var p pair
	var err error
	s := t.site.Store
	if p.keystore, err = read(s.KeystorePath); err == nil {
		p.truststore, err = read(s.TruststorePath)
	}
	if err != nil {
		return p, fault.Wrap(err, fault.Unavailable, "store-unreadable", "the store cannot be read").Do("let the agent's user read %s", filepath.Dir(s.KeystorePath))
	}
	var first error
	if p.keystore.exists {
		p.key, first = keystore.DecodeKeyStore(s.Format, p.keystore.data, s.KeystorePassword)
	}
	if p.truststore.exists {
		p.anchors, err = keystore.DecodeTrustStore(s.Format, p.truststore.data, s.TruststorePassword)
		if first == nil {
			first = err
		}
	}
	return p, first
}

// compare looks whether the files are as CSM left them, and whether an older transaction is still open.
func (t *transaction) compare(context.Context) error {
	j, err := t.f.journal()
	if err != nil {
		return err
	}
	if j != nil {
		return fault.New(fault.Conflict, "unfinished-move", "an install of %s was interrupted and is not settled", j.Begun.UTC().Format(time.RFC3339)).Do("run Recover first")
	}
	if t.rec, err = t.f.record(); err != nil {
		return err
	}
	if t.rec != nil && t.rec.Contested {
		return contested(t.site.Store.KeystorePath)
	}
	var unreadable error
	if t.old, unreadable = t.open(); fault.HasReason(unreadable, "store-unreadable") {
		return unreadable
	}
	if err := t.taken(); err != nil {
		return err
	}
	if t.rec != nil && !t.rec.Theirs && len(t.rec.History) > 0 && !t.rec.current().same(t.old.snapshot(0)) {
		return fault.New(fault.Conflict, "store-changed", "the files of store %s are not as CSM left them", t.site.Store.Name).
			Do("find out who writes them; they are restored by the watch, or adopted by `csm-agent release`")
	}
	return nil
}

// taken counts how often somebody else took our anchors out of a truststore that is theirs: after the second time within
// ContestWindow they are not put in again.
func (t *transaction) taken() error {
	if t.rec == nil || !t.rec.Theirs || len(t.rec.Ours) == 0 || t.rec.current().same(t.old.snapshot(0)) {
		return nil
	}
	if !t.untrusted(t.old) {
		return nil
	}
	// A move that failed finds the same files again: they were taken out once.
	found := t.old.snapshot(0)
	if t.rec.Restoring != nil && t.rec.Restoring.same(found) {
		return nil
	}
	t.rec.Restoring = &found
	t.rec.countForeign(t.i.o.Clock.Now())
	if err := t.f.saveRecord(t.rec); err != nil {
		return unwritable(err, t.f.dir)
	}
	if t.rec.Contested {
		return contested(t.site.Store.KeystorePath)
	}
	return nil
}

func contested(path string) error {
	return fault.New(fault.Conflict, "store-contested", "another tool puts its own files back in %s; nothing is written there any more", filepath.Dir(path)).
		Do("stop that tool, then run `csm-agent release`")
}

// preflightNew builds the new pair in memory and checks everything that Cassandra does not.
func (t *transaction) preflightNew(context.Context) error {
	p, s := t.plan, t.site.Store
	refuse := func(reason, format string, args ...any) *fault.Error {
		return fault.New(fault.Refused, reason, format, args...)
	}
	if !s.Manageable {
		return refuse("unmanageable", "store %s may only be observed", s.Name).Do("`csm-agent inspect` says why")
	}
	if t.rec != nil && p.Generation < t.rec.Generation { // a renewal whose time has come has the generation that is installed
		return fault.New(fault.Stale, "old-generation", "generation %d is older than the installed %d", p.Generation, t.rec.Generation).Do("ask for the current target")
	}
	if (p.Key == nil) != (len(p.Chain) == 0) || len(p.Anchors) == 0 || p.Key != nil && p.givesBack() {
		return refuse("bad-plan", "a plan carries key and chain together, and anchors always")
	}
	anchors := t.anchors()
	grows, shrinks := difference(anchors, t.old.anchors), difference(t.old.anchors, anchors)
	if err := t.shrinkFits(grows, anchors); err != nil {
		return err
	}
	// The same anchors under a higher generation are a move too: it writes nothing, and proves what is there.
	if p.Key == nil && !p.givesBack() && grows+shrinks == 0 && (t.rec == nil || p.Generation <= t.rec.Generation) {
		return refuse("nothing-to-do", "the store holds these anchors already")
	}
	t.new = pair{keystore: t.old.keystore, truststore: t.old.truststore, key: t.old.key, anchors: anchors}
	var err error
	if grows+shrinks > 0 || !t.old.truststore.exists {
		if t.new.truststore.data, err = keystore.EncodeTrustStore(s.Format, anchors, s.TruststorePassword); err != nil {
			return err
		}
		t.new.truststore = t.inherit(t.new.truststore, s.TruststorePath, 0o644)
	}
	if p.Key != nil {
		if t.new.keystore.data, err = keystore.EncodeKeyStore(s.Format, p.Key, p.Chain, s.KeystorePassword); err != nil {
			return err
		}
		t.new.keystore = t.inherit(t.new.keystore, s.KeystorePath, 0o600)
		if t.new.key, err = keystore.DecodeKeyStore(s.Format, t.new.keystore.data, s.KeystorePassword); err != nil {
			return err
		}
	}
	if p.givesBack() {
		if t.new.keystore, t.new.key, err = t.returning(); err != nil {
			return err
		}
	}
	need, err := union(p.Names, t.site.Instance.RequiredNamesFor(s.Name))
	if err != nil {
		return err
	}
	e := keystore.Expect{Now: t.i.o.Now(), Names: need, MinRemaining: orElse(p.MinRemaining, 24*time.Hour), Floor: p.Key != nil}
	if p.Key == nil {
		e.MinRemaining, e.Names, e.EKUs = 0, certificate.Names{}, []x509.ExtKeyUsage{} // the leaf in place is not on trial, nor is one that was there before
	}
	if err := fatal("new", keystore.Check(t.new.key, anchors, e)); err != nil {
		return err
	}
	if err := t.distributed(); err != nil {
		return err
	}
	return t.between(anchors)
}

// between checks the pair that lies on disk after the truststore's rename and before the keystore's.
func (t *transaction) between(anchors []*x509.Certificate) error {
	if t.old.key == nil || t.trustOnly() || t.plan.NoWayBack {
		return nil
	}
	return fatal("intermediate", keystore.Check(t.old.key, anchors, keystore.Expect{Now: t.old.key.Leaf().NotBefore.Add(time.Second)}))
}

// fatal turns the first fatal problem into a refusal with that problem's code.
func fatal(which string, problems []keystore.Problem) error {
	for _, p := range problems {
		if p.Fatal {
			return fault.New(fault.Refused, p.Code, "the %s pair is not fit to be installed: %s", which, p.Message).Do("%s", p.Remedy)
		}
	}
	return nil
}

func (t *transaction) inherit(f file, path string, mode fs.FileMode) file {
	f.sum = hash(f.data)
	if !f.exists {
		uid, gid := folderOwner(filepath.Dir(path))
		f.meta = meta{Mode: mode, UID: uid, GID: gid}
	}
	f.exists = true
	if mode == 0o600 {
		f.meta.Mode &^= 0o007 // a private key is nobody else's, whatever the old file allowed
	}
	return f
}

// anchors are ours from the plan, then all others found in the truststore but those that go.
func (t *transaction) anchors() []*x509.Certificate {
	var out []*x509.Certificate
	have := map[string]bool{}
	add := func(c *x509.Certificate) {
		if id := anchorID(c); !have[id] {
			have[id] = true
			out = append(out, c)
		}
	}
	for _, c := range t.plan.Anchors {
		add(c)
	}
	for _, c := range t.old.anchors {
		if !t.goes(c) {
			add(c)
		}
	}
	return out
}

func (t *transaction) ours() []string {
	var out []string
	if t.rec != nil {
		out = slices.DeleteFunc(slices.Clone(t.rec.Ours), t.withdrawn)
	}
	foreign := func(id string) bool {
		return slices.ContainsFunc(t.old.anchors, func(c *x509.Certificate) bool { return anchorID(c) == id })
	}
	for _, c := range t.plan.Anchors {
		// An anchor that somebody else had put there before us stays theirs: it is never retired by CSM alone.
		if id := anchorID(c); !slices.Contains(out, id) && (t.plan.Given || !foreign(id)) {
			out = append(out, id)
		}
	}
	return out
}

// difference counts the certificates of a that are not in b.
func difference(a, b []*x509.Certificate) (n int) {
	for _, c := range a {
		if !slices.ContainsFunc(b, c.Equal) {
			n++
		}
	}
	return n
}

func union(a, b certificate.Names) (certificate.Names, error) {
	return certificate.Names{DNS: slices.Concat(a.DNS, b.DNS), IPs: slices.Concat(a.IPs, b.IPs), URIs: slices.Concat(a.URIs, b.URIs)}.Normalise()
}

// oldBroken says why the pair in place could not be put back; nil when it could, or when there is none.
func (t *transaction) oldBroken() error {
	if !t.old.keystore.exists {
		return nil
	}
	if _, err := t.open(); err != nil {
		return err
	}
	return fatal("old", keystore.Check(t.old.key, t.old.anchors, keystore.Expect{Now: t.i.o.Now()}))
}

// preflightOld looks whether there is a way back. Under a running Cassandra none means stop; under a stopped one there is
// nothing to lose.
func (t *transaction) preflightOld(ctx context.Context) error {
	p := t.i.o.Detect(ctx, t.site.Instance)
	t.running = !p.Down()
	if t.running && !p.Normal() {
		return fault.New(fault.Refused, "node-not-normal", "the node listens on one of its ports only: it is joining, leaving, draining or starting").
			Do("wait until `nodetool info` says it is normal")
	}
	err := t.oldBroken()
	if err == nil || !t.running || t.plan.NoWayBack {
		return nil
	}
	f := fault.From(err)
	return fault.Wrap(err, fault.Refused, "no-way-back", "the pair in place (%s) could not be put back", f.Reason).
		Do("look at the node; to install all the same, an operator must say so")
}

// baseline shakes hands with each port: what is served now, and that our own certificate is accepted. It also makes
// Cassandra cache the context in force, which it keeps if the new one cannot be loaded.
func (t *transaction) baseline(ctx context.Context) error {
	if !t.running || !t.old.keystore.exists {
		return nil
	}
	for _, port := range t.ports() {
		r, err := t.probe(ctx, port, t.old, [32]byte{})
		if err != nil {
			return err
		}
		if r.Served != ([32]byte{}) {
			t.served = r.Served
		}
		if err := t.servedNeeds(port, r); err != nil {
			return err
		}
		if err := r.Takes(t.new.certificate()); err != nil && !t.trustOnly() {
			return fault.Wrap(err, fault.Refused, "key-unsupported", "%s:%d takes no certificate with a key of kind %s from a client, so no node would take this one",
				port.Address, port.Port, algorithm.Name(t.new.key.Leaf().PublicKey)).Do("use P-384 or RSA-4096 for certificates of this node; nothing was changed")
		}
		if r.Verdict != agentv1.Verdict_VERDICT_ACCEPTED && !t.plan.NoWayBack {
			return fault.New(fault.Refused, "baseline-failed", "%s:%d does not accept the certificate in place before the install: %s", port.Address, port.Port, r.Detail).
				Do("`csm-agent probe` shows each port; nothing was changed")
		}
	}
	return nil
}
