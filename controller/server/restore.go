package server

import (
	"context"
	"encoding/hex"
	"errors"
	"io/fs"
	"log/slog"
	"net"
	"os"
	"time"

	"filippo.io/age"
	"github.com/google/uuid"

	"github.com/cassandra-security-manager/csm/controller/backup"
	"github.com/cassandra-security-manager/csm/controller/keyring"
	"github.com/cassandra-security-manager/csm/controller/state"
	clusterv1 "github.com/cassandra-security-manager/csm/protocol/cluster/v1"
	"github.com/cassandra-security-manager/csm/shared/atomicfile"
	"github.com/cassandra-security-manager/csm/shared/certificate"
	"github.com/cassandra-security-manager/csm/shared/cli"
	"github.com/cassandra-security-manager/csm/shared/fault"
	"github.com/cassandra-security-manager/csm/shared/identity"
	"github.com/cassandra-security-manager/csm/shared/owner"
)

// RestoreOptions say what to restore and what opens it.
type RestoreOptions struct {
	// File is the backup.
	File string
	// Share is the recovery share of the system: it opens the data keys, and the backup unless Identities do.
	Share keyring.Secret
	// Identities open a backup that was made for further recipients. Optional.
	Identities []age.Identity
	// Step is told what is done next. Optional.
	Step func(string)
}

// RestoreResult says what came out of it.
type RestoreResult struct {
	SystemID    string `json:"systemId"`
	Pin         string `json:"pin"`
	Controller  string `json:"controller"`
	Fingerprint string `json:"fingerprint"`
	// Backup and the newest entry in it: what was written later is lost.
	Backup  string    `json:"backup"`
	Index   uint64    `json:"index"`
	Created time.Time `json:"createTime"`
	Era     uint64    `json:"era"`
	// Removed are the controllers of before: they may come back only by joining.
	Removed    []string `json:"removed"`
	APIAddress string   `json:"apiAddress"`
}

const restorer = "restore"

// restoring marks a folder that a restore has begun to fill.
const restoringFile = "restoring"

// Restore makes this controller, on an empty data folder, the only member of the system that a backup holds. It ends with a
// complete installation or with none: interrupted, the same command begins again.
func Restore(ctx context.Context, cfg Config, opt RestoreOptions, log *slog.Logger) (res RestoreResult, err error) {
	if opt.Step == nil {
		opt.Step = func(string) {}
	}
	recovery, err := keyring.OpenRecovery(opt.Share)
	if err != nil {
		return res, err
	}
	migrations, err := state.Numbers(modules())
	if err != nil {
		return res, err
	}
	// Whatever can be refused is refused before the folder is touched.
	file, err := backup.Open(opt.File, append(opt.Identities, backup.Key(recovery))...)
	if err != nil {
		return res, wrongShare(err)
	}
	defer file.Close()
	d := dataDir(cfg.DataDir)
	if err := d.claimForRestore(); err != nil {
		return res, err
	}
	scratch, err := d.scratch()
	if err != nil {
		return res, err
	}
	opt.Step("restoring the state of " + file.Header.Created.Format(time.RFC3339))
	if _, err := file.Restore(ctx, scratch, migrations); err != nil {
		return res, errors.Join(err, d.abandon())
	}
	in := installation{SystemID: file.Header.SystemID, NodeID: uuid.NewString(), Name: cfg.Name}
	res = RestoreResult{SystemID: in.SystemID, Controller: in.Name, Backup: file.Header.ID, Index: file.Header.Index, Created: file.Header.Created,
		APIAddress: net.JoinHostPort(cfg.Advertise, port(cfg.Listen.API))}
	w := &reviver{cfg: cfg, dir: d, in: in, recovery: recovery, log: log, step: opt.Step, res: &res}
	if err := w.run(ctx, scratch, backup.File{Header: file.Header, Path: opt.File, Size: file.Size}); err != nil {
		return res, errors.Join(wrongShare(err), d.abandon())
	}
	return res, errors.Join(d.finish(in), os.Remove(d.path(restoringFile)), os.RemoveAll(scratch))
}

// wrongShare says in the words of a restore what a key that does not fit means.
func wrongShare(err error) error {
	if fault.HasReason(err, "wrong-kek") || fault.HasReason(err, "not-wrapped") {
		return fault.Wrap(err, fault.Refused, "wrong-recovery-share", "the recovery share is not that of this system").
			Do("take the share that `csm-controller init` wrote when this system was made; nothing was changed")
	}
	return err
}

// claimForRestore is claim, and takes away what an interrupted restore left.
func (d dataDir) claimForRestore() error {
	if err := owner.Check(string(d)); err != nil {
		return err
	}
	_, begun := os.Stat(d.path(restoringFile))
	if _, err := os.Stat(d.path("node.json")); begun == nil && errors.Is(err, fs.ErrNotExist) {
		if err := d.abandon(); err != nil {
			return err
		}
	}
	if err := d.free(); err != nil {
		return err
	}
	// The mark comes before all that it speaks of: a restore that is killed right here begins again too.
	if err := d.furnish(""); err != nil {
		return err
	}
	if err := atomicfile.Replace(d.path(restoringFile), nil, 0o600); err != nil {
		return err
	}
	return d.furnish("identity", "kek")
}

// abandon empties a folder that a restore had begun to fill: nothing in it was ever used.
func (d dataDir) abandon() error {
	var errs []error
	for _, sub := range []string{"identity", "kek/kek.json", "raft", "snapshots", "snapshots-bad", "state", "rebirth", restoringFile} {
		errs = append(errs, os.RemoveAll(d.path(sub)))
	}
	return errors.Join(errs...)
}

// reviver makes a controller out of a restored state.
type reviver struct {
	cfg      Config
	dir      dataDir
	in       installation
	recovery *keyring.KEK
	log      *slog.Logger
	step     func(string)
	res      *RestoreResult
}

func (w *reviver) run(ctx context.Context, scratch string, from backup.File) error {
	r, err := beget(ctx, w.cfg, w.in, scratch, w.recovery, keyring.RecoveryRecipient, 0, w.log)
	if err != nil {
		return err
	}
	defer r.store.Close()
	if err := r.dom.keyring.Unseal(ctx); err != nil {
		return err
	}
	id, kek, err := newController(w.dir, w.cfg)
	if err != nil {
		return err
	}
	key, err := keyHash(id.key.Public())
	if err != nil {
		return err
	}
	w.res.Fingerprint = hex.EncodeToString(key[:])
	w.step("giving the keys to " + w.in.Name + " and taking them from the controllers of before")
	self := &clusterv1.Member{Name: w.in.Name, Id: w.in.NodeID, Address: w.cfg.ClusterAddress(), Region: w.cfg.Region, Zone: w.cfg.Zone, Key: key[:],
		KekPublic: kek.Public(), Version: cli.Version}
	era, err := r.begin(ctx, []*clusterv1.Member{self}, "restore", &from, restorer)
	if err != nil {
		return err
	}
	w.res.Era, w.res.Removed = era.Era, era.Removed
	if w.res.Pin, err = w.identify(ctx, r, id); err != nil {
		return err
	}
	w.step("making it the state of this controller")
	ccfg, err := consensusConfig(w.cfg, w.in, id, kek, nil, w.log)
	if err != nil {
		return err
	}
	return r.plant(ctx, w.dir, ccfg)
}

// identify gives the new controller a certificate of the system CA, which the state holds.
func (w *reviver) identify(ctx context.Context, r *rebirth, id *identityHolder) (pin string, err error) {
	csr, err := certificate.NewRequest(id.key, certificate.Names{})
	if err != nil {
		return "", err
	}
	chain, bundle, err := r.dom.issuance.IssueIdentity(ctx, identity.ControllerID(w.in.trustDomain(), w.in.Name), csr, restorer, "restore-"+w.res.Fingerprint[:32])
	if err != nil {
		return "", err
	}
	roots, err := parseAll(bundle)
	if err != nil {
		return "", err
	}
	own, err := parseAll(chain)
	if err != nil {
		return "", err
	}
	return pinOf(own[0], roots), w.dir.writeChain(chain, bundle)
}

// Inspection is what a backup file says of itself.
type Inspection struct {
	backup.Header
	File string `json:"file"`
	Size int64  `json:"size"`
	// Whole: the checksum of the file is right. Verified: it was decrypted, restored for a trial and read to its end.
	Whole    bool `json:"whole"`
	Verified bool `json:"verified"`
}

// InspectBackup reads a backup file: its description and checksum without any key, all of it with one.
func InspectBackup(ctx context.Context, path string, keys ...age.Identity) (Inspection, error) {
	h, size, err := backup.Inspect(path, true)
	out := Inspection{Header: h, File: path, Size: size, Whole: err == nil}
	if err != nil || len(keys) == 0 {
		return out, err
	}
	migrations, err := state.Numbers(modules())
	if err != nil {
		return out, err
	}
	if _, err := backup.Verify(ctx, path, "", migrations, keys...); err != nil {
		return out, err
	}
	out.Verified = true
	return out, nil
}
