package resource_test

import (
	"testing"

	"github.com/cassandra-security-manager/csm/shared/resource"
)

func TestNamesComeApartAsTheyWereFormed(t *testing.T) {
	n := resource.Node("default", "prod-eu", "n7")
	if n != "tenants/default/clusters/prod-eu/nodes/n7" {
		t.Fatal(n)
	}
	if resource.Segment(n, "clusters") != "prod-eu" || resource.Last(n) != "n7" ||
		resource.Parent(n) != resource.Cluster("default", "prod-eu") || resource.Segment(n, "agents") != "" {
		t.Fatal("name does not come apart")
	}
	if resource.Parent("tenants/default") != "" {
		t.Fatal("a root's child has no parent")
	}
}

func TestBadSegmentsAreRefused(t *testing.T) {
	for _, s := range []string{"", "A", "-a", "a-", "a/b", "ä", "a b", string(make([]byte, 64))} {
		if resource.CheckID("node", s) == nil {
			t.Errorf("%q accepted", s)
		}
	}
	for _, s := range []string{"a", "n7", "prod-eu", "node.example_1"} {
		if err := resource.CheckID("node", s); err != nil {
			t.Error(err)
		}
	}
}
