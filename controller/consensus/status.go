package consensus

import (
	"time"

	"github.com/cassandra-security-manager/csm/controller/consensus/members"
)

// Status is the control plane as this controller sees it.
type Status struct {
	ClusterID string
	// Name of the controller that answers, and of the leader it knows; empty without one.
	Name, Leader string
	Term         uint64
	// Applied by the state machine of the controller that answers.
	Applied uint64
	// Age of its state: how long ago the leader had applied no more than it has. AgeUnknown before the first tick.
	Age time.Duration
	// Quorum: a majority of voters answers and there is a leader.
	Quorum  bool
	Members []MemberStatus
	// Problems in words, each with what to do; empty when all is well.
	Problems []string
}

// MemberStatus is one controller.
type MemberStatus struct {
	Name, Region, Zone, Address string
	// ID of the installation.
	ID string
	// Voter says that it counts in the quorum now. State is "pending", "approved", "unsealed" (members table) or, once it
	// takes part, "leader", "voter", "non-voter".
	Voter bool
	State string
	// Reachable by the controller that answers, just now.
	Reachable bool
	// Applied index, and how many entries it is behind the leader (0 when unknown).
	Applied, Lag uint64
	Version      string
	FeatureLevel uint32
	// ClockOffset is its wall clock minus ours, +-half a round trip.
	ClockOffset time.Duration
	// LastContact of it with a leader; negative when never or unknown.
	LastContact time.Duration
	DiskFree    float64
	// KeyFingerprint is the SHA-256 of its public key, in hex.
	KeyFingerprint string
}

// MemberChecksum is one controller's answer to Verify.
type MemberChecksum struct {
	Name  string
	Index uint64
	// Sum is the SHA-256 over all replicated rows in primary-key order at Index; Rows their number.
	Sum  [32]byte
	Rows int64
	// Err says why there is no sum.
	Err error
}

// Member and Token are rows of the tables that this package owns.
type (
	Member = members.Member
	Token  = members.Token
)

// TokenSpec says what a join token for controllers may do.
type TokenSpec struct {
	// TTL until it expires; one hour when zero, at most 7 days.
	TTL time.Duration
	// Uses; 1 when zero.
	Uses int
	// Name, if set, is the only controller that may use it.
	Name string
}
