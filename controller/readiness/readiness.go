// Package readiness makes the first-day report of a cluster: it brings together what the agents told (package fleet) and
// what their scans found (package ledger) and has shared/readiness judge it. It changes nothing and keeps nothing.
package readiness

import (
	"context"
	"encoding/hex"
	"time"

	"github.com/cassandra-security-manager/csm/controller/fleet"
	"github.com/cassandra-security-manager/csm/controller/ledger"
	"github.com/cassandra-security-manager/csm/shared/readiness"
	"github.com/cassandra-security-manager/csm/shared/resource"
)

// Facts is what the report needs of package fleet.
type Facts interface {
	Facts(ctx context.Context, cluster string) ([]fleet.NodeFacts, error)
}

// Inventory is what the report needs of package ledger.
type Inventory interface {
	Found(ctx context.Context, f ledger.FoundFilter, p ledger.Page) ([]ledger.Found, string, error)
}

// pageSize of the inventory; a page of certificates is all that is in memory beside what is kept of them.
const pageSize = 1000

// Cluster reports on a cluster by its full name, as of now. The certificate of a CA that lies on each node is read once.
func Cluster(ctx context.Context, facts Facts, inventory Inventory, cluster string, now time.Time) (readiness.Report, error) {
	all, err := facts.Facts(ctx, cluster)
	if err != nil {
		return readiness.Report{}, err
	}
	nodes := make([]readiness.Node, len(all))
	at := map[string]*readiness.Node{}
	for i, n := range all {
		nodes[i] = readiness.Node{Name: n.Name, State: n.State, StateReason: n.StateReason, Connected: n.Connected, Since: n.Transition, Agent: n.Agent, Instance: n.Instance, Stores: n.Stores}
		at[n.Name] = &nodes[i]
	}
	parsed := map[string]*readiness.Parsed{}
	for token := ""; ; {
		page, next, err := inventory.Found(ctx, ledger.FoundFilter{Tenant: resource.Segment(cluster, "tenants"), Cluster: cluster}, ledger.Page{Size: pageSize, Token: token})
		if err != nil {
			return readiness.Report{}, err
		}
		for _, f := range page {
			n := at[f.Node]
			if n == nil {
				continue // removed between the two reads
			}
			n.Scanned = true
			p := parsed[f.SHA256]
			if p == nil {
				if p, err = readiness.Parse(f.DER); err != nil {
					continue // recorded only if it could be parsed; a newer parser may be stricter
				}
				parsed[hex.EncodeToString(p.SHA256[:])] = p
			}
			n.Found = append(n.Found, readiness.Found{Parsed: p, Path: f.Path, Entry: f.Entry, HasPrivateKey: f.HasPrivateKey, Mode: f.Mode})
		}
		if token = next; token == "" {
			break
		}
	}
	return readiness.Judge(nodes, now), nil
}
