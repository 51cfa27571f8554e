package consensus

import (
	"context"
	"math"
	"time"

	"google.golang.org/grpc"

	"github.com/cassandra-security-manager/csm/controller/consensus/members"
	"github.com/cassandra-security-manager/csm/controller/state"
)

// AgeUnknown is the age of a state that no leader has confirmed since the start.
const AgeUnknown = time.Duration(math.MaxInt64)

// Module is what this package puts into the state machine.
func Module() state.Module { return members.Module() }

// Quorum is what domain packages and the server use of a Node; written down so that it shows in one place.
type Quorum interface {
	state.Log
	// Linearize returns when everything acknowledged before the call can be read from the local state.
	Linearize(ctx context.Context) error
	// Age of the local state.
	Age() time.Duration
	IsLeader() bool
	// Health is what this controller knows of itself, without asking anybody.
	Health() Health
	// LeaderCh is a new channel that gets whether this controller leads: now, and at each change (the latest value only).
	LeaderCh() <-chan bool
	// Leader is the name of the leader; empty when there is none known.
	Leader() string
	Status(ctx context.Context) (Status, error)
	Verify(ctx context.Context, actor string) ([]MemberChecksum, error)
	Members(ctx context.Context) ([]Member, error)
	// Dial gives the one shared connection to a member.
	Dial(ctx context.Context, memberName string) (grpc.ClientConnInterface, error)

	CreateJoinToken(ctx context.Context, spec TokenSpec, actor string) (token string, info Token, err error)
	JoinTokens(ctx context.Context) ([]Token, error)
	RevokeJoinToken(ctx context.Context, id, actor string) error
	// Approve says that the administrator compared the fingerprint (64 hex digits) of a pending controller's key.
	Approve(ctx context.Context, name, fingerprint, actor string) (Member, error)
	// ReportUnsealed says that this controller decrypted the canary: it may vote once it has caught up.
	ReportUnsealed(ctx context.Context) error
	Remove(ctx context.Context, name, actor, reason string) error
	// TransferLeadership to a member, or to the most current one when name is empty.
	TransferLeadership(ctx context.Context, name string) error
	// Leave removes this controller from the system; Close it afterwards.
	Leave(ctx context.Context, actor string) error
	Close() error
}

var _ Quorum = (*Node)(nil)
