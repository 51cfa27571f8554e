package people_test

import (
	"context"
	"crypto/sha256"
	"crypto/x509"
	"fmt"
	"testing"

	"github.com/cassandra-security-manager/csm/controller/people"
	"github.com/cassandra-security-manager/csm/controller/state/statetest"
	"github.com/cassandra-security-manager/csm/shared/fault"
	"github.com/cassandra-security-manager/csm/shared/identity"
)

const td = "0123456789abcdef.csm"

func open(t *testing.T) *people.People {
	l := statetest.New(t, people.Module())
	return people.New(l.Store, l)
}

func sum(s string) []byte { h := sha256.Sum256([]byte(s)); return h[:] }

func TestOnlyActiveAdministratorsMayDoAnything(t *testing.T) {
	ctx, p := context.Background(), open(t)
	if _, err := p.AddAdmin(ctx, "ada", nil, "local"); err != nil {
		t.Fatal(err)
	}
	ada := identity.AdminID(td, "ada").String()
	if err := p.Allowed(ctx, ada, "certificate:revoke", "tenants/default/certificates"); err != nil {
		t.Fatal(err)
	}
	for _, who := range []string{identity.AdminID(td, "eve").String(), identity.AgentID(td, "u", 1).String(), identity.ControllerID(td, "c1").String(), "", "root"} {
		if p.Allowed(ctx, who, "certificate:revoke", "tenants/default") == nil {
			t.Errorf("%q was allowed", who)
		}
	}
	for _, perm := range []string{"", "certificate", "certificate:", "a:b:c", "certificate revoke"} {
		if p.Allowed(ctx, ada, perm, "tenants/default") == nil {
			t.Errorf("permission %q was granted", perm)
		}
	}
	if err := p.RevokeAdmin(ctx, "ada", "local", "left"); err != nil {
		t.Fatal(err)
	}
	if err := p.Allowed(ctx, ada, "certificate:revoke", "tenants/default"); !fault.HasReason(err, "admin-revoked") {
		t.Fatal(err)
	}
}

func TestARevokedCertificateNeverOpensAgain(t *testing.T) {
	ctx, p := context.Background(), open(t)
	id := identity.AdminID(td, "ada")
	first, second := &x509.Certificate{Raw: []byte("first")}, &x509.Certificate{Raw: []byte("second")}
	steps := func(errs ...error) {
		t.Helper()
		for _, err := range errs {
			if err != nil {
				t.Fatal(err)
			}
		}
	}
	add := func(fp []byte) error { _, err := p.AddAdmin(ctx, "ada", fp, "local"); return err }
	in := func(c *x509.Certificate) error { _, err := p.Authenticate(ctx, c, id); return err }

	steps(add(sum("first")), in(first))
	if err := in(second); !fault.HasReason(err, "admin-certificate-replaced") {
		t.Fatal(err)
	}
	steps(p.RevokeAdmin(ctx, "ada", "local", "lost"), p.RevokeAdmin(ctx, "ada", "local", "again"))
	if err := in(first); !fault.HasReason(err, "admin-revoked") {
		t.Fatal(err)
	}
	if err := add(nil); !fault.HasReason(err, "fingerprint-needed") {
		t.Fatalf("opened for any certificate: %v", err)
	}
	if err := add(sum("first")); !fault.HasReason(err, "admin-revoked") {
		t.Fatalf("the revoked certificate came back: %v", err)
	}
	steps(add(sum("second")), in(second))
	if in(first) == nil {
		t.Fatal("the old certificate opens")
	}
	steps(p.RevokeAdmin(ctx, "ada", "local", "lost too"))
	if err := add(sum("first")); !fault.HasReason(err, "admin-revoked") {
		t.Fatalf("an older revoked certificate came back: %v", err)
	}
}

func TestStrangersAreRefusedWithWhatToDo(t *testing.T) {
	ctx, p := context.Background(), open(t)
	c := &x509.Certificate{Raw: []byte("x")}
	if _, err := p.Authenticate(ctx, c, identity.AdminID(td, "eve")); !fault.HasReason(err, "unknown-admin") || fault.From(err).Remedy == "" {
		t.Fatal(err)
	}
	if _, err := p.Authenticate(ctx, c, identity.AgentID(td, "u", 1)); !fault.HasReason(err, "wrong-identity") {
		t.Fatal(err)
	}
	if err := p.RevokeAdmin(ctx, "eve", "local", ""); !fault.Is(err, fault.NotFound) {
		t.Fatal(err)
	}
	if _, err := p.AddAdmin(ctx, "Not A Name", nil, "local"); !fault.Is(err, fault.Invalid) {
		t.Fatal(err)
	}
	if _, err := p.AddAdmin(ctx, "ada", []byte("short"), "local"); !fault.Is(err, fault.Invalid) {
		t.Fatal(err)
	}
	if l, err := p.Admins(ctx); err != nil || len(l) != 0 {
		t.Fatal(l, err)
	}
}

func TestWhatIsRememberedOfAnAdministratorEndsWithTheAnswerToTheChange(t *testing.T) {
	ctx, p := context.Background(), open(t)
	ada := identity.AdminID(td, "ada")
	c := &x509.Certificate{}
	for round := range 20 {
		c.Raw = fmt.Appendf(nil, "certificate %d", round)
		if _, err := p.AddAdmin(ctx, "ada", sum(string(c.Raw)), "local"); err != nil {
			t.Fatal(err)
		}
		for range 3 { // read once, remembered twice
			if _, err := p.Authenticate(ctx, c, ada); err != nil {
				t.Fatal(err)
			}
		}
		if err := p.RevokeAdmin(ctx, "ada", "local", "left"); err != nil {
			t.Fatal(err)
		}
		if _, err := p.Authenticate(ctx, c, ada); !fault.HasReason(err, "admin-revoked") {
			t.Fatalf("round %d: %v", round, err)
		}
		if err := p.Allowed(ctx, ada.String(), "certificate:revoke", "tenants/default"); !fault.HasReason(err, "admin-revoked") {
			t.Fatalf("round %d: %v", round, err)
		}
	}
}
