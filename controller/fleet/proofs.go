package fleet

import (
	"bytes"
	"context"
	"database/sql"
	"fmt"
	"time"

	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/durationpb"
	"google.golang.org/protobuf/types/known/timestamppb"

	agentv1 "github.com/cassandra-security-manager/csm/protocol/agent/v1"
	clusterv1 "github.com/cassandra-security-manager/csm/protocol/cluster/v1"

	"github.com/cassandra-security-manager/csm/controller/state"
	"github.com/cassandra-security-manager/csm/shared/fault"
)

// Present says whether the stream of a node's agent is open, as far as the caller knows. controller is who holds it
// according to the state, empty when nobody does.
type Present func(node, controller string) bool

// RequestProofs gives a neighbour the task of proving each port. tasks is empty when nobody can be asked now.
func (f *Fleet) RequestProofs(ctx context.Context, c Caller, r *agentv1.RequestProofsRequest, present Present) (tasks []string, prober string, err error) {
	if len(r.Ports) == 0 || len(r.LeafSha256) == 0 {
		return nil, "", fault.New(fault.Invalid, "nothing-to-prove", "name the ports and the leaf that should be served there")
	}
	cmd := &clusterv1.AskProofs{Uid: c.UID, Incarnation: c.Incarnation, Claim: r.Claim, Store: r.Store, Ports: r.Ports, LeafSha256: r.LeafSha256, TtlMs: ProofTTL.Milliseconds()}
	for range r.Ports {
		id, err := f.id()
		if err != nil {
			return nil, "", err
		}
		cmd.Tasks = append(cmd.Tasks, id)
	}
	if cmd.Present, err = f.probers(ctx, c.Node, c.Cluster, present); err != nil {
		return nil, "", err
	}
	out, err := reply[*clusterv1.AskProofsReply](f.propose(ctx, c.Node, agentActor(c.UID, c.Incarnation), "", cmd))
	if err != nil {
		return nil, "", err
	}
	return out.Tasks, out.Prober, nil
}

// maxPresent is how many probers are named to Apply, those first that were asked least recently.
const maxPresent = 64

func (f *Fleet) probers(ctx context.Context, node, cluster string, present Present) ([]string, error) {
	return view(ctx, f.read, func(ctx context.Context, q state.Querier) ([]string, error) {
		rows, err := q.QueryContext(ctx, `SELECT g.node, CASE WHEN g.connected = 1 THEN g.controller ELSE '' END `+neighbours+` ORDER BY g.asked, g.node`, neighbourArgs(node, cluster)...)
		if err != nil {
			return nil, err
		}
		defer rows.Close()
		var out []string
		for rows.Next() && len(out) < maxPresent {
			var name, controller string
			if err := rows.Scan(&name, &controller); err != nil {
				return nil, err
			}
			if present(name, controller) {
				out = append(out, name)
			}
		}
		return out, rows.Err()
	})
}

// neighbours are the other nodes of a cluster that count: the agent's identity is good, it may act, and it has a store
// with a certificate to prove with: ours, or, where the cluster was onboarded, the one in use. Whether one is there right now is another question: a neighbour that is
// away is no reason to believe a node's own word.
const neighbours = `FROM nodes n JOIN agents g ON g.uid = n.uid AND g.incarnation = n.incarnation
	WHERE n.cluster = ? AND n.name <> ? AND g.state = ? AND g.mode = ? AND EXISTS (SELECT 1 FROM stores s WHERE s.node = n.name AND (s.installed > 0 AND s.wanted_sha256 IS NOT NULL
		OR s.leaf_sha256 IS NOT NULL AND EXISTS (SELECT 1 FROM cluster_lives l WHERE l.cluster = n.cluster AND l.onboarded_ms > 0)))`

func neighbourArgs(node, cluster string) []any {
	return []any{cluster, node, Active, int(agentv1.Mode_MODE_MANAGE)}
}

func neighbourExists(a *state.Apply, n nodeRow) (bool, error) {
	var exists bool
	err := a.QueryRow(`SELECT EXISTS (SELECT 1 `+neighbours+`)`, neighbourArgs(n.name, n.cluster)...).Scan(&exists)
	return exists, err
}

func (g gates) applyAskProofs(a *state.Apply, c *clusterv1.AskProofs) (*clusterv1.AskProofsReply, error) {
	n, err := activeAgent(a, c.Uid, c.Incarnation)
	if err != nil {
		return nil, err
	}
	m, err := readMove(a, c.Claim)
	if err != nil {
		return nil, err
	}
	switch {
	case m.node != n.name || m.incarnation != n.incarnation || m.store != c.Store:
		return nil, fault.New(fault.Refused, "not-your-claim", "this claim is not that of store %.63q of %s", c.Store, short(n.name))
	case m.state != moveOpen || m.expires <= a.Now.UnixMilli():
		return nil, fault.New(fault.Stale, "claim-closed", "this claim has ended").Do("claim again")
	case len(c.Tasks) != len(c.Ports):
		return nil, fault.New(fault.Invalid, "bad-tasks", "%d tasks for %d ports", len(c.Tasks), len(c.Ports))
	}
	exists, err := neighbourExists(a, n)
	if err != nil {
		return nil, err
	}
	prober, err := chooseProber(a, n, c.Claim, c.Present)
	if err == nil && prober == "" && !exists {
		prober, err = alone(a, n)
	}
	if err != nil || prober == "" {
		return &clusterv1.AskProofsReply{NeighbourExists: exists}, err
	}
	trust, err := g.trustToProve(a, n.name, m.store)
	if err != nil {
		return nil, err
	}
	tasks, err := ask(a, asking{node: n, store: m.store, claim: m.claim, prober: prober, leaf: c.LeafSha256, ports: c.Ports, ids: c.Tasks, trust: trust, ttl: c.TtlMs})
	return &clusterv1.AskProofsReply{Prober: prober, Tasks: tasks, NeighbourExists: exists}, err
}

// asking is what one prober is asked for.
type asking struct {
	node                 nodeRow
	store, claim, prober string
	leaf                 []byte
	ports                []*agentv1.Port
	ids                  []string // one for each port
	trust                []string // authorities
	ttl                  int64    // milliseconds
}

// maxAuthorities is how many authorities beside the neighbour's own are proved on a port at once.
const maxAuthorities = 4

// ask gives the prober a task for each port, and one more for each authority that must be trusted there: their ids are
// those of the ports with a number behind.
func ask(a *state.Apply, q asking) (tasks []string, err error) {
	if len(q.trust) > maxAuthorities {
		return nil, fault.New(fault.Refused, "too-many-authorities", "%d authorities are to be trusted by store %s of %s, at most %d are proved at once", len(q.trust), q.store, short(q.node.name), maxAuthorities).
			Do("finish a rotation first")
	}
	asks, err := asksFor(a, q.node.name)
	if err != nil {
		return nil, err
	}
	now := a.Now.UnixMilli()
	for i, p := range q.ports {
		offered := []string{""}
		if asks(p.GetKind()) {
			offered = append(offered, q.trust...)
		}
		for k, authority := range offered {
			id := q.ids[i]
			if k > 0 {
				id = fmt.Sprintf("%s-%d", id, k)
			}
			if _, err := a.Exec(`INSERT INTO proof_tasks (task, claim, node, store, prober, kind, address, port, authority, leaf_sha256, asked, asked_ms, deadline_ms, recorded, verdict, took_ms, detail, time_ms)
				VALUES (?,?,?,?,?,?,?,?,?,?,?,?,?,0,0,0,'',0)`, id, q.claim, q.node.name, q.store, q.prober, int(p.GetKind()), p.GetAddress(), p.GetPort(), authority, q.leaf, a.Index, now, now+q.ttl); err != nil {
				return nil, err
			}
			tasks = append(tasks, id)
		}
	}
	if _, err := a.Exec(`UPDATE agents SET asked = ? WHERE node = ? AND state = ?`, a.Index, q.prober, Active); err != nil {
		return nil, err
	}
	signalProofs(a, q.prober)
	return tasks, nil
}

// asksFor says which kinds of ports of a node ask for client certificates, as its cassandra.yaml was reported. What is not
// known counts as asking: then it must be proved.
func asksFor(a *state.Apply, node string) (func(agentv1.PortKind) bool, error) {
	var b []byte
	if err := a.QueryRow(`SELECT instance FROM nodes WHERE name = ?`, node).Scan(&b); err != nil {
		return nil, err
	}
	var i agentv1.InstanceFacts
	if err := proto.Unmarshal(b, &i); err != nil {
		return nil, fault.Wrap(err, fault.Internal, "bad-row", "facts of %s cannot be read", node)
	}
	return func(k agentv1.PortKind) bool { return asksOf(&i, k) }, nil
}

func asksOf(i *agentv1.InstanceFacts, k agentv1.PortKind) bool {
	s := i.GetInternode()
	if k == agentv1.PortKind_PORT_KIND_CQL {
		s = i.GetClient()
	}
	return s == nil || s.ClientAuth != "false"
}

// chooseProber takes the neighbour that is present, was asked least under this claim, and has rested longest: one that
// did not answer gets its turn last.
func chooseProber(a *state.Apply, n nodeRow, claim string, present []string) (string, error) {
	type neighbour struct {
		name string
		here int // tasks under this claim
	}
	list, err := collect(a.Context(), a.Querier(), func(r *sql.Rows) (x neighbour, err error) { return x, r.Scan(&x.name) },
		`SELECT g.node `+neighbours+` ORDER BY g.asked, g.node`, neighbourArgs(n.name, n.cluster)...)
	if err != nil {
		return "", err
	}
	tasks, err := collect(a.Context(), a.Querier(), func(r *sql.Rows) (x neighbour, err error) { return x, r.Scan(&x.name, &x.here) },
		`SELECT prober, count(*) FROM proof_tasks WHERE claim = ? GROUP BY prober`, claim)
	if err != nil {
		return "", err
	}
	asked := make(map[string]int, len(tasks))
	for _, t := range tasks {
		asked[t.name] = t.here
	}
	here := make(map[string]bool, len(present))
	for _, p := range present {
		here[p] = true
	}
	best := neighbour{}
	for _, x := range list {
		if x.here = asked[x.name]; here[x.name] && (best.name == "" || x.here < best.here) {
			best = x
		}
	}
	return best.name, nil
}

// alone gives the node itself when it is the whole of its ring, as it says itself: nobody else can prove it, and there is no
// peer that could be cut off. Otherwise nobody.
func alone(a *state.Apply, n nodeRow) (string, error) {
	ring, err := RingOf(a.Context(), a.Querier(), n.cluster)
	if err != nil || len(ring.Doubts) > 0 || len(ring.Members) != 1 || ring.Members[0].Node != n.name {
		return "", err
	}
	return n.name, nil
}

// RecordProof writes down what a prober saw.
func (f *Fleet) RecordProof(ctx context.Context, uid string, incarnation uint64, task string, p *agentv1.Proof) error {
	_, err := f.propose(ctx, "", agentActor(uid, incarnation), "", &clusterv1.RecordProof{Task: task, Uid: uid, Incarnation: incarnation, Proof: p})
	return err
}

func applyRecordProof(a *state.Apply, c *clusterv1.RecordProof) (*clusterv1.Empty, error) {
	n, err := activeAgent(a, c.Uid, c.Incarnation)
	if err != nil {
		return nil, err
	}
	t, ok, err := readTask(a, c.Task)
	p := c.GetProof()
	switch {
	case err != nil:
		return nil, err
	case !ok || t.prober != n.name:
		return nil, fault.New(fault.Refused, "not-your-task", "%s was not asked for this proof", short(n.name))
	case t.recorded != 0:
		return &clusterv1.Empty{}, nil
	case p.GetVerdict() == agentv1.Verdict_VERDICT_UNSPECIFIED:
		return nil, fault.New(fault.Invalid, "no-verdict", "a proof needs a verdict")
	case p.GetVerdict() == agentv1.Verdict_VERDICT_ACCEPTED && !bytes.Equal(p.GetServedSha256(), t.leaf):
		return nil, fault.New(fault.Invalid, "proof-contradicts", "accepted, yet another leaf was served than the expected one")
	case p.GetVerdict() == agentv1.Verdict_VERDICT_ACCEPTED && p.GetAuthority() != t.authority:
		return nil, fault.New(fault.Invalid, "proof-contradicts", "accepted, yet the certificate that was offered is of another authority than the one asked for").
			Do("an agent too old to offer it must be updated")
	case p.GetVerdict() == agentv1.Verdict_VERDICT_ACCEPTED && t.authority != "" && !p.GetAsked():
		return nil, fault.New(fault.Invalid, "proof-contradicts", "accepted, yet the port asked for no certificate: then nothing is said of trust")
	}
	if _, err := a.Exec(`UPDATE proof_tasks SET recorded = ?, verdict = ?, served_sha256 = ?, took_ms = ?, detail = ?, time_ms = ?, asks = ?, issuer_sha256 = ?, anchor_sha256 = ? WHERE task = ?`,
		a.Index, int(p.Verdict), p.ServedSha256, p.Took.AsDuration().Milliseconds(), p.Detail, a.Now.UnixMilli(), flag(p.Asked), p.IssuerSha256, p.AnchorSha256, c.Task); err != nil {
		return nil, err
	}
	if t.claim == "" {
		if err := judgeAgain(a, c.Task, t, p); err != nil {
			return nil, err
		}
	}
	a.Touch(state.Updated, t.node)
	signalProofs(a, t.node)
	return &clusterv1.Empty{}, nil
}

// taskRow is a proof that somebody was asked for.
type taskRow struct {
	claim, node, store, prober, authority string
	leaf                                  []byte
	recorded                              uint64
	deadline                              int64
	port                                  *agentv1.Port
}

func readTask(a *state.Apply, task string) (t taskRow, ok bool, err error) {
	t.port = &agentv1.Port{}
	ok, err = found(a.QueryRow(`SELECT claim, node, store, prober, authority, leaf_sha256, recorded, deadline_ms, kind, address, port FROM proof_tasks WHERE task = ?`, task).
		Scan(&t.claim, &t.node, &t.store, &t.prober, &t.authority, &t.leaf, &t.recorded, &t.deadline, &t.port.Kind, &t.port.Address, &t.port.Port))
	return t, ok, err
}

// recordOwn keeps what a node saw of itself beside what its neighbours saw.
func recordOwn(a *state.Apply, n nodeRow, m moveRow, i int, p *agentv1.Proof, leaf []byte) error {
	_, err := a.Exec(`INSERT INTO proof_tasks (task, claim, node, store, prober, kind, address, port, leaf_sha256, asked, asked_ms, deadline_ms, recorded, verdict, served_sha256, took_ms, detail, time_ms, asks, issuer_sha256, anchor_sha256)
		VALUES (?,?,?,?,?,?,?,?,?,?,?,0,?,?,?,?,?,?,?,?,?) ON CONFLICT DO NOTHING`, fmt.Sprintf("%s-own-%d", m.claim, i), m.claim, n.name, m.store, n.name,
		int(p.GetPort().GetKind()), p.GetPort().GetAddress(), p.GetPort().GetPort(), leaf, a.Index, a.Now.UnixMilli(), a.Index, int(p.Verdict), p.ServedSha256,
		p.Took.AsDuration().Milliseconds(), p.Detail, a.Now.UnixMilli(), flag(p.Asked), p.IssuerSha256, p.AnchorSha256)
	return err
}

// proved refuses an outcome that calls itself proven and is not: each TLS port of the store needs the proof of a
// neighbour for this leaf under this claim, with the neighbour's own certificate and, where the port asks for one, with one
// of each authority that is to be trusted by now. While there is no neighbour, the node's own proof of the leaf is all there is;
// where it is the whole ring, it proves its trust itself as well.
func (g gates) proved(a *state.Apply, n nodeRow, c *clusterv1.CompleteMove, m moveRow, s storeRow, facts *agentv1.StoreFacts) error {
	ports, err := portsOf(a, s.name, facts)
	if err != nil {
		return err
	}
	if len(ports) == 0 {
		return fault.New(fault.Refused, "nothing-to-prove", "store %s has no TLS port, so nothing can be proved of it", m.store).Do("report it as unproven")
	}
	exists, err := neighbourExists(a, n)
	if err != nil {
		return err
	}
	self := ""
	if !exists {
		if self, err = alone(a, n); err != nil {
			return err
		}
	}
	trust, err := g.trustToProve(a, n.name, m.store)
	if err != nil {
		return err
	}
	asks, err := asksFor(a, n.name)
	if err != nil {
		return err
	}
	for _, p := range ports {
		switch {
		case exists:
			err = servedRight(a, n, m, p, c.AfterSha256)
		case !selfSaw(c.Proofs, p, c.AfterSha256):
			err = notProved(n, p, "no accepted proof of this leaf by the node itself")
		}
		if err != nil {
			return err
		}
		if !asks(p.Kind) || !exists && self == "" { // without a neighbour, and not alone, nobody can be asked: gates that need it hold
			continue
		}
		for _, authority := range trust {
			if good, err := saw(a, m, p, c.AfterSha256, authority, self); err != nil {
				return err
			} else if !good {
				return notProved(n, p, "no accepted proof by a neighbour's certificate of "+authority)
			}
		}
	}
	return nil
}

// servedRight: a neighbour was answered with the leaf, and the chain that came with it leads to the issuer that signed it.
func servedRight(a *state.Apply, n nodeRow, m moveRow, p *agentv1.Port, leaf []byte) error {
	if good, err := saw(a, m, p, leaf, "", ""); err != nil || !good {
		if err == nil {
			err = notProved(n, p, "no accepted proof of this leaf by a neighbour")
		}
		return err
	}
	if len(m.issuerSum) == 0 || !bytes.Equal(leaf, m.issued) {
		return nil
	}
	var other int
	if err := a.QueryRow(`SELECT count(*) FROM proof_tasks WHERE claim = ? AND kind = ? AND address = ? AND port = ? AND leaf_sha256 = ? AND verdict = ?
		AND issuer_sha256 IS NOT NULL AND length(issuer_sha256) > 0 AND issuer_sha256 <> ?`, m.claim, int(p.Kind), p.Address, p.Port, leaf, int(agentv1.Verdict_VERDICT_ACCEPTED), m.issuerSum).Scan(&other); err != nil || other == 0 {
		return err
	}
	return notProved(n, p, "its leaf with the chain of another issuer")
}

func notProved(n nodeRow, p *agentv1.Port, what string) error {
	return fault.New(fault.Refused, "not-proved", "%s port %s:%d of %s has %s", portName(p.Kind), p.Address, p.Port, short(n.name), what).
		Do("ask for proofs and wait for them, or report the move as unproven")
}

// portsOf are the ports that the store was reported with, before and now: leaving one out does not prove it.
func portsOf(a *state.Apply, store string, facts *agentv1.StoreFacts) ([]*agentv1.Port, error) {
	var b []byte
	if err := a.QueryRow(`SELECT facts FROM stores WHERE name = ?`, store).Scan(&b); err != nil {
		return nil, err
	}
	var held agentv1.StoreFacts
	if err := proto.Unmarshal(b, &held); err != nil {
		return nil, fault.Wrap(err, fault.Internal, "bad-row", "facts of %s cannot be read", store)
	}
	ports := held.Ports
	for _, p := range facts.GetPorts() {
		if !hasPort(ports, p) {
			ports = append(ports, p)
		}
	}
	return ports, nil
}

func hasPort(all []*agentv1.Port, p *agentv1.Port) bool {
	for _, x := range all {
		if samePort(x, p) {
			return true
		}
	}
	return false
}

func samePort(x, y *agentv1.Port) bool {
	return x.GetKind() == y.GetKind() && x.GetAddress() == y.GetAddress() && x.GetPort() == y.GetPort()
}

// saw says whether somebody else was answered with the leaf, or self, where the node is alone.
func saw(a *state.Apply, m moveRow, p *agentv1.Port, leaf []byte, authority, self string) (bool, error) {
	var n int
	err := a.QueryRow(`SELECT count(*) FROM proof_tasks WHERE claim = ? AND (prober <> ? OR prober = ?) AND kind = ? AND address = ? AND port = ? AND leaf_sha256 = ? AND verdict = ? AND authority = ?`,
		m.claim, m.node, self, int(p.Kind), p.Address, p.Port, leaf, int(agentv1.Verdict_VERDICT_ACCEPTED), authority).Scan(&n)
	return n > 0, err
}

func selfSaw(proofs []*agentv1.Proof, p *agentv1.Port, leaf []byte) bool {
	for _, x := range proofs {
		if samePort(x.GetPort(), p) && x.Verdict == agentv1.Verdict_VERDICT_ACCEPTED && bytes.Equal(x.ServedSha256, leaf) {
			return true
		}
	}
	return false
}

// OpenTasks are the proofs that a node is asked for and has not given, oldest first.
func (f *Fleet) OpenTasks(ctx context.Context, prober string) ([]*agentv1.ProofTask, error) {
	now := f.clock.Now().UnixMilli()
	return view(ctx, f.read, func(ctx context.Context, q state.Querier) ([]*agentv1.ProofTask, error) {
		return collect(ctx, q, func(r *sql.Rows) (*agentv1.ProofTask, error) {
			t := &agentv1.ProofTask{Port: &agentv1.Port{}}
			var deadline int64
			err := r.Scan(&t.Task, &t.TargetNode, &t.Port.Kind, &t.Port.Address, &t.Port.Port, &t.LeafSha256, &deadline, &t.Authority)
			t.Deadline = timestamppb.New(at(deadline))
			return t, err
		}, `SELECT task, node, kind, address, port, leaf_sha256, deadline_ms, authority FROM proof_tasks WHERE prober = ? AND recorded = 0 AND deadline_ms > ? ORDER BY asked, task LIMIT 64`, prober, now)
	})
}

// ProofCursor is where the results that a node may still need begin: at its open claim, else now.
func (f *Fleet) ProofCursor(ctx context.Context, node string) (uint64, error) {
	return view(ctx, f.read, func(ctx context.Context, q state.Querier) (after uint64, err error) {
		err = q.QueryRowContext(ctx, `SELECT coalesce((SELECT max(opened) FROM moves WHERE node = ?1 AND state = 'open'), (SELECT max(recorded) FROM proof_tasks WHERE node = ?1), 0)`, node).Scan(&after)
		return after, err
	})
}

// Results are the proofs of a node by others that were recorded after an index, oldest first, and the index of the last.
func (f *Fleet) Results(ctx context.Context, node string, after uint64) ([]*agentv1.ProofResult, uint64, error) {
	last := after
	out, err := view(ctx, f.read, func(ctx context.Context, q state.Querier) ([]*agentv1.ProofResult, error) {
		return collect(ctx, q, func(r *sql.Rows) (*agentv1.ProofResult, error) {
			p := &agentv1.Proof{Port: &agentv1.Port{}}
			t := &agentv1.ProofResult{Proof: p}
			var took, ms int64
			err := r.Scan(&t.Task, &p.Prober, &p.Port.Kind, &p.Port.Address, &p.Port.Port, &p.Verdict, &p.ServedSha256, &took, &p.Detail, &ms, &last, &p.Authority, &p.Asked, &p.IssuerSha256, &p.AnchorSha256)
			p.Took, p.Time = durationpb.New(time.Duration(took)*time.Millisecond), timestamppb.New(at(ms))
			return t, err
		}, `SELECT task, prober, kind, address, port, verdict, served_sha256, took_ms, detail, time_ms, recorded, authority, asks, issuer_sha256, anchor_sha256 FROM proof_tasks
			WHERE node = ? AND prober <> node AND recorded > ? ORDER BY recorded, task LIMIT 64`, node, after)
	})
	return out, last, err
}
