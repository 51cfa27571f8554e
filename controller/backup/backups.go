package backup

import (
	"context"
	"log/slog"
	"path/filepath"
	"sync"
	"time"

	"filippo.io/age"
	"github.com/jonboulle/clockwork"

	"github.com/cassandra-security-manager/csm/controller/keyring"
	"github.com/cassandra-security-manager/csm/controller/state"
	clusterv1 "github.com/cassandra-security-manager/csm/protocol/cluster/v1"
	"github.com/cassandra-security-manager/csm/shared/fault"
	"github.com/cassandra-security-manager/csm/shared/resource"
)

// Store is what backups need of the state machine.
type Store interface {
	View(ctx context.Context, fn func(ctx context.Context, q state.Querier) error) error
	Pin() (*state.Pinned, error)
	Applied() uint64
}

// Options of one controller.
type Options struct {
	// Folder takes the backups of this controller; empty turns them off here.
	Folder string
	// Every is how long the leader lets pass between two scheduled backups; 0 turns the schedule off.
	Every time.Duration
	// Keep is how many are kept in Folder; 0 keeps all.
	Keep int
	// Further can open them beside the controllers and the recovery share.
	Further []age.Recipient
	// Scratch is where a backup is restored for a trial: a folder on a disk with room for the state.
	Scratch    string
	Controller string
	SystemID   string
	Version    string
	Migrations []int
}

// Backups makes, verifies and lists the backups of one controller.
type Backups struct {
	Options
	store  Store
	log    state.Log
	kek    *keyring.KEK
	who    func(ctx context.Context) ([]keyring.Recipient, error)
	leads  func() bool
	clock  clockwork.Clock
	logger *slog.Logger

	// busy is held by the one long work at a time.
	busy sync.Mutex
	life context.Context
	stop context.CancelFunc
	work sync.WaitGroup
}

// New makes the door. who gives those who can open the data key now; leads says whether this controller leads.
func New(store Store, log state.Log, kek *keyring.KEK, who func(ctx context.Context) ([]keyring.Recipient, error), leads func() bool,
	clock clockwork.Clock, logger *slog.Logger, o Options) *Backups {
	b := &Backups{Options: o, store: store, log: log, kek: kek, who: who, leads: leads, clock: clock, logger: logger}
	b.life, b.stop = context.WithCancel(context.Background())
	return b
}

// List is all backups that the state knows, newest first, and those in this controller's folder that it does not know: after a
// restore they are newer than the state.
func (b *Backups) List(ctx context.Context) (out []Backup, err error) {
	err = b.store.View(ctx, func(ctx context.Context, q state.Querier) (err error) {
		out, err = list(ctx, q)
		return err
	})
	if err != nil || b.Folder == "" {
		return out, err
	}
	known := map[string]bool{}
	for _, k := range out {
		known[k.ID] = true
	}
	files, err := Files(b.Folder, b.SystemID)
	if err != nil {
		b.logger.Debug("the folder of backups cannot be read", "error", err)
		return out, nil
	}
	for _, f := range files {
		if !known[f.Header.ID] {
			out = append(out, found(f))
		}
	}
	return out, nil
}

func found(f File) Backup {
	return Backup{ID: f.Header.ID, State: Ready, Controller: f.Header.Controller, Location: f.Path, Index: f.Header.Index, Term: f.Header.Term,
		Size: f.Size, Version: f.Header.Version, Created: f.Header.Created, Problem: ""}
}

// Get is one backup by its id.
func (b *Backups) Get(ctx context.Context, id string) (Backup, error) {
	all, err := b.List(ctx)
	if err != nil {
		return Backup{}, err
	}
	for _, k := range all {
		if k.ID == id {
			return k, nil
		}
	}
	return Backup{}, noBackup(id)
}

// LastVerified is when a backup was last read back whole; zero when that never happened. Any controller can tell.
func (b *Backups) LastVerified(ctx context.Context) (at time.Time, err error) {
	err = b.store.View(ctx, func(ctx context.Context, q state.Querier) error {
		var ms int64
		if err := q.QueryRowContext(ctx, `SELECT coalesce(max(verified_ms), 0) FROM backups`).Scan(&ms); err != nil || ms == 0 {
			return err
		}
		at = time.UnixMilli(ms).UTC()
		return nil
	})
	return at, err
}

// Create begins a backup on this controller and returns at once; the answer is running, and Get tells how it goes on.
func (b *Backups) Create(ctx context.Context, actor, reason string) (Backup, error) {
	return b.begin(ctx, actor, reason, false)
}

func (b *Backups) begin(ctx context.Context, actor, reason string, scheduled bool) (Backup, error) {
	if b.Folder == "" {
		return Backup{}, fault.New(fault.Refused, "no-backup-folder", "%s has no folder for backups", b.Controller).
			Do("set backup.to in its controller.yaml, for example file:///var/backups/csm, and start it again")
	}
	if !b.busy.TryLock() {
		return Backup{}, busy(b.Controller)
	}
	begun := false
	defer func() {
		if !begun {
			b.busy.Unlock()
		}
	}()
	holders, err := b.who(ctx)
	if err != nil {
		return Backup{}, err
	}
	now := b.clock.Now()
	o := Order{ID: name(now, b.store.Applied()), Folder: b.Folder, Controller: b.Controller, Version: b.Version, Migrations: b.Migrations,
		Holders: holders, Further: b.Further, Now: now}
	cmd := &clusterv1.RecordBackup{Id: o.ID, State: Running, Controller: b.Controller, Scheduled: scheduled, Version: b.Version,
		Location: filepath.Join(b.Folder, o.ID+Extension)}
	// Written before the state is pinned: this controller, which may follow, has then applied all that was acknowledged before.
	if err := b.propose(ctx, cmd, actor, reason); err != nil {
		return Backup{}, err
	}
	pinned, err := b.store.Pin()
	if err != nil {
		return Backup{}, err
	}
	cmd.Index, cmd.Term = pinned.Info().Applied, pinned.Info().AppliedTerm
	begun = true
	b.work.Add(1)
	go func() {
		defer b.work.Done()
		defer b.busy.Unlock()
		b.finish(pinned, o, cmd, actor)
	}()
	return b.Get(ctx, cmd.Id)
}

func busy(controller string) error {
	return fault.New(fault.Conflict, "backup-busy", "%s is writing or reading a backup already", controller).Do("wait for it: csm backup list")
}

func (b *Backups) propose(ctx context.Context, cmd *clusterv1.RecordBackup, actor, reason string) error {
	_, err := b.log.Propose(ctx, state.Proposal{Command: cmd, Actor: actor, Reason: reason})
	return err
}

// finish writes the backup, reads it back, and tells what came of it. Both are told: a backup that cannot be read back is there
// and not verified.
func (b *Backups) finish(pinned *state.Pinned, o Order, cmd *clusterv1.RecordBackup, actor string) {
	ctx := b.life
	removeStrays(b.Folder, o.Now)
	began := b.clock.Now()
	w, err := Write(pinned, o)
	pinned.Release()
	if err != nil {
		cmd.State, cmd.Problem = Failed, clip(err.Error())
		b.logger.Error("the backup failed", "backup", cmd.Id, "error", err)
		b.tell(ctx, cmd, actor)
		return
	}
	cmd.State, cmd.Size, cmd.Sha256 = Ready, w.Size, w.SHA256[:]
	b.logger.Info("a backup is written", "backup", cmd.Id, "bytes", w.Size, "took", b.clock.Since(began))
	b.tell(ctx, cmd, actor)
	b.trial(ctx, w.Path, cmd, actor)
	b.prune(ctx, actor)
}

// trial reads a backup back and records whether that went well.
func (b *Backups) trial(ctx context.Context, path string, cmd *clusterv1.RecordBackup, actor string) {
	began := b.clock.Now()
	if _, err := Verify(ctx, path, b.Scratch, b.Migrations, Key(b.kek)); err != nil {
		cmd.Problem = clip("not verified: " + err.Error())
		b.logger.Error("a backup cannot be read back", "backup", cmd.Id, "error", err)
	} else {
		cmd.Verified, cmd.Problem = true, ""
		b.logger.Info("a backup is verified", "backup", cmd.Id, "took", b.clock.Since(began))
	}
	b.tell(ctx, cmd, actor)
}

func clip(s string) string {
	if len(s) > 900 {
		s = s[:900]
	}
	return s
}

// tell records the outcome, for as long as it takes to find a leader or a while.
func (b *Backups) tell(ctx context.Context, cmd *clusterv1.RecordBackup, actor string) {
	_, err := b.log.Propose(ctx, state.Proposal{Command: cmd, Actor: actor, Reason: "backup " + cmd.State, Timeout: 2 * time.Minute})
	if err != nil {
		b.logger.Error("what came of a backup is not recorded", "backup", cmd.Id, "state", cmd.State, "error", err)
	}
}

// Verify begins to read a backup back on this controller and returns at once; Verified tells when it is done.
func (b *Backups) Verify(ctx context.Context, id, actor string) (Backup, error) {
	k, path, err := b.here(ctx, id)
	if err != nil {
		return k, err
	}
	if !b.busy.TryLock() {
		return k, busy(b.Controller)
	}
	cmd := &clusterv1.RecordBackup{Id: k.ID, State: Ready, Controller: k.Controller, Location: path, Index: k.Index, Term: k.Term, Size: k.Size,
		Sha256: k.SHA256, Scheduled: k.Scheduled, Version: k.Version}
	b.work.Add(1)
	go func() {
		defer b.work.Done()
		defer b.busy.Unlock()
		b.trial(b.life, path, cmd, actor)
	}()
	return k, nil
}

// here finds the file of a backup that this controller can read.
func (b *Backups) here(ctx context.Context, id string) (Backup, string, error) {
	if err := resource.CheckID("backup", id); err != nil {
		return Backup{}, "", err
	}
	k, err := b.Get(ctx, id)
	if err != nil {
		return k, "", err
	}
	if k.State != Ready {
		return k, "", fault.New(fault.Refused, "backup-not-ready", "the backup %s is %s", id, k.State).Do("take another one: csm backup list")
	}
	if b.Folder != "" {
		path := filepath.Join(b.Folder, id+Extension)
		if _, _, err := Inspect(path, false); err == nil {
			return k, path, nil
		}
	}
	return k, "", fault.New(fault.Unavailable, "backup-elsewhere", "the file of %s is not within reach of %s", id, b.Controller).
		Do("it was written by %s to %s: ask that controller with --server", k.Controller, k.Location)
}
