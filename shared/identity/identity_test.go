package identity_test

import (
	"strings"
	"testing"

	"github.com/cassandra-security-manager/csm/shared/fault"
	"github.com/cassandra-security-manager/csm/shared/identity"
)

const td = "0123456789abcdef.csm"

func TestIdentitiesComeBackAsTheyWereFormed(t *testing.T) {
	for _, id := range []identity.ID{
		identity.ControllerID(td, "csm1"), identity.AdminID(td, "alice"), identity.AgentID(td, "u1", 7),
		identity.NodeID(td, "default", "prod", "n1"), identity.ApplicationID(td, "default", "shop"),
	} {
		got, err := identity.Parse(id.String())
		if err != nil || got != id || id.URL().String() != id.String() {
			t.Errorf("%s came back as %s: %v", id, got, err)
		}
	}
	uid, incarnation, err := identity.AgentID(td, "u1", 7).AgentParts()
	if err != nil || uid != "u1" || incarnation != 7 {
		t.Errorf("agent parts: %s %d %v", uid, incarnation, err)
	}
	if _, _, err := identity.AdminID(td, "alice").AgentParts(); err == nil {
		t.Error("an administrator has no agent's parts")
	}
}

func TestWhatIsNotExactlyOneOfOurNamesIsRefused(t *testing.T) {
	for _, s := range []string{
		"", "https://x.csm/controller/a", "spiffe://x.csm", "spiffe://x.csm/controller", "spiffe://x.csm/controller/a/b",
		"spiffe://x.csm/root/a", "spiffe://user@x.csm/controller/a", "spiffe://x.csm:1/controller/a", "spiffe://x.csm:/controller/a",
		"spiffe://x.csm/controller/a?b", "spiffe://x.csm/controller/a#b", "spiffe://x.csm/controller/../admin", "spiffe://x.csm/controller//",
		"spiffe://x.csm/controller/%61", "spiffe:///controller/a", "spiffe://x.csm/agent/u", "spiffe://x.csm/" + strings.Repeat("a", 3000),
	} {
		if id, err := identity.Parse(s); err == nil {
			t.Errorf("%.60q was taken for %s", s, id)
		}
	}
}

func TestAKindOrTrustDomainThatWasNotAskedForIsRefused(t *testing.T) {
	id := identity.AgentID(td, "u1", 1)
	if err := id.Require(td, identity.Controller, identity.Agent); err != nil {
		t.Error(err)
	}
	for _, err := range []error{id.Require(td, identity.Controller), id.Require("other.csm", identity.Agent), id.Require(td)} {
		if !fault.Is(err, fault.Refused) {
			t.Errorf("let in: %v", err)
		}
	}
}

func TestAPinHasOneShape(t *testing.T) {
	good := "sha256:" + strings.Repeat("ab", 32)
	if b, err := identity.ParsePin(good); err != nil || len(b) != 32 {
		t.Error(err)
	}
	for _, s := range []string{"", good[7:], "sha256:", good + "00", "sha1:" + strings.Repeat("ab", 20), "sha256:" + strings.Repeat("zz", 32)} {
		if _, err := identity.ParsePin(s); err == nil {
			t.Errorf("%q was taken for a pin", s)
		}
	}
}

func FuzzParse(f *testing.F) {
	f.Add(identity.AgentID(td, "u1", 7).String())
	f.Add("spiffe://x.csm:/controller/a%2fb")
	f.Fuzz(func(t *testing.T, s string) {
		id, err := identity.Parse(s)
		if err == nil && id.String() != s {
			t.Fatalf("%q was taken for %q", s, id)
		}
	})
}
