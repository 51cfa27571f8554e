// Package server puts a controller together: it is the only package that knows all others. It owns the data folder and the
// life of the process: what is opened in which order, what runs beside it, and how it stops.
//
// It refuses to start on a folder that is not complete or belongs to another controller. It keeps this invariant: nothing is
// served before the quorum's start-up rules have passed the log and the state, and whatever is fatal to a promise of
// the state ends the process.
package server

import (
	"context"
	"errors"
	"log/slog"
	"net"
	"net/http"
	"os"
	"time"

	"github.com/jonboulle/clockwork"
	"golang.org/x/sync/errgroup"
	"google.golang.org/grpc"

	"github.com/cassandra-security-manager/csm/controller/api/agentapi"
	"github.com/cassandra-security-manager/csm/controller/api/rest"
	"github.com/cassandra-security-manager/csm/controller/backup"
	"github.com/cassandra-security-manager/csm/controller/consensus"
	"github.com/cassandra-security-manager/csm/controller/keyring"
	"github.com/cassandra-security-manager/csm/shared/fault"
	"github.com/cassandra-security-manager/csm/shared/owner"
)

// Server is a running controller.
type Server struct {
	cfg Config
	in  installation
	id  *identityHolder
	dom *domain
	// copies makes and verifies backups.
	copies *backup.Backups
	log    *slog.Logger
}

// Run runs a controller until the context ends. ready is called once, when every port is open.
func Run(ctx context.Context, cfg Config, log *slog.Logger, ready func()) error {
	d := dataDir(cfg.DataDir)
	if err := owner.Check(cfg.DataDir); err != nil {
		return err
	}
	in, err := d.installation()
	if err != nil {
		return err
	}
	if in.Name != cfg.Name {
		return fault.New(fault.Refused, "wrong-name", "%s belongs to controller %q, the configuration says %q", d, in.Name, cfg.Name).
			Do("correct name or data_dir in controller.yaml")
	}
	if err := d.tidy(); err != nil {
		return err
	}
	id, err := openIdentity(d)
	if err != nil {
		return err
	}
	sealer, err := cfg.sealer()
	if err != nil {
		return err
	}
	kek, err := keyring.LoadKEK(d.path("kek"), sealer)
	if err != nil {
		return err
	}
	s := &Server{cfg: cfg, in: in, id: id, log: log.With("controller", in.Name)}
	return s.run(ctx, kek, ready)
}

// fatal ends the process: this machine can no longer keep what it promised. The supervisor starts it anew, and the start-up
// rules decide what can be healed.
func (s *Server) fatal(err error) {
	s.log.Error("cannot keep going safely; stopping at once", "error", err)
	os.Exit(1)
}

func (s *Server) run(ctx context.Context, kek *keyring.KEK, ready func()) error {
	ccfg, err := consensusConfig(s.cfg, s.in, s.id, kek, s.fatal, s.log)
	if err != nil {
		return err
	}
	if _, err := consensus.Prepare(ctx, ccfg); err != nil {
		return err
	}
	store, err := openStore(ctx, s.cfg, s.in, s.fatal, s.log)
	if err != nil {
		return err
	}
	defer store.Close()
	if ccfg.Listener, err = listen("listen.cluster", s.cfg.Listen.Cluster); err != nil {
		return err
	}
	ccfg.SignMember = func(ctx context.Context, name string, csr []byte) (chain, bundle [][]byte, err error) {
		return s.signController(ctx, name, csr)
	}
	node, err := consensus.Open(ctx, ccfg, store)
	if err != nil {
		return err
	}
	defer node.Close()
	s.dom = assemble(s.cfg, s.in, kek, store, node)
	if s.copies, err = s.backups(kek); err != nil {
		return err
	}
	return s.serve(ctx, ready)
}

// serve opens every port, then runs the loops beside them until the context ends or one of them fails.
func (s *Server) serve(ctx context.Context, ready func()) error {
	group, ctx := errgroup.WithContext(ctx)
	type door struct {
		key, addr string
		serve     func(net.Listener) error
		stop      func(context.Context)
	}
	// Shutdown waits for every request, and a watch never ends by itself: requests are told to end first.
	requests, endRequests := context.WithCancel(context.WithoutCancel(ctx))
	defer endRequests()
	routes := rest.New(s.restDeps())
	api := s.httpServer(routes)
	api.BaseContext = func(net.Listener) context.Context { return requests }
	api.TLSConfig = rest.TLSConfig(s.id.certificate)
	pki := s.httpServer(s.dom.authorities.PKIHandler())
	agents := s.agentAPI()
	agentServer := agents.GRPCServer(agents.TLSConfig(s.id.certificate, s.id.roots))
	doors := []door{
		{"listen.api", s.cfg.Listen.API, func(l net.Listener) error { return api.ServeTLS(l, "", "") }, stopWatched(api, endRequests)},
		{"listen.pki", s.cfg.Listen.PKI, pki.Serve, stopHTTP(pki)},
		{"listen.agents", s.cfg.Listen.Agents, agentServer.Serve, func(context.Context) { agents.Close(); agentServer.Stop() }},
	}
	if s.cfg.Metrics != "" {
		metrics := s.httpServer(s.metricsHandler(routes))
		doors = append(doors, door{"metrics", s.cfg.Metrics, metrics.Serve, stopHTTP(metrics)})
	}
	admin, err := s.adminDoor()
	if err != nil {
		return err
	}
	listeners := make([]net.Listener, len(doors))
	for i, d := range doors {
		if listeners[i], err = listen(d.key, d.addr); err != nil {
			return err
		}
		defer listeners[i].Close()
	}
	for i, d := range doors {
		group.Go(func() error { return ended(d.serve(listeners[i])) })
		group.Go(func() error {
			<-ctx.Done()
			grace, cancel := context.WithTimeout(context.WithoutCancel(ctx), 3*time.Second)
			defer cancel()
			d.stop(grace)
			return nil
		})
	}
	group.Go(func() error { return admin.run(ctx) })
	group.Go(func() error { return s.unsealLoop(ctx) })
	group.Go(func() error { return s.identityLoop(ctx) })
	group.Go(func() error { return s.verifyLoop(ctx) })
	group.Go(func() error { return s.agentsLoop(ctx, agents) })
	group.Go(func() error { return s.copies.Run(ctx) })
	group.Go(func() error { return s.freezeLoop(ctx) })
	group.Go(func() error { return s.memoryLoop(ctx) })
	group.Go(func() error { return s.ticketLoop(ctx) })
	group.Go(func() error { return s.rolloutLoop(ctx) })
	group.Go(func() error { return s.rotationLoop(ctx) })
	group.Go(func() error { return s.systemCALoop(ctx, agents) })
	s.log.Info("controller runs", "region", s.cfg.Region, "api", s.cfg.Listen.API, "agents", s.cfg.Listen.Agents,
		"cluster", s.cfg.Listen.Cluster, "pki", s.cfg.Listen.PKI)
	if ready != nil {
		ready()
	}
	return group.Wait()
}

// ended turns the ends that a stop causes into success.
func ended(err error) error {
	if errors.Is(err, http.ErrServerClosed) || errors.Is(err, grpc.ErrServerStopped) || errors.Is(err, net.ErrClosed) {
		return nil
	}
	return err
}

func stopHTTP(h *http.Server) func(context.Context) {
	return func(ctx context.Context) {
		if h.Shutdown(ctx) != nil {
			_ = h.Close()
		}
	}
}

// stopWatched lets short requests end by themselves for a second, then ends those that are left: watches above all.
func stopWatched(h *http.Server, endRequests context.CancelFunc) func(context.Context) {
	return func(ctx context.Context) {
		defer time.AfterFunc(time.Second, endRequests).Stop()
		stopHTTP(h)(ctx)
	}
}

// httpServer has every time limit that Go leaves open. Watches stream for longer than any write limit: the handler bounds
// the other requests.
func (s *Server) httpServer(h http.Handler) *http.Server {
	return &http.Server{Handler: h, ReadHeaderTimeout: 10 * time.Second, ReadTimeout: 30 * time.Second, IdleTimeout: 2 * time.Minute,
		MaxHeaderBytes: 32 << 10, ErrorLog: slog.NewLogLogger(s.log.Handler(), slog.LevelDebug)}
}

func (s *Server) restDeps() rest.Deps {
	return rest.Deps{
		Name: s.in.Name, Region: s.cfg.Region, TrustDomain: s.in.trustDomain(), Roots: s.id.roots,
		People: s.dom.people, Grace: s.dom.grace, Fleet: s.dom.fleet, Rollouts: s.dom.rollouts, Rotations: s.dom.rotations, SystemCA: s.dom.systemCA, Issuance: s.dom.issuance, Authorities: s.dom.authorities, Ledger: s.dom.ledger,
		Quorum: quorum{s.dom.node, s}, State: s.dom.store, Unsealed: s.dom.keyring.Unsealed, AfterApprove: s.approved, Backups: s.copies,
		Limits: apiLimits, Clock: clockwork.NewRealClock(), Logger: s.log,
	}
}

func (s *Server) agentAPI() *agentapi.Server {
	return agentapi.New(agentapi.Deps{
		Fleet: s.dom.fleet, Store: s.dom.store, Log: s.dom.node, Issuer: s.dom.issuance, Linearize: s.dom.node.Linearize, Grace: s.dom.grace.Open,
		SystemCA: s.dom.systemCA, RetiredRoots: s.retiredRoots,
		Emergency:  s.dom.rotations.Emergency,
		Tickets:    s.dom.tickets.Config,
		Met:        func(result string) { s.dom.metrics.handshakes.WithLabelValues(result).Inc() },
		Ready:      func() bool { return s.dom.node.Age() <= withoutLeader },
		Controller: s.in.Name, TrustDomain: s.in.trustDomain(), Clock: clockwork.NewRealClock(), Logger: s.log,
	})
}
