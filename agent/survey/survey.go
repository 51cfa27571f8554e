// Package survey reads over CQL what one Cassandra tells of its clients and of its ring: system_views.clients, and one token
// of a table at each quorum of ranges that named other members own. package cql carries it.
//
// It only ever sends SELECT, each with a limit, each at most once per survey. It refuses to judge: an answer is told as it came.
// README.md says why a read of one token is the probe.
package survey

import (
	"cmp"
	"context"
	"net/netip"
	"slices"
	"strings"

	agentv1 "github.com/cassandra-security-manager/csm/protocol/agent/v1"

	"github.com/cassandra-security-manager/csm/agent/cql"
	"github.com/cassandra-security-manager/csm/shared/fault"
)

// Reader is a logged-in connection; *cql.Conn is one.
type Reader interface {
	Query(ctx context.Context, statement string, level cql.Consistency, limit int) (rows []cql.Row, more bool, err error)
}

// Bounds of what is told; the wire's own.
const (
	maxSeen      = 200
	maxPlaintext = 50
	// maxConnections is how many rows of system_views.clients are read.
	maxConnections = 10000
)

const clientsQuery = `SELECT address, port, username, driver_name, driver_version, protocol_version, ssl_enabled, ssl_protocol FROM system_views.clients`

// Clients reads who is connected now, without the agent's own connections. The error has the reason cql-not-granted or
// cql-failed.
//
// fresh says whether the connection from an address and port was made since the leaf of now is served; nil: nobody knows.
func Clients(ctx context.Context, r Reader, fresh func(netip.AddrPort) bool) (*agentv1.ClientFacts, error) {
	rows, more, err := r.Query(ctx, clientsQuery, cql.One, maxConnections)
	if err != nil {
		return nil, unread(err, "system_views.clients")
	}
	f := clientFacts(rows, fresh)
	f.Truncated = f.Truncated || more
	return f, nil
}

func unread(err error, what string) error {
	if cql.NotGranted(err) {
		return fault.Wrap(err, fault.Refused, "cql-not-granted", "the role may not read %s", what).Do("GRANT SELECT ON %s TO the role in agent.yaml (docs/agent.md)", what)
	}
	return fault.Wrap(err, fault.Unavailable, "cql-failed", "%s cannot be read", what)
}

// clientFacts counts connections by who and how. Pure.
func clientFacts(rows []cql.Row, fresh func(netip.AddrPort) bool) *agentv1.ClientFacts {
	type who struct {
		address, user, driver, version, tls string
		protocol                            int
	}
	f, count, made := &agentv1.ClientFacts{}, map[who]uint32{}, map[who]uint32{}
	for _, r := range rows {
		if r.Text("driver_name") == cql.DriverName {
			continue
		}
		a := r.Address("address")
		if !a.IsValid() {
			continue
		}
		w := who{address: string(a.AsSlice()), user: clip(r.Text("username"), 128), driver: clip(r.Text("driver_name"), 128), version: clip(r.Text("driver_version"), 64), protocol: r.Int("protocol_version")}
		if r.Bool("ssl_enabled") {
			w.tls = cmp.Or(clip(r.Text("ssl_protocol"), 16), "TLS")
			f.Encrypted++
		} else {
			f.Plaintext++
		}
		count[w]++
		if port := r.Int("port"); fresh != nil && w.tls != "" && port > 0 && port < 1<<16 && fresh(netip.AddrPortFrom(a.Unmap(), uint16(port))) {
			made[w]++
		}
	}
	for w, n := range count {
		f.Seen = append(f.Seen, &agentv1.SeenClient{Address: []byte(w.address), User: w.user, Driver: w.driver, DriverVersion: w.version, Tls: w.tls, Protocol: uint32(w.protocol), Connections: n, Fresh: made[w]})
	}
	// Plaintext first: it is what must not fall out where there are too many.
	slices.SortFunc(f.Seen, func(a, b *agentv1.SeenClient) int {
		return cmp.Or(cmp.Compare(min(len(a.Tls), 1), min(len(b.Tls), 1)), slices.Compare(a.Address, b.Address), cmp.Compare(a.User, b.User), cmp.Compare(a.Driver, b.Driver),
			cmp.Compare(a.DriverVersion, b.DriverVersion), cmp.Compare(a.Tls, b.Tls), cmp.Compare(a.Protocol, b.Protocol))
	})
	f.PlaintextClients = plaintext(f.Seen)
	if len(f.Seen) > maxSeen {
		f.Seen, f.Truncated = f.Seen[:maxSeen], true
	}
	return f
}

func plaintext(seen []*agentv1.SeenClient) (out []*agentv1.PlaintextClient) {
	for _, s := range seen {
		p := &agentv1.PlaintextClient{Address: addressText(s.Address), User: s.User, Driver: clip(strings.TrimSpace(s.Driver+" "+s.DriverVersion), 128)}
		if s.Tls != "" || len(out) == maxPlaintext {
			break
		}
		if n := len(out); n > 0 && out[n-1].Address == p.Address && out[n-1].User == p.User && out[n-1].Driver == p.Driver {
			continue
		}
		out = append(out, p)
	}
	return out
}

func clip(s string, n int) string {
	s = strings.ToValidUTF8(s, "?")
	for len(s) > n {
		s = strings.ToValidUTF8(s[:n], "")
	}
	return s
}
