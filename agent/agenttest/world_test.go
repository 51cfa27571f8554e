package agenttest

import (
	"cmp"
	"context"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"log/slog"
	"net"
	"os"
	"path"
	"path/filepath"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/jonboulle/clockwork"
	"google.golang.org/grpc"

	"github.com/cassandra-security-manager/csm/agent/cassandra/cassandratest"
	"github.com/cassandra-security-manager/csm/agent/config"
	"github.com/cassandra-security-manager/csm/agent/install"
	"github.com/cassandra-security-manager/csm/agent/links"
	"github.com/cassandra-security-manager/csm/agent/node"
	"github.com/cassandra-security-manager/csm/agent/reload"
	"github.com/cassandra-security-manager/csm/controller/api/agentapi"
	"github.com/cassandra-security-manager/csm/controller/authority"
	"github.com/cassandra-security-manager/csm/controller/fleet"
	"github.com/cassandra-security-manager/csm/controller/issuance"
	"github.com/cassandra-security-manager/csm/controller/keyring"
	"github.com/cassandra-security-manager/csm/controller/ledger"
	"github.com/cassandra-security-manager/csm/controller/state/statetest"
	agentv1 "github.com/cassandra-security-manager/csm/protocol/agent/v1"
	"github.com/cassandra-security-manager/csm/shared/algorithm"
	"github.com/cassandra-security-manager/csm/shared/certificate"
	"github.com/cassandra-security-manager/csm/shared/identity"
	"github.com/cassandra-security-manager/csm/shared/keystore"
	"github.com/cassandra-security-manager/csm/test/port"
)

const (
	cluster = "tenants/default/clusters/prod"
	ann     = "ann"
	// patience bounds a wait that fails; what is waited for comes by a notification.
	patience = 90 * time.Second
)

// world is one controller without a network to others: the real state, CA, door, fleet and agents' API on a TLS port.
type world struct {
	t       *testing.T
	log     *statetest.Log
	fleet   *fleet.Fleet
	door    *issuance.Issuance
	cas     *authority.Authorities
	above   *rotator
	roots   []*x509.Certificate
	domain  string
	address string
	stop    func()
	// ahead is how far everybody's clock, controller and agents alike, is ahead of the real one.
	ahead atomic.Int64
	// spy, if set, is told each call of an agent by its method's name, before it is worked on and when it is done. An error
	// takes the place of the answer.
	spy atomic.Pointer[func(ctx context.Context, method string, done bool) error]
}

// overhear calls the spy around a call.
func (w *world) overhear(ctx context.Context, req any, info *grpc.UnaryServerInfo, next grpc.UnaryHandler) (any, error) {
	spy := w.spy.Load()
	if spy == nil {
		return next(ctx, req)
	}
	method := path.Base(info.FullMethod)
	if err := (*spy)(ctx, method, false); err != nil {
		return nil, err
	}
	out, err := next(ctx, req)
	if serr := (*spy)(ctx, method, true); serr != nil {
		return nil, serr
	}
	return out, err
}

func (w *world) now() time.Time { return time.Now().Add(time.Duration(w.ahead.Load())) }

// leap moves everybody's clock ahead and waits for the controller's, which follows: a command that is made before and stamped after would
// be past its deadline.
func (w *world) leap(d time.Duration) {
	w.ahead.Add(int64(d))
	for w.now().Sub(w.log.Clock.Now()) > d/2 {
		time.Sleep(time.Millisecond)
	}
}

// clock is the real one, as far ahead as its world.
type clock struct {
	clockwork.Clock
	w *world
}

func (c clock) Now() time.Time                  { return c.w.now() }
func (c clock) Since(t time.Time) time.Duration { return c.w.now().Sub(t) }
func (c clock) Until(t time.Time) time.Duration { return t.Sub(c.w.now()) }

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func newWorld(t *testing.T) *world {
	t.Helper()
	ctx := t.Context()
	above := &rotator{}
	w := &world{t: t, above: above, log: statetest.New(t, keyring.Module(), authority.Module(), ledger.Module(authority.Issuers{}, fleet.Guard), fleet.Module(above), above.module())}
	// The controller's clock is a fake one; it is made to follow the real one, which the agent has.
	w.log.Clock.Advance(time.Since(statetest.Start))
	follow, stopClock := context.WithCancel(context.Background())
	var wg sync.WaitGroup
	wg.Go(func() {
		for t := time.NewTicker(10 * time.Millisecond); ; {
			select {
			case <-follow.Done():
				t.Stop()
				return
			case <-t.C:
				w.log.Clock.Advance(w.now().Sub(w.log.Clock.Now()))
			}
		}
	})
	t.Cleanup(func() { stopClock(); wg.Wait() })

	kek, err := keyring.CreateKEK(t.TempDir(), keyring.FileSealer{Path: t.TempDir() + "/master"})
	must(t, err)
	keys := keyring.New(w.log.Store, w.log, kek, "c1")
	public, _, err := keyring.NewRecovery()
	must(t, err)
	must(t, keys.Initialise(ctx, ann, public))
	cas := authority.New(w.log.Store, w.log, keys, w.log.Clock, rand.Reader, authority.Options{BaseURLs: []string{"http://csm1.example:9643"}})
	_, err = cas.Genesis(ctx, "0123456789abcdef", ann)
	must(t, err)
	ca, err := cas.CreateRoot(ctx, "default", "internal", authority.CreateOptions{Actor: ann})
	must(t, err)
	_, err = cas.CreateIssuer(ctx, ca.Name, "eu", ann)
	must(t, err)
	w.cas = cas
	w.roots, err = cas.SystemBundle(ctx)
	must(t, err)
	w.domain, err = cas.TrustDomain(ctx)
	must(t, err)
	w.door = issuance.New(cas, w.log, w.log.Clock, rand.Reader, issuance.Options{})
	w.fleet = fleet.New(w.log.Store, w.log, w.log.Clock, func(ctx context.Context, name string) ([][]byte, error) {
		anchors, err := cas.Anchors(ctx, name)
		return certificate.Raw(anchors), err
	})
	_, err = w.fleet.CreateCluster(ctx, fleet.ClusterSpec{Name: cluster, Authority: ca.Name, Region: "eu"}, ann)
	must(t, err)
	free, err := port.Free()
	must(t, err)
	w.listen(fmt.Sprint("127.0.0.1:", free))
	t.Cleanup(func() { w.stop() })
	return w
}

// listen opens the agents' port; w.stop closes it, as if the controller had died.
func (w *world) listen(address string) {
	w.t.Helper()
	server := agentapi.New(agentapi.Deps{Fleet: w.fleet, Store: w.log.Store, Log: w.log, Issuer: w.door, Controller: "c1", TrustDomain: w.domain, Clock: w.log.Clock})
	key, err := algorithm.Generate(algorithm.P384, rand.Reader)
	must(w.t, err)
	csr, err := certificate.NewRequest(key, certificate.Names{})
	must(w.t, err)
	chain, bundle, err := w.door.IssueIdentity(w.t.Context(), identity.ControllerID(w.domain, "c1"), csr, ann, fmt.Sprint("c1-", w.log.Store.Applied()))
	must(w.t, err)
	// Whoever holds only the pin must be able to check the whole: the system CA comes last.
	own := &tls.Certificate{Certificate: append(chain, bundle[0]), PrivateKey: key}
	l, err := net.Listen("tcp", address)
	must(w.t, err)
	g := server.GRPCServer(server.TLSConfig(func() (*tls.Certificate, error) { return own, nil }, func() []*x509.Certificate { return w.roots }), grpc.ChainUnaryInterceptor(w.overhear))
	done := make(chan struct{})
	go func() { defer close(done); _ = g.Serve(l) }()
	var once sync.Once
	w.stop = func() { once.Do(func() { server.Close(); g.Stop(); <-done }) }
	w.address = l.Addr().String()
}

// await waits until the state makes cond true; it looks again at each change.
func (w *world) await(what string, cond func() bool) {
	w.t.Helper()
	watch := w.log.Store.Watch("tenants/", "system/", "")
	defer watch.Close()
	late := time.After(patience)
	for !cond() {
		select {
		case <-watch.C():
		case <-time.After(50 * time.Millisecond):
		case <-late:
			w.t.Fatalf("it did not come to this: %s", what)
		}
	}
}

// host is one machine: a Cassandra, its configuration, and an agent.
type host struct {
	t     *testing.T
	w     *world
	name  string
	cass  *cassandratest.Node
	conf  config.Config
	token string
	end   func() error
	// gave is what Run returned, when it has ended by itself.
	gave func() error
	acts chan string
	hook func(install.Op) error
	// reloader stands in for that of cass, beside a real Cassandra.
	reloader reload.Reloader
	// neighbourFor bounds the neighbour's proof, 0 is 20 s; claimFor how long calls are tried again, 0 is the agent's default.
	neighbourFor, claimFor time.Duration
	// mode is Options.Mode; logs takes what the agent logs.
	mode func() agentv1.Mode
	logs slog.Handler
	// table and cutter are Options.Links and Options.Cutter.
	table  links.Table
	cutter *links.Cutter
}

func newHost(w *world, name string, f keystore.Format) *host {
	t := w.t
	t.Helper()
	h := &host{t: t, w: w, name: name, acts: make(chan string, 1000), end: func() error { return nil }}
	store := cassandratest.NewStore(t, f)
	h.cass = cassandratest.Start(t, store)
	h.cass.Stop()
	dir := t.TempDir()
	i := h.cass.Instance()
	section := fmt.Sprintf("optional: false, require_client_auth: true, store_type: %s, keystore: %s, keystore_password: %s, truststore: %s, truststore_password: %s",
		f, store.KeystorePath, store.KeystorePassword, store.TruststorePath, store.TruststorePassword)
	if f == keystore.PEM {
		section = fmt.Sprintf("optional: false, require_client_auth: true, ssl_context_factory: {class_name: org.apache.cassandra.security.PEMBasedSslContextFactory}, keystore: %s, truststore: %s",
			store.KeystorePath, store.TruststorePath)
	}
	yaml := fmt.Sprintf("cluster_name: ring\nendpoint_snitch: SimpleSnitch\nlisten_address: 127.0.0.1\nrpc_address: 127.0.0.1\nstorage_port: %d\nnative_transport_port: %d\n"+
		"server_encryption_options: {internode_encryption: all, require_endpoint_verification: true, %s}\nclient_encryption_options: {enabled: true, %s}\n", i.StoragePort, i.NativePort, section, section)
	path := filepath.Join(dir, "cassandra.yaml")
	must(t, os.WriteFile(path, []byte(yaml), 0o600))
	secret, _, err := w.fleet.CreateToken(t.Context(), cluster, fleet.TokenSpec{Node: name, Names: fleet.Names{DNS: []string{name + ".example"}, IPs: []string{"127.0.0.1"}}}, ann)
	must(t, err)
	h.token = filepath.Join(dir, "token")
	must(t, os.WriteFile(h.token, []byte(secret+"\n"), 0o600))
	h.conf = config.Defaults()
	h.conf.Controllers, h.conf.Pin, h.conf.Cluster, h.conf.Mode = []string{w.address}, identity.Pin(w.roots[0]), "prod", "manage"
	h.conf.Join = config.Join{Method: "token", File: h.token}
	h.conf.StateDir, h.conf.HoldFile = filepath.Join(dir, "state"), filepath.Join(dir, "HOLD")
	h.conf.Cassandra = []config.Instance{{Config: path, StoreRoots: []string{filepath.Dir(store.KeystorePath)}}}
	t.Cleanup(func() { h.end() })
	return h
}

// start runs the agent until h.end.
func (h *host) start() {
	h.t.Helper()
	log := slog.New(slog.DiscardHandler)
	if os.Getenv("CSM_TEST_LOG") != "" {
		log = slog.New(slog.NewTextHandler(os.Stderr, nil)).With("host", h.name, "test", h.t.Name())
	}
	if h.logs != nil {
		log = slog.New(h.logs)
	}
	reloader, patience := h.reloader, 15*time.Second
	if reloader == nil {
		reloader, patience = h.cass, 2*time.Second
	}
	n, err := node.Open(node.Options{Config: h.conf, Instance: h.conf.Cassandra[0], Reloader: reloader, Clock: clock{clockwork.NewRealClock(), h.w}, Logger: log,
		Machine:  func() [32]byte { return [32]byte{1, h.name[len(h.name)-1]} },
		Install:  install.Options{ProveFor: patience, ProveEvery: 20 * time.Millisecond, NeighbourFor: cmp.Or(h.neighbourFor, 20*time.Second), Before: h.hook, PollEvery: 20 * time.Millisecond},
		ClaimFor: h.claimFor, Mode: h.mode, Links: h.table, Cutter: h.cutter,
		Notify: func(store string, a node.Action, err error) {
			word := string(a.Do) + " done"
			if err != nil {
				word = string(a.Do) + " failed"
			}
			select {
			case h.acts <- word:
			default:
			}
		}})
	must(h.t, err)
	ctx, cancel := context.WithCancel(context.Background())
	result := make(chan error, 1)
	go func() { result <- n.Run(ctx) }()
	h.gave = func() error {
		select {
		case err := <-result:
			result <- err
			return err
		case <-time.After(patience):
			h.t.Fatalf("%s: the agent runs on", h.name)
			return nil
		}
	}
	var once sync.Once
	h.end = func() (err error) {
		once.Do(func() { cancel(); err = <-result; n.Close() })
		return err
	}
}

// did waits until the agent has done a thing.
func (h *host) did(word string) {
	h.t.Helper()
	late := time.After(patience)
	for {
		select {
		case a := <-h.acts:
			if a == word {
				return
			}
		case <-late:
			h.t.Fatalf("%s: %q did not happen", h.name, word)
		}
	}
}

func (h *host) view() fleet.Node {
	h.t.Helper()
	n, err := h.w.fleet.GetNode(h.t.Context(), cluster+"/nodes/"+h.name)
	must(h.t, err)
	return n
}

func (h *host) store() fleet.Store {
	v := h.view()
	if len(v.Stores) == 0 {
		return fleet.Store{}
	}
	return v.Stores[0]
}

// leaf is the certificate on disk; nil when there is none.
func (h *host) leaf() *x509.Certificate {
	c, err := install.Certificate(h.cass.Store)
	if err != nil {
		return nil
	}
	return c.Leaf
}

func (h *host) await(what string, cond func(fleet.Store) bool) {
	h.t.Helper()
	h.w.await(h.name+": "+what, func() bool { return cond(h.store()) })
}

func (h *host) status() node.Status {
	s, _, err := node.ReadStatus(h.conf.Folder(h.conf.Cassandra[0]))
	must(h.t, err)
	return s
}
