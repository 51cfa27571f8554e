package issuance_test

import (
	"crypto/rand"
	"crypto/x509"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/jonboulle/clockwork"

	"github.com/cassandra-security-manager/csm/controller/authority"
	"github.com/cassandra-security-manager/csm/controller/issuance"
	"github.com/cassandra-security-manager/csm/controller/issuance/turns"
	"github.com/cassandra-security-manager/csm/controller/ledger"
	"github.com/cassandra-security-manager/csm/shared/algorithm"
	"github.com/cassandra-security-manager/csm/shared/certificate"
	"github.com/cassandra-security-manager/csm/shared/fault"
	"github.com/cassandra-security-manager/csm/shared/identity"
)

// doorAt is the door of a controller whose clock stands elsewhere.
func (w *world) doorAt(now time.Time, o issuance.Options) *issuance.Issuance {
	return issuance.New(w.authorities, w.log, clockwork.NewFakeClockAt(now), rand.Reader, o)
}

func TestANodesCertificateHoldsExactlyWhatItShould(t *testing.T) {
	w := newWorld(t, algorithm.P384, issuance.Options{})
	now := w.log.Clock.Now()
	r := w.nodeRequest(t, "a")
	r.CSR = csr(t, key(t, algorithm.P384), certificate.Names{}) // a request without names gets the allowed ones
	out, err := w.door.Issue(ctx, r)
	must(t, err)
	chain, err := certificate.ParseChain(out.Chain)
	must(t, err)
	leaf := chain[0]
	anchors, err := w.authorities.Anchors(ctx, w.authority)
	must(t, err)
	must(t, certificate.VerifyChain(leaf, chain[1:], anchors, now, x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth))
	system, err := w.authorities.SystemBundle(ctx)
	must(t, err)
	if certificate.VerifyChain(leaf, chain[1:], system, now) == nil {
		t.Error("a tenant's leaf chains to the system CA")
	}
	if len(chain) != 2 || !certificate.OfCertificate(leaf).Equal(r.Names) || leaf.Subject.CommonName != "n1" ||
		leaf.NotBefore != now.Add(-10*time.Minute) || leaf.NotAfter != now.Add(90*24*time.Hour) || leaf.SignatureAlgorithm != x509.ECDSAWithSHA384 ||
		leaf.SerialNumber.BitLen() > 159 || leaf.SerialNumber.BitLen() < 100 || leaf.KeyUsage != x509.KeyUsageDigitalSignature ||
		!strings.HasPrefix(leaf.CRLDistributionPoints[0], "http://csm1.example:9643/crl/") || !strings.HasPrefix(leaf.IssuingCertificateURL[0], "http://csm1.example:9643/ca/") {
		t.Errorf("leaf = %+v", certificate.Describe(leaf))
	}
	got, err := w.ledger.Get(ctx, out.Name)
	must(t, err)
	if string(got.DER) != string(out.Leaf()) || got.Node != node || got.Issuer != out.Issuer || !got.RenewAt.Equal(out.RenewAt) || got.Actor != actor || got.Serial != out.Serial {
		t.Errorf("recorded %+v, handed out %+v", got, out)
	}
	if part := float64(out.RenewAt.Sub(now)) / float64(90*24*time.Hour); part < 0.6 || part > 0.7 {
		t.Errorf("renewal at %.0f %% of the life", 100*part)
	}
}

func TestAnApplicationsCertificateTakesTheNamesOfItsRequestOnlyWhenToldTo(t *testing.T) {
	w := newWorld(t, algorithm.P384, issuance.Options{})
	n := names(t, []string{"app.example"}, nil)
	r := issuance.Request{RequestID: "a", Actor: actor, Tenant: "default", Authority: w.authority, Template: "application", Subject: "shop", CSR: csr(t, key(t, algorithm.P384), n)}
	_, err := w.door.Issue(ctx, r)
	wantReason(t, err, "name-not-allowed")
	r.FromCSR = true
	out, err := w.door.Issue(ctx, r)
	must(t, err)
	leaf, err := certificate.Parse(out.Leaf())
	must(t, err)
	if !certificate.OfCertificate(leaf).Equal(n) || leaf.Subject.CommonName != "shop" || !slices.Equal(leaf.ExtKeyUsage, []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth}) ||
		leaf.NotAfter.Sub(w.log.Clock.Now()) != 30*24*time.Hour {
		t.Errorf("leaf = %+v", certificate.Describe(leaf))
	}
}

func TestNamesThatRealClustersHavePassTheLints(t *testing.T) {
	w := newWorld(t, algorithm.P384, issuance.Options{})
	for _, dns := range []string{"localhost", "cass-1", "cassandra-0.cassandra.default.svc.cluster.local", "n_1.example", "ip-10-0-0-1.ec2.internal", "xn--bcher-kva.example", "1.example"} {
		r := w.nodeRequest(t, dns)
		r.Names = names(t, []string{dns}, []string{"2001:db8::1", "127.0.0.1"})
		r.Names.URIs = []string{identity.NodeID("0123456789abcdef.csm", "default", "prod", "n1").String()}
		r.CSR = csr(t, key(t, algorithm.P384), r.Names)
		if _, err := w.door.Issue(ctx, r); err != nil {
			t.Errorf("%s: %v", dns, err)
		}
	}
}

func TestRSAKeysOf4096BitsAreCertified(t *testing.T) {
	w := newWorld(t, algorithm.P384, issuance.Options{})
	r := w.nodeRequest(t, "a")
	r.CSR = csr(t, key(t, algorithm.RSA4096), r.Names)
	out, err := w.door.Issue(ctx, r)
	must(t, err)
	leaf, err := certificate.Parse(out.Leaf())
	must(t, err)
	if leaf.KeyUsage != x509.KeyUsageDigitalSignature|x509.KeyUsageKeyEncipherment {
		t.Errorf("key usage %v", leaf.KeyUsage)
	}
}

func TestSystemIdentitiesAreIssuedByKind(t *testing.T) {
	w := newWorld(t, algorithm.P384, issuance.Options{})
	const td = "0123456789abcdef.csm"
	both := []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth}
	for id, usages := range map[identity.ID][]x509.ExtKeyUsage{
		identity.ControllerID(td, "csm1"): both, identity.AgentID(td, "uid-1", 3): both[1:], identity.AdminID(td, "alice"): both[1:],
	} {
		k := key(t, algorithm.P384)
		chain, bundle, err := w.door.IssueIdentity(ctx, id, csr(t, k, certificate.Names{}), actor, "r")
		must(t, err)
		certs, err := certificate.ParseChain(chain)
		must(t, err)
		roots, err := certificate.ParseChain(bundle)
		must(t, err)
		v := identity.Verifier{Roots: func() []*x509.Certificate { return roots }, TrustDomain: td, Kinds: []identity.Kind{id.Kind}, Now: w.log.Clock.Now}
		if got, err := v.Verify(certs); err != nil || got != id {
			t.Errorf("%s verifies as %s: %v", id, got, err)
		}
		if !slices.Equal(certs[0].ExtKeyUsage, usages) || certs[0].NotAfter.Sub(w.log.Clock.Now()) != 30*24*time.Hour {
			t.Errorf("%s: %+v", id, certificate.Describe(certs[0]))
		}
		cs, _, err := w.ledger.List(ctx, ledger.Filter{System: true, Identity: id.String()}, ledger.Page{})
		if err != nil || len(cs) != 1 || string(cs[0].DER) != string(chain[0]) {
			t.Errorf("%s: %d recorded, %v", id, len(cs), err)
		}
	}
}

func TestAnIdentityThatIsNotItsOwnIsRefused(t *testing.T) {
	w := newWorld(t, algorithm.P384, issuance.Options{})
	const td = "0123456789abcdef.csm"
	k := key(t, algorithm.P384)
	other := csr(t, k, certificate.Names{URIs: []string{identity.AdminID(td, "root").String()}})
	plain := csr(t, k, certificate.Names{})
	for _, c := range []struct {
		id     identity.ID
		csr    []byte
		reason string
	}{
		{identity.AdminID(td, "alice"), other, "name-not-allowed"},
		{identity.AdminID("another.csm", "alice"), plain, "wrong-identity"},
		{identity.NodeID(td, "default", "prod", "n1"), plain, "no-template"},
		{identity.AdminID(td, "a/b"), plain, "bad-identity"},
		{identity.AdminID(td, "alice"), []byte("rubbish"), "bad-csr"},
	} {
		_, _, err := w.door.IssueIdentity(ctx, c.id, c.csr, actor, "r")
		wantReason(t, err, c.reason)
	}
	_, _, err := w.door.IssueIdentity(ctx, identity.AdminID(td, "alice"), plain, actor, "")
	wantReason(t, err, "bad-request-id")
}

func TestRevokingSaysWhatItDoesNotDo(t *testing.T) {
	w := newWorld(t, algorithm.P384, issuance.Options{})
	out, err := w.door.Issue(ctx, w.nodeRequest(t, "a"))
	must(t, err)
	r, err := w.door.Revoke(ctx, out.Name, ledger.Superseded, actor)
	must(t, err)
	if r.Already || r.Reason != ledger.Superseded || !strings.Contains(r.Note, "Cassandra checks no revocation list") {
		t.Errorf("%+v", r)
	}
	if r, err = w.door.Revoke(ctx, out.Name, ledger.KeyCompromise, actor); err != nil || !r.Already || r.Reason != ledger.Superseded {
		t.Errorf("%+v, %v", r, err)
	}
	_, err = w.door.Revoke(ctx, out.Name, 6, actor)
	wantReason(t, err, "bad-reason")
	_, err = w.door.Revoke(ctx, "tenants/default/certificates/00", ledger.Unspecified, actor)
	wantReason(t, err, "no-certificate")
}

// OpenSSL shares no code with us: what it accepts and refuses is what others will.
func TestOpenSSLVerifiesTheChainAndSeesTheRevocation(t *testing.T) {
	bin, err := exec.LookPath("openssl")
	if err != nil {
		t.Fatal("openssl is needed: apt-get install openssl")
	}
	w := newWorld(t, algorithm.P384, issuance.Options{})
	out, err := w.door.Issue(ctx, w.nodeRequest(t, "a"))
	must(t, err)
	chain, err := certificate.ParseChain(out.Chain)
	must(t, err)
	anchors, err := w.authorities.Anchors(ctx, w.authority)
	must(t, err)
	dir := t.TempDir()
	write := func(name string, data []byte) string {
		p := filepath.Join(dir, name)
		must(t, os.WriteFile(p, data, 0o600))
		return p
	}
	i, err := w.authorities.Issuer(ctx, out.Issuer)
	must(t, err)
	crl := func() string {
		l, err := w.authorities.CRL(ctx, i.PublicID, i.Shard(chain[0].SerialNumber))
		must(t, err)
		der := write("crl.der", l.DER)
		pem := filepath.Join(dir, "crl.pem")
		if b, err := exec.Command(bin, "crl", "-inform", "DER", "-in", der, "-out", pem).CombinedOutput(); err != nil {
			t.Fatalf("openssl crl: %s", b)
		}
		return pem
	}
	at := w.log.Clock.Now().Unix()
	verify := func(extra ...string) string {
		args := append([]string{"verify", "-x509_strict", "-attime", strconv.FormatInt(at, 10), "-CAfile", write("root.pem", certificate.EncodePEM(anchors...)),
			"-untrusted", write("inter.pem", certificate.EncodePEM(chain[1:]...))}, extra...)
		b, _ := exec.Command(bin, append(args, write("leaf.pem", certificate.EncodePEM(chain[0])))...).CombinedOutput()
		return string(b)
	}
	for _, purpose := range []string{"sslserver", "sslclient"} {
		if got := verify("-purpose", purpose, "-verify_hostname", "n1.example"); !strings.Contains(got, ": OK") {
			t.Errorf("%s: %s", purpose, got)
		}
	}
	if got := verify("-verify_hostname", "n2.example"); strings.Contains(got, ": OK") {
		t.Error("openssl takes it for another host")
	}
	if got := verify("-crl_check", "-CRLfile", crl()); !strings.Contains(got, ": OK") {
		t.Errorf("before the revocation: %s", got)
	}
	_, err = w.door.Revoke(ctx, out.Name, ledger.KeyCompromise, actor)
	must(t, err)
	if got := verify("-crl_check", "-CRLfile", crl()); !strings.Contains(got, "certificate revoked") {
		t.Errorf("after the revocation: %s", got)
	}
}

func TestManyClientsAtOnceGetOneCertificateEach(t *testing.T) {
	w := newWorld(t, algorithm.P384, issuance.Options{HourlyCap: -1})
	var wg sync.WaitGroup
	seen := sync.Map{}
	for c := range 16 {
		wg.Go(func() {
			r := w.nodeRequest(t, "r"+string(rune('a'+c)))
			for range 3 { // each asks three times
				out, err := w.door.Issue(ctx, r)
				if err != nil {
					t.Error(err)
					return
				}
				if old, loaded := seen.LoadOrStore(r.RequestID, out.Name); loaded && old != out.Name {
					t.Error("one request, two certificates")
				}
			}
		})
	}
	wg.Wait()
	if n := w.leaves(t, "node"); n != 16 {
		t.Errorf("%d recorded", n)
	}
}

func TestARequestThatHasNoTurnIsNotSignedAndLaterHasOne(t *testing.T) {
	w := newWorld(t, algorithm.P384, issuance.Options{})
	line := turns.New(turns.Options{Rate: 0.01, Clock: w.log.Clock})
	door := issuance.New(w.authorities, w.log, w.log.Clock, rand.Reader, issuance.Options{Turns: line})
	_, err := door.Issue(ctx, w.nodeRequest(t, "a"))
	must(t, err)
	before := w.log.Store.Applied()
	late, soon := w.nodeRequest(t, "b"), w.nodeRequest(t, "c")
	late.Due, soon.Due = w.log.Clock.Now().Add(48*time.Hour), w.log.Clock.Now().Add(time.Hour)
	back := map[string]time.Duration{}
	for _, r := range []issuance.Request{late, soon, late} {
		_, err := door.Issue(ctx, r)
		wantReason(t, err, "signer-busy")
		back[r.RequestID] = fault.From(err).RetryAfter
	}
	if w.log.Store.Applied() != before {
		t.Error("something was recorded without a turn")
	}
	if back["b"] < back["c"]+time.Minute {
		t.Errorf("what ends in two days is to come back after %s, what ends within the hour after %s", back["b"], back["c"])
	}
	w.log.Clock.Advance(100 * time.Second)
	if _, err := door.Issue(ctx, soon); err != nil {
		t.Errorf("its turn has come: %v", err)
	}
	_, err = door.Issue(ctx, late)
	wantReason(t, err, "signer-busy")
}

func TestARequestThatItsKeyHasNotSignedIsRefusedAtItsTurn(t *testing.T) {
	w := newWorld(t, algorithm.P384, issuance.Options{})
	line := turns.New(turns.Options{Rate: 0.01, Clock: w.log.Clock})
	door := issuance.New(w.authorities, w.log, w.log.Clock, rand.Reader, issuance.Options{Turns: line})
	forged := w.nodeRequest(t, "forged")
	forged.CSR[len(forged.CSR)-1] ^= 1
	before := w.log.Store.Applied()
	_, err := door.Validate(ctx, forged)
	wantReason(t, err, "bad-csr-signature")
	_, err = door.Issue(ctx, forged) // its turn is at once
	wantReason(t, err, "bad-csr-signature")
	forged.Due = w.log.Clock.Now().Add(48 * time.Hour)
	_, err = door.Issue(ctx, forged) // sent away before it is looked at so closely
	wantReason(t, err, "signer-busy")
	w.log.Clock.Advance(fault.From(err).RetryAfter + 10*time.Second)
	_, err = door.Issue(ctx, forged)
	wantReason(t, err, "bad-csr-signature")
	if here, away := line.Len(); here+away != 0 {
		t.Errorf("it keeps a place: %d, %d", here, away)
	}
	if w.log.Store.Applied() != before {
		t.Error("something was recorded")
	}
}

func TestBenchmarksAloneMayUseP256(t *testing.T) {
	w := newWorld(t, algorithm.P384, issuance.Options{})
	_, err := w.authorities.CreateRoot(ctx, "default", "weak", authority.CreateOptions{Actor: actor, Algorithm: algorithm.P256})
	wantReason(t, err, "weak-key")
}
