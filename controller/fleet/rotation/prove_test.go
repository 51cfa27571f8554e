package rotation_test

import (
	"github.com/cassandra-security-manager/csm/controller/fleet"
	agentv1 "github.com/cassandra-security-manager/csm/protocol/agent/v1"
)

// prove has a neighbour look at each port: what it sees is what Cassandra has loaded.
func (m *member) prove(claim string) {
	m.w.t.Helper()
	_, prober, err := m.w.fleet.RequestProofs(ctx, fleet.Caller{UID: m.uid, Incarnation: m.incarnation, Node: m.name, Cluster: cluster},
		&agentv1.RequestProofsRequest{Claim: claim, Store: "node", Ports: m.store.Ports, LeafSha256: m.store.LeafSha256}, m.w.present)
	m.w.must(err)
	for _, by := range m.w.nodes {
		if by.name == prober {
			by.answer()
		}
	}
}

func (w *world) present(node, _ string) bool { return !w.down[node] }

// answer does what a prober is asked for. Which CA's certificate is accepted is the truth of the one that is probed.
func (m *member) answer() {
	m.w.t.Helper()
	tasks, err := m.w.fleet.OpenTasks(ctx, m.name)
	m.w.must(err)
	for _, task := range tasks {
		offered := task.Authority
		if offered == "" {
			offered = m.leaf
		}
		p := &agentv1.Proof{Port: task.Port, Verdict: agentv1.Verdict_VERDICT_REFUSED, Authority: task.Authority, Asked: true}
		for _, x := range m.w.nodes {
			if x.name == task.TargetNode && x.trusted[offered] {
				p.Verdict, p.ServedSha256 = agentv1.Verdict_VERDICT_ACCEPTED, x.served
			}
		}
		m.w.must(m.w.fleet.RecordProof(ctx, m.uid, m.incarnation, task.Task, p))
	}
}
