package fleet

import (
	"strconv"

	"github.com/cassandra-security-manager/csm/controller/state"
)

// Signals are names that wake streams and are no resources: nothing under them can be read.

// TargetSignals are the names whose change may change what a node is told.
func TargetSignals(node string) []string {
	var out []string
	for _, scope := range scopes(node) {
		out = append(out, scope+"/target")
	}
	return out
}

// ProofSignal wakes when a node is asked to probe, or when a proof of it was recorded.
func ProofSignal(node string) string { return node + "/proofs" }

// WaveSignal wakes when a claim of the cluster ended: who was refused may ask again.
func WaveSignal(cluster string) string { return cluster + "/wave" }

// AgentSignal wakes when an agent's identity was suspended, resumed or revoked.
func AgentSignal(uid string) string { return agentSignal(uid) }

func agentSignal(uid string) string             { return "system/agentSignals/" + uid }
func alarmName(index uint64) string             { return "system/securityEvents/" + strconv.FormatUint(index, 10) }
func signalTarget(a *state.Apply, scope string) { a.Touch(state.Signalled, scope+"/target") }
func signalWave(a *state.Apply, cluster string) { a.Touch(state.Signalled, WaveSignal(cluster)) }
func signalProofs(a *state.Apply, node string)  { a.Touch(state.Signalled, ProofSignal(node)) }
