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
	"time"

	"github.com/jonboulle/clockwork"
	"google.golang.org/protobuf/proto"

	"github.com/cassandra-security-manager/csm/controller/authority"
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
	// DataDir is the data folder of any one controller of the system, or a copy of it. It is read only.
	DataDir string
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
// limits. The data folder is copied aside and not changed. A controller that lives is asked instead.
func OfflineIssue(ctx context.Context, o OfflineOptions) (OfflineResult, error) {
	var res OfflineResult
	if o.Validity <= 0 || o.Validity > OfflineMax {
		return res, fault.New(fault.Invalid, "bad-validity", "offline a certificate may live %d days at most", int(OfflineMax.Hours()/24)).Do("add --validity 168h")
	}
	d := dataDir(o.DataDir)
	in, err := d.installation()
	if err != nil {
		return res, err
	}
	if conn, err := net.DialTimeout("unix", d.socket(), time.Second); err == nil {
		_ = conn.Close()
		return res, fault.New(fault.Refused, "controller-runs", "the controller of %s runs: it records what it issues", d).Do("ask it: csm certificate issue, csm node renew")
	}
	kek, err := keyring.OpenRecovery(o.Share)
	if err != nil {
		return res, err
	}
	aside, err := os.MkdirTemp("", "csm-offline-")
	if err != nil {
		return res, err
	}
	defer os.RemoveAll(aside)
	if err := copyTree(filepath.Join(aside, "state"), d.path("state")); err != nil {
		return res, fault.Wrap(err, fault.Invalid, "data-dir", "the state in %s cannot be read", d).Do("run this as the user of the controller, or on a copy that you may read")
	}
	clock := clockwork.NewRealClock()
	var broken error
	store, err := state.Open(ctx, state.Options{Dir: filepath.Join(aside, "state"), ClusterID: in.SystemID, NodeID: in.NodeID, Modules: modules(),
		Logger: slog.New(slog.DiscardHandler), Fatal: func(err error) { broken = err }})
	if err != nil {
		return res, err
	}
	defer store.Close()
	log := &notedLog{now: clock.Now}
	ring := keyring.New(store, log, kek, keyring.RecoveryRecipient)
	if err := ring.Unseal(ctx); err != nil {
		return res, err
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
		return res, err
	}
	if broken != nil {
		return res, broken
	}
	if res.Roots, err = authorities.Anchors(ctx, o.Authority); err != nil {
		return res, err
	}
	record, err := proto.Marshal(log.noted)
	if err != nil {
		return res, err
	}
	host, _ := os.Hostname()
	res.Entry, err = json.MarshalIndent(OfflineEntry{Kind: EntryKind, SystemID: in.SystemID, Tenant: tenant, Node: o.Node, Host: host, Time: clock.Now().UTC(), Reason: o.Reason, Record: record}, "", "  ")
	res.Chain, res.Issuer, res.NotAfter = issued.Chain, issued.Issuer, issued.NotAfter
	return res, err
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
