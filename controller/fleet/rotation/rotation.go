// Package rotation owns the change of the CA under a living ring: distribute -> proven -> reissue -> proven -> retire, for
// the trust domain of one cluster, with the way back open until the retire.
//
// It keeps one invariant: no two live members of a ring ever lack a path of trust both ways. Each transition, each claim of a
// leaf and each claim that shrinks trust asks the gates in Apply again, whoever asks for it; a gate that cannot know says no.
// Waves are the business of package rollout, files that of the agents; this package says when and why.
package rotation

import (
	"time"

	agentv1 "github.com/cassandra-security-manager/csm/protocol/agent/v1"

	"github.com/cassandra-security-manager/csm/controller/fleet/rollout"
)

// Phase of a rotation.
type Phase string

// The phases. Reissued waits for a person. Undoing gives the leaves back under the CA before, withdrawing takes the new anchors
// out after that.
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

// Number orders the phases for the metric: 0 none, 1 to 5 forward, negative on the way back.
func (p Phase) Number() int {
	switch p {
	case Distribute:
		return 1
	case Reissue:
		return 2
	case Reissued:
		return 3
	case Retire:
		return 4
	case Done:
		return 5
	case Undoing:
		return -1
	case Withdrawing:
		return -2
	case RolledBack:
		return -3
	}
	return 0
}

// Kind says what changes.
type Kind string

// The kinds. Rekey keeps the root, so there is nothing to distribute or retire from truststores. Takeover replaces leaves of
// a CA that is not ours, whose anchors stay.
const (
	Root      Kind = "root"
	Rekey     Kind = "rekey"
	Takeover  Kind = "takeover"
	Algorithm Kind = "algorithm"
)

// Reason is why something waits or is refused, in the same words for explain, why and the API. Its code is that of a gate; its node the
// short name of one, or the address of a member that CSM does not know.
type Reason = rollout.Reason

// View is all that decisions are made from. It is read from the state in Apply and by readers alike.
type View struct {
	Phase  Phase
	Kind   Kind
	Paused bool
	// Frozen is why no effect may begin; empty when nothing is frozen.
	Frozen string
	// Doubts say why the members are not known for certain.
	Doubts []string
	// Members are those of the ring by two peers' gossip, enrolled or not, alive or not.
	Members []Member
	// Signer says why the CA that signs next cannot; empty when it can.
	Signer string
	// Clients who would break when the old CA goes.
	Clients []Client
	// Seen are clients of which nobody knows whether they trust the CA that comes.
	Seen []Seen
	// Canary is the full name of the node that got the first leaf of the CA that comes, while clients are waited for.
	Canary  string
	Rollout Rollout
	// Idle: this phase has nothing for any node to do.
	Idle bool
	// Emergency: what Relaxed names is given up, as far as an emergency may; Wide is how many nodes take a leaf at once then.
	Emergency bool
	Relaxed   []string
	Wide      int
	// LinksAccepted: a person said that connections from before the swap may live on, with a reason.
	LinksAccepted bool
}

// Member is one member of the ring.
type Member struct {
	// Name is the short one of the node; the address of a member that CSM does not know.
	Name string
	// Node is the full name, empty when CSM does not know it.
	Node        string
	HostID      string
	Incarnation uint64
	// Active: its agent's identity is good and may act.
	Active  bool
	Up      bool
	State   string
	Version string
	// Datacenter and Rack are where it says it is.
	Datacenter, Rack string
	// Aside is the reason for which a person set this incarnation aside; empty: nobody did.
	Aside  string
	Stores []Store
	// OldLinks are its connections to other nodes that are older than the swap; -1 when nobody can tell. Links says why, or what
	// is in the way of cycling them.
	OldLinks int
	Links    string
	// Cycling: it was asked to end them and has not answered.
	Cycling bool
	// Unprovable is why nothing can be proved between it and its peers; empty when something can.
	Unprovable string
	// Waiting: it is enrolled and has stores of ours, and its Cassandra has never started: no gossip knows it yet.
	Waiting bool
}

// counts says whether the gates of members ask for this one: one that was set aside is excused while it is down, not when it is
// back; of one that never started there is nothing to ask, so it has a gate of its own.
func (m Member) counts() bool { return !m.Waiting && (m.Aside == "" || m.Up) }

// left says whether it is left out: it was set aside, and is down.
func (m Member) left() bool { return m.Aside != "" && !m.Up }

// Side is the CA that a leaf chains to.
type Side string

// The sides.
const (
	Before  Side = "before"
	After   Side = "after"
	Neither Side = "neither"
	Unknown Side = "unknown"
)

// Store is one pair of keystore and truststore of a member.
type Store struct {
	Name string
	// Signer is the authority of its next leaf.
	Signer string
	// Move is what it was told to do and has not done; unspecified: nothing, or its agent decides.
	Move agentv1.MoveKind
	// Behind: the files are older than what this phase asks for.
	Behind bool
	// Files is the side of the leaf in the files, proved or not.
	Files Side
	// Lacks: an anchor of the CA that comes is not in the truststore.
	Lacks bool
	// Stale: its truststore holds an anchor that was withdrawn, and no move has taken any away since.
	Stale bool
	// Moving: on the move, or moved and not proved since.
	Moving bool
	// Leaf is the side of the leaf that a neighbour saw served; Unknown when nobody proved what is served now.
	Leaf  Side
	Ports []Port
	// Of a take-over. Kept: another CA's leaf was here before ours. Stays: on the way back it keeps ours, because no other was here, or
	// a person said so. Gone is why the leaf of before cannot be put back; LacksBefore, why leaves of before would not be trusted here.
	Kept, Stays bool
	Gone        string
	LacksBefore string
}

// Port is a TLS port of a store.
type Port struct {
	Name string
	// Trusts says that a neighbour's certificate of the CA that comes was accepted there with the files that are in place now.
	Trusts bool
	// Marker: it asks for no certificate, so a leaf that is newer than the truststore must be seen on it instead.
	Marker bool
	// Exempt is why nothing can be proved here; empty when something can.
	Exempt string
	// CQL: applications connect to it.
	CQL bool
}

// Client is an application that uses a certificate of the CA that goes, or was seen without being known.
type Client struct {
	Name, Detail string
	// Until is when its certificate ends; zero when it is not known.
	Until time.Time
	// Named: a person said that it may break, with a reason.
	Named bool
}

// Rollout is the wave-wise move that serves the phase.
type Rollout struct {
	Name string
	// State is empty before it begins, then that of package rollout.
	State  string
	Detail string
}
