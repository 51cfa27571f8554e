package fleet

import (
	"bytes"
	"fmt"
	"time"

	agentv1 "github.com/cassandra-security-manager/csm/protocol/agent/v1"
	clusterv1 "github.com/cassandra-security-manager/csm/protocol/cluster/v1"

	"github.com/cassandra-security-manager/csm/controller/state"
	"github.com/cassandra-security-manager/csm/shared/fault"
)

// Kept is the leaf of another CA that ours took the place of in a store, and what the node's agent says of what it keeps.
type Kept struct {
	// Leaf is the SHA-256 that was written down when the take-over was claimed.
	Leaf []byte
	// Held is the one that the agent keeps, whole and readable; empty when none.
	Held []byte
	// Until is until when it puts that back: some days before its end.
	Until time.Time
	// Anchor is the SHA-256 of the anchor that it leads to.
	Anchor []byte
}

func keptOf(leaf []byte, f *agentv1.StoreFacts) *Kept {
	k := &Kept{Leaf: leaf, Held: f.KeptSha256, Anchor: f.KeptAnchorSha256}
	if f.KeptUntil != nil {
		k.Until = f.KeptUntil.AsTime()
	}
	return k
}

// Gone says why the leaf cannot be put back at a time; empty when it can. Pure.
func (k *Kept) Gone(now time.Time) string {
	switch {
	case len(k.Held) == 0:
		return fmt.Sprintf("its agent no longer keeps the certificate of before (%.12s)", hexOf(k.Leaf))
	case !bytes.Equal(k.Held, k.Leaf):
		return fmt.Sprintf("its agent keeps the certificate %.12s, and %.12s was served before", hexOf(k.Held), hexOf(k.Leaf))
	case len(k.Anchor) == 0:
		return fmt.Sprintf("the certificate of before (%.12s) leads to no anchor in its truststore any more", hexOf(k.Leaf))
	case !now.Before(k.Until):
		return fmt.Sprintf("the certificate of before (%.12s) ends too soon: it could be put back until %s", hexOf(k.Leaf), k.Until.UTC().Format(time.RFC3339))
	}
	return ""
}

// Holds says whether the truststore of the store, as it was reported, holds an anchor.
func (p Proven) Holds(anchor []byte) bool { return contains(p.anchors, anchor) }

// keepLeaf writes down which leaf is there when its place is about to be taken.
func keepLeaf(a *state.Apply, s storeRow) error {
	_, err := a.Exec(`UPDATE stores SET kept_sha256 = ?, kept_done = 0 WHERE name = ?`, nullable(s.leaf), s.name)
	return err
}

// forgetKept takes what was written down of an earlier take-over away, so that no target names it while the next one begins.
func forgetKept(a *state.Apply, store string) error {
	_, err := a.Exec(`UPDATE stores SET kept_sha256 = NULL, kept_done = 0 WHERE name = ?`, store)
	return err
}

// ForgetKept says that nobody wants back what the agents of a cluster kept of another CA: they remove it.
func ForgetKept(a *state.Apply, cluster string) error {
	if _, err := a.Exec(`UPDATE stores SET kept_done = 1 WHERE kept_sha256 IS NOT NULL AND node IN (SELECT name FROM nodes WHERE cluster = ?)`, cluster); err != nil {
		return err
	}
	return clusterMoved(a, cluster)
}

// goesBack says whether a store is asked to take back the leaf that it had before a take-over, and has not yet.
func (s storeRow) goesBack() bool {
	return s.move == agentv1.MoveKind_MOVE_KIND_GIVE_BACK && len(s.kept) > 0 && !s.keptDone && s.installed < s.generation && !s.theirs()
}

// back says whether that leaf lies in the files already, although nobody has reported how it came there.
func (s storeRow) back() bool {
	return s.move == agentv1.MoveKind_MOVE_KIND_GIVE_BACK && len(s.kept) > 0 && !s.keptDone && s.installed < s.generation && bytes.Equal(s.leaf, s.kept)
}

// givenBack decides what the report of such a move makes of a store: it is another CA's again, by the leaf that was there before. Pure.
func givenBack(n nodeRow, m moveRow, s storeRow, c *clusterv1.CompleteMove, t settled) (settled, error) {
	switch c.Outcome {
	case agentv1.MoveOutcome_MOVE_OUTCOME_PROVEN, agentv1.MoveOutcome_MOVE_OUTCOME_UNPROVEN:
		if len(s.kept) == 0 || !bytes.Equal(c.AfterSha256, s.kept) {
			return t, fault.New(fault.Refused, "leaf-not-kept", "the leaf in place is not the one that store %s had before it was taken over", m.store).
				Do("see what writes the files of %s", short(n.name))
		}
		t.state, t.installed, t.keptDone = agentv1.InstallState_INSTALL_STATE_FOREIGN, max(m.generation, s.installed), true
		t.wanted, t.renewAt, t.newRenew = nil, 0, true
		if t.unproved = c.Outcome == agentv1.MoveOutcome_MOVE_OUTCOME_UNPROVEN && n.running; c.Outcome == agentv1.MoveOutcome_MOVE_OUTCOME_PROVEN {
			t.proven = c.AfterSha256
		}
	case agentv1.MoveOutcome_MOVE_OUTCOME_ROLLED_BACK:
		t.state = agentv1.InstallState_INSTALL_STATE_ROLLED_BACK
	case agentv1.MoveOutcome_MOVE_OUTCOME_REFUSED:
	case agentv1.MoveOutcome_MOVE_OUTCOME_FAILED:
		t.state, t.unproved = agentv1.InstallState_INSTALL_STATE_FAILED, true
	default:
		return t, fault.New(fault.Invalid, "no-outcome", "a report of a move needs an outcome")
	}
	return t, nil
}
