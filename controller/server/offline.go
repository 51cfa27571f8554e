package server

import (
	"context"
	"crypto/rand"
	"crypto/x509"
	"encoding/json"
	"errors"
	"io"
	"io/fs"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"github.com/google/uuid"
	"github.com/jonboulle/clockwork"
	"google.golang.org/protobuf/proto"

	"github.com/cassandra-security-manager/csm/controller/authority"
	"github.com/cassandra-security-manager/csm/controller/backup"
	"github.com/cassandra-security-manager/csm/controller/issuance"
	"github.com/cassandra-security-manager/csm/controller/keyring"
	"github.com/cassandra-security-manager/csm/controller/ledger"
	"github.com/cassandra-security-manager/csm/controller/state"
	clusterv1 "github.com/cassandra-security-manager/csm/protocol/cluster/v1"
	"github.com/cassandra-security-manager/csm/shared/certificate"
	"github.com/cassandra-security-manager/csm/shared/fault"
	"github.com/cassandra-security-manager/csm/shared/resource"
)

// OfflineMax is the longest life of a certificate that is signed with no controller alive: long enough to mend the system, short
// enough that what is never imported does not matter for long.
const OfflineMax = 30 * 24 * time.Hour

// OfflineOptions ask for a certificate without any controller.
type OfflineOptions struct {
	// DataDir is the data folder of any one controller of the system, or a copy of it; Backup is the file of a backup. One of the two
	// is given, and it is read only.
	DataDir, Backup string
	// Share is the recovery share that init wrote.
	Share keyring.Secret
	// Node is the full name of the node that it is for; empty for an application. Authority is a full name, Region prefers an issuer.
	Node, Authority, Region string
	// CSR is DER; the names that it asks for are the certificate's.
	CSR      []byte
	Validity time.Duration
	Reason   string
}

// OfflineEntry is the file that must be imported once a controller lives again.
type OfflineEntry struct {
	Kind     string    `json:"kind"`
	SystemID string    `json:"systemId"`
	Tenant   string    `json:"tenant"`
	Node     string    `json:"node,omitempty"`
	Host     string    `json:"host"`
	Time     time.Time `json:"time"`
	Reason   string    `json:"reason"`
	Record   []byte    `json:"record"`
}

// EntryKind marks an OfflineEntry.
const EntryKind = "csm-offline-entry/1"

// OfflineResult is what was signed, and the entry.
type OfflineResult struct {
	// Chain is leaf first, without the root; Roots are the authority's anchors.
	Chain    [][]byte
	Roots    []*x509.Certificate
	Issuer   string
	NotAfter time.Time
	Entry    []byte
	// AsOf is when the state was written that this was signed by, where a backup tells it; zero for a data folder.
	AsOf time.Time
	// Revocation says what holds for the certificate until it is imported, one sentence each.
	Revocation []string
}

// notedLog is the log of a system that has none: the one record is kept for the entry, everything else is refused.
type notedLog struct {
	now   func() time.Time
	noted *clusterv1.RecordCertificate
}

func (l *notedLog) Propose(_ context.Context, p state.Proposal) (state.Result, error) {
	c, ok := p.Command.(*clusterv1.RecordCertificate)
	if !ok || l.noted != nil {
		return state.Result{}, fault.New(fault.Refused, "offline", "nothing else is changed offline")
	}
	l.noted = proto.Clone(c).(*clusterv1.RecordCertificate)
	sum := certificate.Fingerprint(c.Der)
	return state.Result{Reply: &clusterv1.RecordedCertificate{Name: ledger.Name(c.Tenant, sum[:]), Issuer: c.Issuer, RenewAtMs: c.RenewAtMs}, Time: l.now()}, nil
}

// OfflineIssue signs one certificate with the issuer's key, opened by the recovery share, through the same door as ever: template, lint,
// limits. The data folder is copied aside, or the backup restored there, and not changed. A controller that lives is asked instead.
func OfflineIssue(ctx context.Context, o OfflineOptions) (res OfflineResult, err error) {
	if o.Validity <= 0 || o.Validity > OfflineMax {
		return res, fault.New(fault.Invalid, "bad-validity", "offline a certificate may live %d days at most", int(OfflineMax.Hours()/24)).Do("add --validity 168h")
	}
	if (o.DataDir == "") == (o.Backup == "") {
		return res, fault.New(fault.Invalid, "no-state", "the state comes from a data folder or from a backup").Do("give one of --data-dir and --backup")
	}
	kek, err := keyring.OpenRecovery(o.Share)
	if err != nil {
		return res, err
	}
	aside, err := os.MkdirTemp("", "csm-offline-")
	if err != nil {
		return res, err
	}
	defer func() { err = errors.Join(err, os.RemoveAll(aside)) }()
	in, err := o.bring(ctx, filepath.Join(aside, "state"), kek, &res)
	if err != nil {
		return res, err
	}
	return res, o.sign(ctx, filepath.Join(aside, "state"), in, kek, &res)
}

// bring puts the state aside, where it is opened.
func (o OfflineOptions) bring(ctx context.Context, to string, kek *keyring.KEK, res *OfflineResult) (in installation, err error) {
	if o.Backup != "" {
		return o.restore(ctx, to, kek, res)
	}
	d := dataDir(o.DataDir)
	if in, err = d.installation(); err != nil {
		return in, err
	}
	if conn, err := net.DialTimeout("unix", d.socket(), time.Second); err == nil {
		_ = conn.Close()
		return in, fault.New(fault.Refused, "controller-runs", "the controller of %s runs: it records what it issues", d).Do("ask it: csm certificate issue, csm node renew")
	}
	if err := copyTree(to, d.path("state")); err != nil {
		return in, fault.Wrap(err, fault.Invalid, "data-dir", "the state in %s cannot be read", d).Do("run this as the user of the controller, or on a copy that you may read")
	}
	return in, nil
}

// restore reads the backup to its end, as a restore does; the controller that it is opened as exists nowhere.
func (o OfflineOptions) restore(ctx context.Context, to string, kek *keyring.KEK, res *OfflineResult) (in installation, err error) {
	migrations, err := state.Numbers(modules())
	if err != nil {
		return in, err
	}
	file, err := backup.Open(o.Backup, backup.Key(kek))
	if err != nil {
		return in, wrongShare(err)
	}
	defer file.Close()
	if err := os.MkdirAll(to, 0o700); err != nil {
		return in, err
	}
	if _, err := file.Restore(ctx, to, migrations); err != nil {
		return in, err
	}
	res.AsOf = file.Header.Created
	return installation{SystemID: file.Header.SystemID, NodeID: uuid.NewString(), Name: "offline"}, nil
}

// sign opens the state that lies aside and issues.
func (o OfflineOptions) sign(ctx context.Context, dir string, in installation, kek *keyring.KEK, res *OfflineResult) (err error) {
	clock := clockwork.NewRealClock()
	var broken error
	store, err := state.Open(ctx, state.Options{Dir: dir, ClusterID: in.SystemID, NodeID: in.NodeID, Modules: modules(),
		Logger: slog.New(slog.DiscardHandler), Fatal: func(err error) { broken = err }})
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, broken, store.Close()) }()
	log := &notedLog{now: clock.Now}
	ring := keyring.New(store, log, kek, keyring.RecoveryRecipient)
	if err := ring.Unseal(ctx); err != nil {
		return err
	}
	authorities := authority.New(store, log, ring, clock, rand.Reader, authority.Options{})
	tenant := resource.Segment(o.Authority, "tenants")
	req := issuance.Request{RequestID: rand.Text(), Actor: "offline", Reason: o.Reason, Tenant: tenant, Authority: o.Authority, Region: o.Region,
		Template: "application", CSR: o.CSR, FromCSR: true, Validity: o.Validity}
	if o.Node != "" {
		req.Template, req.Node = "node", o.Node
	}
	issued, err := issuance.New(authorities, log, clock, rand.Reader, issuance.Options{}).Issue(ctx, req)
	if err != nil {
		return err
	}
	if res.Roots, err = authorities.Anchors(ctx, o.Authority); err != nil {
		return err
	}
	record, err := proto.Marshal(log.noted)
	if err != nil {
		return err
	}
	host, _ := os.Hostname()
	res.Chain, res.Issuer, res.NotAfter = issued.Chain, issued.Issuer, issued.NotAfter
	if res.Revocation, err = revocation(issued.Chain[0]); err != nil {
		return err
	}
	res.Entry, err = json.MarshalIndent(OfflineEntry{Kind: EntryKind, SystemID: in.SystemID, Tenant: tenant, Node: o.Node, Host: host, Time: clock.Now().UTC(), Reason: o.Reason, Record: record}, "", "  ")
	return err
}

// revocation says what the lists of revoked certificates can do about a certificate that no controller knows.
func revocation(der []byte) ([]string, error) {
	leaf, err := x509.ParseCertificate(der)
	if err != nil {
		return nil, err
	}
	out := []string{"it cannot be revoked before it is imported: until " + leaf.NotAfter.UTC().Format(time.RFC3339) + " whoever holds its key is believed"}
	if len(leaf.CRLDistributionPoints) == 0 {
		return out, nil
	}
	return append(out,
		"it names revocation lists that no controller serves now: "+strings.Join(leaf.CRLDistributionPoints, " "),
		"who asks for them before it trusts (openssl verify -crl_check, clients with hard-fail revocation) refuses it as soon as the list that it holds has ended, "+
			strconv.Itoa(int(authority.DefaultCRLValidity.Hours()/24))+" days after it was made at the latest; Cassandra, left at Java's default, asks for none"), nil
}

// copyTree copies the files of a folder that nobody writes.
func copyTree(to, from string) error {
	return filepath.WalkDir(from, func(path string, e fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		rel, err := filepath.Rel(from, path)
		if err != nil {
			return err
		}
		if e.IsDir() {
			return os.MkdirAll(filepath.Join(to, rel), 0o700)
		}
		if !e.Type().IsRegular() {
			return nil
		}
		return copyFile(filepath.Join(to, rel), path)
	})
}

// copyFile copies as it reads: a state may be larger than memory.
func copyFile(to, from string) error {
	in, err := os.Open(from)
	if err != nil {
		return err
	}
	defer in.Close()
	out, err := os.OpenFile(to, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return err
	}
	_, err = io.Copy(out, in)
	return errors.Join(err, out.Close())
}
