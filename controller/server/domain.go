package server

import (
	"context"
	"crypto/rand"
	"crypto/x509"
	"log/slog"
	"net"

	"github.com/jonboulle/clockwork"

	"github.com/cassandra-security-manager/csm/controller/api/rest"
	"github.com/cassandra-security-manager/csm/controller/authority"
	"github.com/cassandra-security-manager/csm/controller/backup"
	"github.com/cassandra-security-manager/csm/controller/consensus"
	"github.com/cassandra-security-manager/csm/controller/fleet"
	"github.com/cassandra-security-manager/csm/controller/fleet/rollout"
	"github.com/cassandra-security-manager/csm/controller/fleet/rotation"
	"github.com/cassandra-security-manager/csm/controller/grace"
	"github.com/cassandra-security-manager/csm/controller/issuance"
	"github.com/cassandra-security-manager/csm/controller/issuance/turns"
	"github.com/cassandra-security-manager/csm/controller/keyring"
	"github.com/cassandra-security-manager/csm/controller/ledger"
	"github.com/cassandra-security-manager/csm/controller/people"
	"github.com/cassandra-security-manager/csm/controller/state"
	"github.com/cassandra-security-manager/csm/controller/systemca"
	"github.com/cassandra-security-manager/csm/controller/tickets"
	"github.com/cassandra-security-manager/csm/shared/cli"
	"github.com/cassandra-security-manager/csm/shared/fault"
)

// modules is the one list of what the replicated state holds. A new feature is a folder and a line here.
func modules() []state.Module {
	return []state.Module{
		consensus.Module(),
		keyring.Module(),
		authority.Module(),
		ledger.Module(authority.Issuers{}, fleet.Guard),
		fleet.Module(rollout.Gate{}, rotation.Guard()),
		rollout.Module(),
		rotation.Module(rotation.Rollouts{}),
		people.Module(),
		grace.Module(),
		backup.Module(),
		systemca.Module(),
		tickets.Module(),
	}
}

// domain is everything above the state of one controller.
type domain struct {
	store       *state.Store
	node        *consensus.Node
	keyring     *keyring.Keyring
	authorities *authority.Authorities
	ledger      ledger.Ledger
	issuance    *issuance.Issuance
	turns       *turns.Queue
	fleet       *fleet.Fleet
	rollouts    *rollout.Rollouts
	rotations   *rotation.Rotations
	systemCA    *systemca.Rotations
	people      *people.People
	grace       *grace.Grace
	tickets     *tickets.Tickets
	metrics     *metrics
}

// openStore opens the replicated state of this installation, which is new or has passed consensus.Prepare: after an unclean stop
// that has read all of it, and a large one is not read twice.
func openStore(ctx context.Context, cfg Config, in installation, fatal func(error), log *slog.Logger) (*state.Store, error) {
	return state.Open(ctx, state.Options{
		Dir: dataDir(cfg.DataDir).path("state"), ClusterID: in.SystemID, NodeID: in.NodeID,
		Modules: modules(), Logger: log, Fatal: fatal, Checked: true,
	})
}

// consensusConfig is this controller's part in the quorum; listener may be nil before Prepare.
func consensusConfig(cfg Config, in installation, id *identityHolder, kek *keyring.KEK, fatal func(error), log *slog.Logger) (consensus.Config, error) {
	key, err := keyHash(id.key.Public())
	if err != nil {
		return consensus.Config{}, err
	}
	return consensus.Config{
		DataDir: cfg.DataDir, ClusterID: in.SystemID, NodeID: in.NodeID, Name: in.Name,
		Region: cfg.Region, Zone: cfg.Zone, Advertise: cfg.ClusterAddress(),
		Identity:  consensus.Identity{Certificate: id.certificate, Roots: id.roots, TrustDomain: in.trustDomain(), Key: key},
		KEKPublic: kek.Public(), Version: cli.Version, Profile: consensus.Profile(cfg.Timers),
		Fatal: fatal, Logger: log,
	}, nil
}

// listen opens a listen address and says what to do when it is taken.
func listen(key, addr string) (net.Listener, error) {
	l, err := net.Listen("tcp", addr)
	if err != nil {
		return nil, fault.Wrap(err, fault.Unavailable, "listen", "cannot listen on %s (%s)", addr, key).
			Do("stop what uses the port, or set %s in controller.yaml", key)
	}
	return l, nil
}

// assemble puts the domain packages on top of a store and a quorum.
func assemble(cfg Config, in installation, kek *keyring.KEK, store *state.Store, node *consensus.Node) *domain {
	m := newMetrics()
	// Requests over REST carry their correlation, reason and idempotency into the log; other proposals pass unchanged.
	log := rest.Log(timedLog{node, m.commit})
	d := assembleOn(cfg, keyring.New(store, log, kek, in.Name), store, log, m)
	d.node = node
	d.fleet.Holders(node.Answers)
	d.authorities.JudgeClock(func() error {
		if f := node.Health().ClockWrong; f != nil {
			return f
		}
		return nil
	})
	return d
}

// assembleOn puts them on any log: that of a quorum, or one that writes into a state nobody else has.
func assembleOn(cfg Config, ring *keyring.Keyring, store *state.Store, log state.Log, m *metrics) *domain {
	clock := clockwork.NewRealClock()
	d := &domain{store: store, keyring: ring, metrics: m}
	d.authorities = authority.New(store, log, d.keyring, clock, rand.Reader, authority.Options{BaseURLs: []string{cfg.PKIURL}, AllowBenchmark: benchmark})
	d.ledger = ledger.NewReplicated(store, clock)
	d.turns = turns.New(turns.Options{Rate: cfg.Signer.RateLimit, Clock: clock, Observe: d.metrics.observeTurn})
	d.issuance = issuance.New(d.authorities, log, clock, rand.Reader, issuance.Options{AllowBenchmark: benchmark, HourlyCap: hourlyCap, Observe: d.metrics.observeIssue, Turns: d.turns})
	d.fleet = fleet.New(store, log, clock, d.anchors)
	d.rollouts = rollout.New(store, log, clock)
	d.rotations = rotation.New(store, log, clock, rotation.Rollouts{})
	d.systemCA = systemca.New(store, log, clock, d.authorities)
	d.people = people.New(store, log)
	d.grace = grace.New(store, log, clock)
	d.tickets = tickets.New(store, log, d.keyring, clock)
	return d
}

// anchors are the DER roots of an authority, as fleet puts them into a cluster's trust bundle.
func (d *domain) anchors(ctx context.Context, authority string) ([][]byte, error) {
	certs, err := d.authorities.Anchors(ctx, authority)
	return raw(certs), err
}

func raw(certs []*x509.Certificate) [][]byte {
	var out [][]byte
	for _, c := range certs {
		out = append(out, c.Raw)
	}
	return out
}
