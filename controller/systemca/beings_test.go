package systemca_test

import (
	"bytes"
	"crypto/rand"
	"crypto/sha256"
	"crypto/x509"
	"fmt"
	"slices"
	"strconv"
	"testing"
	"time"

	"google.golang.org/protobuf/proto"

	agentv1 "github.com/cassandra-security-manager/csm/protocol/agent/v1"
	clusterv1 "github.com/cassandra-security-manager/csm/protocol/cluster/v1"

	"github.com/cassandra-security-manager/csm/controller/authority"
	"github.com/cassandra-security-manager/csm/controller/fleet"
	"github.com/cassandra-security-manager/csm/controller/state"
	"github.com/cassandra-security-manager/csm/controller/systemca"
	"github.com/cassandra-security-manager/csm/shared/algorithm"
	"github.com/cassandra-security-manager/csm/shared/certificate"
	"github.com/cassandra-security-manager/csm/shared/identity"
	"github.com/cassandra-security-manager/csm/shared/resource"
)

// being is a controller or an agent as it is on its machine, whatever the state believes of it.
type being struct {
	id     identity.ID
	name   string // full
	up     bool
	leaf   *x509.Certificate   // what it shows
	roots  []*x509.Certificate // what its verifier takes
	coming *x509.Certificate   // signed, and on its way to it
	behind bool                // it came back from an old disk and has not followed yet: agents go to another controller
	named  bool                // not waited for, by a person
	past   []*x509.Certificate // what it has shown, the newest last
	image  func()              // sets it back to the disk that it had when the rotation began

	csr     []byte
	request int
	report  *clusterv1.AgentReported // of an agent
	stream  int
}

func (b *being) controller() bool { return b.id.Kind == identity.Controller }

// live: it runs and has an identity.
func (b *being) live() bool { return b.up && b.leaf != nil }

func signed(leaf, root *x509.Certificate) bool {
	return bytes.Equal(leaf.AuthorityKeyId, root.SubjectKeyId)
}

// takes says whether b takes what another one shows. A controller with two roots sends what leads from each to the other.
func (b *being) takes(other *being) bool {
	return slices.ContainsFunc(b.roots, func(r *x509.Certificate) bool {
		return signed(other.leaf, r) || other.controller() && len(other.roots) == 2 && slices.ContainsFunc(other.roots, r.Equal)
	})
}

func proposal(c proto.Message) state.Proposal {
	return state.Proposal{Actor: "test", Reason: "test", Command: c}
}

func talks(a, b *being) bool { return a.takes(b) && b.takes(a) }

// beings is a world with everybody in it.
type beings struct {
	*world
	all      []*being
	rotation string
}

const cluster = "tenants/default/clusters/prod"

// newBeings are three controllers and two agents, all well.
func newBeings(t *testing.T) *beings {
	t.Helper()
	k := &beings{world: newWorld(t)}
	for _, name := range controllers {
		if name != controllers[0] {
			k.must(k.propose(&clusterv1.ReportUnsealed{Name: name, Id: name}))
		}
		b := k.being(identity.ControllerID(td, name), resource.Controller(name))
		b.leaf, b.roots, b.up = k.leaf[name], k.bundle(), true
	}
	_, err := k.fleet.CreateCluster(ctx, fleet.ClusterSpec{Name: cluster, Authority: "tenants/default/authorities/internal"}, "test")
	k.must(err)
	for _, name := range []string{"n1", "n2"} {
		k.launch(k.join(name))
	}
	return k
}

func (k *beings) being(id identity.ID, name string) *being {
	k.t.Helper()
	key, err := algorithm.Generate(algorithm.P384, rand.Reader)
	k.must(err)
	b := &being{id: id, name: name}
	b.csr, err = certificate.NewRequest(key, certificate.Names{})
	k.must(err)
	k.all = append(k.all, b)
	return b
}

// bundle are the roots that the state trusts.
func (k *beings) bundle() []*x509.Certificate {
	k.t.Helper()
	out, err := k.authorities.SystemBundle(ctx)
	k.must(err)
	return out
}

// join lets an agent in; its first leaf is on its way.
func (k *beings) join(node string) *being {
	k.t.Helper()
	spec := fleet.TokenSpec{Node: node, Names: fleet.Names{DNS: []string{node + ".example"}, IPs: []string{"10.0.0.1"}}}
	if slices.ContainsFunc(k.all, func(b *being) bool { return b.name == cluster+"/nodes/"+node }) {
		spec.Rejoin, spec.Names = true, fleet.Names{}
	}
	token, _, err := k.fleet.CreateToken(ctx, cluster, spec, "test")
	k.must(err)
	agent, instance := &agentv1.AgentFacts{Mode: agentv1.Mode_MODE_MANAGE, GenerationCounter: 1, Machine: []byte(node)}, &agentv1.InstanceFacts{ClusterName: "ring"}
	j, err := k.fleet.Join(ctx, fleet.JoinSpec{Token: token, Key: sha256.Sum256([]byte(token)), Cluster: "prod", Peer: "10.0.0.1", Agent: agent, Instance: instance})
	k.must(err)
	k.all = slices.DeleteFunc(k.all, func(b *being) bool { return b.name == j.Node }) // its old incarnation is revoked
	b := k.being(identity.AgentID(td, j.UID, j.Incarnation), j.Node)
	b.report, err = fleet.Report{UID: j.UID, Incarnation: j.Incarnation, Agent: agent, Instance: instance}.Encode()
	k.must(err)
	k.must(k.sign(b))
	return b
}

// launch lets one whose first leaf has come begin.
func (k *beings) launch(b *being) {
	k.t.Helper()
	b.leaf, b.coming, b.roots, b.up = b.coming, nil, k.bundle(), true
	k.connect(b)
}

func (k *beings) connect(b *being) {
	k.t.Helper()
	if b.controller() {
		return
	}
	b.stream++
	k.must(k.fleet.Connected(ctx, b.report, "csm1", strconv.Itoa(b.stream)))
}

func (k *beings) stop(b *being) {
	k.t.Helper()
	b.up, b.coming = false, nil
	if !b.controller() {
		k.must(k.fleet.Disconnected(ctx, b.report.Uid, b.report.Incarnation, strconv.Itoa(b.stream)))
	}
}

func (k *beings) wake(b *being) {
	b.up = true
	k.connect(b)
}

// sign has a leaf signed by whatever root signs now; it has not come yet.
func (k *beings) sign(b *being) error {
	b.request++
	chain, _, err := k.door.IssueIdentity(ctx, b.id, b.csr, "test", fmt.Sprintf("b-%d", b.request))
	if err != nil {
		return err
	}
	b.coming, err = certificate.Parse(chain[0])
	return err
}

func (b *being) take() {
	if b.coming != nil {
		b.leaf, b.coming = b.coming, nil
		b.past = append(b.past, b.leaf)
	}
}

// due says whether it is asked to take another identity.
func (k *beings) due(b *being) bool {
	k.t.Helper()
	w, err := k.Wish(ctx)
	k.must(err)
	who := b.name
	if !b.controller() {
		who = systemca.Agents
	}
	return b.live() && k.reachable(b) && w.Moves(who) && w.Due(b.id.String(), b.leaf)
}

// reachable: a controller talks to itself; an agent needs one that takes it.
func (k *beings) reachable(b *being) bool {
	return b.controller() || k.witness(b) != nil
}

// witness is another controller that speaks with it.
func (k *beings) witness(b *being) *being {
	for _, c := range k.all {
		if c != b && c.controller() && c.live() && b.leaf != nil && talks(b, c) {
			return c
		}
	}
	return nil
}

// follow takes the roots of the state into the verifier. An agent hears of them from a controller, and refuses those that do not know it.
func (k *beings) follow(b *being) {
	k.t.Helper()
	roots := k.bundle()
	if b.controller() || k.witness(b) != nil && slices.ContainsFunc(roots, func(r *x509.Certificate) bool { return signed(b.leaf, r) }) {
		b.roots, b.behind = roots, false
	}
}

// seen tells the state what a witness has seen of it.
func (k *beings) seen(b *being) {
	k.t.Helper()
	c := k.witness(b)
	if b.controller() && !slices.ContainsFunc(k.all, func(x *being) bool { return x != b && x.controller() }) {
		c = b // the only one there is
	}
	if c == nil || !b.live() {
		return
	}
	k.must(k.Saw(ctx, c.id.Path, b.controller(), []systemca.Sighting{{Identity: b.id.String(), Leaf: sha256.Sum256(b.leaf.Raw), Trusts: sums(b.roots)}}))
}

func sums(roots []*x509.Certificate) (out [][]byte) {
	for _, r := range roots {
		sum := certificate.Fingerprint(r.Raw)
		out = append(out, sum[:])
	}
	return out
}

// everybody does what he is to do, and is seen.
func (k *beings) everybody() {
	k.t.Helper()
	k.log.Clock.Advance(6 * time.Second)
	for _, b := range k.all {
		if b.live() {
			b.take()
			k.follow(b)
			if k.due(b) {
				k.must(k.sign(b))
				b.take()
			}
		}
	}
	for _, b := range k.all {
		k.seen(b)
	}
}

func (k *beings) now() systemca.Rotation {
	k.t.Helper()
	r, err := k.Get(ctx, k.rotation)
	k.must(err)
	return r
}

func (k *beings) begin() {
	k.t.Helper()
	k.rotation = k.start().Name
	for _, b := range k.all {
		if leaf, roots := b.leaf, b.roots; leaf != nil {
			b.image = func() { b.leaf, b.roots, b.coming, b.behind = leaf, roots, nil, b.controller() }
		}
	}
}

// ready goes on until a phase has nothing to wait for any more, and stops before it ends.
func (k *beings) ready(p systemca.Phase) {
	k.t.Helper()
	for range 60 {
		r := k.now()
		if k.everybody(); r.Phase == p && (r.Turn == systemca.Agents || p != systemca.Reissue && p != systemca.Undoing) {
			return
		}
		switch {
		case r.Phase == systemca.Reissued && (p == systemca.Undoing || p == systemca.Withdrawing):
			_, err := k.Control(ctx, k.rotation, "rollback", "test", "test")
			k.must(err)
		case r.Phase == systemca.Reissued:
			k.admin()
			k.must(k.retire(r))
		default:
			k.must(k.Watch(ctx))
		}
	}
	k.t.Fatalf("%s was not reached: %+v", p, k.now())
}

// broken says which two who are alive do not take each other, or who has an identity of a root that is gone. Who was named is nobody's business.
func (k *beings) broken() string {
	k.t.Helper()
	trusted := k.bundle()
	for i, a := range k.all {
		if !a.live() || a.named {
			continue
		}
		if !slices.ContainsFunc(trusted, func(r *x509.Certificate) bool { return signed(a.leaf, r) }) {
			return a.name + " has an identity of a root that is gone"
		}
		for _, b := range k.all[:i] {
			if b.live() && !b.named && (a.controller() && (b.controller() || !a.behind) || b.controller() && !b.behind) && !talks(a, b) {
				return a.name + " and " + b.name + " do not take each other"
			}
		}
	}
	return ""
}

// rootOf is the certificate of a root by its full name.
func (k *beings) rootOf(issuer string) *x509.Certificate {
	k.t.Helper()
	a, err := k.authorities.Get(ctx, authority.SystemName)
	k.must(err)
	for _, i := range a.Issuers {
		if i.Name == issuer {
			return i.Certificate
		}
	}
	k.t.Fatalf("no root %s", issuer)
	return nil
}
