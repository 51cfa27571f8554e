package consensus

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"log/slog"
	"net"
	"time"

	"github.com/hashicorp/raft"
	"github.com/jonboulle/clockwork"
	"google.golang.org/grpc"

	"github.com/cassandra-security-manager/csm/shared/fault"
	"github.com/cassandra-security-manager/csm/shared/resource"
)

// Profile is a set of raft timers.
type Profile string

// LAN fits round trips up to 10 ms (heartbeat and election 750 ms, lease 500 ms), WAN up to 150 ms (2 s, 2 s, 1.5 s).
const (
	LAN Profile = "lan"
	WAN Profile = "wan"
)

// Identity is what this package needs to know of certificates; the callbacks are asked at each handshake, so renewal and
// rotation need no restart.
type Identity struct {
	// Certificate is the controller's own certificate, leaf first. Until the system CA exists it may answer with an error.
	Certificate func() (*tls.Certificate, error)
	// Roots is the system bundle, old and new during a rotation.
	Roots func() []*x509.Certificate
	// TrustDomain is "<system id>.csm".
	TrustDomain string
	// Key is the SHA-256 of the controller's public key (SPKI); the key stays when the certificate is renewed.
	Key [32]byte
}

// Config of one controller's part in the quorum. Zero values of the fields marked optional are good defaults.
type Config struct {
	// DataDir holds raft/ and snapshots/ (here) and state/ (controller/state).
	DataDir string
	// ClusterID names the system, NodeID this installation (random, new after each wipe), Name the controller.
	ClusterID, NodeID, Name string
	// Region and Zone are tags of the member.
	Region, Zone string
	// Advertise is the host:port at which other controllers reach this one.
	Advertise string
	// Listener takes the connections of the cluster port; Open owns it from then on.
	Listener net.Listener

	Identity Identity
	// SignMember issues the identity of an approved member from its request. It may run on any controller.
	SignMember func(ctx context.Context, name string, csr []byte) (chain, bundle [][]byte, err error)
	// Services adds gRPC services to the cluster port, for members only. Optional.
	Services func(grpc.ServiceRegistrar)
	// Fatal ends the process: the disk hangs, or the log cannot be trusted any more. It may not return.
	Fatal func(error)

	// KEKPublic is the public half of this controller's key-encryption key; recorded by BootstrapSingle. Optional.
	KEKPublic []byte
	// Version of this program and the highest feature level it knows, shown in status. Optional.
	Version      string
	FeatureLevel uint32

	// Profile of timers; LAN when empty.
	Profile Profile
	// Clock is the wall clock; stamps and offsets come from it. Optional.
	Clock  clockwork.Clock
	Logger *slog.Logger

	// MinDiskFree is the share of free disk below which leadership is handed over and writes are refused. 0.05 when zero.
	MinDiskFree float64
	// Stabilization is how long a non-voter must be healthy before it votes. One second when zero.
	Stabilization time.Duration

	tuning tuning
}

// tuning is what tests change: sizes small enough to be reached in seconds, and faults.
type tuning struct {
	trailingLogs, snapshotThreshold uint64
	snapshotInterval                time.Duration
	stall                           time.Duration
	wrapLog                         func(raft.LogStore) raft.LogStore
	diskFree                        func(dir string) (float64, error)
	joinWait                        time.Duration
}

// Bounds of the write path; README.md says why.
const (
	// MaxCommand is the longest command, MaxInFlight the bytes of proposals being answered at one controller.
	MaxCommand  = 128 << 10
	MaxInFlight = 8 << 20
	// DefaultTimeout of a proposal.
	DefaultTimeout = 5 * time.Second
	// MaxClockOffset between a member and the majority.
	MaxClockOffset = 10 * time.Minute
)

func (c *Config) fill() error {
	invalid := func(what string) error {
		return fault.New(fault.Invalid, "bad-consensus-config", "%s is missing", what)
	}
	switch {
	case c.DataDir == "":
		return invalid("the data folder")
	case c.ClusterID == "" || c.NodeID == "":
		return invalid("the id of the system or of this controller")
	case c.Advertise == "":
		return invalid("the address at which other controllers reach this one")
	case c.Identity.Certificate == nil || c.Identity.Roots == nil || c.Identity.Key == [32]byte{}:
		return invalid("the identity")
	case c.Fatal == nil:
		return invalid("what to do when the disk hangs")
	}
	if err := resource.CheckID("controller", c.Name); err != nil {
		return err
	}
	if _, _, err := net.SplitHostPort(c.Advertise); err != nil {
		return fault.Wrap(err, fault.Invalid, "bad-address", "the cluster address %q", c.Advertise).Do("give host:port, as csm1.eu.example.net:9642")
	}
	switch c.Profile {
	case "":
		c.Profile = LAN
	case LAN, WAN:
	default:
		return fault.New(fault.Invalid, "bad-profile", "%q is not a profile of raft timers", c.Profile).Do("use lan or wan")
	}
	if c.Clock == nil {
		c.Clock = clockwork.NewRealClock()
	}
	if c.Logger == nil {
		c.Logger = slog.New(slog.DiscardHandler)
	}
	if c.MinDiskFree == 0 {
		c.MinDiskFree = 0.05
	}
	if c.Stabilization == 0 {
		c.Stabilization = time.Second
	}
	c.tuning.fill()
	return nil
}

func (t *tuning) fill() {
	if t.trailingLogs == 0 {
		t.trailingLogs = 200_000
	}
	if t.snapshotThreshold == 0 {
		t.snapshotThreshold = 100_000
	}
	if t.snapshotInterval == 0 {
		t.snapshotInterval = 2 * time.Minute
	}
	if t.stall == 0 {
		t.stall = 3 * time.Second
	}
	if t.diskFree == nil {
		t.diskFree = diskFree
	}
	if t.joinWait == 0 {
		t.joinWait = 20 * time.Second
	}
}

// raftConfig gives the settings that README.md argues for.
func (c *Config) raftConfig(notify chan<- bool) *raft.Config {
	r := raft.DefaultConfig()
	r.LocalID = raft.ServerID(c.NodeID)
	r.BatchApplyCh = true
	r.MaxAppendEntries = 512
	r.NoSnapshotRestoreOnStart = true
	r.RestoreCommittedLogs = false
	r.TrailingLogs = c.tuning.trailingLogs
	r.SnapshotThreshold = c.tuning.snapshotThreshold
	r.SnapshotInterval = c.tuning.snapshotInterval
	r.HeartbeatTimeout, r.ElectionTimeout, r.LeaderLeaseTimeout = 750*time.Millisecond, 750*time.Millisecond, 500*time.Millisecond
	if c.Profile == WAN {
		r.HeartbeatTimeout, r.ElectionTimeout, r.LeaderLeaseTimeout = 2*time.Second, 2*time.Second, 1500*time.Millisecond
	}
	r.NotifyCh = notify
	r.NoLegacyTelemetry = true
	r.Logger = hclogger(c.Logger, "raft")
	return r
}
