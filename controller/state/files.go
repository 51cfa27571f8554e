package state

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"github.com/cassandra-security-manager/csm/shared/atomicfile"
	"github.com/cassandra-security-manager/csm/shared/fault"
)

// FileInfo is what a state file says of itself.
type FileInfo struct {
	ClusterID string
	// NodeID is empty in a file just restored from a snapshot: the next Open takes it.
	NodeID string
	Format int
	// Applied and AppliedTerm are the raft index and term of the last entry in it.
	Applied, AppliedTerm uint64
	// Clean is set when the last user closed it. Else Inspect has read every page of it.
	Clean bool
}

const currentFile = "CURRENT"

func generationFile(dir string, number uint64) string {
	return filepath.Join(dir, strconv.FormatUint(number, 10), "state.db")
}

// currentGeneration reads CURRENT; 0 when there is no state.
func currentGeneration(dir string) (uint64, error) {
	b, err := os.ReadFile(filepath.Join(dir, currentFile))
	if errors.Is(err, fs.ErrNotExist) {
		return 0, nil
	}
	if err != nil {
		return 0, fmt.Errorf("read which state is current: %w", err)
	}
	n, err := strconv.ParseUint(strings.TrimSpace(string(b)), 10, 64)
	if err != nil || n == 0 {
		return 0, fault.New(fault.Internal, "state-broken", "%s names no generation", filepath.Join(dir, currentFile))
	}
	if _, err := os.Stat(generationFile(dir, n)); err != nil {
		return 0, fault.Wrap(err, fault.Internal, "state-broken", "the current state file is missing")
	}
	return n, nil
}

// setCurrent switches to a generation that is whole and on disk.
func setCurrent(dir string, number uint64) error {
	if err := syncPath(filepath.Dir(generationFile(dir, number))); err != nil {
		return err
	}
	if err := syncPath(dir); err != nil {
		return err
	}
	if err := atomicfile.Replace(filepath.Join(dir, currentFile), fmt.Appendf(nil, "%d\n", number), 0o600); err != nil {
		return fmt.Errorf("switch the state: %w", err)
	}
	return nil
}

// syncPath makes a file, or the entries of a folder, durable.
func syncPath(path string) error {
	f, err := os.Open(path)
	if err != nil {
		return err
	}
	return errors.Join(f.Sync(), f.Close())
}

// removeStrays removes generations that a crash left half made or half removed.
func removeStrays(dir string, current uint64, log *slog.Logger) {
	entries, err := os.ReadDir(dir)
	if err != nil {
		return
	}
	for _, e := range entries {
		n, err := strconv.ParseUint(e.Name(), 10, 64)
		stray := e.IsDir() && err == nil && n != current
		if stray || strings.HasPrefix(e.Name(), scratchPrefix) {
			if err := os.RemoveAll(filepath.Join(dir, e.Name())); err != nil {
				log.Warn("a stray state folder stays", "folder", e.Name(), "error", err)
			}
		}
	}
}

// highestGeneration is the greatest number of a folder, whole or not.
func highestGeneration(dir string) (highest uint64) {
	entries, _ := os.ReadDir(dir)
	for _, e := range entries {
		if n, err := strconv.ParseUint(e.Name(), 10, 64); err == nil {
			highest = max(highest, n)
		}
	}
	return highest
}

// Inspect reads what the current state file says of itself, before anything opens it for use. After an unclean stop it
// reads every page. Faults: NotFound no-state; Internal state-broken: discard it and restore a snapshot.
func Inspect(dir string) (FileInfo, error) {
	number, err := currentGeneration(dir)
	if err != nil {
		return FileInfo{}, err
	}
	if number == 0 {
		return FileInfo{}, fault.New(fault.NotFound, "no-state", "there is no state in %s", dir)
	}
	return inspectFile(context.Background(), generationFile(dir, number))
}

func inspectFile(ctx context.Context, path string) (info FileInfo, err error) {
	db, err := openDB(path)
	if err != nil {
		return info, err
	}
	defer func() { err = errors.Join(err, db.Close()) }()
	r, err := openSession(ctx, db)
	if err != nil {
		return info, broken(err)
	}
	defer r.close()
	if err := checkVersion(ctx, r); err != nil {
		return info, err
	}
	if info, err = readInfo(ctx, r); err != nil {
		return info, err
	}
	if !info.Clean {
		err = quickCheck(ctx, r)
	}
	return info, err
}

// Examine reads every page of the current state file, whether it was closed cleanly or not, and says which migrations made it:
// what a backup that was restored for a trial has to pass.
func Examine(ctx context.Context, dir string) (info FileInfo, migrations []int, err error) {
	number, err := currentGeneration(dir)
	if err != nil {
		return info, nil, err
	}
	db, err := openDB(generationFile(dir, number))
	if err != nil {
		return info, nil, err
	}
	defer func() { err = errors.Join(err, db.Close()) }()
	r, err := openSession(ctx, db, "query_only=1")
	if err != nil {
		return info, nil, broken(err)
	}
	defer r.close()
	if info, err = readInfo(ctx, r); err != nil {
		return info, nil, err
	}
	if migrations, err = readMigrations(ctx, r); err != nil {
		return info, nil, broken(err)
	}
	return info, migrations, quickCheck(ctx, r)
}

func readInfo(ctx context.Context, q Querier) (i FileInfo, err error) {
	err = q.QueryRowContext(ctx, `SELECT m.cluster_id, l.node_id, m.format, m.applied, m.applied_term, l.clean
		FROM meta m JOIN local_meta l ON l.id = m.id WHERE m.id = 1`).
		Scan(&i.ClusterID, &i.NodeID, &i.Format, &i.Applied, &i.AppliedTerm, &i.Clean)
	if err != nil {
		return i, broken(err)
	}
	return i, nil
}

func quickCheck(ctx context.Context, q Querier) error {
	rows, err := q.QueryContext(ctx, "PRAGMA quick_check(1)")
	if err != nil {
		return broken(err)
	}
	defer rows.Close()
	for rows.Next() {
		var line string
		if err := rows.Scan(&line); err != nil {
			return broken(err)
		}
		if line != "ok" {
			return broken(errors.New(line))
		}
	}
	if err := rows.Err(); err != nil {
		return broken(err)
	}
	return nil
}

// broken says what to do about a file that cannot be used: the file is at fault, or the machine around it.
func broken(err error) error {
	var f *fault.Error
	if errors.As(err, &f) {
		return err
	}
	if ofSurroundings(err) {
		return fault.Wrap(err, fault.Internal, "state-unreadable", "the state file cannot be opened").
			Do("check the owner, the mode and the disk of the state folder, and that no other controller uses it")
	}
	return fault.Wrap(err, fault.Internal, "state-broken", "the state file cannot be read").
		Do("move the folder state away; a snapshot or the other controllers give it back")
}

// belongs refuses a file that another cluster, another node or a newer program made.
func (i FileInfo) belongs(clusterID, nodeID string) error {
	switch {
	case i.ClusterID != clusterID:
		return fault.New(fault.Refused, "other-cluster", "the state belongs to cluster %q, this controller to %q", i.ClusterID, clusterID).
			Do("point data_dir to the folder of this controller")
	case i.NodeID != "" && i.NodeID != nodeID:
		return fault.New(fault.Refused, "other-node", "the state belongs to controller %q, this is %q", i.NodeID, nodeID).
			Do("never copy a data folder between controllers; let the new one join")
	case i.Format > Format:
		return fault.New(fault.Refused, "newer-format", "the state has format %d, this controller knows %d", i.Format, Format).
			Do("start the newer csm-controller")
	}
	return nil
}

// Discard removes the state of a controller that is not running. The snapshots and the raft log give it back.
func Discard(dir string) error {
	// CURRENT goes first: without it everything else is a stray.
	if err := os.Remove(filepath.Join(dir, currentFile)); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("discard the state: %w", err)
	}
	if err := syncPath(dir); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("discard the state: %w", err)
	}
	removeStrays(dir, 0, slog.New(slog.DiscardHandler))
	return nil
}
