package fleet_test

import (
	"strings"
	"testing"
	"time"

	"google.golang.org/protobuf/types/known/durationpb"
	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/cassandra-security-manager/csm/controller/fleet"
	agentv1 "github.com/cassandra-security-manager/csm/protocol/agent/v1"
)

// A node whose Cassandra looks at its files by itself alone is on the move for as long as that may take, forth and back; no node can
// ask for more than Cassandra's looks may take.
func TestAClaimLivesForAsLongAsANodesFilesMayTakeToBeInForce(t *testing.T) {
	for within, want := range map[time.Duration]time.Duration{0: fleet.ClaimTTL, 21 * time.Minute: fleet.ClaimTTL + 42*time.Minute, 24 * time.Hour: fleet.ClaimTTL + 2*fleet.MaxSettle,
		-time.Hour: fleet.ClaimTTL} {
		w := newWorld(t)
		r := w.ring("n1", "n2")
		until := w.log.Clock.Now().Add(10 * time.Minute)
		r["n1"].instance.Reload = &agentv1.ReloadFacts{Way: "poll", Waits: "node", Until: timestamppb.New(until)}
		if within != 0 {
			r["n1"].instance.Reload.Within = durationpb.New(within)
		}
		w.log.Clock.Advance(time.Second)
		r["n1"].must(r["n1"].say())
		_, err := r["n1"].claim(renew)
		r["n1"].must(err)
		v := r["n1"].view()
		if got := v.Claim.Expires.Sub(v.Claim.Opened); got != want {
			t.Errorf("a node that needs %s: its claim lives for %s, not %s", within, got, want)
		}
		if words := "wait for Cassandra's own look at them, at most until " + until.UTC().Format(time.RFC3339); !strings.Contains(v.Why, words) {
			t.Errorf("why: %s", v.Why)
		}
		w.log.Clock.Advance(want - time.Second)
		_, err = r["n2"].claim(renew)
		wantReason(t, err, "wave-busy")
	}
}
