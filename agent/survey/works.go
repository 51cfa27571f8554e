package survey

import (
	"context"
	"fmt"

	agentv1 "github.com/cassandra-security-manager/csm/protocol/agent/v1"

	"github.com/cassandra-security-manager/csm/agent/cql"
	"github.com/cassandra-security-manager/csm/shared/fault"
)

// maxWorks is how much of what is under way is told, the wire's bound; maxPlans how many plans are looked through: the tables
// keep the finished ones for days.
const (
	maxWorks = 20
	maxPlans = 5000
)

// Works reads which streams and repairs are under way, from virtual tables that exist since 4.1. The error has the reason
// cql-no-table (an older release), cql-not-granted or cql-failed: nodetool must be asked then.
func Works(ctx context.Context, r Reader) ([]*agentv1.Work, error) {
	var works []*agentv1.Work
	for _, from := range []struct {
		table, statement string
		work             func(cql.Row) *agentv1.Work
	}{
		{"system_views.streaming", `SELECT operation, status, peers FROM system_views.streaming`, streamWork},
		{"system_views.repairs", `SELECT keyspace_name, status, completed FROM system_views.repairs`, repairWork},
	} {
		rows, _, err := r.Query(ctx, from.statement, cql.One, maxPlans)
		if cql.NotThere(err) {
			return nil, fault.Wrap(err, fault.Unavailable, "cql-no-table", "this release has no %s", from.table)
		}
		if err != nil {
			return nil, unread(err, from.table)
		}
		for _, x := range rows {
			if w := from.work(x); w != nil && len(works) < maxWorks {
				works = append(works, w)
			}
		}
	}
	return works, nil
}

// streamWork is a plan of streams that has not ended. Pure.
func streamWork(r cql.Row) *agentv1.Work {
	switch status := r.Text("status"); status {
	case "success", "failure":
		return nil
	default:
		return &agentv1.Work{Kind: "stream", Detail: clip(fmt.Sprintf("%s with %v: %s", r.Text("operation"), r.Texts("peers"), status), 512)}
	}
}

// repairWork is a repair that this node coordinates and that has not ended. Pure.
func repairWork(r cql.Row) *agentv1.Work {
	if r.Bool("completed") {
		return nil
	}
	return &agentv1.Work{Kind: "repair", Detail: clip(fmt.Sprintf("of %s: %s", r.Text("keyspace_name"), r.Text("status")), 512)}
}
