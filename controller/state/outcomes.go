package state

import (
	"bytes"
	"context"
	"database/sql"
	"errors"
	"fmt"
	"time"

	"github.com/hashicorp/raft"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/timestamppb"

	clusterv1 "github.com/cassandra-security-manager/csm/protocol/cluster/v1"
	"github.com/cassandra-security-manager/csm/shared/fault"
)

const (
	// keepRequest is for how long the outcome of a request with an idempotency key is kept.
	keepRequest = 24 * time.Hour
	// keptQuota is how many such outcomes one actor may have.
	keptQuota = 10_000
)

// repeat answers a command that ran before under the same id. taken says that the id belongs to another command or request.
func (b *batch) repeat(e *clusterv1.Envelope) (out *clusterv1.Outcome, taken *fault.Error, err error) {
	out, taken, err = b.outcome(e, `SELECT idx, kind, actor, tenant, time, reply, fault, NULL FROM outcomes WHERE id = ?`)
	if out != nil || taken != nil || err != nil || len(e.RequestSha256) == 0 {
		return out, taken, err
	}
	out, taken, err = b.outcome(e, `SELECT idx, kind, actor, tenant, time, reply, NULL, request FROM kept_outcomes WHERE id = ?`)
	if out != nil || taken != nil || err != nil {
		return out, taken, err
	}
	taken, err = b.quota(e)
	return nil, taken, err
}

func (b *batch) outcome(e *clusterv1.Envelope, query string) (*clusterv1.Outcome, *fault.Error, error) {
	var kind, actor, tenant string
	var idx uint64
	var at int64
	var reply, refusal, request []byte
	err := b.w.QueryRowContext(context.Background(), query, e.Id).Scan(&idx, &kind, &actor, &tenant, &at, &reply, &refusal, &request)
	if errors.Is(err, sql.ErrNoRows) {
		return nil, nil, nil
	}
	if err != nil {
		return nil, nil, err
	}
	if kind != e.Kind || actor != e.Actor || tenant != e.Tenant {
		return nil, fault.New(fault.Conflict, "id-reused", "another command ran under the same id").Do("choose a new id for a new command"), nil
	}
	if request != nil && !bytes.Equal(request, e.RequestSha256) {
		return nil, fault.New(fault.Conflict, "idempotency-key-used", "the same idempotency key came with another request %s ago",
			time.Duration(b.head.clock-at)*time.Millisecond).Do("use a new key for a new request; a key stands for one request for 24 hours"), nil
	}
	out := &clusterv1.Outcome{Reply: reply, Index: idx, Repeated: true, Time: timestamppb.New(time.UnixMilli(at))}
	if refusal != nil {
		out.Fault = &clusterv1.Fault{}
		if err := proto.Unmarshal(refusal, out.Fault); err != nil {
			return nil, nil, fmt.Errorf("recorded outcome of %d: %w", idx, err)
		}
	}
	return out, nil, nil
}

// quota bounds what one actor can make every controller keep.
func (b *batch) quota(e *clusterv1.Envelope) (*fault.Error, error) {
	var n int
	err := b.w.QueryRowContext(context.Background(), "SELECT count FROM kept_counts WHERE actor = ?", e.Actor).Scan(&n)
	if errors.Is(err, sql.ErrNoRows) {
		return nil, nil
	}
	if err != nil || n < keptQuota {
		return nil, err
	}
	return fault.New(fault.Exhausted, "idempotency-quota", "%.200s used %d idempotency keys within 24 hours, which is the most", e.Actor, n).
		Do("send no Idempotency-Key where a repeat does no harm, or wait"), nil
}

// record keeps the outcome for a repeat: until the deadline can no longer be met, or for a day behind an idempotency key. A
// refusal did nothing, so asking again later under the same key is right. An id that stands there is a repeat that nobody asked
// for yet: errUndo.
func (b *batch) record(l *raft.Log, e *clusterv1.Envelope, reply []byte, refusal *fault.Error) error {
	if len(e.RequestSha256) > 0 && refusal == nil {
		if err := b.exec("INSERT INTO kept_outcomes (idx, id, request, kind, actor, tenant, time, expires, reply) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)",
			l.Index, e.Id, e.RequestSha256, e.Kind, e.Actor, e.Tenant, b.head.clock, b.head.clock+keepRequest.Milliseconds(), reply); err != nil {
			return err
		}
		return b.exec("INSERT INTO kept_counts (actor, count) VALUES (?, 1) ON CONFLICT (actor) DO UPDATE SET count = count + 1", e.Actor)
	}
	var encoded []byte
	if refusal != nil {
		var err error
		if encoded, err = (proto.MarshalOptions{Deterministic: true}).Marshal(EncodeFault(refusal)); err != nil {
			return err
		}
	}
	expires := min(e.Deadline.AsTime().UnixMilli(), b.head.clock+MaxDeadline.Milliseconds()) + keepOutcome.Milliseconds()
	res, err := b.w.ExecContext(context.Background(), `INSERT INTO outcomes (idx, id, kind, actor, tenant, time, expires, reply, fault) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)
		ON CONFLICT (id) DO NOTHING`, l.Index, e.Id, e.Kind, e.Actor, e.Tenant, b.head.clock, expires, reply, encoded)
	if err != nil {
		return err
	}
	n, err := res.RowsAffected()
	if err == nil && n == 0 {
		return errUndo // it had run before
	}
	return err
}

// pruneKept ends the oldest that are past their day, and gives their actors the room back.
func (b *batch) pruneKept() error {
	const old = "SELECT idx FROM (SELECT idx, expires FROM kept_outcomes ORDER BY idx LIMIT " + pruneMost + ") WHERE expires < ?"
	res, err := b.w.ExecContext(context.Background(), `UPDATE kept_counts SET count = count - gone.n FROM
		(SELECT actor, count(*) AS n FROM kept_outcomes WHERE idx IN (`+old+`) GROUP BY actor) AS gone WHERE kept_counts.actor = gone.actor`,
		b.head.clock)
	if err != nil {
		return err
	}
	if n, err := res.RowsAffected(); err != nil || n == 0 {
		return err
	}
	if err := b.exec("DELETE FROM kept_outcomes WHERE idx IN ("+old+")", b.head.clock); err != nil {
		return err
	}
	return b.exec("DELETE FROM kept_counts WHERE count <= 0")
}
