// Package systemca owns the change of the root that signs identities of controllers, agents and administrators: distribute ->
// reissue -> reissued -> retire -> done, with the way back open until the retire.
//
// It keeps one invariant: no controller and no agent that counts is ever shown an identity that it cannot verify, and none that it
// shows is refused. Each transition asks the gates in Apply again, whoever asks for it; a gate that cannot know says no. Keys
// and certificates are made by package authority; who holds what is seen in handshakes and told by SawIdentities.
package systemca

import (
	"time"

	"github.com/cassandra-security-manager/csm/controller/fleet/rollout"
)

// Phase of a rotation.
type Phase string

// The phases, as those of a ring's rotation. Reissued waits for a person.
const (
	Distribute  Phase = "distribute"
	Reissue     Phase = "reissue"
	Reissued    Phase = "reissued"
	Retire      Phase = "retire"
	Done        Phase = "done"
	Undoing     Phase = "undo-reissue"
	Withdrawing Phase = "undo-distribute"
	RolledBack  Phase = "rolled-back"
)

// Ended says whether nothing follows.
func (p Phase) Ended() bool { return p == Done || p == RolledBack }

// Undo says whether the rotation is on its way back.
func (p Phase) Undo() bool { return p == Undoing || p == Withdrawing || p == RolledBack }

// moves says whether identities change in this phase.
func (p Phase) moves() bool { return p == Reissue || p == Undoing }

// want is the side on which every identity is to be in a phase.
func (p Phase) want() Side {
	if p.Undo() {
		return Before
	}
	return After
}

// Reason is why something waits or is refused; its node is the full name of a controller, node or administrator.
type Reason = rollout.Reason

// Side is the root that signed a leaf.
type Side string

// The sides. Unknown: nobody has seen a leaf of it since the rotation began.
const (
	Before  Side = "before"
	After   Side = "after"
	Neither Side = "neither"
	Unknown Side = "unknown"
)

// Kind of an identity.
type Kind string

// The kinds.
const (
	Controller Kind = "controller"
	Agent      Kind = "agent"
	Admin      Kind = "administrator"
)

// Identity is one that counts: a controller of the members table, the agent of a node whose identity was not revoked, an administrator.
type Identity struct {
	Kind Kind `json:"kind" enum:"controller,agent,administrator"`
	// Name is the full name of the controller, node or administrator.
	Name string `json:"name"`
	Leaf Side   `json:"leaf" enum:"before,after,neither,unknown" doc:"which root signed the leaf that was seen last"`
	// TrustsBefore and TrustsAfter say which of the two roots its verifier uses, as it says itself.
	TrustsBefore bool `json:"trustsBefore"`
	TrustsAfter  bool `json:"trustsAfter"`
	// Connected: an agent with a stream.
	Connected bool `json:"connected,omitempty"`
	// Seen is when another one saw it last, of an administrator when its present certificate was used last; zero: not since the rotation began.
	Seen time.Time `json:"seen,omitzero"`
	// Stray: on the way back, a certificate of the root that goes was signed for it after the leaf that was seen. It may be about to take it.
	Stray bool `json:"stray,omitempty" doc:"on the way back: a certificate of the root that goes was signed for it after the leaf that was seen"`
	// Named is why a person does not wait for it; empty when it is waited for.
	Named string `json:"named,omitempty"`

	id string // SPIFFE ID
}

// View is all that decisions are made from. It is read from the state in Apply and by readers alike.
type View struct {
	Now    time.Time
	Phase  Phase
	Paused bool
	// Frozen is why no effect may begin; empty when the system is not frozen.
	Frozen string
	// Signer says why the root that comes cannot sign; empty when it can.
	Signer string
	// Turn is who takes its identity now: the full name of a controller, Agents, or empty.
	Turn       string
	Identities []Identity
}

// Agents is the turn of all agents: after the last controller.
const Agents = "agents"
