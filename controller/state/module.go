package state

import (
	"context"
	"database/sql"
	"fmt"
	"time"

	"google.golang.org/protobuf/proto"

	clusterv1 "github.com/cassandra-security-manager/csm/protocol/cluster/v1"
)

// Module is what a domain package hands to the state machine: its tables and its commands.
type Module struct {
	// Name is the package's name; unique.
	Name string
	// Migrations in order. Number is unique over all modules and never changes; the state machine runs them by number.
	Migrations []Migration
	// Commands registers the handlers with Handle.
	Commands func(*Registry)
}

// Migration is one step of the schema.
type Migration struct {
	Number int
	SQL    string
}

// Registry holds the handler of each kind of command.
type Registry struct{ handlers map[string]handler }

type handler func(a *Apply, command []byte) (proto.Message, error)

// Handle registers the handler of command C. A handler is pure: no clock, randomness, network or file; the same command
// on the same state gives the same result on every controller. It may refuse with a fault: everything it wrote
// is then undone, the refusal is audited, and the proposer gets the fault.
func Handle[C proto.Message, R proto.Message](r *Registry, fn func(a *Apply, command C) (R, error)) {
	var zero C
	kind := string(zero.ProtoReflect().Descriptor().FullName())
	if _, double := r.handlers[kind]; double {
		panic(fmt.Sprintf("state: two handlers for %s", kind))
	}
	if r.handlers == nil {
		r.handlers = map[string]handler{}
	}
	r.handlers[kind] = func(a *Apply, b []byte) (proto.Message, error) {
		c := zero.ProtoReflect().New().Interface().(C)
		if err := proto.Unmarshal(b, c); err != nil {
			return nil, fmt.Errorf("decode %s: %w", kind, err)
		}
		return fn(a, c)
	}
}

// Apply is what a handler works with: one command inside the transaction of its batch.
type Apply struct {
	// Index is the raft index of the entry: the revision of whatever the command writes.
	Index uint64
	// Now is the state clock: max(previous, the leader's stamp). Stored as unix milliseconds.
	Now time.Time
	// Envelope says who, why and for which tenant.
	Envelope *clusterv1.Envelope

	ctx     context.Context
	q       querier
	memory  *memory
	touched []Change
}

type querier interface {
	ExecContext(context.Context, string, ...any) (sql.Result, error)
	QueryContext(context.Context, string, ...any) (*sql.Rows, error)
	QueryRowContext(context.Context, string, ...any) *sql.Row
}

// Querier is a read transaction.
type Querier interface {
	QueryContext(context.Context, string, ...any) (*sql.Rows, error)
	QueryRowContext(context.Context, string, ...any) *sql.Row
}

// Exec runs a statement.
func (a *Apply) Exec(query string, args ...any) (sql.Result, error) {
	return a.q.ExecContext(a.ctx, query, args...)
}

// Query runs a query; its order must be fixed by ORDER BY.
func (a *Apply) Query(query string, args ...any) (*sql.Rows, error) {
	return a.q.QueryContext(a.ctx, query, args...)
}

// QueryRow runs a query for one row.
func (a *Apply) QueryRow(query string, args ...any) *sql.Row {
	return a.q.QueryRowContext(a.ctx, query, args...)
}

// Context and Querier let a handler share query functions with readers.
func (a *Apply) Context() context.Context { return a.ctx }

// Querier is the transaction as readers see it.
func (a *Apply) Querier() Querier { return a.q }

// Verb says what happened to a resource.
type Verb string

// Verbs of a change, as REST watches show them.
const (
	Created Verb = "ADDED"
	Updated Verb = "MODIFIED"
	Deleted Verb = "DELETED"
	// Signalled wakes waiters but is neither audited as a change nor shown by watches.
	Signalled Verb = ""
)

// Change is one resource touched by a command.
type Change struct {
	Resource string
	Verb     Verb
	Revision uint64
}

// Touch says that a resource (a full name, see shared/resource) changed: it is audited with the command, appears in watches
// at revision Index, and wakes every Watch on that name or on a prefix of it ending at a slash, after commit.
func (a *Apply) Touch(verb Verb, resource string) {
	a.touched = append(a.touched, Change{Resource: resource, Verb: verb, Revision: a.Index})
}

// Proposal asks for a command to be applied.
type Proposal struct {
	// Command is a message with a registered handler.
	Command proto.Message
	// Actor is the SPIFFE ID or name of who asks. Required.
	Actor string
	// ID makes a retry safe: the same id is answered, not run again. Random when empty.
	ID string
	// Request is the SHA-256 of the request behind an idempotency key, which is in ID: the outcome is then kept for 24 hours.
	Request []byte
	// Tenant, Zone, CorrelationID and Reason go into the envelope as they are.
	Tenant, Zone, CorrelationID, Reason string
	// Timeout until the deadline; 5 s when zero, at most 10 min.
	Timeout time.Duration
	// Whole says that the reply is all that the caller needs: Propose then answers before its effect can be read here, and
	// who reads here waits first (consensus.Node.CatchUp).
	Whole bool
}

// Result of an applied command.
type Result struct {
	// Reply is the handler's answer, of the type it returned.
	Reply proto.Message
	// Index of the entry that ran it; Time of the state clock there.
	Index uint64
	Time  time.Time
	// Repeated is set when the command had run before under the same id.
	Repeated bool
}

// Log is the one write path. consensus.Node is the real one; statetest.New gives one voter without a network.
//
// A returned fault of any code but Unknown and Unavailable was decided by Apply and is final. Unavailable: nothing was
// applied. Unknown: ask again with the same ID. When it returns, the command's effect can be read through the same controller, unless the
// reply was to be the whole of it.
type Log interface {
	Propose(ctx context.Context, p Proposal) (Result, error)
}

// Reply proposes and gives the typed reply.
func Reply[R proto.Message](ctx context.Context, l Log, p Proposal) (R, error) {
	var zero R
	res, err := l.Propose(ctx, p)
	if err != nil {
		return zero, err
	}
	r, ok := res.Reply.(R)
	if !ok {
		return zero, fmt.Errorf("state: %T answered with %T", p.Command, res.Reply)
	}
	return r, nil
}
