package ledgertest

import (
	"bytes"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/cassandra-security-manager/csm/controller/ledger"
	clusterv1 "github.com/cassandra-security-manager/csm/protocol/cluster/v1"
)

func recordedComesBack(t *testing.T, b *book) {
	c := b.command(func(c *clusterv1.RecordCertificate) { c.Zone = "z"; c.Incarnation = 7 })
	r, err := b.propose(c)
	check(t, err)
	name := r.(*clusterv1.RecordedCertificate).Name
	got, err := b.Ledger.Get(b.ctx, name)
	check(t, err)
	if !bytes.Equal(got.DER, c.Der) || got.Name != name || got.Node != c.Node || got.Cluster != "tenants/default/clusters/prod" ||
		got.Incarnation != 7 || got.Store != "node" || got.Zone != "z" || got.Actor != "tester" || got.RequestID != c.RequestId ||
		got.NotAfter.UnixMilli() != c.NotAfterMs || got.RenewAt.UnixMilli() != c.RenewAtMs || got.State != ledger.Active ||
		got.Issuer != c.Issuer || got.Serial != fmt.Sprintf("%x", c.Serial) || len(got.Names.DNS) != 1 || !got.CreateTime.Equal(b.Now().UTC()) {
		t.Errorf("recorded %+v, read %+v", c, got)
	}
	b.Advance(48 * time.Hour)
	if got, err = b.Ledger.Get(b.ctx, name); err != nil || got.State != ledger.Expired {
		t.Errorf("after its end it is %v (%v)", got.State, err)
	}
}

func requestOnce(t *testing.T, b *book) {
	c := b.command(nil)
	first, err := b.propose(c)
	check(t, err)
	again := b.command(func(x *clusterv1.RecordCertificate) { x.RequestId, x.KeySha256 = c.RequestId, c.KeySha256 })
	second, err := b.propose(again)
	check(t, err)
	f, s := first.(*clusterv1.RecordedCertificate), second.(*clusterv1.RecordedCertificate)
	if !s.Repeated || f.Repeated || s.Name != f.Name || !bytes.Equal(s.Der, c.Der) || s.RenewAtMs != c.RenewAtMs || s.Issuer != c.Issuer {
		t.Errorf("the repeat answers %v", s)
	}
	b.want(ledger.Filter{}, f.Name)
	_, err = b.record(func(x *clusterv1.RecordCertificate) {
		x.RequestId, x.KeySha256 = c.RequestId, bytes.Repeat([]byte{1}, 32)
	})
	b.wantReason(err, "request-id-used")
	b.want(ledger.Filter{}, f.Name)
}

func requestScoped(t *testing.T, b *book) {
	one := b.mustRecord(func(c *clusterv1.RecordCertificate) { c.RequestId = "same" })
	two := b.mustRecord(func(c *clusterv1.RecordCertificate) {
		c.RequestId, c.Scope, c.Node = "same", "tenants/default/clusters/prod/nodes/n2", "tenants/default/clusters/prod/nodes/n2"
	})
	b.want(ledger.Filter{}, two, one)
}

func serialOnce(t *testing.T, b *book) {
	c := b.command(nil)
	r, err := b.propose(c)
	check(t, err)
	_, err = b.record(func(x *clusterv1.RecordCertificate) { x.Serial = c.Serial })
	b.wantReason(err, "serial-used")
	b.want(ledger.Filter{}, r.(*clusterv1.RecordedCertificate).Name)
}

func capByHour(t *testing.T, b *book) {
	two := func(c *clusterv1.RecordCertificate) { c.HourlyCap = 2 }
	b.mustRecord(two)
	b.mustRecord(two)
	for range 2 {
		_, err := b.record(two)
		b.wantReason(err, "hourly-cap")
	}
	b.mustRecord(func(c *clusterv1.RecordCertificate) { c.HourlyCap, c.Scope = 2, "another" })
	b.Advance(time.Hour)
	b.mustRecord(two)
	if n, err := b.Ledger.Count(b.ctx, ledger.Filter{}); err != nil || n != 4 {
		t.Errorf("%d recorded (%v), want 4", n, err)
	}
}

func skewRefused(t *testing.T, b *book) {
	for _, off := range []time.Duration{11 * time.Minute, -11 * time.Minute} {
		_, err := b.record(func(c *clusterv1.RecordCertificate) { c.SignedAtMs = b.Now().Add(off).UnixMilli() })
		b.wantReason(err, "clock-skew")
	}
	b.mustRecord(func(c *clusterv1.RecordCertificate) { c.SignedAtMs = b.Now().Add(-time.Minute).UnixMilli() })
}

func filters(t *testing.T, b *book) {
	const prod = "tenants/default/clusters/prod"
	one := b.mustRecord(nil)
	two := b.mustRecord(func(c *clusterv1.RecordCertificate) {
		c.Scope, c.Node, c.Store, c.Issuer = "n2", prod+"/nodes/n2", "client", "tenants/default/authorities/a2/issuers/eu-1"
	})
	app := b.mustRecord(func(c *clusterv1.RecordCertificate) {
		c.Scope, c.Node, c.Store, c.Template = "app", "", "", "application"
	})
	other := b.mustRecord(func(c *clusterv1.RecordCertificate) {
		c.Scope, c.Tenant, c.Node = "o", "other", "tenants/other/clusters/prod/nodes/n1"
	})
	agent := b.mustRecord(func(c *clusterv1.RecordCertificate) {
		c.Scope, c.Tenant, c.Node, c.Identity, c.Template = "id", "", "", "spiffe://x.csm/agent/u/1", "identity"
	})
	_, err := b.propose(&clusterv1.RevokeCertificate{Name: two, Reason: 1})
	check(t, err)

	b.want(ledger.Filter{}, agent, other, app, two, one)
	b.want(ledger.Filter{Order: ledger.ByOldest}, one, two, app, other, agent)
	b.want(ledger.Filter{Order: ledger.ByExpiry, Tenant: "default"}, one, two, app)
	b.want(ledger.Filter{Order: ledger.ByExpiryLast, Tenant: "default"}, app, two, one)
	b.want(ledger.Filter{System: true}, agent)
	b.want(ledger.Filter{Identity: "spiffe://x.csm/agent/u/1"}, agent)
	b.want(ledger.Filter{Cluster: prod}, two, one)
	b.want(ledger.Filter{Cluster: prod, Order: ledger.ByExpiry}, one, two)
	b.want(ledger.Filter{Node: prod + "/nodes/n1"}, one)
	b.want(ledger.Filter{Store: "client"}, two)
	b.want(ledger.Filter{Template: "application"}, app)
	b.want(ledger.Filter{Issuer: "tenants/default/authorities/a2/issuers/eu-1"}, two)
	b.want(ledger.Filter{Authority: "tenants/default/authorities/a2"}, two)
	b.want(ledger.Filter{Authority: "tenants/default/authorities/a", Tenant: "default"}, app, one)
	b.want(ledger.Filter{State: ledger.Revoked}, two)
	b.want(ledger.Filter{State: ledger.Active, Tenant: "default"}, app, one)
	b.want(ledger.Filter{ExpiresBefore: b.Now().Add(36 * time.Hour)}, one)
	b.want(ledger.Filter{ExpiresAfter: b.Now().Add(108 * time.Hour)}, agent)
	got, err := b.Ledger.Get(b.ctx, app)
	check(t, err)
	colons := strings.ToUpper(got.Serial[:2] + ":" + got.Serial[2:])
	b.want(ledger.Filter{Serial: colons}, app)
	b.want(ledger.Filter{Text: got.Serial[:12]}, app)
	b.want(ledger.Filter{Text: got.Serial[:13]}, app)
	b.want(ledger.Filter{Text: strings.TrimLeft(got.Serial, "0")}, app)
	b.want(ledger.Filter{Text: strings.ToUpper(app[len(app)-64:][:16])}, app)
	b.Advance(36 * time.Hour)
	b.want(ledger.Filter{State: ledger.Expired}, one)
	for _, f := range []ledger.Filter{{Serial: "xyz"}, {State: "odd"}, {Order: "odd"}} {
		if _, _, err := b.Ledger.List(b.ctx, f, ledger.Page{}); err == nil {
			t.Errorf("%+v was taken", f)
		}
	}
}

func names(t *testing.T, b *book) {
	named := func(kind, value string) string {
		return b.mustRecord(func(c *clusterv1.RecordCertificate) {
			c.Names = []*clusterv1.CertificateName{{Kind: kind, Value: value}}
		})
	}
	a := named("dns", "cass-1.EU.example")
	c := named("ip", "10.1.2.3")
	d := named("uri", "spiffe://x.csm/agent/u/1")
	e := named("cn", "cass-1.eu.example")
	b.want(ledger.Filter{NamePrefix: "CASS-1"}, e, a)
	b.want(ledger.Filter{NameContains: "eu.Ex"}, e, a)
	b.want(ledger.Filter{NamePrefix: "10.1."}, c)
	b.want(ledger.Filter{NameContains: "agent/u"}, d)
	b.want(ledger.Filter{Text: "x.csm"}, d)
	b.want(ledger.Filter{NameContains: "%"})
	b.want(ledger.Filter{NameContains: "_"})
	b.want(ledger.Filter{NamePrefix: "eu"})
}

func pages(t *testing.T, b *book) {
	var want []string
	same := b.Now().Add(100 * time.Hour).UnixMilli()
	for range 7 {
		want = append(want, b.mustRecord(func(c *clusterv1.RecordCertificate) { c.NotAfterMs = same })) // ties must not be lost
	}
	for _, o := range []ledger.Order{ledger.ByOldest, ledger.ByExpiry} {
		cs, next, err := b.Ledger.List(b.ctx, ledger.Filter{Order: o}, ledger.Page{Size: 3})
		check(t, err)
		var got []string
		for _, c := range cs {
			got = append(got, c.Name)
		}
		want = append(want, b.mustRecord(func(c *clusterv1.RecordCertificate) { c.NotAfterMs = same }))
		for next != "" {
			cs, next, err = b.Ledger.List(b.ctx, ledger.Filter{Order: o}, ledger.Page{Size: 3, Token: next})
			check(t, err)
			for _, c := range cs {
				got = append(got, c.Name)
			}
		}
		if fmt.Sprint(got) != fmt.Sprint(want) {
			t.Errorf("%s: pages give %d names, want %d", o, len(got), len(want))
		}
	}
	if got := b.list(ledger.Filter{}, 2); len(got) != len(want) {
		t.Errorf("newest first gives %d of %d", len(got), len(want))
	}
	for _, size := range []int{-1, 1001} {
		_, _, err := b.Ledger.List(b.ctx, ledger.Filter{}, ledger.Page{Size: size})
		b.wantReason(err, "bad-page-size")
	}
}

func tokens(t *testing.T, b *book) {
	for range 3 {
		b.mustRecord(nil)
	}
	_, next, err := b.Ledger.List(b.ctx, ledger.Filter{}, ledger.Page{Size: 1})
	check(t, err)
	for _, f := range []ledger.Filter{{Order: ledger.ByExpiry}, {Tenant: "default"}} {
		_, _, err := b.Ledger.List(b.ctx, f, ledger.Page{Size: 1, Token: next})
		b.wantReason(err, "bad-page-token")
	}
	for _, bad := range []string{"x", "!!", strings.Repeat("A", 500), next + "A"} {
		_, _, err := b.Ledger.List(b.ctx, ledger.Filter{}, ledger.Page{Token: bad})
		b.wantReason(err, "bad-page-token")
	}
}

func revocation(t *testing.T, b *book) {
	name := b.mustRecord(nil)
	at := b.Now()
	_, err := b.propose(&clusterv1.RevokeCertificate{Name: name, Reason: uint32(ledger.KeyCompromise)})
	check(t, err)
	b.Advance(time.Hour)
	again, err := b.propose(&clusterv1.RevokeCertificate{Name: name, Reason: uint32(ledger.Superseded)})
	check(t, err)
	if r := again.(*clusterv1.RevokedCertificate); !r.Already || r.RevokedMs != at.UnixMilli() || r.Reason != uint32(ledger.KeyCompromise) {
		t.Errorf("the second revocation answers %v", r)
	}
	c, err := b.Ledger.Get(b.ctx, name)
	check(t, err)
	if c.State != ledger.Revoked || !c.RevokeTime.Equal(at) || c.Reason != ledger.KeyCompromise {
		t.Errorf("it reads %v at %v for %v", c.State, c.RevokeTime, c.Reason)
	}
	for _, reason := range []uint32{6, 7, 8, 10, 99} {
		_, err := b.propose(&clusterv1.RevokeCertificate{Name: b.mustRecord(nil), Reason: reason})
		b.wantReason(err, "bad-reason")
	}
}

func unknown(t *testing.T, b *book) {
	name := b.mustRecord(nil)
	for _, n := range []string{"", "x", ledger.Name("default", make([]byte, 32)), strings.Replace(name, "default", "other", 1)} {
		_, err := b.Ledger.Get(b.ctx, n)
		b.wantReason(err, "no-certificate")
		_, err = b.propose(&clusterv1.RevokeCertificate{Name: n})
		b.wantReason(err, "no-certificate")
	}
}
