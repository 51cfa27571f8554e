package fleet

import (
	"bytes"
	"cmp"
	"context"
	"database/sql"
	"net/netip"
	"slices"
	"time"

	"google.golang.org/protobuf/proto"

	agentv1 "github.com/cassandra-security-manager/csm/protocol/agent/v1"
	clusterv1 "github.com/cassandra-security-manager/csm/protocol/cluster/v1"

	"github.com/cassandra-security-manager/csm/controller/state"
	"github.com/cassandra-security-manager/csm/shared/fault"
)

// What is kept of clients: per node the newest, and none that was not seen for long.
const (
	maxClientsPerNode = 400
	clientKept        = 30 * 24 * time.Hour
)

// Client is an application, or several, on one address that speak CQL to a cluster in one way.
type Client struct {
	// Address is without a port.
	Address       string `json:"address"`
	User          string `json:"user,omitempty" doc:"role that it logged in as; anonymous without a login"`
	Driver        string `json:"driver,omitempty"`
	DriverVersion string `json:"driverVersion,omitempty"`
	// TLS is the version, as in TLSv1.3; empty in plaintext.
	TLS string `json:"tls,omitempty" doc:"version of TLS; absent in plaintext"`
	// Protocol is the version of the native protocol.
	Protocol int `json:"protocol"`
	// Connections are those that the nodes counted when they last looked.
	Connections int `json:"connections"`
	// Nodes saw it, by name.
	Nodes []string `json:"nodes"`
	// First and Last are when it was seen, by the state's clock.
	First time.Time `json:"firstSeenTime"`
	Last  time.Time `json:"lastSeenTime"`
	// Sights are the same by node, for gates.
	Sights []ClientSight `json:"-"`
}

// ClientSight is what one node saw of a client.
type ClientSight struct {
	Node string
	Last time.Time
	// FreshLeaf is the SHA-256 of the node's leaf when a connection was last seen that was made since that leaf is served; empty when
	// none was.
	FreshLeaf []byte
}

// Look is when a node last looked for clients, and why it saw none.
type Look struct {
	Node string    `json:"node"`
	Time time.Time `json:"time,omitzero"`
	// Reason is a stable word and Unseen a sentence; empty when clients could be seen.
	Reason string `json:"reason,omitempty"`
	Unseen string `json:"unseen,omitempty"`
	// Truncated: the node had more clients than are told.
	Truncated bool `json:"truncated,omitempty"`
	// FreshUnseen is why the node cannot tell which connections were made since its leaf is served.
	FreshUnseen string `json:"freshUnseen,omitempty" doc:"why connections from before the node's newest leaf cannot be told from those made since"`
}

// SeenClients is who speaks CQL to a cluster.
type SeenClients struct {
	Clients []Client `json:"clients"`
	// Looks has one entry for each enrolled node; one that never told has no time.
	Looks []Look `json:"looks"`
}

// reportClients writes down which clients a node saw. What was told before is not written again.
func reportClients(a *state.Apply, n nodeRow, c *clusterv1.AgentReported) error {
	if len(c.Clients) == 0 {
		return nil
	}
	var was []byte
	ok, err := found(a.QueryRow(`SELECT facts FROM clients_looked WHERE node = ?`, n.name).Scan(&was))
	if err != nil || ok && bytes.Equal(was, c.Clients) {
		return err
	}
	var f agentv1.ClientFacts
	if err := proto.Unmarshal(c.Clients, &f); err != nil {
		return fault.Wrap(err, fault.Invalid, "bad-facts", "the clients cannot be read")
	}
	now := a.Now.UnixMilli()
	var looked int64
	if f.Time != nil {
		looked = f.Time.AsTime().UnixMilli()
	}
	if _, err := a.Exec(`INSERT INTO clients_looked (node, cluster, facts, looked_ms, reason, unseen, truncated, fresh_unseen, seen_ms) VALUES (?,?,?,?,?,?,?,?,?) ON CONFLICT (node) DO UPDATE SET
		cluster = excluded.cluster, facts = excluded.facts, looked_ms = excluded.looked_ms, reason = excluded.reason, unseen = excluded.unseen, truncated = excluded.truncated, fresh_unseen = excluded.fresh_unseen, seen_ms = excluded.seen_ms`,
		n.name, n.cluster, c.Clients, looked, f.Reason, f.Unseen, flag(f.Truncated), freshUnseen(&f), now); err != nil {
		return err
	}
	for _, s := range f.Seen {
		address, ok := netip.AddrFromSlice(s.Address)
		if !ok {
			continue
		}
		fresh, freshMs := []byte{}, int64(0)
		if s.Fresh > 0 && len(f.LeafSha256) > 0 {
			fresh, freshMs = f.LeafSha256, now
		}
		if _, err := a.Exec(`INSERT INTO clients_seen (cluster, node, address, user, driver, driver_version, tls, protocol, connections, first_ms, last_ms, fresh_leaf, fresh_ms) VALUES (?,?,?,?,?,?,?,?,?,?,?,?,?)
			ON CONFLICT DO UPDATE SET connections = excluded.connections, last_ms = excluded.last_ms,
			fresh_leaf = iif(excluded.fresh_ms > 0, excluded.fresh_leaf, fresh_leaf), fresh_ms = max(excluded.fresh_ms, fresh_ms)`,
			n.cluster, n.name, address.Unmap().String(), s.User, s.Driver, s.DriverVersion, s.Tls, s.Protocol, s.Connections, now, now, fresh, freshMs); err != nil {
			return err
		}
	}
	_, err = a.Exec(`DELETE FROM clients_seen WHERE node = ? AND (last_ms < ? OR last_ms < coalesce((SELECT last_ms FROM clients_seen WHERE node = ? ORDER BY last_ms DESC LIMIT 1 OFFSET ?), 0))`,
		n.name, now-clientKept.Milliseconds(), n.name, maxClientsPerNode)
	return err
}

// freshUnseen says why a node that sees its clients cannot tell new connections from old ones.
func freshUnseen(f *agentv1.ClientFacts) string {
	switch {
	case f.Unseen != "" || len(f.LeafSha256) > 0:
		return ""
	case f.FreshUnseen == "":
		return "its agent does not tell connections from before a reload from those made since"
	}
	return f.FreshUnseen
}

// Clients says who was seen to speak CQL to a cluster in the last thirty days, plaintext first, then the newest.
func Clients(ctx context.Context, q state.Querier, cluster string) (SeenClients, error) {
	type key struct {
		address, user, driver, version, tls string
		protocol                            int
	}
	var out SeenClients
	at1 := map[key]int{}
	_, err := collect(ctx, q, func(r *sql.Rows) (struct{}, error) {
		var k key
		var node string
		var connections int
		var first, last int64
		var fresh []byte
		if err := r.Scan(&node, &k.address, &k.user, &k.driver, &k.version, &k.tls, &k.protocol, &connections, &first, &last, &fresh); err != nil {
			return struct{}{}, err
		}
		i, ok := at1[k]
		if !ok {
			i = len(out.Clients)
			at1[k] = i
			out.Clients = append(out.Clients, Client{Address: k.address, User: k.user, Driver: k.driver, DriverVersion: k.version, TLS: k.tls, Protocol: k.protocol, First: at(first)})
		}
		c := &out.Clients[i]
		c.Connections += connections
		c.Nodes = append(c.Nodes, node)
		c.Sights = append(c.Sights, ClientSight{node, at(last), fresh})
		if t := at(first); t.Before(c.First) {
			c.First = t
		}
		if t := at(last); t.After(c.Last) {
			c.Last = t
		}
		return struct{}{}, nil
	}, `SELECT node, address, user, driver, driver_version, tls, protocol, connections, first_ms, last_ms, fresh_leaf FROM clients_seen WHERE cluster = ?
		ORDER BY address, user, driver, driver_version, tls, protocol, node`, cluster)
	if err != nil {
		return out, err
	}
	slices.SortStableFunc(out.Clients, func(a, b Client) int {
		return cmp.Or(cmp.Compare(flag(a.TLS != ""), flag(b.TLS != "")), b.Last.Compare(a.Last), cmp.Compare(a.Address, b.Address))
	})
	out.Looks, err = collect(ctx, q, func(r *sql.Rows) (l Look, err error) {
		var looked int64
		err = r.Scan(&l.Node, &looked, &l.Reason, &l.Unseen, &l.Truncated, &l.FreshUnseen)
		l.Time = at(looked)
		return l, err
	}, `SELECT n.name, coalesce(l.looked_ms, 0), coalesce(l.reason, 'not-told'), coalesce(l.unseen, 'its agent has not told yet'), coalesce(l.truncated, 0), coalesce(l.fresh_unseen, '')
		FROM nodes n LEFT JOIN clients_looked l ON l.node = n.name WHERE n.cluster = ? AND n.incarnation > 0 ORDER BY n.name`, cluster)
	return out, err
}

// Clients reads them from this controller's state.
func (f *Fleet) Clients(ctx context.Context, cluster string) (SeenClients, error) {
	return view(ctx, f.read, func(ctx context.Context, q state.Querier) (SeenClients, error) {
		if err := clusterIs(ctx, q, cluster); err != nil {
			return SeenClients{}, err
		}
		return Clients(ctx, q, cluster)
	})
}
