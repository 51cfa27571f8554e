package issuance_test

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"strings"
	"testing"
	"time"

	"github.com/cassandra-security-manager/csm/controller/authority"
	"github.com/cassandra-security-manager/csm/controller/issuance"
	"github.com/cassandra-security-manager/csm/controller/ledger"
	"github.com/cassandra-security-manager/csm/controller/state"
	clusterv1 "github.com/cassandra-security-manager/csm/protocol/cluster/v1"
	"github.com/cassandra-security-manager/csm/shared/algorithm"
	"github.com/cassandra-security-manager/csm/shared/certificate"
	"github.com/cassandra-security-manager/csm/shared/fault"
)

var ctx = context.Background()

// leaves counts what the ledger holds of a template.
func (w *world) leaves(t testing.TB, template string) int64 {
	t.Helper()
	n, err := w.ledger.Count(ctx, ledger.Filter{Template: template})
	must(t, err)
	return n
}

func rawCSR(t *testing.T, tmpl *x509.CertificateRequest, key any) []byte {
	t.Helper()
	der, err := x509.CreateCertificateRequest(rand.Reader, tmpl, key)
	must(t, err)
	return der
}

func TestWhatIsNotLawfulIsRefusedAndNotRecorded(t *testing.T) {
	w := newWorld(t, algorithm.P384, issuance.Options{})
	p256, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	must(t, err)
	rsa2048, err := rsa.GenerateKey(rand.Reader, 2048)
	must(t, err)
	good := key(t, algorithm.P384)
	plain := csr(t, good, certificate.Names{})
	broken := bytes.Clone(plain)
	broken[len(broken)-1] ^= 1
	stolen := bytes.Clone(plain) // another's key, our signature: no proof of possession
	victim, err := key(t, algorithm.P384).Public().(*ecdsa.PublicKey).Bytes()
	must(t, err)
	mine, err := good.Public().(*ecdsa.PublicKey).Bytes()
	must(t, err)
	stolen = bytes.Replace(stolen, mine, victim, 1)

	for name, c := range map[string]struct {
		change func(*issuance.Request)
		reason string
	}{
		"another node's DNS name": {func(r *issuance.Request) { r.CSR = csr(t, good, names(t, []string{"n2.example"}, nil)) }, "name-not-allowed"},
		"another node's address": {func(r *issuance.Request) {
			r.CSR = csr(t, good, names(t, []string{"n1.example"}, []string{"10.0.0.2"}))
		}, "name-not-allowed"},
		"an e-mail address": {func(r *issuance.Request) {
			r.CSR = rawCSR(t, &x509.CertificateRequest{EmailAddresses: []string{"a@b.c"}}, good)
		}, "name-not-allowed"},
		"a wildcard": {func(r *issuance.Request) {
			r.CSR = rawCSR(t, &x509.CertificateRequest{DNSNames: []string{"*.example"}}, good)
		}, "bad-name"},
		"a P-256 key":              {func(r *issuance.Request) { r.CSR = rawCSR(t, &x509.CertificateRequest{}, p256) }, "weak-key"},
		"an RSA-2048 key":          {func(r *issuance.Request) { r.CSR = rawCSR(t, &x509.CertificateRequest{}, rsa2048) }, "weak-key"},
		"a bad signature":          {func(r *issuance.Request) { r.CSR = broken }, "bad-csr-signature"},
		"a key that is another's":  {func(r *issuance.Request) { r.CSR = stolen }, "bad-csr-signature"},
		"1 MB of rubbish":          {func(r *issuance.Request) { r.CSR = bytes.Repeat([]byte{0x30}, 1<<20) }, "csr-too-large"},
		"rubbish":                  {func(r *issuance.Request) { r.CSR = []byte("rubbish") }, "bad-csr"},
		"no request":               {func(r *issuance.Request) { r.CSR = nil }, "bad-csr"},
		"a life below a day":       {func(r *issuance.Request) { r.Validity = 23 * time.Hour }, "validity-too-short"},
		"a negative life":          {func(r *issuance.Request) { r.Validity = -time.Hour }, "validity-too-short"},
		"a life of ten years":      {func(r *issuance.Request) { r.Validity = 10 * 365 * 24 * time.Hour }, "validity-too-long"},
		"no request id":            {func(r *issuance.Request) { r.RequestID = "" }, "bad-request-id"},
		"a request id too long":    {func(r *issuance.Request) { r.RequestID = strings.Repeat("x", 65) }, "bad-request-id"},
		"another tenant's CA":      {func(r *issuance.Request) { r.Tenant = "other" }, "wrong-tenant"},
		"another tenant's node":    {func(r *issuance.Request) { r.Node = "tenants/other/clusters/prod/nodes/n1" }, "wrong-tenant"},
		"the system CA":            {func(r *issuance.Request) { r.Authority = authority.SystemName }, "wrong-tenant"},
		"an unknown template":      {func(r *issuance.Request) { r.Template = "ca" }, "no-template"},
		"the identity template":    {func(r *issuance.Request) { r.Template = "identity" }, "no-template"},
		"a node without names":     {func(r *issuance.Request) { r.Names, r.CSR = certificate.Names{}, plain }, "no-names"},
		"a node template, no node": {func(r *issuance.Request) { r.Node = "" }, "no-node"},
		"a long common name":       {func(r *issuance.Request) { r.Subject = strings.Repeat("x", 65) }, "bad-subject"},
		"a control character":      {func(r *issuance.Request) { r.Subject = "a\x00b" }, "bad-subject"},
		"an unknown authority":     {func(r *issuance.Request) { r.Authority = "tenants/default/authorities/none" }, "no-authority"},
	} {
		t.Run(name, func(t *testing.T) {
			r := w.nodeRequest(t, "r")
			c.change(&r)
			_, err := w.door.Issue(ctx, r)
			wantReason(t, err, c.reason)
		})
	}
	if n := w.leaves(t, "node"); n != 0 {
		t.Errorf("%d certificates were recorded", n)
	}
}

func TestTheCapPerNodeAndHourIsAppliesWord(t *testing.T) {
	w := newWorld(t, algorithm.P384, issuance.Options{HourlyCap: 2})
	for _, id := range []string{"a", "b"} {
		_, err := w.door.Issue(ctx, w.nodeRequest(t, id))
		must(t, err)
	}
	_, err := w.door.Issue(ctx, w.nodeRequest(t, "c"))
	wantReason(t, err, "hourly-cap")
	r := w.nodeRequest(t, "c")
	r.Node = "tenants/default/clusters/prod/nodes/n2"
	_, err = w.door.Issue(ctx, r)
	must(t, err)
	w.log.Clock.Advance(time.Hour)
	_, err = w.door.Issue(ctx, w.nodeRequest(t, "c"))
	must(t, err)
}

func TestARepeatedRequestGetsTheRecordedCertificate(t *testing.T) {
	w := newWorld(t, algorithm.P384, issuance.Options{})
	r := w.nodeRequest(t, "same")
	first, err := w.door.Issue(ctx, r)
	must(t, err)
	must(t, w.authorities.SetState(ctx, first.Issuer, authority.Retired, actor, "test"))
	_, err = w.authorities.CreateIssuer(ctx, w.authority, "eu", actor)
	must(t, err)
	w.log.Clock.Advance(time.Hour)
	second, err := w.door.Issue(ctx, r)
	must(t, err)
	if !second.Repeated || second.Name != first.Name || !bytes.Equal(second.Leaf(), first.Leaf()) || !second.RenewAt.Equal(first.RenewAt) ||
		len(second.Chain) != len(first.Chain) || !bytes.Equal(second.Chain[1], first.Chain[1]) {
		t.Errorf("the repeat gave %v, first %v", second.Name, first.Name)
	}
	r.CSR = csr(t, key(t, algorithm.P384), r.Names)
	_, err = w.door.Issue(ctx, r)
	wantReason(t, err, "request-id-used")
	if n := w.leaves(t, "node"); n != 1 {
		t.Errorf("%d recorded", n)
	}
}

func TestWhatApplyRefusesIsNeverHandedOut(t *testing.T) {
	guard := func(_ *state.Apply, c *clusterv1.RecordCertificate) error {
		if c.Node != "" && c.Incarnation != 1 {
			return fault.New(fault.Refused, "old-incarnation", "the node was replaced")
		}
		return nil
	}
	w := newWorld(t, algorithm.P384, issuance.Options{}, guard)
	r := w.nodeRequest(t, "r")
	r.Incarnation = 2
	out, err := w.door.Issue(ctx, r)
	wantReason(t, err, "old-incarnation")
	w.log.Fail(fault.New(fault.Unavailable, "no-quorum", "no quorum"))
	out2, err := w.door.Issue(ctx, w.nodeRequest(t, "q"))
	wantReason(t, err, "no-quorum")
	if out != nil || out2 != nil || w.leaves(t, "node") != 0 {
		t.Error("something was handed out")
	}
}

func TestAnIssuerRetiredElsewhereIsNotUsedAgain(t *testing.T) {
	w := newWorld(t, algorithm.P384, issuance.Options{})
	first, err := w.door.Issue(ctx, w.nodeRequest(t, "a"))
	must(t, err)
	retire := &clusterv1.SetIssuerState{Issuer: first.Issuer, State: "retired"}
	_, err = w.log.Propose(ctx, state.Proposal{Command: retire, Actor: "another controller"})
	must(t, err)
	_, err = w.door.Issue(ctx, w.nodeRequest(t, "b"))
	wantReason(t, err, "no-issuer")
	if _, err = w.authorities.CreateIssuer(ctx, w.authority, "us", actor); err != nil {
		t.Fatal(err)
	}
	second, err := w.door.Issue(ctx, w.nodeRequest(t, "b"))
	must(t, err)
	if second.Issuer == first.Issuer {
		t.Error("a retired issuer signed")
	}
}

func TestALeafNeverOutlivesItsIssuer(t *testing.T) {
	w := newWorld(t, algorithm.P384, issuance.Options{})
	a, err := w.authorities.CreateRoot(ctx, "default", "short", authority.CreateOptions{Actor: actor, Validity: 47 * time.Hour})
	must(t, err)
	_, err = w.authorities.CreateIssuer(ctx, a.Name, "eu", actor)
	must(t, err)
	r := w.nodeRequest(t, "a")
	r.Authority = a.Name
	out, err := w.door.Issue(ctx, r)
	must(t, err)
	i, err := w.authorities.Issuer(ctx, out.Issuer)
	must(t, err)
	if !out.NotAfter.Equal(i.Certificate.NotAfter) || !out.RenewAt.Before(out.NotAfter) || i.Certificate.NotAfter.Sub(w.log.Clock.Now()) != 47*time.Hour {
		t.Errorf("leaf until %v, issuer until %v", out.NotAfter, i.Certificate.NotAfter)
	}
	w.log.Clock.Advance(24 * time.Hour)
	r.RequestID = "b"
	_, err = w.door.Issue(ctx, r)
	wantReason(t, err, "no-issuer")
}

func TestASignerWhoseClockIsOffIsRefused(t *testing.T) {
	w := newWorld(t, algorithm.P384, issuance.Options{})
	w.log.Clock.Advance(time.Hour)
	late := w.doorAt(w.log.Clock.Now().Add(-15*time.Minute), issuance.Options{})
	_, err := late.Issue(ctx, w.nodeRequest(t, "a"))
	wantReason(t, err, "clock-skew")
}
