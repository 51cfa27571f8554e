// Package members owns the table of controllers that belong to the control plane and the one-time tokens by which new
// ones ask to join. It is the authority on who may connect, replicate and vote: raft's own configuration follows it, gossip
// never decides. A controller is known by its key (SHA-256 of its public key), not by its certificate or address.
//
// Invariants: a name, an id and a key stand in at most one row; a removed key is never admitted again; a token admits at
// most as many keys as it has uses, and only its hash is kept.
package members

import (
	"encoding/hex"
	"time"

	clusterv1 "github.com/cassandra-security-manager/csm/protocol/cluster/v1"
)

// State of a member; see clusterv1.MemberState.
type State string

// The states in order.
const (
	Pending  State = "pending"
	Approved State = "approved"
	Unsealed State = "unsealed"
)

// Member is one controller of the members table.
type Member struct {
	// Name is the primary key. ID is its raft server id.
	Name, ID string
	Address  string
	Region   string
	Zone     string
	// Key is the SHA-256 of its public key (SPKI).
	Key       [32]byte
	KEKPublic []byte
	State     State
	// Voter says that it is wanted as a voter.
	Voter   bool
	Version string
	Joined  time.Time
	// Approved and Unsealed are zero before.
	Approved, Unsealed time.Time
}

// Fingerprint is the key in lower-case hex, as administrators compare it.
func (m Member) Fingerprint() string { return hex.EncodeToString(m.Key[:]) }

// Trusted says that it may connect: an administrator approved it.
func (m Member) Trusted() bool { return m.State == Approved || m.State == Unsealed }

// Token is a join token as it may be shown; the token itself is kept nowhere.
type Token struct {
	ID, Name         string
	Created, Expires time.Time
	Uses, Used       int
	CreatedBy        string
}

var states = map[clusterv1.MemberState]State{
	clusterv1.MemberState_MEMBER_STATE_PENDING:  Pending,
	clusterv1.MemberState_MEMBER_STATE_APPROVED: Approved,
	clusterv1.MemberState_MEMBER_STATE_UNSEALED: Unsealed,
}

func (s State) proto() clusterv1.MemberState {
	for p, have := range states {
		if have == s {
			return p
		}
	}
	return clusterv1.MemberState_MEMBER_STATE_UNSPECIFIED
}

// Proto is the member on the wire.
func (m Member) Proto() *clusterv1.Member {
	return &clusterv1.Member{Name: m.Name, Id: m.ID, Address: m.Address, Region: m.Region, Zone: m.Zone, Key: m.Key[:],
		KekPublic: m.KEKPublic, State: m.State.proto(), Voter: m.Voter, Version: m.Version,
		JoinedMs: milli(m.Joined), ApprovedMs: milli(m.Approved), UnsealedMs: milli(m.Unsealed)}
}

// FromProto is the inverse of Proto.
func FromProto(p *clusterv1.Member) Member {
	m := Member{Name: p.GetName(), ID: p.GetId(), Address: p.GetAddress(), Region: p.GetRegion(), Zone: p.GetZone(),
		KEKPublic: p.GetKekPublic(), State: states[p.GetState()], Voter: p.GetVoter(), Version: p.GetVersion(),
		Joined: fromMilli(p.GetJoinedMs()), Approved: fromMilli(p.GetApprovedMs()), Unsealed: fromMilli(p.GetUnsealedMs())}
	copy(m.Key[:], p.GetKey())
	return m
}

func milli(t time.Time) int64 {
	if t.IsZero() {
		return 0
	}
	return t.UnixMilli()
}

func fromMilli(ms int64) time.Time {
	if ms == 0 {
		return time.Time{}
	}
	return time.UnixMilli(ms).UTC()
}
