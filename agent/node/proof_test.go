package node

import (
	"testing"

	agentv1 "github.com/cassandra-security-manager/csm/protocol/agent/v1"
	"github.com/cassandra-security-manager/csm/shared/fault"
)

func TestWhoCouldNotBeAskedIsNotANeighbourThatFailed(t *testing.T) {
	for code, want := range map[fault.Code]string{fault.Unavailable: "proof-not-asked", fault.Unknown: "proof-not-asked", fault.Refused: "no-quorum", fault.Stale: "no-quorum"} {
		if err := notAsked(fault.New(code, "no-quorum", "1 of 3 controllers answers")); !fault.HasReason(err, want) {
			t.Errorf("%s: %v, want %s", code, err, want)
		}
	}
}

func TestANeighbourThatGoesBackToAnotherCAIsJudgedByWhatCassandraTrusts(t *testing.T) {
	for _, x := range []struct {
		name  string
		store *agentv1.StoreTarget
		want  bool
	}{
		{"ours", &agentv1.StoreTarget{}, false},
		{"another CA's", &agentv1.StoreTarget{TrustOnly: true}, true},
		{"taken over, and the way back is open", &agentv1.StoreTarget{KeptSha256: []byte{1}}, true},
		{"taken over for good", &agentv1.StoreTarget{KeptSha256: []byte{1}, KeptDone: true}, false},
	} {
		if got := livesByAnother(&agentv1.Target{Stores: []*agentv1.StoreTarget{x.store}}); got != x.want {
			t.Errorf("%s: %v", x.name, got)
		}
	}
}
