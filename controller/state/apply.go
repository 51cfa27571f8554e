package state

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"runtime/debug"
	"strings"
	"time"

	"github.com/hashicorp/raft"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/timestamppb"

	clusterv1 "github.com/cassandra-security-manager/csm/protocol/cluster/v1"
	"github.com/cassandra-security-manager/csm/shared/fault"
)

const (
	// pruneEvery commands, of the oldest pruneMost outcomes those that are past their time go: more than come meanwhile.
	pruneEvery, pruneMost = 64, "128"
	// keepChanges is for how many indexes changes are listed.
	keepChanges = 100_000
	// maxTouched resources in one command.
	maxTouched = 4096
)

var markerKind = Kind(&clusterv1.Marker{})

// Apply applies one entry. See ApplyBatch.
func (s *Store) Apply(l *raft.Log) any { return s.ApplyBatch([]*raft.Log{l})[0] }

// ApplyBatch applies entries in one transaction and answers each command with a *clusterv1.Outcome (nil for entries
// that are no commands). Entries up to Applied are skipped. A marker ends the transaction, so that its checksum stands
// for exactly that index.
func (s *Store) ApplyBatch(logs []*raft.Log) []any { return s.ApplySteps(logs, func() {}) }

// ApplySteps is ApplyBatch; step is called before each entry and before each commit.
func (s *Store) ApplySteps(logs []*raft.Log, step func()) []any {
	s.writing.Lock()
	defer s.writing.Unlock()
	s.step = step
	defer func() { s.step = nil }()
	answers := make([]any, len(logs))
	for from := 0; from < len(logs); {
		n, err := s.applySome(logs[from:], answers[from:])
		if err != nil {
			for i := range answers {
				answers[i] = &clusterv1.Outcome{Fault: EncodeFault(fault.From(err))}
			}
			return answers
		}
		from += n
	}
	if n := len(logs); n > 0 {
		s.delivered.Store(logs[n-1].Index)
	}
	return answers
}

// applySome applies entries up to and including the first marker and commits. It returns how many.
func (s *Store) applySome(logs []*raft.Log, answers []any) (int, error) {
	if s.failed != nil {
		return 0, s.failed
	}
	skip := 0
	for skip < len(logs) && logs[skip].Index <= s.head.applied {
		if logs[skip].Type == raft.LogCommand {
			answers[skip] = replayed
		}
		skip++
	}
	if skip == len(logs) {
		return skip, nil
	}
	b, n, err := s.transact(logs[skip:], answers[skip:], false)
	if errors.Is(err, errUndo) {
		clear(answers[skip:])
		b, n, err = s.transact(logs[skip:], answers[skip:], true)
	}
	if err != nil {
		return 0, s.fail(err)
	}
	s.head = b.head
	if b.marker {
		s.startChecksum(b.head.applied)
	}
	s.publish()
	s.watches.notify(b.touched)
	s.waiters.wake(b.head.applied)
	return skip + n, nil
}

// replayed answers an entry that was applied before this process began; nobody waits for it.
var replayed = &clusterv1.Outcome{Fault: EncodeFault(fault.New(fault.Unknown, "replayed", "the entry had been applied before").Do("ask again with the same id"))}

// errUndo: a command that had begun to write was refused, or had run before, and nothing can take back its part alone.
var errUndo = errors.New("a command must not stay that had written")

// transact runs a batch as one transaction. A savepoint under each command makes SQLite copy every page that the command
// changes, only to forget the copy; and nearly no command is a repeat: so without careful there are no savepoints and nobody
// looks for repeats, and errUndo asks for the same batch again, carefully. Most refusals are found before the first write and
// need neither. What the careful way decides is what counts, so batches may end wherever they do.
func (s *Store) transact(logs []*raft.Log, answers []any, careful bool) (*batch, int, error) {
	b := &batch{store: s, w: s.current.writer, head: s.head, careful: careful}
	n, err := b.run(logs, answers)
	if err != nil {
		b.w.conn.ExecContext(context.Background(), "ROLLBACK")
		s.memory.forget()
	}
	return b, n, err
}

// batch is one transaction on its way.
type batch struct {
	store   *Store
	w       *session
	head    head
	touched map[string]struct{}
	marker  bool
	// careful puts each command under a savepoint, and asks first whether it ran before.
	careful bool
}

func (b *batch) exec(query string, args ...any) error {
	_, err := b.w.ExecContext(context.Background(), query, args...)
	return err
}

// run gives an error only for what is this machine's fault, or for an entry that this program cannot know.
func (b *batch) run(logs []*raft.Log, answers []any) (n int, err error) {
	b.w.broken = nil
	if err := b.exec("BEGIN IMMEDIATE"); err != nil {
		return 0, fmt.Errorf("begin: %w", err)
	}
	for _, l := range logs {
		b.store.step()
		if l.Type == raft.LogCommand {
			out, err := b.entry(l)
			if err != nil {
				return 0, fmt.Errorf("entry %d: %w", l.Index, err)
			}
			answers[n] = out
		}
		b.head.applied, b.head.term = l.Index, l.Term
		n++
		if b.marker {
			break
		}
	}
	b.store.step()
	h := b.head
	if err := b.exec("UPDATE meta SET applied = ?, applied_term = ?, clock = ?, commands = ?, changes_after = ? WHERE id = 1",
		h.applied, h.term, h.clock, h.commands, h.changesAfter); err != nil {
		return 0, fmt.Errorf("entry %d: %w", h.applied, err)
	}
	if err := b.exec("COMMIT"); err != nil {
		return 0, fmt.Errorf("commit at %d: %w", h.applied, err)
	}
	return n, nil
}

// entry decides one command: repeat, refusal or effect.
func (b *batch) entry(l *raft.Log) (*clusterv1.Outcome, error) {
	e := &clusterv1.Envelope{}
	if err := proto.Unmarshal(l.Data, e); err != nil {
		// Every controller reads the same bytes and refuses alike; there is nothing in them to go by.
		return b.refuse(l, &clusterv1.Envelope{}, fault.New(fault.Invalid, "bad-envelope", "the entry is no envelope"))
	}
	if e.Stamp.IsValid() {
		b.head.clock = max(b.head.clock, e.Stamp.AsTime().UnixMilli())
	}
	if e.Version > envelopeVersion {
		return nil, b.store.checkVersion(e)
	}
	if err := checkBounds(e); err != nil {
		return b.refuse(l, e, fault.From(err))
	}
	if err := b.store.checkVersion(e); err != nil {
		return nil, err
	}
	late := b.head.clock > e.Deadline.AsTime().UnixMilli()
	if b.careful || late || len(e.RequestSha256) > 0 { // else record finds a repeat
		out, taken, err := b.repeat(e)
		if err != nil || out != nil {
			return out, err
		}
		if taken != nil {
			return b.refuse(l, e, taken)
		}
	}
	if late {
		return b.refuse(l, e, fault.New(fault.Unavailable, "deadline-passed", "the command reached the log after its deadline; nothing was done").
			Do("ask again; if it happens often, compare the controllers' clocks in `csm status`"))
	}
	return b.perform(l, e)
}

// refuse audits a command that never reached its handler. Its id stays free.
func (b *batch) refuse(l *raft.Log, e *clusterv1.Envelope, f *fault.Error) (*clusterv1.Outcome, error) {
	out := &clusterv1.Outcome{Fault: EncodeFault(f), Index: l.Index, Time: timestamppb.New(time.UnixMilli(b.head.clock))}
	return out, b.conclude(l, e, nil, f)
}

// perform runs the handler and records what came of it. A refusal leaves nothing of it but the record.
func (b *batch) perform(l *raft.Log, e *clusterv1.Envelope) (*clusterv1.Outcome, error) {
	b.store.memory.begin(e.Kind)
	a := &Apply{Index: l.Index, Now: time.UnixMilli(b.head.clock).UTC(), Envelope: e, ctx: context.Background(), q: b.w, memory: &b.store.memory}
	if b.careful {
		if err := b.exec("SAVEPOINT command"); err != nil {
			return nil, err
		}
	}
	b.w.wrote = false
	reply, err := b.handle(a, e)
	if n := b.w.settle(); n > 0 {
		b.store.log.Error("a handler left rows open: close them", "kind", e.Kind, "rows", n)
	}
	if b.w.broken != nil {
		return nil, fmt.Errorf("%s: %w", e.Kind, b.w.broken)
	}
	if err == nil {
		if len(a.touched) > maxTouched {
			err = fault.New(fault.Invalid, "too-large", "the command touches %d resources, %d are allowed", len(a.touched), maxTouched).
				Do("split the request into smaller ones")
		}
	} else if ofMachine(err) {
		return nil, fmt.Errorf("%s: %w", e.Kind, err)
	} else if errors.As(err, new(*crash)) {
		if !b.careful {
			return nil, errUndo
		}
		return nil, fmt.Errorf("%s: %w", e.Kind, err)
	}
	var refusal, answer *fault.Error
	if err != nil {
		if b.w.wrote && !b.careful {
			return nil, errUndo
		}
		if b.w.wrote {
			if err := b.exec("ROLLBACK TO command"); err != nil {
				return nil, err
			}
		}
		reply, a.touched = nil, nil
		refusal, answer = b.verdict(l, e, err)
	}
	if b.careful {
		if err := b.exec("RELEASE command"); err != nil {
			return nil, err
		}
	}
	// First of the two, because it finds repeats: what is pruned in between would be one that nobody finds.
	if err := b.record(l, e, reply, refusal); err != nil {
		return nil, err
	}
	if err := b.conclude(l, e, a.touched, refusal); err != nil {
		return nil, err
	}
	for _, c := range a.touched {
		if b.touched == nil {
			b.touched = map[string]struct{}{}
		}
		b.touched[c.Resource] = struct{}{}
	}
	b.marker = b.marker || (e.Kind == markerKind && refusal == nil)
	return &clusterv1.Outcome{Reply: reply, Fault: EncodeFault(answer), Index: l.Index, Time: timestamppb.New(a.Now)}, nil
}

// verdict is the fault as recorded and as answered. An error that is no fault may hold the wording of one library
// version, so what is replicated of it is only that it happened; who waits here, and the log, get the details.
func (b *batch) verdict(l *raft.Log, e *clusterv1.Envelope, err error) (recorded, answered *fault.Error) {
	var f *fault.Error
	if errors.As(err, &f) {
		return f, f
	}
	b.store.log.Error("a command failed", "kind", e.Kind, "index", l.Index, "error", err)
	recorded = fault.New(fault.Internal, "internal", "the command failed; nothing was done")
	return recorded, fault.Wrap(err, fault.Internal, "internal", "%s failed; nothing was done", e.Kind)
}

// crash is a panic of a handler. Nobody knows how far it got in memory, and another version may not panic at the same
// place: so it is not an answer but the end of the process, on every controller that runs this version.
type crash struct {
	value any
	stack string
}

func (c *crash) Error() string { return fmt.Sprintf("the handler panicked: %v\n%s", c.value, c.stack) }

func (b *batch) handle(a *Apply, e *clusterv1.Envelope) (reply []byte, err error) {
	defer func() {
		if v := recover(); v != nil {
			err = &crash{value: v, stack: string(debug.Stack())}
		}
	}()
	m, err := b.store.registry.handlers[e.Kind](a, e.Command)
	if err != nil {
		return nil, err
	}
	return encodeReply(m)
}

// conclude writes the audit entry, which is also where Changes reads, and prunes when its turn comes.
func (b *batch) conclude(l *raft.Log, e *clusterv1.Envelope, touched []Change, refusal *fault.Error) error {
	var text strings.Builder
	for _, c := range touched {
		if c.Verb == Signalled {
			continue
		}
		if text.Len() > 0 {
			text.WriteByte('\n')
		}
		text.WriteString(string(c.Verb) + " " + c.Resource)
	}
	var code, reason, message string
	if refusal != nil {
		code, reason, message = refusal.Code.String(), clip(refusal.Reason), clip(refusal.Message)
	}
	sum := sha256.Sum256(e.Command)
	if err := b.exec(`INSERT INTO audit (idx, time, actor, tenant, kind, id, correlation_id, reason, command_sha256, touched,
		fault_code, fault_reason, fault_message) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)`,
		l.Index, b.head.clock, e.Actor, e.Tenant, e.Kind, e.Id, e.CorrelationId, e.Reason, sum[:], text.String(),
		code, reason, message); err != nil {
		return err
	}
	b.head.commands++
	if b.head.commands%pruneEvery == 0 {
		return b.prune(l.Index)
	}
	return nil
}

// prune depends on nothing but the commands before it: not on batches, nor on this machine's time.
func (b *batch) prune(index uint64) error {
	// The limit stands in the text: SQLite would compile a statement anew at each value that is bound there.
	if err := b.exec("DELETE FROM outcomes WHERE idx IN (SELECT idx FROM outcomes ORDER BY idx LIMIT "+pruneMost+") AND expires < ?",
		b.head.clock); err != nil {
		return err
	}
	if err := b.pruneKept(); err != nil {
		return err
	}
	if index > keepChanges {
		b.head.changesAfter = index - keepChanges
	}
	return nil
}
