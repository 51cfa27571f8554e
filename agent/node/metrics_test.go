package node

import (
	"strings"
	"testing"
	"time"

	"github.com/cassandra-security-manager/csm/agent/install"
	agentv1 "github.com/cassandra-security-manager/csm/protocol/agent/v1"
)

func TestMetricsSayWhatAnAlertNeeds(t *testing.T) {
	var m metrics
	proof := func(k agentv1.PortKind, v agentv1.Verdict) *agentv1.Proof {
		return &agentv1.Proof{Port: &agentv1.Port{Kind: k}, Verdict: v}
	}
	m.outcome(&install.Outcome{Result: agentv1.MoveOutcome_MOVE_OUTCOME_ROLLED_BACK, Proofs: []*agentv1.Proof{
		proof(agentv1.PortKind_PORT_KIND_INTERNODE, agentv1.Verdict_VERDICT_WRONG_LEAF), proof(agentv1.PortKind_PORT_KIND_CQL, agentv1.Verdict_VERDICT_ACCEPTED)}})
	m.outcome(&install.Outcome{Result: agentv1.MoveOutcome_MOVE_OUTCOME_PROVEN, Proofs: []*agentv1.Proof{proof(agentv1.PortKind_PORT_KIND_INTERNODE, agentv1.Verdict_VERDICT_WRONG_LEAF)}})
	s := Status{Instance: "cassandra", IdentityNotAfter: time.Unix(5000, 0), Link: Link{LastContact: time.Unix(1234, 0)}, Stores: []StoreStatus{{Name: "node", NotAfter: time.Unix(9000, 0)}, {Name: "client"}}}
	now := time.Unix(100_000, 0)
	got := string(m.text(s, now))
	for _, want := range []string{`csm_agent_store_not_after_timestamp_seconds{instance="cassandra",store="node"} 9000`,
		`csm_system_identity_not_after_timestamp_seconds{instance="cassandra",kind="agent"} 5000`, `csm_agent_last_sync_timestamp_seconds{instance="cassandra"} 1234`,
		`csm_agent_proof_failures_total{instance="cassandra",port="internode",reason="wrong-leaf"} 2`, `csm_agent_rollbacks_total{instance="cassandra"} 1`} {
		if !strings.Contains(got, want+"\n") {
			t.Errorf("%s is not in\n%s", want, got)
		}
	}
	if strings.Contains(got, `store="client"`) || strings.Contains(got, `port="cql"`) {
		t.Errorf("what is not known, or went well, is counted:\n%s", got)
	}
	s.Link.Connected = true
	if a, b := string(m.text(s, now)), string(m.text(s, now.Add(time.Second))); a != b || !strings.Contains(a, `csm_agent_last_sync_timestamp_seconds{instance="cassandra"} 99900`) {
		t.Errorf("a connected agent writes each second, or tells an old contact:\n%s", a)
	}
}
