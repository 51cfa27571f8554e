package server

import (
	"errors"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"time"

	"github.com/cassandra-security-manager/csm/shared/fault"
	"github.com/cassandra-security-manager/csm/shared/owner"
)

// ResetPlan says what reset-identity sets aside, and where.
type ResetPlan struct {
	Controller string   `json:"controller"`
	SystemID   string   `json:"systemId,omitempty"`
	Aside      string   `json:"aside"`
	Moves      []string `json:"moves"`
}

// Reset sets the installation in a data folder aside, so that a new one can join or be restored there under the same name with
// keys of its own. Nothing is deleted. With dryRun nothing is moved either.
func Reset(cfg Config, now time.Time, dryRun bool) (ResetPlan, error) {
	if err := owner.Check(cfg.DataDir); err != nil {
		return ResetPlan{}, err
	}
	d := dataDir(cfg.DataDir)
	p := ResetPlan{Controller: cfg.Name, Aside: d.path("aside-" + now.UTC().Format("20060102T150405Z")), Moves: []string{}}
	if in, err := d.installation(); err == nil {
		p.SystemID = in.SystemID
	}
	if conn, err := net.DialTimeout("unix", d.socket(), time.Second); err == nil {
		conn.Close()
		return p, fault.New(fault.Refused, "still-running", "the controller of %s runs", d).Do("stop it first: systemctl stop csm-controller")
	}
	// node.json goes first: without it the rest is no installation, wherever a crash stops.
	for _, name := range []string{"node.json", joiningFile, restoringFile, "identity", "kek", "raft", "snapshots", "snapshots-bad", "state", "rebirth"} {
		if _, err := os.Lstat(d.path(name)); err == nil {
			p.Moves = append(p.Moves, name)
		} else if !errors.Is(err, fs.ErrNotExist) {
			return p, fault.Wrap(err, fault.Invalid, "data-dir", "cannot read %s", d).Do("run as the owner of data_dir")
		}
	}
	if len(p.Moves) == 0 {
		return p, fault.New(fault.NotFound, "not-initialised", "%s holds no controller", d).Do("join or restore into it right away")
	}
	if dryRun {
		return p, nil
	}
	if err := os.MkdirAll(p.Aside, 0o700); err != nil {
		return p, fault.Wrap(err, fault.Invalid, "data-dir", "cannot make %s", p.Aside).Do("run as the owner of data_dir")
	}
	for _, name := range p.Moves {
		if err := os.Rename(d.path(name), filepath.Join(p.Aside, name)); err != nil {
			return p, fault.Wrap(err, fault.Partial, "half-reset", "%s is not moved", d.path(name)).Do("run the command again")
		}
	}
	return p, nil
}
