package fleet

import (
	"context"
	"crypto/sha256"
	"database/sql"
	"encoding/base64"
	"encoding/hex"
	"fmt"
	"io"
	"strings"
	"time"

	"google.golang.org/protobuf/proto"

	agentv1 "github.com/cassandra-security-manager/csm/protocol/agent/v1"
	clusterv1 "github.com/cassandra-security-manager/csm/protocol/cluster/v1"

	"github.com/cassandra-security-manager/csm/controller/state"
	"github.com/cassandra-security-manager/csm/shared/fault"
	"github.com/cassandra-security-manager/csm/shared/resource"
)

// livesSchema: nodes that their peers' gossip no longer holds, and the machines that were seen with one identity.
const livesSchema = `
CREATE TABLE removals (
	node TEXT PRIMARY KEY,
	cluster TEXT NOT NULL,
	host_id TEXT NOT NULL,
	witnesses TEXT NOT NULL,
	since_ms INTEGER NOT NULL
) STRICT, WITHOUT ROWID;
CREATE INDEX removals_cluster ON removals (cluster, node);
CREATE TABLE agent_copies (
	uid TEXT NOT NULL,
	incarnation INTEGER NOT NULL,
	machine BLOB NOT NULL,
	address TEXT NOT NULL,
	seen_ms INTEGER NOT NULL,
	PRIMARY KEY (uid, incarnation, machine)
) STRICT, WITHOUT ROWID;
`

// Replace gives a node's name to another host: the old identity ends now, names (if any) become those of the new host, and
// a token for it is made. All of it happens in one command or not at all.
func (f *Fleet) Replace(ctx context.Context, node string, names Names, ttl time.Duration, reason, actor string) (secret string, t Token, err error) {
	if reason == "" {
		return "", Token{}, fault.NoReason()
	}
	names, err = names.Normalise()
	if err != nil {
		return "", Token{}, err
	}
	cluster := resource.Parent(node)
	secret, c, err := f.tokenCommand(cluster, TokenSpec{Node: resource.Last(node), Names: names, TTL: ttl, Rejoin: true})
	if err != nil {
		return "", Token{}, err
	}
	if _, err := f.propose(ctx, node, actor, reason, &clusterv1.ReplaceNode{Token: c, Reason: reason}); err != nil {
		return "", Token{}, err
	}
	t, err = f.GetToken(ctx, resource.JoinToken(cluster, c.Id))
	return secret, t, err
}

// tokenCommand makes the secret of a token and the command that makes the token known.
func (f *Fleet) tokenCommand(cluster string, spec TokenSpec) (secret string, c *clusterv1.CreateNodeToken, err error) {
	if spec.TTL == 0 {
		spec.TTL = DefaultTokenTTL
	}
	if spec.TTL < time.Minute || spec.TTL > MaxTokenTTL {
		return "", nil, fault.New(fault.Invalid, "bad-ttl", "a join token lives from a minute to %d days, not %s", MaxTokenTTL/(24*time.Hour), spec.TTL)
	}
	if spec.Uses == 0 {
		spec.Uses = 1
	}
	if spec.Uses < 0 || spec.Uses > 100 {
		return "", nil, fault.New(fault.Invalid, "bad-uses", "a join token is used 1 to 100 times, not %d", spec.Uses)
	}
	raw := make([]byte, tokenBytes)
	if _, err := io.ReadFull(f.rand, raw); err != nil {
		return "", nil, fault.Wrap(err, fault.Internal, "no-randomness", "cannot read random bytes")
	}
	secret = tokenPrefix + base64.RawURLEncoding.EncodeToString(raw)
	sum := sha256.Sum256([]byte(secret))
	id, err := f.id()
	if err != nil {
		return "", nil, err
	}
	uid, err := f.id()
	if err != nil {
		return "", nil, err
	}
	return secret, &clusterv1.CreateNodeToken{Cluster: cluster, Id: id, Sha256: sum[:], Node: spec.Node, NodeUid: uid, Names: spec.Names.wire(),
		TtlMs: spec.TTL.Milliseconds(), Uses: uint32(spec.Uses), Method: MethodToken, Rejoin: spec.Rejoin}, nil
}

func applyReplaceNode(a *state.Apply, c *clusterv1.ReplaceNode) (*clusterv1.Empty, error) {
	t := c.GetToken()
	n, err := readNode(a, t.GetCluster()+"/nodes/"+t.GetNode())
	if err != nil {
		return nil, err
	}
	if n.incarnation == 0 {
		return nil, fault.New(fault.NotFound, "no-agent", "no agent has ever joined for %s: there is nothing to replace", short(n.name)).
			Do("let it join: `csm cluster join-command %s`", short(n.name))
	}
	if names := namesOf(t.Names); !names.Empty() {
		column, err := names.column()
		if err != nil {
			return nil, err
		}
		if _, err := a.Exec(`UPDATE nodes SET names = ?, changed = ? WHERE name = ?`, column, a.Index, n.name); err != nil {
			return nil, err
		}
	}
	t.Names, t.Rejoin = &agentv1.Names{}, true
	if _, err := applyCreateNodeToken(a, t); err != nil {
		return nil, err
	}
	if _, err := a.Exec(`UPDATE node_tokens SET replaces = 1 WHERE name = ?`, resource.JoinToken(t.Cluster, t.Id)); err != nil {
		return nil, err
	}
	if n.agent.state == Revoked {
		return &clusterv1.Empty{}, nil
	}
	return &clusterv1.Empty{}, setAgent(a, n, Revoked, "its host is replaced: "+c.Reason)
}

// sameHost compares the host id of who joins again with that of the incarnation before it, where both are known: who
// rejoins is the same Cassandra, who replaces is another one.
func sameHost(a *state.Apply, t tokenRow, hostID string) error {
	was, err := hostIDOf(a.Context(), a.Querier(), t.node)
	if err != nil || was == "" || hostID == "" || !t.rejoin {
		return err
	}
	switch {
	case t.replaces && was == hostID:
		return fault.New(fault.Refused, "same-host", "this Cassandra is the one with host id %s that %s was before", hostID, short(t.node)).
			Do("it is rebuilt, not replaced: `csm node rejoin %s`", short(t.node))
	case !t.replaces && was != hostID:
		return fault.New(fault.Refused, "other-host", "this Cassandra has host id %s, %s had %s", hostID, short(t.node), was).
			Do("if it takes that node's place: `csm node replace %s`", short(t.node))
	}
	return nil
}

// removal is a node that is gone from the ring by its peers' word.
type removal struct {
	node, hostID string
	witnesses    []string
	since        time.Time
}

func (r removal) message() string {
	var who []string
	for _, w := range r.witnesses {
		who = append(who, resource.Last(w))
	}
	return fmt.Sprintf("%s (host id %s) is gone from the ring, as %s see it: was it decommissioned?", short(r.node), r.hostID, strings.Join(who, " and "))
}

func (r removal) condition() Condition {
	return Condition{Type: "removal-proposed", Severity: "warning", Resource: r.node, Message: r.message(), Since: r.since,
		Remedy: fmt.Sprintf("if it is meant to be: `csm node remove %s --reason decommissioned --dry-run`, then with --plan; nothing is removed by itself", short(r.node))}
}

func removals(ctx context.Context, q state.Querier, name string) ([]removal, error) {
	return collect(ctx, q, func(r *sql.Rows) (x removal, err error) {
		var who string
		var since int64
		err = r.Scan(&x.node, &x.hostID, &who, &since)
		x.witnesses, x.since = strings.Split(who, ","), at(since)
		return x, err
	}, `SELECT node, host_id, witnesses, since_ms FROM removals WHERE node = ?1 OR cluster = ?1 ORDER BY node`, name)
}

// gone says which of the nodes that once were members are none any more, by the word of two peers and against nobody's.
// A node that sees itself in its ring is not gone. Pure.
func gone(views []ringView, hosts map[string]string) map[string][]string {
	out := map[string][]string{}
	sights := sightsOf(views)
	for node, id := range hosts {
		see, lack := sights.witnesses(id, "")
		if len(see) > 0 || len(lack) < 2 {
			continue
		}
		if len(lack) > 3 {
			lack = lack[:3]
		}
		out[node] = lack
	}
	return out
}

// seesAll says whether a view that counts has every one of these hosts: then gone finds none of them, whatever others see.
func (v ringView) seesAll(hosts map[string]string) bool {
	if !v.counts {
		return false
	}
	for _, id := range hosts {
		if _, ok := v.sight.byID[id]; !ok {
			return false
		}
	}
	return true
}

// proposeRemovals compares what the peers see with the nodes there are, and writes down what has changed. It removes
// nothing: that is a person's word. by is the node that has told what it sees: while it sees everybody, nobody is gone, and what all
// others see does not matter. A ring of hundreds that starts tells of itself hundreds of times.
func proposeRemovals(a *state.Apply, cluster, by string) error {
	hosts := map[string]string{}
	names, err := collect(a.Context(), a.Querier(), func(r *sql.Rows) (string, error) {
		var node, id string
		err := r.Scan(&node, &id)
		hosts[node] = id
		return node, err
	}, `SELECT s.node, s.host_id FROM ring_seen s JOIN nodes n ON n.name = s.node AND n.incarnation = s.incarnation
		JOIN agents g ON g.uid = n.uid AND g.incarnation = n.incarnation WHERE s.cluster = ? AND s.host_id <> '' AND g.state <> 'revoked' ORDER BY s.node`, cluster)
	if err != nil {
		return err
	}
	known := map[string]bool{}
	old, err := removals(a.Context(), a.Querier(), cluster)
	if err != nil {
		return err
	}
	if len(old) == 0 {
		if v, err := ringViewOf(a.Context(), a.Querier(), by); err != nil || v != nil && v.seesAll(hosts) {
			return err
		}
	}
	for _, r := range old {
		known[r.node] = true
	}
	views, err := ringViews(a.Context(), a.Querier(), cluster)
	if err != nil {
		return err
	}
	now := gone(views, hosts)
	var said []string
	for _, node := range names {
		who, is := now[node]
		if is == known[node] {
			continue
		}
		if !is {
			if err := dropRemoval(a, node); err != nil {
				return err
			}
			continue
		}
		r := removal{node: node, hostID: hosts[node], witnesses: who}
		said = append(said, r.message())
		if _, err := a.Exec(`INSERT INTO removals (node, cluster, host_id, witnesses, since_ms) VALUES (?,?,?,?,?)`, node, cluster, r.hostID, strings.Join(who, ","), a.Now.UnixMilli()); err != nil {
			return err
		}
		a.Touch(state.Updated, node)
		a.Touch(state.Updated, cluster)
	}
	if len(said) == 0 {
		return nil
	}
	return alarm(a, "removal-proposed", cluster, strings.Join(said, "; "))
}

// dropRemoval forgets a proposal: the node is seen again, or was removed or replaced.
func dropRemoval(a *state.Apply, node string) error {
	res, err := a.Exec(`DELETE FROM removals WHERE node = ?`, node)
	if err != nil {
		return err
	}
	if n, err := res.RowsAffected(); err != nil || n == 0 {
		return err
	}
	a.Touch(state.Updated, node)
	a.Touch(state.Updated, resource.Parent(node))
	return nil
}

// noteCopies writes down which machines came with one identity, so that a person can say which of them stays.
func noteCopies(a *state.Apply, n nodeRow, says *agentv1.AgentFacts, instance *agentv1.InstanceFacts) error {
	var encoded []byte
	if err := a.QueryRow(`SELECT instance FROM nodes WHERE name = ?`, n.name).Scan(&encoded); err != nil {
		return err
	}
	var known agentv1.InstanceFacts
	if err := proto.Unmarshal(encoded, &known); err != nil {
		return fault.Wrap(err, fault.Internal, "bad-row", "facts of %s cannot be read", n.name)
	}
	for _, m := range []struct {
		machine []byte
		address string
	}{{n.agent.machine, known.ListenAddress}, {says.Machine, instance.ListenAddress}} {
		if len(m.machine) == 0 {
			continue
		}
		if _, err := a.Exec(`INSERT INTO agent_copies (uid, incarnation, machine, address, seen_ms) VALUES (?,?,?,?,?) ON CONFLICT DO NOTHING`,
			n.uid, n.incarnation, m.machine, m.address, a.Now.UnixMilli()); err != nil {
			return err
		}
	}
	return nil
}

// copies is the condition of a node whose identity was seen on more than one machine; nil when it was not.
func copies(ctx context.Context, q state.Querier, node string) (*Condition, error) {
	var since int64
	list, err := collect(ctx, q, func(r *sql.Rows) (string, error) {
		var machine []byte
		var address string
		var seen int64
		err := r.Scan(&machine, &address, &seen)
		since = max(since, seen)
		if address == "" {
			address = "an address it does not tell"
		}
		return fmt.Sprintf("%s (Cassandra at %s)", hexOf(machine)[:min(12, 2*len(machine))], address), err
	}, `SELECT c.machine, c.address, c.seen_ms FROM agent_copies c JOIN nodes n ON n.uid = c.uid AND n.incarnation = c.incarnation
		JOIN agents g ON g.uid = n.uid AND g.incarnation = n.incarnation WHERE n.name = ? AND g.state = 'suspended' ORDER BY c.machine`, node)
	if err != nil || len(list) < 2 {
		return nil, err
	}
	return &Condition{Type: "copied-state", Severity: "error", Resource: node, Since: at(since), Message: "the identity of this node came from machines " + strings.Join(list, " and "),
		Remedy: fmt.Sprintf("keep one: `csm node resume %s --keep MACHINE --reason ... --yes`; the other is refused from then on: remove its state folder and let it join as a node of its own. "+
			"If the copy may be a theft: `csm node rejoin %s` makes a new identity, and both old ones end", short(node), short(node))}, nil
}

// pin lets only one of the machines go on that came with an identity. keep is the beginning of its hash, in hex.
func pin(a *state.Apply, n nodeRow, keep string) error {
	machines, err := collect(a.Context(), a.Querier(), scanBytes, `SELECT machine FROM agent_copies WHERE uid = ? AND incarnation = ? ORDER BY machine`, n.uid, n.incarnation)
	if err != nil {
		return err
	}
	var found [][]byte
	for _, m := range machines {
		if strings.HasPrefix(hex.EncodeToString(m), strings.ToLower(keep)) {
			found = append(found, m)
		}
	}
	if len(found) != 1 {
		return fault.New(fault.Invalid, "which-machine", "%d of the %d machines that came with the identity of %s begin with %.64q", len(found), len(machines), short(n.name), keep).
			Do("see them with `csm node get %s`", short(n.name))
	}
	_, err = a.Exec(`UPDATE agents SET machine = ?, pinned = 1 WHERE uid = ? AND incarnation = ?`, found[0], n.uid, n.incarnation)
	return err
}

// theCopy refuses the machine that was not kept, and leaves the one that was alone.
func theCopy(a *state.Apply, n nodeRow, says *agentv1.AgentFacts) error {
	var pinned bool
	if err := a.QueryRow(`SELECT pinned FROM agents WHERE uid = ? AND incarnation = ?`, n.uid, n.incarnation).Scan(&pinned); err != nil {
		return err
	}
	if !pinned || string(says.Machine) == string(n.agent.machine) {
		return nil
	}
	return fault.New(fault.Refused, "copied-state", "this host's state folder is a copy of that of %s, which stays", short(n.name)).
		Do("remove the state folder here and let this host join as a node of its own: `csm cluster join-command`")
}
