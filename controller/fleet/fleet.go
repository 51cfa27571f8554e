// Package fleet owns what the control plane knows and wants of Cassandra: clusters, their nodes and incarnations, the
// one-time tokens by which agents join, the agents' identities, the wish for each store with its generation, the claims
// under which a node may change, the proofs that neighbours give, and freezes.
//
// It refuses every effect that is not claimed, and every claim of an agent that is suspended, replaced, not in mode
// manage, held, frozen, behind, or whose files are not those it last reported. It keeps these invariants: at most one
// node of a cluster is on the move (installs before Cassandra's first start excepted), a move counts as proven only by
// the eyes of a neighbour while there is one, generations never go back, and a token makes one identity for one key.
//
// All decisions are made inside Apply by pure handlers; the methods of Fleet only form commands and read.
package fleet

import (
	"context"
	"crypto/rand"
	"encoding/base32"
	"fmt"
	"io"
	"strings"
	"sync"
	"time"

	"github.com/jonboulle/clockwork"
	"google.golang.org/protobuf/proto"

	clusterv1 "github.com/cassandra-security-manager/csm/protocol/cluster/v1"

	"github.com/cassandra-security-manager/csm/controller/state"
	"github.com/cassandra-security-manager/csm/shared/fault"
	"github.com/cassandra-security-manager/csm/shared/resource"
)

// Reader reads the replicated state; *state.Store is one.
type Reader interface {
	View(ctx context.Context, read func(ctx context.Context, q state.Querier) error) error
}

// Anchors gives the trust anchors (DER) of an authority, by its full name.
type Anchors func(ctx context.Context, authority string) ([][]byte, error)

// Defaults of what is asked without a figure.
const (
	DefaultTokenTTL = time.Hour
	MaxTokenTTL     = 30 * 24 * time.Hour
	// ClaimTTL is how long a node may be on the move before its claim lapses, one that waits for its Cassandra's own look at the files
	// longer (claimTTL).
	ClaimTTL = 15 * time.Minute
	// ProofTTL is how long a prober has to answer.
	ProofTTL = 20 * time.Second
)

// Fleet forms commands and reads. It holds no state of its own but a cache of encoded trust bundles.
type Fleet struct {
	read    Reader
	log     state.Log
	clock   clockwork.Clock
	rand    io.Reader
	anchors Anchors
	answers func(controller string) bool

	mu      sync.Mutex
	bundles map[string]bundle
}

type bundle struct {
	version uint64
	anchors [][]byte
}

// New makes a Fleet. anchors is asked when a cluster is created and when its trust is to grow.
func New(read Reader, log state.Log, clock clockwork.Clock, anchors Anchors) *Fleet {
	return &Fleet{read: read, log: log, clock: clock, rand: rand.Reader, anchors: anchors, bundles: map[string]bundle{}}
}

// Holders sets who knows whether a controller answers. A stream that is held by one that does not counts as lost: a
// controller that died cannot say that its streams ended, and an agent that died with it never says so either. It is set
// before the first read; without it every controller is taken to answer.
func (f *Fleet) Holders(answers func(controller string) bool) { f.answers = answers }

func (f *Fleet) holds(controller string) bool { return f.answers == nil || f.answers(controller) }

// view reads and gives the value back.
func view[T any](ctx context.Context, r Reader, read func(ctx context.Context, q state.Querier) (T, error)) (T, error) {
	var out T
	err := r.View(ctx, func(ctx context.Context, q state.Querier) (err error) {
		out, err = read(ctx, q)
		return err
	})
	return out, err
}

// propose sends a command about a resource, whose tenant it is.
func (f *Fleet) propose(ctx context.Context, name, actor, reason string, c proto.Message) (state.Result, error) {
	return f.log.Propose(ctx, state.Proposal{Command: c, Actor: actor, Tenant: resource.Segment(name, "tenants"), Reason: reason})
}

func reply[R proto.Message](res state.Result, err error) (R, error) {
	var zero R
	if err != nil {
		return zero, err
	}
	r, ok := res.Reply.(R)
	if !ok {
		return zero, fmt.Errorf("fleet: unexpected reply %T", res.Reply)
	}
	return r, nil
}

// id gives 26 lower-case characters out of 16 random bytes.
func (f *Fleet) id() (string, error) {
	b := make([]byte, 16)
	if _, err := io.ReadFull(f.rand, b); err != nil {
		return "", fault.Wrap(err, fault.Internal, "no-randomness", "cannot read random bytes")
	}
	return strings.ToLower(base32.StdEncoding.WithPadding(base32.NoPadding).EncodeToString(b)), nil
}

func fromFault(f *clusterv1.Fault) error {
	if f == nil {
		return nil
	}
	return &fault.Error{Code: fault.Code(f.Code), Reason: f.Reason, Message: f.Message, Remedy: f.Remedy}
}

func toFault(err error) *clusterv1.Fault {
	e := fault.From(err)
	return &clusterv1.Fault{Code: uint32(e.Code), Reason: e.Reason, Message: e.Message, Remedy: e.Remedy}
}
