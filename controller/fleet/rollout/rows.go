package rollout

import (
	"context"
	"database/sql"
	"errors"
	"time"

	"google.golang.org/protobuf/proto"

	clusterv1 "github.com/cassandra-security-manager/csm/protocol/cluster/v1"

	"github.com/cassandra-security-manager/csm/controller/state"
	"github.com/cassandra-security-manager/csm/shared/fault"
)

// States of a store within a rollout; what lies between open and done is read off the store itself.
const (
	storePending = "pending"
	storeOpen    = "open"
	storeDone    = "done"
	storeFailed  = "failed"
	storeBroken  = "broken"
	storeGone    = "gone"
)

// row is a rollout as it is held.
type row struct {
	name, state                         string
	back                                bool
	spec                                Spec
	hash                                []byte
	reason, note, creator, awaits       string
	failures                            int
	awaitsMs, createdMs, stateMs, endMs int64
	revision                            uint64
	// look is the newest question about the ring that was asked for a wave, lookWave which one.
	look     uint64
	lookWave int
}

const rowColumns = `SELECT name, state, back, spec, plan_hash, reason, note, creator, failures, awaits, awaits_ms, created_ms, state_ms, end_ms, revision, look, look_wave FROM rollouts `

type scanner interface{ Scan(...any) error }

func scanRow(s scanner) (r row, err error) {
	var b []byte
	if err := s.Scan(&r.name, &r.state, &r.back, &b, &r.hash, &r.reason, &r.note, &r.creator, &r.failures, &r.awaits, &r.awaitsMs, &r.createdMs, &r.stateMs, &r.endMs, &r.revision, &r.look, &r.lookWave); err != nil {
		return r, err
	}
	var w clusterv1.RolloutSpec
	if err := proto.Unmarshal(b, &w); err != nil {
		return r, fault.Wrap(err, fault.Internal, "bad-row", "the spec of %s cannot be read", r.name)
	}
	r.spec = specOf(&w)
	return r, nil
}

// readRow reads a rollout; noRollout when there is none.
func readRow(ctx context.Context, q state.Querier, name string) (row, error) {
	r, err := scanRow(q.QueryRowContext(ctx, rowColumns+`WHERE name = ?`, name))
	if errors.Is(err, sql.ErrNoRows) {
		return r, noRollout(name)
	}
	return r, err
}

// liveRow finds the rollout of a cluster that is under way; nil when there is none.
func liveRow(ctx context.Context, q state.Querier, cluster string) (*row, error) {
	r, err := scanRow(q.QueryRowContext(ctx, rowColumns+`WHERE cluster = ? AND end_ms = 0`, cluster))
	if errors.Is(err, sql.ErrNoRows) {
		return nil, nil
	}
	return &r, err
}

// storeRow is one store of a rollout.
type storeRow struct {
	wave                            int
	node, store                     string
	incarnation                     uint64
	datacenter, rack, state, detail string
	generation, before              uint64
	authority                       string // who signed before
	named                           string // whom a wish had named before; empty: the cluster's
	refusals                        int
	sinceMs                         int64
}

const storeColumns = `SELECT wave, node, store, incarnation, datacenter, rack, state, detail, generation, before_generation, before_authority, named_before, refusals, since_ms FROM rollout_stores `

func scanStore(s scanner) (x storeRow, err error) {
	err = s.Scan(&x.wave, &x.node, &x.store, &x.incarnation, &x.datacenter, &x.rack, &x.state, &x.detail, &x.generation, &x.before, &x.authority, &x.named, &x.refusals, &x.sinceMs)
	return x, err
}

func storesOf(ctx context.Context, q state.Querier, rollout string) ([]storeRow, error) {
	return collect(ctx, q, scanStore, storeColumns+`WHERE rollout = ? ORDER BY wave, node, store`, rollout)
}

// storeOf finds one store of a rollout; nil when it has no part in it.
func storeOf(ctx context.Context, q state.Querier, rollout, node, store string) (*storeRow, error) {
	x, err := scanStore(q.QueryRowContext(ctx, storeColumns+`WHERE rollout = ? AND node = ? AND store = ?`, rollout, node, store))
	if errors.Is(err, sql.ErrNoRows) {
		return nil, nil
	}
	return &x, err
}

func collect[T any](ctx context.Context, q state.Querier, scan func(scanner) (T, error), query string, args ...any) ([]T, error) {
	rows, err := q.QueryContext(ctx, query, args...)
	if err != nil {
		return nil, err
	}
	defer rows.Close()
	var out []T
	for rows.Next() {
		v, err := scan(rows)
		if err != nil {
			return nil, err
		}
		out = append(out, v)
	}
	return out, rows.Err()
}

func setStore(a *state.Apply, rollout string, x storeRow, st, detail string) error {
	_, err := a.Exec(`UPDATE rollout_stores SET state = ?, detail = ?, since_ms = ? WHERE rollout = ? AND node = ? AND store = ?`, st, detail, a.Now.UnixMilli(), rollout, x.node, x.store)
	return err
}

// setState moves a rollout to a state, with the words that explain it.
func setState(a *state.Apply, r *row, st, note string) error {
	r.state, r.note, r.stateMs = st, note, a.Now.UnixMilli()
	if !live(st) {
		r.endMs = r.stateMs
	}
	_, err := a.Exec(`UPDATE rollouts SET state = ?, note = ?, state_ms = ?, end_ms = ?, failures = ?, back = ?, awaits = '', awaits_ms = ?, revision = ? WHERE name = ?`,
		r.state, r.note, r.stateMs, r.endMs, r.failures, r.back, r.stateMs, a.Index, r.name)
	a.Touch(state.Updated, r.name)
	return err
}

func at(ms int64) time.Time {
	if ms == 0 {
		return time.Time{}
	}
	return time.UnixMilli(ms).UTC()
}
