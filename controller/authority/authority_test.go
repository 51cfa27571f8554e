package authority_test

import (
	"bytes"
	"context"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/asn1"
	"math/big"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/cassandra-security-manager/csm/controller/authority"
	"github.com/cassandra-security-manager/csm/controller/keyring"
	"github.com/cassandra-security-manager/csm/controller/ledger"
	"github.com/cassandra-security-manager/csm/controller/state"
	"github.com/cassandra-security-manager/csm/controller/state/statetest"
	clusterv1 "github.com/cassandra-security-manager/csm/protocol/cluster/v1"
	"github.com/cassandra-security-manager/csm/shared/algorithm"
	"github.com/cassandra-security-manager/csm/shared/certificate"
	"github.com/cassandra-security-manager/csm/shared/fault"
)

var ctx = context.Background()

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func wantReason(t testing.TB, err error, reason string) {
	t.Helper()
	if !fault.HasReason(err, reason) {
		t.Fatalf("error = %v, want reason %s", err, reason)
	}
}

const base = "http://csm1.example:9643"

type world struct {
	*authority.Authorities
	log *statetest.Log
	kek *keyring.KEK
}

func newWorld(t testing.TB) *world {
	t.Helper()
	l := statetest.New(t, keyring.Module(), authority.Module(), ledger.Module(authority.Issuers{}))
	kek, err := keyring.CreateKEK(t.TempDir(), keyring.FileSealer{Path: t.TempDir() + "/master"})
	must(t, err)
	ring := keyring.New(l.Store, l, kek, "c1")
	public, _, err := keyring.NewRecovery()
	must(t, err)
	must(t, ring.Initialise(ctx, "test", public))
	return &world{authority.New(l.Store, l, ring, l.Clock, rand.Reader, authority.Options{BaseURLs: []string{base + "/"}, CRLShards: 2}), l, kek}
}

// other is the same system on another controller, unsealed or not.
func (w *world) other(t testing.TB, unsealed bool) *authority.Authorities {
	t.Helper()
	ring := keyring.New(w.log.Store, w.log, w.kek, "c1")
	if unsealed {
		must(t, ring.Unseal(ctx))
	}
	return authority.New(w.log.Store, w.log, ring, w.log.Clock, rand.Reader, authority.Options{})
}

func (w *world) root(t testing.TB) *authority.Authority {
	t.Helper()
	a, err := w.CreateRoot(ctx, "default", "internal", authority.CreateOptions{Actor: "test"})
	must(t, err)
	return a
}

func (w *world) issuer(t testing.TB, a *authority.Authority, region string) *authority.Issuer {
	t.Helper()
	i, err := w.CreateIssuer(ctx, a.Name, region, "test")
	must(t, err)
	return i
}

// revoke records a certificate of an issuer by its serial alone, and revokes it.
func (w *world) revoke(t testing.TB, i *authority.Issuer, serial int64) {
	t.Helper()
	sum := certificate.Fingerprint(i.Certificate.Raw)
	b := big.NewInt(serial).Bytes()
	r, err := state.Reply[*clusterv1.RecordedCertificate](ctx, w.log, state.Proposal{Actor: "t", Command: &clusterv1.RecordCertificate{Tenant: "default",
		Der: append([]byte(i.Name), b...), Serial: b, Issuer: i.Name, IssuerSha256: sum[:], KeySha256: b, NotAfterMs: w.log.Clock.Now().Add(24 * time.Hour).UnixMilli()}})
	must(t, err)
	_, err = w.log.Propose(ctx, state.Proposal{Actor: "t", Command: &clusterv1.RevokeCertificate{Name: r.Name, Reason: uint32(ledger.KeyCompromise)}})
	must(t, err)
}

func serials(t testing.TB, l authority.List) []int64 {
	t.Helper()
	list, err := x509.ParseRevocationList(l.DER)
	must(t, err)
	var out []int64
	for _, e := range list.RevokedCertificateEntries {
		out = append(out, e.SerialNumber.Int64())
	}
	return out
}

func TestTheSystemAuthorityIsMadeOnce(t *testing.T) {
	w := newWorld(t)
	a, err := w.Genesis(ctx, "0123456789abcdef", "test")
	must(t, err)
	again, err := w.Genesis(ctx, "0123456789abcdef", "test")
	must(t, err)
	_, err = w.Genesis(ctx, "another", "test")
	wantReason(t, err, "system-exists")
	c := a.Issuers[0].Certificate
	if a.TrustDomain != "0123456789abcdef.csm" || !bytes.Equal(again.Issuers[0].Certificate.Raw, c.Raw) || c.SignatureAlgorithm != x509.ECDSAWithSHA384 ||
		!c.IsCA || c.MaxPathLen != 1 || c.NotAfter.Sub(w.log.Clock.Now()) != authority.RootValidity || algorithm.Name(c.PublicKey) != "P-384" {
		t.Errorf("%+v", certificate.Describe(c))
	}
	bundle, err := w.SystemBundle(ctx)
	must(t, err)
	if len(bundle) != 1 || !bundle[0].Equal(c) {
		t.Error("the bundle is not the system CA")
	}
	i, err := w.IssuerFor(ctx, authority.SystemName, "anywhere")
	must(t, err)
	if chain, err := w.Chain(ctx, i); err != nil || len(chain) != 0 {
		t.Errorf("chain %v, %v", chain, err)
	}
	_, err = w.CreateIssuer(ctx, authority.SystemName, "eu", "test")
	wantReason(t, err, "system-issuer")
}

func TestATenantsHierarchyIsRootAndOneIssuerPerRegion(t *testing.T) {
	w := newWorld(t)
	a := w.root(t)
	eu, us := w.issuer(t, a, "eu"), w.issuer(t, a, "us")
	anchors, err := w.Anchors(ctx, a.Name)
	must(t, err)
	for _, i := range []*authority.Issuer{eu, us} {
		must(t, certificate.VerifyChain(i.Certificate, nil, anchors, w.log.Clock.Now()))
		if !i.Certificate.MaxPathLenZero || i.Certificate.NotAfter.Sub(w.log.Clock.Now()) != authority.IssuerValidity || len(i.Certificate.CRLDistributionPoints) != 1 {
			t.Errorf("%+v", certificate.Describe(i.Certificate))
		}
	}
	for region, want := range map[string]string{"eu": eu.Name, "us": us.Name} {
		got, err := w.IssuerFor(ctx, a.Name, region)
		must(t, err)
		if got.Name != want {
			t.Errorf("%s signs for %s", got.Name, region)
		}
	}
	if got, err := w.IssuerFor(ctx, a.Name, "ap"); err != nil || got.Kind != authority.Issuing {
		t.Errorf("a region without an issuer gets %v, %v", got, err)
	}
	got, err := w.Get(ctx, a.Name)
	must(t, err)
	if len(got.Issuers) != 3 || got.Issuers[0].Kind != authority.Root || got.Issuers[1].Name != eu.Name {
		t.Errorf("issuers = %v", got.Issuers)
	}
	if all, err := w.List(ctx, "default"); err != nil || len(all) != 1 {
		t.Errorf("%v, %v", all, err)
	}
	book := ledger.NewReplicated(w.log.Store, w.log.Clock)
	if n, err := book.Count(ctx, ledger.Filter{Authority: a.Name}); err != nil || n != 3 {
		t.Errorf("%d CA certificates are in the ledger, %v", n, err)
	}
}

func TestWhatCannotBeMadeIsRefused(t *testing.T) {
	w := newWorld(t)
	a := w.root(t)
	_, err := w.CreateRoot(ctx, "default", "internal", authority.CreateOptions{Actor: "test"})
	wantReason(t, err, "authority-exists")
	_, err = w.CreateRoot(ctx, "default", "Bad Name", authority.CreateOptions{Actor: "test"})
	wantReason(t, err, "bad-name")
	_, err = w.CreateIssuer(ctx, a.Name, "../eu", "test")
	wantReason(t, err, "bad-name")
	_, err = w.CreateIssuer(ctx, "tenants/default/authorities/none", "eu", "test")
	wantReason(t, err, "no-authority")
	_, err = w.IssuerFor(ctx, a.Name, "eu")
	wantReason(t, err, "no-issuer") // a root signs no leaves
	_, err = w.other(t, false).CreateIssuer(ctx, a.Name, "eu", "test")
	wantReason(t, err, "sealed")
	must(t, w.SetState(ctx, a.Issuers[0].Name, authority.Retired, "test", ""))
	_, err = w.CreateIssuer(ctx, a.Name, "eu", "test")
	wantReason(t, err, "no-root")
	wantReason(t, w.SetState(ctx, a.Issuers[0].Name, "odd", "test", ""), "bad-state")
	wantReason(t, w.SetState(ctx, a.Name+"/issuers/none", authority.Active, "test", ""), "no-issuer")
}

func TestANewIssuerTakesOverOnEveryControllerAtOnce(t *testing.T) {
	w := newWorld(t)
	a := w.root(t)
	first := w.issuer(t, a, "eu")
	there := w.other(t, true)
	if i, err := there.IssuerFor(ctx, a.Name, "eu"); err != nil || i.Name != first.Name {
		t.Fatal(i, err)
	}
	w.log.Clock.Advance(time.Second)
	second := w.issuer(t, a, "eu")
	if i, err := there.IssuerFor(ctx, a.Name, "eu"); err != nil || i.Name != second.Name {
		t.Errorf("%v signs, %v", i.Name, err)
	}
	must(t, w.SetState(ctx, second.Name, authority.Retired, "test", ""))
	if i, err := there.IssuerFor(ctx, a.Name, "eu"); err != nil || i.Name != first.Name {
		t.Errorf("%v signs, %v", i.Name, err)
	}
}

func TestARevocationIsInItsShardAtOnceAndNowhereElse(t *testing.T) {
	w := newWorld(t)
	a := w.root(t)
	eu, us := w.issuer(t, a, "eu"), w.issuer(t, a, "us")
	before, err := w.CRL(ctx, eu.PublicID, 0)
	must(t, err)
	for _, s := range []int64{1001, 1002, 1004} {
		w.revoke(t, eu, s)
	}
	even, err := w.CRL(ctx, eu.PublicID, 0)
	must(t, err)
	odd, err := w.CRL(ctx, eu.PublicID, 1)
	must(t, err)
	other, err := w.CRL(ctx, us.PublicID, 0)
	must(t, err)
	if !slices.Equal(serials(t, even), []int64{1002, 1004}) || !slices.Equal(serials(t, odd), []int64{1001}) || len(serials(t, other)) != 0 {
		t.Errorf("shards hold %v, %v, %v", serials(t, even), serials(t, odd), serials(t, other))
	}
	old, err := x509.ParseRevocationList(before.DER)
	must(t, err)
	list, err := x509.ParseRevocationList(even.DER)
	must(t, err)
	must(t, list.CheckSignatureFrom(eu.Certificate))
	if list.Number.Cmp(old.Number) <= 0 || list.RevokedCertificateEntries[0].ReasonCode != 1 || even.ETag == before.ETag {
		t.Errorf("list %v after %v, %v", list.Number, old.Number, list.RevokedCertificateEntries)
	}
	if i := slices.IndexFunc(list.Extensions, func(e pkix.Extension) bool { return e.Id.Equal(asn1.ObjectIdentifier{2, 5, 29, 28}) && e.Critical }); i < 0 ||
		!bytes.Contains(list.Extensions[i].Value, []byte(base+"/crl/"+eu.PublicID+"/0.crl")) {
		t.Error("the list does not say which certificates it is for")
	}
	w.log.Clock.Advance(25 * time.Hour)
	if l, err := w.CRL(ctx, eu.PublicID, 0); err != nil || len(serials(t, l)) != 2 {
		t.Errorf("an expired certificate left the list before one list was issued after its end: %v", err)
	}
	w.log.Clock.Advance(8 * 24 * time.Hour)
	if l, err := w.CRL(ctx, eu.PublicID, 0); err != nil || len(serials(t, l)) != 0 {
		t.Errorf("long expired certificates are still listed: %v", err)
	}
}

func TestAListIsKeptUntilHalfOfItsLife(t *testing.T) {
	w := newWorld(t)
	i := w.issuer(t, w.root(t), "eu")
	get := func() authority.List {
		l, err := w.CRL(ctx, i.PublicID, 1)
		must(t, err)
		return l
	}
	first := get()
	w.log.Clock.Advance(84*time.Hour - time.Second)
	if get().ETag != first.ETag {
		t.Error("built again before half of its life")
	}
	w.log.Clock.Advance(time.Second)
	second := get()
	if second.ETag == first.ETag || second.NextUpdate.Sub(w.log.Clock.Now()) != 7*24*time.Hour {
		t.Errorf("not built again at half of its life: %v", second.NextUpdate)
	}
}

func TestAControllerWithAWrongClockDatesNoListAndForgetsThoseOfTheFuture(t *testing.T) {
	w := newWorld(t)
	i := w.issuer(t, w.root(t), "eu")
	first, err := w.CRL(ctx, i.PublicID, 0)
	if err != nil {
		t.Fatal(err)
	}
	wrong := fault.New(fault.Unavailable, "clock-skew", "wrong")
	w.JudgeClock(func() error { return wrong })
	if l, err := w.CRL(ctx, i.PublicID, 0); err != nil || !bytes.Equal(l.DER, first.DER) {
		t.Errorf("the list that is valid still is not given: %v", err)
	}
	w.log.Clock.Advance(400 * 24 * time.Hour)
	if _, err := w.CRL(ctx, i.PublicID, 0); !fault.HasReason(err, "clock-skew") {
		t.Errorf("a list by a wrong clock: %v", err)
	}
	w.JudgeClock(func() error { return nil })
	future, err := w.CRL(ctx, i.PublicID, 0)
	if err != nil {
		t.Fatal(err)
	}
	w.log.Clock.Advance(-400 * 24 * time.Hour)
	if l, err := w.CRL(ctx, i.PublicID, 0); err != nil || !l.ThisUpdate.Before(future.ThisUpdate) || l.ThisUpdate.After(w.log.Clock.Now()) {
		t.Errorf("a list of the future is given on: %v %v", l.ThisUpdate, err)
	}
}

func TestASealedControllerGivesNoListThatItCannotSign(t *testing.T) {
	w := newWorld(t)
	i := w.issuer(t, w.root(t), "eu")
	sealed := w.other(t, false)
	_, err := sealed.CRL(ctx, i.PublicID, 0)
	wantReason(t, err, "sealed")
	r := httptest.NewRecorder()
	sealed.PKIHandler().ServeHTTP(r, httptest.NewRequest("GET", "/crl/"+i.PublicID+"/0.crl", nil))
	if r.Code != http.StatusServiceUnavailable || r.Header().Get("Cache-Control") != "no-store" {
		t.Errorf("%d %v", r.Code, r.Header())
	}
}

func TestThePublicListenerServesDERWithCachingHeaders(t *testing.T) {
	w := newWorld(t)
	i := w.issuer(t, w.root(t), "eu")
	h := w.PKIHandler()
	get := func(method, path string, head ...string) *httptest.ResponseRecorder {
		q := httptest.NewRequest(method, path, nil)
		for k := 0; k+1 < len(head); k += 2 {
			q.Header.Set(head[k], head[k+1])
		}
		r := httptest.NewRecorder()
		h.ServeHTTP(r, q)
		return r
	}
	ca := "/ca/" + i.PublicID + ".crt"
	crl := "/crl/" + i.PublicID + "/1.crl"
	for path, kind := range map[string]string{ca: "application/pkix-cert", crl: "application/pkix-crl"} {
		r := get("GET", path)
		etag := r.Header().Get("ETag")
		if r.Code != 200 || r.Header().Get("Content-Type") != kind || etag == "" || r.Header().Get("Last-Modified") == "" || !strings.Contains(r.Header().Get("Cache-Control"), "max-age=") {
			t.Errorf("%s: %d %v", path, r.Code, r.Header())
		}
		if r := get("GET", path, "If-None-Match", etag); r.Code != http.StatusNotModified || r.Body.Len() != 0 {
			t.Errorf("%s with its ETag: %d", path, r.Code)
		}
		if r := get("HEAD", path); r.Code != 200 || r.Body.Len() != 0 {
			t.Errorf("HEAD %s: %d", path, r.Code)
		}
		if r := get("POST", path); r.Code != http.StatusMethodNotAllowed {
			t.Errorf("POST %s: %d", path, r.Code)
		}
	}
	if _, err := x509.ParseCertificate(get("GET", ca).Body.Bytes()); err != nil {
		t.Error(err)
	}
	if _, err := x509.ParseRevocationList(get("GET", crl).Body.Bytes()); err != nil {
		t.Error(err)
	}
	for _, path := range []string{"/", "/ca/none.crt", "/ca/" + i.PublicID, "/crl/none/0.crl", "/crl/" + i.PublicID + "/2.crl", "/crl/" + i.PublicID + "/-1.crl",
		"/crl/" + i.PublicID + "/01.crl", "/crl/" + i.PublicID + "/x.crl", "/crl/" + i.PublicID + "/99999999999999999999.crl"} {
		if r := get("GET", path); r.Code != http.StatusNotFound {
			t.Errorf("%s: %d", path, r.Code)
		}
	}
}

func TestSerialsFallIntoTheShardThatTheirCertificateNames(t *testing.T) {
	i := &authority.Issuer{PublicID: "x", Shards: 8, BaseURLs: []string{"http://a", "http://b"}}
	for range 50 {
		s, err := certificate.Serial(rand.Reader)
		must(t, err)
		var c x509.Certificate
		c.SerialNumber = s
		i.Point(&c)
		want := i.CRLURLs(int(s.Bytes()[len(s.Bytes())-1] % 8))
		if !slices.Equal(c.CRLDistributionPoints, want) {
			t.Fatalf("%s points at %v, its list is %v", s, c.CRLDistributionPoints, want)
		}
	}
}
