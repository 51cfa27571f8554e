package fleet

import (
	"context"
	"fmt"
	"net/netip"
	"slices"
	"strings"

	"google.golang.org/protobuf/proto"

	agentv1 "github.com/cassandra-security-manager/csm/protocol/agent/v1"
	clusterv1 "github.com/cassandra-security-manager/csm/protocol/cluster/v1"

	"github.com/cassandra-security-manager/csm/controller/state"
	"github.com/cassandra-security-manager/csm/shared/fault"
	"github.com/cassandra-security-manager/csm/shared/resource"
)

// newcomer is who comes with a token, as far as the ring can tell.
type newcomer struct {
	addresses []string
	// running: its Cassandra runs, so that its peers must know it. hostID is what it says of itself, formerID what the node's
	// incarnation before it was; both may be unknown.
	running          bool
	hostID, formerID string
	// asked are the nodes whose view of the ring counts. seenBy are how many of them see the newcomer at an address, held is who
	// else they see there.
	asked  []string
	seenBy map[string]int
	held   map[string]ringMember
}

// judge says why the ring has nothing against the newcomer, or, by its doubts, why a person must decide. Pure.
//
// A ring that cannot be asked, because fewer than two of its nodes tell how they see it, leaves the token alone to decide. So does a
// Cassandra that has not run yet, at an address that nobody has: no peer can know it.
func (n newcomer) judge() (confirmation string, doubts []string) {
	if len(n.asked) < enough {
		return fmt.Sprintf("by the token alone: %d peers can be asked, %d are needed", len(n.asked), enough), nil
	}
	for _, i := range n.addresses {
		if i == "127.0.0.1" && len(n.addresses) > 1 {
			continue // where links on one machine come from, and the address of no member
		}
		held, other := n.held[i]
		switch k := n.seenBy[i]; {
		case n.running && k < enough && other:
			doubts = append(doubts, fmt.Sprintf("%s belongs to another member of the ring (host id %s), as the gossip of enrolled peers says", i, held.hostID))
		case n.running && k < enough:
			doubts = append(doubts, fmt.Sprintf("%s is known to the gossip of %d enrolled peers, %d are needed", i, k, enough))
		case !n.running && other:
			doubts = append(doubts, fmt.Sprintf("%s belongs to a member of the ring (host id %s, %s), and no Cassandra runs here that could be it", i, held.hostID, upOrDown(held.up)))
		}
	}
	if n.running {
		return "by the gossip of " + strings.Join(shorts(n.asked), ", "), doubts
	}
	return "by the token alone: its Cassandra has not run yet, and no peer sees another one there", doubts
}

// is says whether a member at one of its addresses is the newcomer itself.
func (n newcomer) is(m ringMember) bool {
	switch {
	case n.hostID != "":
		return m.hostID == n.hostID
	case n.running:
		return true // it does not know its host id yet
	}
	return n.formerID != "" && m.hostID == n.formerID
}

func upOrDown(up bool) string {
	if up {
		return "up"
	}
	return "down"
}

func shorts(names []string) (out []string) {
	for _, n := range names {
		out = append(out, resource.Last(n))
	}
	return out
}

// newcomerOf gathers what the decision needs.
func newcomerOf(ctx context.Context, q state.Querier, t tokenRow, names Names, i *agentv1.InstanceFacts) (n newcomer, err error) {
	n = newcomer{addresses: names.IPs, running: i.Running, hostID: i.HostId, seenBy: map[string]int{}, held: map[string]ringMember{}}
	if n.formerID, err = hostIDOf(ctx, q, t.node); err != nil {
		return n, err
	}
	views, err := ringViews(ctx, q, t.cluster)
	if err != nil {
		return n, err
	}
	n.asked, _ = witnesses(views, t.node, func(ringMember) bool { return true })
	for _, s := range names.IPs {
		a, err := netip.ParseAddr(s)
		if err != nil {
			continue
		}
		there := func(m ringMember) bool { return m.address == a.Unmap() }
		known := func(m ringMember) bool { return n.is(m) || n.running && a.IsLoopback() }
		see, _ := witnesses(views, t.node, func(m ringMember) bool { return there(m) && known(m) })
		n.seenBy[s] = len(see)
		for _, v := range views {
			if k := slices.IndexFunc(v.members, func(m ringMember) bool { return there(m) && !known(m) }); v.counts && v.node != t.node && k >= 0 {
				n.held[s] = v.members[k]
			}
		}
	}
	return n, nil
}

// tokenAsking is a join by a token as the queue keeps it. The names are those of the node, which the token is bound to.
func tokenAsking(ctx context.Context, q state.Querier, c *clusterv1.JoinNode, t tokenRow) (x petition, names Names, err error) {
	x = petition{method: MethodToken, cluster: t.cluster, node: t.node, token: t.name, attested: "{}", key: c.KeySha256, cassandraKey: []byte{}, peer: c.Peer, instance: c.Instance, id: c.Id}
	if err := q.QueryRowContext(ctx, `SELECT names FROM nodes WHERE name = ?`, t.node).Scan(&x.names); err != nil {
		return x, names, err
	}
	names, err = namesFrom(x.names)
	return x, names, err
}

// confirmed says how the ring confirms who joins by a token; waits is the answer where a person must.
func confirmed(a *state.Apply, c *clusterv1.JoinNode, t tokenRow, i *agentv1.InstanceFacts) (how string, waits *clusterv1.JoinNodeReply, err error) {
	x, names, err := tokenAsking(a.Context(), a.Querier(), c, t)
	if err != nil {
		return "", nil, err
	}
	r, asked, err := requestOfKey(a.Context(), a.Querier(), c.KeySha256)
	switch {
	case err != nil:
		return "", nil, err
	case asked && r.state == requestDenied:
		return "", nil, r.denied()
	case asked && r.approves(x, a.Now):
		return "by " + r.decider, nil, nil
	}
	n, err := newcomerOf(a.Context(), a.Querier(), t, names, i)
	if err != nil {
		return "", nil, err
	}
	how, why := n.judge()
	if len(why) == 0 {
		return how, nil, nil
	}
	waits, err = queue(a, x, r, why)
	return "", waits, err
}

// approvedToken says whether a person's word covers this key and this token: it then outlives the token's end.
func approvedToken(a *state.Apply, c *clusterv1.JoinNode, t tokenRow) (bool, error) {
	x, _, err := tokenAsking(a.Context(), a.Querier(), c, t)
	if err != nil {
		return false, err
	}
	r, asked, err := requestOfKey(a.Context(), a.Querier(), c.KeySha256)
	return asked && r.approves(x, a.Now), err
}

// heldByAnother answers a key that comes with a token for which another key waits already.
func heldByAnother(a *state.Apply, c *clusterv1.JoinNode, t tokenRow) (*clusterv1.JoinNodeReply, error) {
	var n int
	if err := a.QueryRow(`SELECT count(*) FROM join_requests WHERE token = ? AND key_sha256 <> ? AND state IN (?, ?)`, t.name, c.KeySha256, requestPending, requestApproved).Scan(&n); err != nil || t.used+n < t.uses {
		return nil, err
	}
	err := alarm(a, "token-reused", t.node, "a join token for which another key waits came with a key from "+c.Peer)
	refused := fault.New(fault.Refused, "token-held", "another key waits for a person's word on this join token").
		Do("`csm request list` shows who; if this host lost its key, deny that request and make a new token with `csm cluster join-command`")
	return &clusterv1.JoinNodeReply{Refused: toFault(refused)}, err
}

// tokenWaits gives the answer to a repeat that would change nothing: it costs no command.
func (f *Fleet) tokenWaits(ctx context.Context, c *clusterv1.JoinNode) error {
	waits, err := view(ctx, f.read, func(ctx context.Context, q state.Querier) (error, error) {
		t, known, err := tokenOf(ctx, q, c.TokenSha256)
		if err != nil || !known {
			return nil, err
		}
		x, names, err := tokenAsking(ctx, q, c, t)
		if err != nil {
			return nil, err
		}
		return stillPending(ctx, q, x, f.clock.Now(), func() ([]string, error) {
			var instance agentv1.InstanceFacts
			if err := proto.Unmarshal(c.Instance, &instance); err != nil {
				return nil, fault.Wrap(err, fault.Invalid, "bad-facts", "the instance's facts cannot be read")
			}
			n, err := newcomerOf(ctx, q, t, names, &instance)
			_, why := n.judge()
			return why, err
		})
	})
	if err != nil {
		return err
	}
	return waits
}
