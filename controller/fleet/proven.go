package fleet

import (
	"bytes"
	"context"
	"database/sql"
	"fmt"
	"time"

	"google.golang.org/protobuf/proto"

	agentv1 "github.com/cassandra-security-manager/csm/protocol/agent/v1"
	clusterv1 "github.com/cassandra-security-manager/csm/protocol/cluster/v1"

	"github.com/cassandra-security-manager/csm/controller/state"
	"github.com/cassandra-security-manager/csm/shared/fault"
	"github.com/cassandra-security-manager/csm/shared/resource"
)

// provenSchema: what is proved of each port now, by whose certificate (authority; empty: that in use), and with which
// truststore in the files. marker: the leaf was new with this proof, so Cassandra has read both files since they were written.
const provenSchema = `
CREATE TABLE port_proofs (
	node TEXT NOT NULL,
	store TEXT NOT NULL,
	kind INTEGER NOT NULL,
	address TEXT NOT NULL,
	port INTEGER NOT NULL,
	authority TEXT NOT NULL,
	generation INTEGER NOT NULL,
	truststore_sha256 BLOB,
	leaf_sha256 BLOB,
	anchor_sha256 BLOB,
	marker INTEGER NOT NULL,
	prober TEXT NOT NULL,
	proved INTEGER NOT NULL,
	proved_ms INTEGER NOT NULL,
	PRIMARY KEY (node, store, kind, address, port, authority)
) STRICT, WITHOUT ROWID;
`

// Proven is what is proved of a store now. What was proved once and has been contradicted since is not in it.
type Proven struct {
	Node, Store string
	Incarnation uint64
	// Generation that is installed.
	Generation uint64
	// Leaf that each port was seen to serve and that the files hold; nil when one of the two is not so. Authority is whose
	// leaf it is, by the record of what was issued; empty when it is not one of ours.
	Leaf      []byte
	Authority string
	Ports     []PortProven
	// Kept is the leaf of another CA that ours took the place of; nil when there was none, or nobody wants it back.
	Kept *Kept

	anchors [][]byte // in the truststore, as reported
}

// PortProven is what is proved of one TLS port.
type PortProven struct {
	Kind    agentv1.PortKind
	Address string
	Port    uint32
	// Asks says whether the port asks for client certificates: where it does not, nobody's certificate proves trust.
	Asks bool
	// Served: a neighbour was answered with the leaf in the files. Anchor is the SHA-256 of the anchor that its chain led to.
	Served bool
	Anchor []byte
	// Marker: the leaf was new when it was seen with the truststore in the files, which was therefore read with it or after it.
	Marker bool
	// Accepted holds, by authority, when and by whom a certificate of it was seen to be accepted with the truststore in the files.
	Accepted map[string]Accepted
}

// Accepted is one proof of trust.
type Accepted struct {
	Prober     string
	Generation uint64
	Revision   uint64
	Time       time.Time
}

// Gap is something that is not proved, as a stable word and in words.
type Gap struct{ Code, Message string }

// ProvenOf reads what is proved of a store; in Apply q is the transaction.
func ProvenOf(ctx context.Context, q state.Querier, node, store string) (Proven, error) {
	all, err := readProven(ctx, q, `s.name = ?`, resource.Store(node, store))
	if err != nil {
		return Proven{Node: node, Store: store}, err
	}
	if len(all) == 0 {
		return Proven{Node: node, Store: store}, noStore(node, store)
	}
	return all[0], nil
}

// ProvenIn reads what is proved of every store of a cluster, by the store's full name.
func ProvenIn(ctx context.Context, q state.Querier, cluster string) (map[string]Proven, error) {
	all, err := readProven(ctx, q, `n.cluster = ?`, cluster)
	out := make(map[string]Proven, len(all))
	for _, p := range all {
		out[resource.Store(p.Node, p.Store)] = p
	}
	return out, err
}

func readProven(ctx context.Context, q state.Querier, where, name string) ([]Proven, error) {
	type row struct {
		Proven
		leaf, proven []byte
	}
	stores, err := collect(ctx, q, func(r *sql.Rows) (x row, err error) {
		var wanted, facts, instance, kept []byte
		var issuer string
		var keptDone bool
		if err := r.Scan(&x.Node, &x.Store, &x.Incarnation, &instance, &x.Generation, &x.leaf, &x.proven, &wanted, &issuer, &facts, &kept, &keptDone); err != nil {
			return x, err
		}
		var f agentv1.StoreFacts
		var i agentv1.InstanceFacts
		if err = proto.Unmarshal(facts, &f); err == nil {
			err = proto.Unmarshal(instance, &i)
		}
		if err != nil {
			return x, fault.Wrap(err, fault.Internal, "bad-row", "facts of %s cannot be read", x.Node)
		}
		x.anchors = f.Anchors
		if len(kept) > 0 && !keptDone {
			x.Kept = keptOf(kept, &f)
		}
		if bytes.Equal(x.leaf, wanted) && issuer != "" {
			x.Authority = resource.Parent(issuer)
		}
		for _, port := range f.Ports {
			x.Ports = append(x.Ports, PortProven{Kind: port.Kind, Address: port.Address, Port: port.Port, Asks: asksOf(&i, port.Kind), Accepted: map[string]Accepted{}})
		}
		return x, nil
	}, `SELECT n.name, s.store, n.incarnation, n.instance, s.installed, s.leaf_sha256, s.proven_sha256, s.wanted_sha256, s.issuer, s.facts, s.kept_sha256, s.kept_done
		FROM stores s JOIN nodes n ON n.name = s.node WHERE `+where+` ORDER BY n.name, s.store`, name)
	if err != nil {
		return nil, err
	}
	type key struct{ node, store string }
	at := make(map[key]*row, len(stores))
	for i := range stores {
		at[key{stores[i].Node, stores[i].Store}] = &stores[i]
	}
	_, err = collect(ctx, q, func(r *sql.Rows) (struct{}, error) {
		x := proofRow{port: &agentv1.Port{}}
		var k key
		err := r.Scan(&k.node, &k.store, &x.port.Kind, &x.port.Address, &x.port.Port, &x.authority, &x.generation, &x.leaf, &x.anchor, &x.marker, &x.prober, &x.revision, &x.ms)
		if s := at[k]; s != nil && err == nil {
			s.take(x, s.leaf)
		}
		return struct{}{}, err
	}, `SELECT p.node, p.store, p.kind, p.address, p.port, p.authority, p.generation, p.leaf_sha256, p.anchor_sha256, p.marker, p.prober, p.proved, p.proved_ms
		FROM stores s JOIN nodes n ON n.name = s.node JOIN port_proofs p ON p.node = s.node AND p.store = s.store AND p.truststore_sha256 IS s.truststore_sha256
		WHERE `+where+` ORDER BY p.node, p.store, p.kind, p.address, p.port, p.authority`, name)
	out := make([]Proven, len(stores))
	for i, x := range stores {
		all := len(x.Ports) > 0 && len(x.leaf) > 0 && bytes.Equal(x.leaf, x.proven)
		for _, port := range x.Ports {
			all = all && port.Served
		}
		if out[i] = x.Proven; all {
			out[i].Leaf = x.leaf
		}
	}
	return out, err
}

type proofRow struct {
	port                 *agentv1.Port
	authority, prober    string
	generation, revision uint64
	leaf, anchor         []byte
	marker               bool
	ms                   int64
}

func (p *Proven) take(x proofRow, leaf []byte) {
	for i := range p.Ports {
		at := &p.Ports[i]
		switch {
		case at.Kind != x.port.Kind || at.Address != x.port.Address || at.Port != x.port.Port:
		case x.authority != "":
			at.Accepted[x.authority] = Accepted{Prober: x.prober, Generation: x.generation, Revision: x.revision, Time: time.UnixMilli(x.ms).UTC()}
		case bytes.Equal(x.leaf, leaf):
			at.Served, at.Marker, at.Anchor = true, x.marker, x.anchor
		}
	}
}

// Untrusting says what lacks until it is proved that each port of the store trusts an authority, whose anchors are given by
// their SHA-256: on a port that asks for client certificates one of the authority's must have been accepted, on another one
// a leaf must have been seen that is newer than the truststore. None: it is proved.
func (p Proven) Untrusting(authority string, anchors [][]byte) (gaps []Gap) {
	if len(p.Ports) == 0 {
		return []Gap{{"no-ports", fmt.Sprintf("store %s of %s has no TLS port", p.Store, short(p.Node))}}
	}
	for _, a := range anchors {
		if !contains(p.anchors, a) {
			gaps = append(gaps, Gap{"anchor-missing", fmt.Sprintf("the truststore of store %s of %s lacks the anchor %.12s", p.Store, short(p.Node), hexOf(a))})
		}
	}
	for _, x := range p.Ports {
		where := fmt.Sprintf("%s port %s:%d of %s", portName(x.Kind), x.Address, x.Port, short(p.Node))
		if _, ok := x.Accepted[authority]; x.Asks && !ok {
			gaps = append(gaps, Gap{"trust-not-proved", where + " was not seen to accept a certificate of " + resource.Last(authority)})
		}
		if !x.Asks && !(x.Served && x.Marker) {
			gaps = append(gaps, Gap{"marker-not-proved", where + " asks for no certificate, and no leaf newer than the truststore was seen on it"})
		}
	}
	return gaps
}

// Serving says what lacks until it is proved that each port serves a leaf of an authority. None: it is proved.
func (p Proven) Serving(authority string) []Gap {
	switch {
	case p.Leaf == nil:
		return []Gap{{"leaf-not-proved", fmt.Sprintf("no neighbour has seen the leaf in store %s of %s on each of its ports", p.Store, short(p.Node))}}
	case p.Authority != authority:
		return []Gap{{"leaf-of-another", fmt.Sprintf("store %s of %s serves a leaf of another authority than %s", p.Store, short(p.Node), resource.Last(authority))}}
	}
	return nil
}

// keepProofs takes over what was proved under a claim that ended as proven. After a failure nothing counts any more.
func keepProofs(a *state.Apply, n nodeRow, c *clusterv1.CompleteMove, m moveRow) error {
	switch c.Outcome {
	case agentv1.MoveOutcome_MOVE_OUTCOME_FAILED:
		return forgetProofs(a, n.name, m.store, nil)
	case agentv1.MoveOutcome_MOVE_OUTCOME_PROVEN:
	default:
		return nil
	}
	marker := len(m.issued) > 0 && bytes.Equal(m.issued, c.AfterSha256)
	// A neighbour's proof comes after the node's own, and so takes its place.
	tasks, err := collect(a.Context(), a.Querier(), scanString, `SELECT task FROM proof_tasks WHERE claim = ? AND leaf_sha256 = ? AND verdict = ? AND recorded > 0
		ORDER BY prober <> node, recorded, task`, m.claim, c.AfterSha256, int(agentv1.Verdict_VERDICT_ACCEPTED))
	if err != nil {
		return err
	}
	for _, t := range tasks {
		if err := keepProof(a, t, n.name, m.store, marker); err != nil {
			return err
		}
	}
	return nil
}

// keepProof remembers an accepted proof beside the truststore and generation that the store has now. A marker stays one
// while the same leaf is seen with the same truststore.
func keepProof(a *state.Apply, task, node, store string, marker bool) error {
	_, err := a.Exec(`INSERT INTO port_proofs (node, store, kind, address, port, authority, generation, truststore_sha256, leaf_sha256, anchor_sha256, marker, prober, proved, proved_ms)
		SELECT t.node, s.store, t.kind, t.address, t.port, t.authority, s.installed, s.truststore_sha256, t.leaf_sha256, t.anchor_sha256, ?, t.prober, ?, ?
		FROM proof_tasks t JOIN stores s ON s.name = ? WHERE t.task = ? AND t.node = ?
		ON CONFLICT (node, store, kind, address, port, authority) DO UPDATE SET generation = excluded.generation,
		marker = max(excluded.marker, CASE WHEN port_proofs.truststore_sha256 IS excluded.truststore_sha256 AND port_proofs.leaf_sha256 IS excluded.leaf_sha256 THEN port_proofs.marker ELSE 0 END),
		truststore_sha256 = excluded.truststore_sha256, leaf_sha256 = excluded.leaf_sha256, anchor_sha256 = excluded.anchor_sha256,
		prober = excluded.prober, proved = excluded.proved, proved_ms = excluded.proved_ms`,
		flag(marker), a.Index, a.Now.UnixMilli(), resource.Store(node, store), task, node)
	return err
}

// forgetProofs takes away what was proved with another truststore than the given one; nil: all.
func forgetProofs(a *state.Apply, node, store string, truststore []byte) error {
	_, err := a.Exec(`DELETE FROM port_proofs WHERE node = ? AND store = ? AND (truststore_sha256 IS NULL OR ? IS NULL OR truststore_sha256 <> ?)`,
		node, store, nullable(truststore), nullable(truststore))
	return err
}

// AskAgain asks a neighbour, in Apply, to prove the ports of a store once more as it is now, without a move of it: with the
// neighbour's own certificate, and with one of each authority. It says who was asked; empty when nobody can be. What is
// proved stays so until an answer contradicts it.
func AskAgain(a *state.Apply, node, store string, authorities []string) (prober string, err error) {
	n, err := readNode(a, node)
	if err != nil {
		return "", err
	}
	s, known, err := readStore(a, node, store)
	if err != nil {
		return "", err
	}
	if !known {
		return "", noStore(node, store)
	}
	if len(s.leaf) == 0 {
		return "", nil
	}
	ports, err := portsOf(a, s.name, nil)
	if err != nil {
		return "", err
	}
	connected, err := collect(a.Context(), a.Querier(), scanString, `SELECT g.node `+neighbours+` AND g.connected = 1 ORDER BY g.node`, neighbourArgs(n.name, n.cluster)...)
	if err != nil {
		return "", err
	}
	if prober, err = chooseProber(a, n, "", connected); err == nil && prober == "" && len(connected) == 0 {
		prober, err = alone(a, n)
	}
	if err != nil || prober == "" {
		return "", err
	}
	q := asking{node: n, store: store, prober: prober, leaf: s.leaf, ports: ports, trust: authorities, ttl: ProofTTL.Milliseconds()}
	for i := range ports {
		q.ids = append(q.ids, fmt.Sprintf("again-%d-%.12s-%d", a.Index, n.uid, i))
	}
	if _, err := a.Exec(`DELETE FROM proof_tasks WHERE claim = '' AND node = ? AND deadline_ms < ?`, n.name, a.Now.Add(-keep).UnixMilli()); err != nil {
		return "", err
	}
	_, err = ask(a, q)
	return prober, err
}

// judgeAgain takes over the answer to a question that was asked outside of a move.
func judgeAgain(a *state.Apply, task string, t taskRow, p *agentv1.Proof) error {
	s, known, err := readStore(a, t.node, t.store)
	if err != nil || !known || !bytes.Equal(s.leaf, t.leaf) {
		return err // it was asked about files that are no longer there
	}
	drop := func(authority string) error {
		_, err := a.Exec(`DELETE FROM port_proofs WHERE node = ? AND store = ? AND kind = ? AND address = ? AND port = ? AND (? = '' OR authority = ?)`,
			t.node, t.store, int(t.port.Kind), t.port.Address, t.port.Port, authority, authority)
		return err
	}
	switch p.Verdict {
	case agentv1.Verdict_VERDICT_ACCEPTED:
		return keepProof(a, task, t.node, t.store, false)
	case agentv1.Verdict_VERDICT_REFUSED:
		return drop(t.authority)
	case agentv1.Verdict_VERDICT_WRONG_LEAF:
		if err := drop(""); err != nil {
			return err
		}
		return alarm(a, "served-contradicts", t.node, fmt.Sprintf("%s was seen by %s to serve another leaf on port %d than it reports", short(t.node), short(t.prober), t.port.Port))
	}
	return nil // silence says nothing
}
