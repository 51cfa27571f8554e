package node

import (
	"testing"

	"github.com/cassandra-security-manager/csm/shared/fault"
)

func TestWhoCouldNotBeAskedIsNotANeighbourThatFailed(t *testing.T) {
	for code, want := range map[fault.Code]string{fault.Unavailable: "proof-not-asked", fault.Unknown: "proof-not-asked", fault.Refused: "no-quorum", fault.Stale: "no-quorum"} {
		if err := notAsked(fault.New(code, "no-quorum", "1 of 3 controllers answers")); !fault.HasReason(err, want) {
			t.Errorf("%s: %v, want %s", code, err, want)
		}
	}
}
