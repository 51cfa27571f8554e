package server

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"path/filepath"
	"sync"
	"time"

	"github.com/hashicorp/raft"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/cassandra-security-manager/csm/controller/backup"
	"github.com/cassandra-security-manager/csm/controller/consensus"
	"github.com/cassandra-security-manager/csm/controller/consensus/members"
	"github.com/cassandra-security-manager/csm/controller/fleet"
	"github.com/cassandra-security-manager/csm/controller/keyring"
	"github.com/cassandra-security-manager/csm/controller/state"
	clusterv1 "github.com/cassandra-security-manager/csm/protocol/cluster/v1"
	"github.com/cassandra-security-manager/csm/shared/fault"
)

// rebirth lets a state go on with other controllers than it had: after a restore, or when the majority is gone. It works on a
// copy of the state that nobody else sees, through the ordinary commands and their handlers; the copy counts only when it
// is planted as a raft snapshot, which is one rename.
type rebirth struct {
	cfg   Config
	in    installation
	store *state.Store
	log   *privateLog
	dom   *domain
}

// privateLog applies commands to a state that only this process has. The first one leaps: see members.EraLeap.
type privateLog struct {
	store *state.Store
	term  uint64

	mu    sync.Mutex
	index uint64
}

// Propose implements state.Log.
func (l *privateLog) Propose(ctx context.Context, p state.Proposal) (state.Result, error) {
	if err := ctx.Err(); err != nil {
		return state.Result{}, err
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	now := time.Now()
	if last := l.store.Now(); last.After(now) {
		now = last
	}
	e, err := state.NewEnvelope(p, now)
	if err != nil {
		return state.Result{}, err
	}
	if err := l.store.Check(e); err != nil {
		return state.Result{}, err
	}
	e.Stamp = timestamppb.New(now)
	data, err := proto.Marshal(e)
	if err != nil {
		return state.Result{}, err
	}
	if l.index == 0 {
		l.index = l.store.Applied() + members.EraLeap
	} else {
		l.index++
	}
	out, ok := l.store.Apply(&raft.Log{Index: l.index, Term: l.term, Type: raft.LogCommand, Data: data}).(*clusterv1.Outcome)
	if !ok {
		return state.Result{}, fmt.Errorf("entry %d was answered with no outcome", l.index)
	}
	return state.DecodeOutcome(out, e.Kind)
}

// beget opens the copy in dir for a new life. kek opens the data keys under the name recipient; the new entries are of term.
func beget(ctx context.Context, cfg Config, in installation, dir string, kek *keyring.KEK, recipient string, term uint64, log *slog.Logger) (*rebirth, error) {
	store, err := state.Open(ctx, state.Options{Dir: dir, ClusterID: in.SystemID, NodeID: in.NodeID, Modules: modules(), Logger: log, Checked: true})
	if err != nil {
		return nil, err
	}
	r := &rebirth{cfg: cfg, in: in, store: store, log: &privateLog{store: store, term: max(term, store.AppliedTerm()) + 1}}
	r.dom = assembleOn(cfg, keyring.New(store, r.log, kek, recipient), store, r.log, newMetrics())
	return r, nil
}

// begin makes next the only controllers, gives them the data keys and takes these from everybody else but the recovery share,
// and puts the agents' targets above all they were told.
// from is the backup that the state came out of, if it did.
func (r *rebirth) begin(ctx context.Context, next []*clusterv1.Member, cause string, from *backup.File, actor string) (*clusterv1.EraReply, error) {
	source := "the state of " + r.in.Name
	if from != nil {
		source = "backup " + from.Header.ID
	}
	if err := r.dom.keyring.Unseal(ctx); err != nil {
		return nil, err
	}
	era, err := state.Reply[*clusterv1.EraReply](ctx, r.log, state.Proposal{Actor: actor, Reason: cause,
		Command: &clusterv1.BeginEra{Members: next, Cause: cause, Source: source}})
	if err != nil {
		return nil, err
	}
	if err := fleet.RaiseTargets(ctx, r.log, actor, cause); err != nil {
		return nil, err
	}
	if err := backup.Settle(ctx, r.store, r.log, from, actor); err != nil {
		return nil, err
	}
	return era, r.rekey(ctx, next, cause, actor)
}

func (r *rebirth) rekey(ctx context.Context, next []*clusterv1.Member, cause, actor string) error {
	kek := map[string]string{keyring.RecoveryRecipient: ""}
	for _, m := range next {
		kek[m.Name] = keyring.Fingerprint(m.KekPublic)
	}
	holders, err := r.dom.keyring.Recipients(ctx)
	if err != nil {
		return err
	}
	for _, h := range holders {
		if f, stays := kek[h.Name]; stays && (f == "" || f == keyring.Fingerprint(h.Public)) {
			continue
		}
		if _, err := r.dom.keyring.Rotate(ctx, h.Name, actor, cause); err != nil {
			return err
		}
	}
	for _, m := range next {
		if err := r.dom.keyring.WrapFor(ctx, m.Name, m.KekPublic, actor); err != nil {
			return err
		}
	}
	return nil
}

// plant makes the copy the state of this controller.
func (r *rebirth) plant(ctx context.Context, d dataDir, ccfg consensus.Config) error {
	pinned, err := r.store.Pin()
	if err != nil {
		return err
	}
	defer pinned.Release()
	info := pinned.Info()
	err = consensus.Plant(consensus.Seed{DataDir: string(d), NodeID: r.in.NodeID, Advertise: r.cfg.ClusterAddress(), Index: info.Applied, Term: info.AppliedTerm,
		Write: func(w io.Writer) error {
			_, err := pinned.Write(w)
			return err
		}})
	if err != nil {
		return err
	}
	_, err = consensus.Prepare(ctx, ccfg)
	return err
}

// scratch is the folder of the copy; it is empty when it is given.
func (d dataDir) scratch() (string, error) {
	path := d.path("rebirth")
	return path, errors.Join(os.RemoveAll(path), os.MkdirAll(path, 0o700))
}

// tidy takes away copies of the state that a killed restore, recovery or verification left.
func (d dataDir) tidy() error {
	left, err := filepath.Glob(d.path("verify-*"))
	if err != nil {
		return err
	}
	for _, path := range append(left, d.path("rebirth"), d.path(restoringFile)) {
		if err := os.RemoveAll(path); err != nil {
			return fault.Wrap(err, fault.Invalid, "data-dir", "cannot remove %s", path).Do("check the owner of data_dir")
		}
	}
	return nil
}
