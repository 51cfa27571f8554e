// Package resttest serves the real REST handler over TLS on the real domain packages, with a log of one voter: tests of
// the handler and of its clients share it. Only the quorum is not real, and it can be rude.
package resttest

import (
	"context"
	"crypto"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"encoding/base64"
	"fmt"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"github.com/cassandra-security-manager/csm/controller/api/rest"
	"github.com/cassandra-security-manager/csm/controller/authority"
	"github.com/cassandra-security-manager/csm/controller/consensus"
	"github.com/cassandra-security-manager/csm/controller/consensus/members"
	"github.com/cassandra-security-manager/csm/controller/fleet"
	"github.com/cassandra-security-manager/csm/controller/fleet/rollout"
	"github.com/cassandra-security-manager/csm/controller/fleet/rotation"
	"github.com/cassandra-security-manager/csm/controller/grace"
	"github.com/cassandra-security-manager/csm/controller/issuance"
	"github.com/cassandra-security-manager/csm/controller/keyring"
	"github.com/cassandra-security-manager/csm/controller/ledger"
	"github.com/cassandra-security-manager/csm/controller/people"
	"github.com/cassandra-security-manager/csm/controller/state/statetest"
	"github.com/cassandra-security-manager/csm/controller/systemca"
	agentv1 "github.com/cassandra-security-manager/csm/protocol/agent/v1"
	"github.com/cassandra-security-manager/csm/shared/algorithm"
	"github.com/cassandra-security-manager/csm/shared/certificate"
	"github.com/cassandra-security-manager/csm/shared/fault"
	"github.com/cassandra-security-manager/csm/shared/identity"
)

// TrustDomain of a World.
const TrustDomain = "0123456789abcdef.csm"

// World is one controller with its REST port, an authority "internal" with an issuer in region eu, and the administrator ada.
type World struct {
	t         testing.TB
	Log       *statetest.Log
	People    *people.People
	Grace     *grace.Grace
	Fleet     *fleet.Fleet
	Rollouts  *rollout.Rollouts
	Rotations *rotation.Rotations
	SystemCA  *systemca.Rotations
	Issue     *issuance.Issuance
	Quorum    *Quorum
	Server    *httptest.Server
	// Pin of the system CA.
	Pin string
	// Ada's client certificate, and the files that hold it.
	Ada             tls.Certificate
	AdaCert, AdaKey string
	Handler         http.Handler
	roots           []*x509.Certificate
	streams         int
}

// New starts a World. change, if not nil, edits what the handler is made of.
func New(t testing.TB, change func(*rest.Deps)) *World {
	t.Helper()
	ctx := context.Background()
	w := &World{t: t, Log: statetest.New(t, people.Module(), grace.Module(), fleet.Module(rollout.Gate{}, rotation.Guard()), rollout.Module(), rotation.Module(rotation.Rollouts{}), keyring.Module(), authority.Module(), ledger.Module(authority.Issuers{}, fleet.Guard), members.Module(), systemca.Module())}
	log := rest.Log(w.Log)
	kek, err := keyring.CreateKEK(t.TempDir(), keyring.FileSealer{Path: filepath.Join(t.TempDir(), "master")})
	w.must(err)
	ring := keyring.New(w.Log.Store, log, kek, "csm1")
	recovery, _, err := keyring.NewRecovery()
	w.must(err)
	w.must(ring.Initialise(ctx, "test", recovery))
	authorities := authority.New(w.Log.Store, log, ring, w.Log.Clock, rand.Reader, authority.Options{BaseURLs: []string{"http://csm1.example:9643"}})
	_, err = authorities.Genesis(ctx, "0123456789abcdef", "test")
	w.must(err)
	a, err := authorities.CreateRoot(ctx, "default", "internal", authority.CreateOptions{Actor: "test"})
	w.must(err)
	_, err = authorities.CreateIssuer(ctx, a.Name, "eu", "test")
	w.must(err)
	w.roots, err = authorities.SystemBundle(ctx)
	w.must(err)
	w.Pin = identity.Pin(w.roots[0])
	w.Issue = issuance.New(authorities, log, w.Log.Clock, rand.Reader, issuance.Options{})
	w.People = people.New(w.Log.Store, log)
	w.Grace = grace.New(w.Log.Store, log, w.Log.Clock)
	w.Fleet = fleet.New(w.Log.Store, log, w.Log.Clock, func(ctx context.Context, name string) ([][]byte, error) {
		cs, err := authorities.Anchors(ctx, name)
		return certificate.Raw(cs), err
	})
	w.Rollouts = rollout.New(w.Log.Store, log, w.Log.Clock)
	w.Rotations = rotation.New(w.Log.Store, log, w.Log.Clock, rotation.Rollouts{})
	w.SystemCA = systemca.New(w.Log.Store, log, w.Log.Clock, authorities)
	w.Quorum = &Quorum{world: w, tokens: map[string]consensus.Token{}}
	d := rest.Deps{Name: "csm1", Region: "eu", TrustDomain: TrustDomain, Roots: func() []*x509.Certificate { return w.roots }, People: w.People, Grace: w.Grace,
		Fleet: w.Fleet, Rollouts: w.Rollouts, Rotations: w.Rotations, SystemCA: w.SystemCA, Issuance: w.Issue, Authorities: authorities, Ledger: ledger.NewReplicated(w.Log.Store, w.Log.Clock), Quorum: w.Quorum,
		State: w.Log.Store, Unsealed: ring.Unsealed, Clock: w.Log.Clock}
	if change != nil {
		change(&d)
	}
	w.Handler = rest.New(d)
	w.Server = httptest.NewUnstartedServer(w.Handler)
	own := w.Identity(identity.ControllerID(TrustDomain, "csm1"))
	own.Certificate = append(own.Certificate, w.roots[0].Raw) // servers send the system CA last: a client may know its pin only
	w.Server.TLS = rest.TLSConfig(func() (*tls.Certificate, error) { return &own, nil })
	w.Server.TLS.Certificates = []tls.Certificate{own} // else httptest serves its own
	w.Server.EnableHTTP2 = true
	w.Server.StartTLS()
	t.Cleanup(w.Server.Close)
	w.Ada = w.Admin("ada")
	w.AdaCert, w.AdaKey = w.files("ada", w.Ada)
	return w
}

func (w *World) must(err error) {
	w.t.Helper()
	if err != nil {
		w.t.Fatal(err)
	}
}

// Identity issues a certificate of the system CA.
func (w *World) Identity(id identity.ID) tls.Certificate {
	w.t.Helper()
	key, err := algorithm.Generate(algorithm.P384, rand.Reader)
	w.must(err)
	csr, err := certificate.NewRequest(key, certificate.Names{})
	w.must(err)
	chain, _, err := w.Issue.IssueIdentity(context.Background(), id, csr, "test", rand.Text())
	w.must(err)
	return tls.Certificate{Certificate: chain, PrivateKey: key}
}

// Admin makes an administrator and gives the client certificate that lets him in.
func (w *World) Admin(name string) tls.Certificate {
	w.t.Helper()
	c := w.Identity(identity.AdminID(TrustDomain, name))
	sum := certificate.Fingerprint(c.Certificate[0])
	_, err := w.People.AddAdmin(context.Background(), name, sum[:], "test")
	w.must(err)
	return c
}

func (w *World) files(name string, c tls.Certificate) (cert, key string) {
	w.t.Helper()
	dir := w.t.TempDir()
	cert, key = filepath.Join(dir, name+".pem"), filepath.Join(dir, name+".key")
	chain, err := certificate.ParseAll(c.Certificate)
	w.must(err)
	w.must(os.WriteFile(cert, certificate.EncodePEM(chain...), 0o600))
	pem, err := certificate.EncodeKeyPEM(c.PrivateKey.(crypto.Signer))
	w.must(err)
	w.must(os.WriteFile(key, pem, 0o600))
	return cert, key
}

// Client over TLS with a client certificate, or without one.
func (w *World) Client(own *tls.Certificate) *http.Client {
	v := identity.Verifier{Roots: func() []*x509.Certificate { return w.roots }, TrustDomain: TrustDomain, Kinds: []identity.Kind{identity.Controller}, Now: w.Log.Clock.Now}
	var give func() (*tls.Certificate, error)
	if own != nil {
		give = func() (*tls.Certificate, error) { return own, nil }
	}
	tr := &http.Transport{TLSClientConfig: identity.ClientConfig(give, v), ForceAttemptHTTP2: true}
	w.t.Cleanup(tr.CloseIdleConnections)
	return &http.Client{Transport: tr}
}

// CSR is a request with a fresh key, base64 of DER.
func (w *World) CSR(dns ...string) string {
	w.t.Helper()
	key, err := algorithm.Generate(algorithm.P384, rand.Reader)
	w.must(err)
	n, err := certificate.ParseNames(dns, nil, nil)
	w.must(err)
	der, err := certificate.NewRequest(key, n)
	w.must(err)
	return base64.StdEncoding.EncodeToString(der)
}

// Cluster makes a cluster of the authority "internal".
func (w *World) Cluster(id string) string {
	w.t.Helper()
	c, err := w.Fleet.CreateCluster(context.Background(), fleet.ClusterSpec{Name: "tenants/default/clusters/" + id, Authority: "tenants/default/authorities/internal"}, "test")
	w.must(err)
	return c.Name
}

// Agent is a joined node's agent that reports by hand.
type Agent struct {
	w           *World
	Node        string
	UID         string
	Incarnation uint64
	Agent       *agentv1.AgentFacts
	Instance    *agentv1.InstanceFacts
	Store       *agentv1.StoreFacts
}

// Join lets a node's agent join a cluster in mode manage and connect; nothing is installed.
func (w *World) Join(cluster, node string) *Agent {
	w.t.Helper()
	ctx := context.Background()
	token, _, err := w.Fleet.CreateToken(ctx, cluster, fleet.TokenSpec{Node: node, Names: fleet.Names{DNS: []string{node + ".example"}, IPs: []string{"10.0.0.1"}}}, "test")
	w.must(err)
	facts := &agentv1.AgentFacts{Version: "v1", Mode: agentv1.Mode_MODE_MANAGE, GenerationCounter: 1, Machine: []byte(node)}
	inst := &agentv1.InstanceFacts{ClusterName: "ring", Datacenter: "dc1", Rack: "r1", ListenAddress: "10.0.0.1", StoragePort: 7000, NativePort: 9042, CassandraVersion: "5.0.8"}
	j, err := w.Fleet.Join(ctx, fleet.JoinSpec{Token: token, Key: certificate.Fingerprint([]byte(node)), Cluster: cluster, Peer: "10.0.0.1", Agent: facts, Instance: inst})
	w.must(err)
	a := &Agent{w: w, Node: j.Node, UID: j.UID, Incarnation: j.Incarnation, Agent: facts, Instance: inst,
		Store: &agentv1.StoreFacts{Store: "node", Format: agentv1.StoreFormat_STORE_FORMAT_PKCS12, State: agentv1.InstallState_INSTALL_STATE_ABSENT,
			KeystorePath: "/etc/cassandra/tls/keystore.p12", TruststorePath: "/etc/cassandra/tls/truststore.p12",
			Ports: []*agentv1.Port{{Kind: agentv1.PortKind_PORT_KIND_INTERNODE, Address: "10.0.0.1", Port: 7000}}}}
	w.streams++
	w.must(w.Fleet.Connected(ctx, a.report(), "csm1", fmt.Sprint(w.streams)))
	return a
}

// Report tells the agent's facts again.
func (a *Agent) Report() {
	a.w.t.Helper()
	a.w.must(a.w.Fleet.Reported(context.Background(), a.report()))
}

// Quorum stands for consensus: one healthy controller until it is told otherwise.
type Quorum struct {
	world *World

	mu     sync.Mutex
	err    error
	behind error
	age    time.Duration
	extra  []consensus.MemberStatus
	differ bool
	health consensus.Health
	tokens map[string]consensus.Token
	// Linearized counts the linearizable reads asked for.
	Linearized int
}

// Lose makes everything that needs a quorum fail.
func (q *Quorum) Lose() {
	q.set(func() {
		q.err = fault.New(fault.Unavailable, "no-quorum", "there is no quorum: 1 of 3 controllers answers").Do("start csm2 or csm3")
		q.age = time.Minute
	})
}

// Pending adds a controller that asks to join.
func (q *Quorum) Pending(name, fingerprint string) {
	q.set(func() {
		q.extra = append(q.extra, consensus.MemberStatus{Name: name, Region: "us", State: "pending", Address: name + ":9642", KeyFingerprint: fingerprint})
	})
}

// Differ makes the checksums of two controllers unequal.
func (q *Quorum) Differ() { q.set(func() { q.differ = true }) }

// SetHealth says what the controller knows of itself.
func (q *Quorum) SetHealth(h consensus.Health) { q.set(func() { q.health = h }) }

func (q *Quorum) set(f func()) {
	q.mu.Lock()
	defer q.mu.Unlock()
	f()
}

// Install makes the agent take its store's first certificate, before Cassandra has started: claimed, issued, written, reported.
func (a *Agent) Install() {
	t, w, ctx := a.w.t, a.w, context.Background()
	t.Helper()
	n, err := w.Fleet.GetNode(ctx, a.Node)
	w.must(err)
	claim, _, err := w.Fleet.Claim(ctx, a.UID, &agentv1.ClaimMoveRequest{Node: a.Node, Incarnation: a.Incarnation, Store: "node", Generation: n.Stores[0].Generation,
		Kind: agentv1.MoveKind_MOVE_KIND_FIRST, RequestId: rand.Text()})
	w.must(err)
	key, err := algorithm.Generate(algorithm.P384, rand.Reader)
	w.must(err)
	names, err := certificate.ParseNames(n.Names.DNS, n.Names.IPs, nil)
	w.must(err)
	csr, err := certificate.NewRequest(key, names)
	w.must(err)
	issued, err := w.Issue.Issue(ctx, issuance.Request{RequestID: rand.Text(), Actor: "agent", Tenant: "default", Authority: "tenants/default/authorities/internal", Region: "eu",
		Template: "node", CSR: csr, Names: names, Node: a.Node, Incarnation: a.Incarnation, Store: "node", Claim: claim})
	w.must(err)
	leaf := certificate.Fingerprint(issued.Leaf())
	a.Store.LeafSha256, a.Store.KeystoreSha256, a.Store.TruststoreSha256 = leaf[:], leaf[:], leaf[:]
	a.Store.State = agentv1.InstallState_INSTALL_STATE_INSTALLED_UNPROVEN
	w.must(w.Fleet.Complete(ctx, a.UID, a.Incarnation, &agentv1.ReportMoveRequest{Claim: claim, Outcome: agentv1.MoveOutcome_MOVE_OUTCOME_UNPROVEN, Store: a.Store, AfterSha256: leaf[:]}))
}

// Foreign makes the agent report a store that CSM did not write, and the inventory of its files.
func (a *Agent) Foreign(leaf []byte, anchors ...[]byte) {
	a.w.t.Helper()
	sum := certificate.Fingerprint(leaf)
	a.Store.State, a.Store.LeafSha256, a.Store.Anchors = agentv1.InstallState_INSTALL_STATE_FOREIGN, sum[:], nil
	seen := []ledger.Seen{{DER: leaf, Path: a.Store.KeystorePath, Entry: "node/0", Format: "PKCS12", HasPrivateKey: true, Mode: 0o600}}
	for n, d := range anchors {
		id := certificate.Fingerprint(d)
		a.Store.Anchors = append(a.Store.Anchors, id[:])
		seen = append(seen, ledger.Seen{DER: d, Path: a.Store.TruststorePath, Entry: fmt.Sprint(n), Format: "PKCS12", Mode: 0o600})
	}
	a.Report()
	_, err := ledger.ReportFound(context.Background(), a.w.Log.Store, a.w.Log, a.Node, "agent", seen)
	a.w.must(err)
}
