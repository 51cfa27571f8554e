// Package ledgertest is the contract that every kind of ledger passes.
package ledgertest

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"crypto/x509"
	"crypto/x509/pkix"
	"fmt"
	"net/url"
	"testing"
	"time"

	"google.golang.org/protobuf/proto"

	"github.com/cassandra-security-manager/csm/controller/ledger"
	"github.com/cassandra-security-manager/csm/controller/state"
	clusterv1 "github.com/cassandra-security-manager/csm/protocol/cluster/v1"
	"github.com/cassandra-security-manager/csm/shared/certificate"
	"github.com/cassandra-security-manager/csm/shared/fault"
)

// Fixture is a ledger of some kind, empty, with the log that decides for it.
type Fixture struct {
	Ledger ledger.Ledger
	Log    state.Log
	Reader ledger.Reader
	// Now is where the ledger's clock stands; Advance moves it.
	Now     func() time.Time
	Advance func(time.Duration)
}

// AnyIssuer lets every issuer pass: what issuers may do is the authority's contract, not the ledger's.
type AnyIssuer struct{}

// CheckIssuer refuses nothing.
func (AnyIssuer) CheckIssuer(*state.Apply, *clusterv1.RecordCertificate) error { return nil }

// Run runs the contract against fresh fixtures.
func Run(t *testing.T, factory func(t *testing.T) *Fixture) {
	for name, test := range map[string]func(*testing.T, *book){
		"what is recorded comes back whole":                          recordedComesBack,
		"a request id is answered once":                              requestOnce,
		"a request id belongs to its scope":                          requestScoped,
		"a serial is recorded once":                                  serialOnce,
		"the cap counts by scope and opens with the next hour":       capByHour,
		"a signer whose clock is wrong is refused":                   skewRefused,
		"each filter takes what it names and nothing else":           filters,
		"names are found by part and prefix, whatever their case":    names,
		"pages neither skip nor repeat while rows are added":         pages,
		"a page token fits one query only":                           tokens,
		"a revocation is final and says when it was":                 revocation,
		"a certificate that nobody recorded is not found":            unknown,
		"a scan replaces what the scan before found":                 scans,
		"found certificates say which of them are known":             foundKnown,
		"a scan of many certificates is recorded whole and in pages": largeScan,
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			test(t, &book{Fixture: factory(t), t: t, ctx: context.Background()})
		})
	}
}

// book writes certificates into a fixture.
type book struct {
	*Fixture
	t   *testing.T
	ctx context.Context
	n   int
}

var signingKey, _ = ecdsa.GenerateKey(elliptic.P256(), rand.Reader)

// der makes a certificate; the ledger does not judge it.
func der(t *testing.T, n int, cn string, dns []string, uris []string, end time.Time) *x509.Certificate {
	t.Helper()
	serial, err := certificate.Serial(rand.Reader)
	check(t, err)
	tmpl := &x509.Certificate{SerialNumber: serial, Subject: pkix.Name{CommonName: cn}, DNSNames: dns, NotBefore: end.Add(-90 * 24 * time.Hour), NotAfter: end}
	for _, u := range uris {
		p, err := url.Parse(u)
		check(t, err)
		tmpl.URIs = append(tmpl.URIs, p)
	}
	raw, err := x509.CreateCertificate(rand.Reader, tmpl, tmpl, signingKey.Public(), signingKey)
	check(t, err)
	c, err := x509.ParseCertificate(raw)
	check(t, err)
	return c
}

func check(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// command is a lawful RecordCertificate for node n1 that change may alter.
func (b *book) command(change func(*clusterv1.RecordCertificate)) *clusterv1.RecordCertificate {
	b.t.Helper()
	b.n++
	end := b.Now().Add(time.Duration(b.n) * 24 * time.Hour).Truncate(time.Second)
	host := fmt.Sprintf("n%d.example", b.n)
	x := der(b.t, b.n, fmt.Sprintf("n%d", b.n), []string{host}, nil, end)
	key := sha256.Sum256(x.RawSubjectPublicKeyInfo)
	c := &clusterv1.RecordCertificate{RequestId: fmt.Sprint("r", b.n), Scope: "tenants/default/clusters/prod/nodes/n1", Tenant: "default",
		Der: x.Raw, Serial: x.SerialNumber.Bytes(), Subject: x.Subject.String(), Issuer: "tenants/default/authorities/a/issuers/eu-1",
		Names:    []*clusterv1.CertificateName{{Kind: "dns", Value: host}, {Kind: "cn", Value: x.Subject.CommonName}},
		Template: "node", Node: "tenants/default/clusters/prod/nodes/n1", Incarnation: 1, Store: "node", KeySha256: key[:], Algorithm: "P-256",
		NotBeforeMs: x.NotBefore.UnixMilli(), NotAfterMs: end.UnixMilli(), RenewAtMs: end.Add(-time.Hour).UnixMilli()}
	if change != nil {
		change(c)
	}
	return c
}

func (b *book) propose(m proto.Message) (proto.Message, error) {
	r, err := b.Log.Propose(b.ctx, state.Proposal{Command: m, Actor: "tester"})
	return r.Reply, err
}

func (b *book) record(change func(*clusterv1.RecordCertificate)) (*clusterv1.RecordedCertificate, error) {
	b.t.Helper()
	r, err := b.propose(b.command(change))
	if err != nil {
		return nil, err
	}
	return r.(*clusterv1.RecordedCertificate), nil
}

func (b *book) mustRecord(change func(*clusterv1.RecordCertificate)) string {
	b.t.Helper()
	r, err := b.record(change)
	check(b.t, err)
	return r.Name
}

// list gives the names of a filter, over all pages.
func (b *book) list(f ledger.Filter, size int) []string {
	b.t.Helper()
	var out []string
	p := ledger.Page{Size: size}
	for {
		cs, next, err := b.Ledger.List(b.ctx, f, p)
		check(b.t, err)
		for _, c := range cs {
			out = append(out, c.Name)
		}
		if next == "" {
			return out
		}
		p.Token = next
	}
}

func (b *book) want(f ledger.Filter, names ...string) {
	b.t.Helper()
	got := b.list(f, 0)
	if fmt.Sprint(got) != fmt.Sprint(names) {
		b.t.Errorf("%+v gives %v, want %v", f, got, names)
	}
	if n, err := b.Ledger.Count(b.ctx, f); err != nil || n != int64(len(names)) {
		b.t.Errorf("%+v counts %d (%v), want %d", f, n, err, len(names))
	}
}

func (b *book) wantReason(err error, reason string) {
	b.t.Helper()
	if !fault.HasReason(err, reason) {
		b.t.Fatalf("error = %v, want reason %s", err, reason)
	}
}
