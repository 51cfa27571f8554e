package backup

import (
	"context"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/cassandra-security-manager/csm/controller/state"
	clusterv1 "github.com/cassandra-security-manager/csm/protocol/cluster/v1"
)

const (
	// look is how often the schedule is looked at; again is how long a failed backup is let rest.
	look  = 10 * time.Second
	again = 10 * time.Minute
	// lost is after how long a backup that says it runs cannot be running any more.
	lost = 6 * time.Hour

	scheduler = "backup-schedule"
)

// Run makes scheduled backups while this controller leads, until the context ends; then it waits for the one at work.
func (b *Backups) Run(ctx context.Context) error {
	defer b.work.Wait()
	defer b.stop()
	tick := b.clock.NewTicker(look)
	defer tick.Stop()
	for {
		b.settle(ctx)
		if b.Folder != "" && b.leads() {
			b.onSchedule(ctx)
		}
		select {
		case <-ctx.Done():
			return nil
		case <-tick.Chan():
		}
	}
}

func (b *Backups) onSchedule(ctx context.Context) {
	all, err := b.List(ctx)
	if err != nil || !due(all, b.Every, b.clock.Now()) {
		return
	}
	if _, err := b.begin(ctx, scheduler, "every "+b.Every.String(), true); err != nil {
		b.logger.Warn("the scheduled backup does not begin", "error", err)
	}
}

// due says whether the schedule wants a backup now: the last good one is old enough, none runs, and the last failure is a while
// ago. Backups made by hand count: what matters is how old the newest is.
func due(all []Backup, every time.Duration, now time.Time) bool {
	if every <= 0 {
		return false
	}
	for _, k := range all {
		age := now.Sub(k.Created)
		switch {
		case k.State == Running && age < lost, k.State == Ready && age < every, k.State == Failed && age < min(again, every):
			return false
		}
	}
	return true
}

// settle says of backups that this controller had begun before it was stopped that they failed.
func (b *Backups) settle(ctx context.Context) {
	if !b.busy.TryLock() {
		return
	}
	defer b.busy.Unlock()
	var all []Backup
	if err := b.store.View(ctx, func(ctx context.Context, q state.Querier) (err error) {
		all, err = list(ctx, q)
		return err
	}); err != nil {
		return
	}
	for _, k := range all {
		if k.State == Running && k.Controller == b.Controller {
			os.Remove(filepath.Join(filepath.Dir(k.Location), "."+k.ID+Extension+partial))
			cmd := &clusterv1.RecordBackup{Id: k.ID, State: Failed, Controller: k.Controller, Location: k.Location, Index: k.Index, Term: k.Term,
				Scheduled: k.Scheduled, Version: k.Version, Problem: "the controller stopped while it was written"}
			if err := b.propose(ctx, cmd, scheduler, "interrupted"); err != nil {
				b.logger.Debug("an interrupted backup is not settled yet", "backup", k.ID, "error", err)
			}
		}
	}
}

// surplus are the files beyond the newest keep, oldest first; the newest verified one always stays.
func surplus(files []File, keep int, verified map[string]bool) []File {
	if keep <= 0 || len(files) <= keep {
		return nil
	}
	last := ""
	for _, f := range files {
		if verified[f.Header.ID] {
			last = f.Header.ID
		}
	}
	var out []File
	for _, f := range files[:len(files)-keep] {
		if f.Header.ID != last {
			out = append(out, f)
		}
	}
	return out
}

func (b *Backups) prune(ctx context.Context, actor string) {
	files, err := Files(b.Folder, b.SystemID)
	if err != nil {
		b.logger.Warn("old backups stay", "error", err)
		return
	}
	all, err := b.List(ctx)
	if err != nil {
		b.logger.Warn("old backups stay", "error", err)
		return
	}
	verified := map[string]bool{}
	for _, k := range all {
		verified[k.ID] = !k.Verified.IsZero()
	}
	for _, f := range surplus(files, b.Keep, verified) {
		if err := os.Remove(f.Path); err != nil {
			b.logger.Warn("an old backup stays", "file", f.Path, "error", err)
			continue
		}
		if _, err := b.log.Propose(ctx, state.Proposal{Command: &clusterv1.ForgetBackup{Id: f.Header.ID}, Actor: actor, Reason: "older than those to keep"}); err != nil {
			b.logger.Warn("an old backup is removed and still listed", "backup", f.Header.ID, "error", err)
		}
	}
}

// removeStrays takes away what a crash left half written, once nobody can be writing it any more.
func removeStrays(folder string, now time.Time) {
	entries, err := os.ReadDir(folder)
	if err != nil {
		return
	}
	for _, e := range entries {
		if !strings.HasPrefix(e.Name(), ".") || !strings.HasSuffix(e.Name(), Extension+partial) {
			continue
		}
		if st, err := e.Info(); err == nil && now.Sub(st.ModTime()) > lost {
			os.Remove(filepath.Join(folder, e.Name()))
		}
	}
}
