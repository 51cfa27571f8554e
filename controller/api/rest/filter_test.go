package rest

import (
	"reflect"
	"strings"
	"testing"
	"time"

	"github.com/cassandra-security-manager/csm/shared/fault"
)

func TestAFilterIsTakenApartIntoItsConditions(t *testing.T) {
	for in, want := range map[string][]Term{
		"":                                       nil,
		"state=active":                           {{"state", "=", "active"}},
		"state=active AND notAfter<2027-01-01":   {{"state", "=", "active"}, {"notAfter", "<", "2027-01-01"}},
		"a!=b c:d and e>\"x y\"":                 {{"a", "!=", "b"}, {"c", ":", "d"}, {"e", ">", "x y"}},
		"n7.example":                             {{"", "", "n7.example"}},
		`"two words"`:                            {{"", "", "two words"}},
		"issuer=tenants/default/authorities/a/b": {{"issuer", "=", "tenants/default/authorities/a/b"}},
	} {
		got, err := ParseFilter(in)
		if err != nil || !reflect.DeepEqual(got, want) {
			t.Errorf("%q: %v %v", in, got, err)
		}
	}
	for _, in := range []string{"=a", "a=", "a= b", `a="b`, "a OR b", "NOT a", strings.Repeat("a=b ", 17), `x"y"`} {
		if got, err := ParseFilter(in); !fault.HasReason(err, "bad-filter") {
			t.Errorf("%q: %v %v", in, got, err)
		}
	}
}

func TestTimesOfAFilter(t *testing.T) {
	now := time.Date(2026, 3, 1, 0, 0, 0, 0, time.UTC)
	for in, want := range map[string]time.Time{"30d": now.AddDate(0, 0, 30), "-2h": now.Add(-2 * time.Hour), "2027-01-31": time.Date(2027, 1, 31, 0, 0, 0, 0, time.UTC)} {
		if got, err := timeOf(now, in); err != nil || !got.Equal(want) {
			t.Errorf("%q: %v %v", in, got, err)
		}
	}
	if _, err := timeOf(now, "soon"); !fault.HasReason(err, "bad-filter") {
		t.Error(err)
	}
}

func TestMembersOfACollection(t *testing.T) {
	for _, c := range []struct {
		collection, name string
		want             bool
	}{
		{"tenants/a/clusters", "tenants/a/clusters/x", true},
		{"tenants/a/clusters", "tenants/a/clusters/x/nodes/n", false},
		{"tenants/a/clusters", "tenants/b/clusters/x", false},
		{"tenants/-/clusters", "tenants/b/clusters/x", true},
		{"tenants/a/clusters/-/nodes", "tenants/a/clusters/x/nodes/n", true},
		{"tenants/a/clusters/-/nodes", "tenants/a/clusters/x/joinTokens/n", false},
		{"events", "system/admins/ada", true},
	} {
		if member(c.collection, c.name) != c.want {
			t.Errorf("%+v", c)
		}
	}
	if p := prefixOf("tenants/a/clusters/-/nodes"); p != "tenants/a/clusters/" {
		t.Error(p)
	}
}

func FuzzNoFilterBreaksTheParser(f *testing.F) {
	for _, s := range []string{"", "a=b", `a="\u00e9"`, "a<b AND c", `"`, "=", ":::"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		terms, err := ParseFilter(s)
		if err != nil && !fault.HasReason(err, "bad-filter") {
			t.Fatal(err)
		}
		for _, term := range terms {
			if term.Op == "" && term.Field != "" || term.Op != "" && term.Field == "" {
				t.Fatalf("%q: %+v", s, term)
			}
		}
	})
}

func FuzzNoPageTokenBreaksTheReader(f *testing.F) {
	f.Add("q", "")
	f.Add("q", sealToken("q", "inner"))
	f.Add("q", "e30")
	f.Fuzz(func(t *testing.T, q, s string) {
		inner, err := openToken(q, s)
		if err != nil && !fault.HasReason(err, "bad-page-token") {
			t.Fatal(err)
		}
		if err == nil && s != "" {
			if again, err := openToken(q, sealToken(q, inner)); err != nil || again != inner {
				t.Fatalf("%q became %q: %v", inner, again, err)
			}
		}
	})
}
