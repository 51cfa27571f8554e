package rotation_test

import (
	"github.com/cassandra-security-manager/csm/controller/fleet"
	agentv1 "github.com/cassandra-security-manager/csm/protocol/agent/v1"
)

// prove has a neighbour look at each port.
func (m *member) prove(claim string) {
	m.w.t.Helper()
	tasks, prober, err := m.w.fleet.RequestProofs(ctx, fleet.Caller{UID: m.uid, Incarnation: m.incarnation, Node: m.name, Cluster: cluster},
		&agentv1.RequestProofsRequest{Claim: claim, Store: "node", Ports: m.store.Ports, LeafSha256: m.store.LeafSha256}, everywhere)
	m.w.must(err)
	for _, by := range m.w.nodes {
		for i, t := range tasks {
			if by.name == prober {
				m.w.must(m.w.fleet.RecordProof(ctx, by.uid, by.incarnation, t, &agentv1.Proof{Port: m.store.Ports[i], Verdict: agentv1.Verdict_VERDICT_ACCEPTED, ServedSha256: m.store.LeafSha256}))
			}
		}
	}
}
