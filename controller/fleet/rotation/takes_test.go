package rotation

import (
	"testing"

	agentv1 "github.com/cassandra-security-manager/csm/protocol/agent/v1"

	"github.com/cassandra-security-manager/csm/controller/fleet"
	"github.com/cassandra-security-manager/csm/shared/algorithm"
)

func TestWhatNobodyKnowsANodeToTakeIsRefused(t *testing.T) {
	with := func(internode, client string) []fleet.Standing {
		return []fleet.Standing{{Node: "tenants/default/clusters/c/nodes/n1", Internode: &agentv1.TLSSection{Enabled: true, Factory: internode}, CQL: &agentv1.TLSSection{Enabled: true, Factory: client}}}
	}
	off := with("org.example.Vault", "")
	off[0].Internode.Enabled = false
	tests := []struct {
		name    string
		key     algorithm.Key
		nodes   []fleet.Standing
		refused int
	}{
		{"the catalogue, by Cassandra's own classes", algorithm.RSA4096, with("", "PEMBasedSslContextFactory"), 0},
		{"P-521", algorithm.P521, with("DefaultSslContextFactory", ""), 0},
		{"an agent that tells nothing of TLS", algorithm.P521, []fleet.Standing{{Node: "n"}}, 0},
		{"a class of somebody else", algorithm.P521, with("org.example.Vault", ""), 1},
		{"of both ports", algorithm.P521, with("org.example.Vault", "org.example.Vault"), 2},
		{"of a port without TLS", algorithm.P521, off, 0},
		{"a key that is in no catalogue", "ML-DSA-65", with("", ""), 1},
	}
	for _, tt := range tests {
		got := takes(tt.key, tt.nodes)
		if len(got) != tt.refused {
			t.Errorf("%s: %v", tt.name, got)
		}
		for _, r := range got {
			if r.Code != "algorithm" || r.Message == "" || r.Remedy == "" {
				t.Errorf("%s: %+v", tt.name, r)
			}
		}
	}
}
