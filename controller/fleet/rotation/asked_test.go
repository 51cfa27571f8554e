package rotation

import (
	"testing"

	agentv1 "github.com/cassandra-security-manager/csm/protocol/agent/v1"
)

// What a claim must pass in each phase. refused: it is not its time, whatever the gates say; free: it changes nothing between the
// two CAs.
func TestWhichGatesAClaimMustPass(t *testing.T) {
	const free, refused Step = "", "refused"
	var (
		renew, shrink      = agentv1.MoveKind_MOVE_KIND_RENEW, agentv1.MoveKind_MOVE_KIND_SHRINK
		takeOver, giveBack = agentv1.MoveKind_MOVE_KIND_TAKE_OVER, agentv1.MoveKind_MOVE_KIND_GIVE_BACK

		oldAgain = Store{Signer: "before", Files: Before, Leaf: Before}
		oldToNew = Store{Signer: "after", Files: Before, Leaf: Before}
		newAgain = Store{Signer: "after", Files: After, Leaf: After}
		newToOld = Store{Signer: "before", Files: After, Leaf: After}
		restored = Store{Signer: "before", Files: Before, Leaf: Unknown}
		unproved = Store{Signer: "after", Files: After, Leaf: Unknown}
		foreign  = Store{Signer: "after", Files: Neither, Leaf: Neither}
	)
	phases := []Phase{Distribute, Reissue, Reissued, Retire, Undoing, Withdrawing}
	for _, tt := range []struct {
		name  string
		kind  Kind
		move  agentv1.MoveKind
		store Store
		want  [6]Step // in the order of phases
	}{
		{"trust shrinks", Root, shrink, newAgain, [6]Step{refused, refused, refused, StepShrink, refused, StepUnshrink}},
		{"the leaf of before is renewed", Root, renew, oldAgain, [6]Step{free, free, free, refused, free, free}},
		{"the first leaf of the new CA", Root, renew, oldToNew, [6]Step{refused, StepLeaf, StepLeaf, free, refused, refused}},
		{"a leaf of the new CA is renewed", Root, renew, newAgain, [6]Step{free, free, free, free, free, free}},
		{"what is there is proved", Root, renew, unproved, [6]Step{free, free, free, free, free, free}},
		{"back to the CA before", Root, renew, newToOld, [6]Step{refused, refused, refused, refused, StepBack, StepBack}},
		{"files of before that nobody has proved", Root, renew, restored, [6]Step{StepBack, StepBack, StepBack, refused, StepBack, StepBack}},
		{"the leaf of another CA is replaced", Takeover, takeOver, foreign, [6]Step{refused, StepLeaf, StepLeaf, refused, refused, refused}},
		{"the leaf of another CA comes back", Takeover, giveBack, newAgain, [6]Step{refused, refused, refused, refused, StepBack, refused}},
		{"ours again on the way back of a take-over", Takeover, renew, newToOld, [6]Step{refused, StepLeaf, StepLeaf, free, free, free}},
	} {
		for i, phase := range phases {
			step, early := stepOf(row{kind: tt.kind, phase: phase, before: "before", after: "after"}, tt.store, tt.move)
			if early != "" && step != free {
				t.Errorf("%s in %s: both %s and %q", tt.name, phase, step, early)
			}
			if early != "" {
				step = refused
			}
			if step != tt.want[i] {
				t.Errorf("%s in %s: %q, want %q (%s)", tt.name, phase, step, tt.want[i], early)
			}
		}
	}
}
