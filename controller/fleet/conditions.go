package fleet

import (
	"context"
	"fmt"
	"time"

	"github.com/cassandra-security-manager/csm/controller/state"
)

// Condition is something about a cluster or a node that a person should know, as long as it is so.
type Condition struct {
	// Type is a stable kebab-case word.
	Type     string `json:"type" doc:"expires-frozen, removal-proposed, copied-state"`
	Severity string `json:"severity" enum:"error,warning,info"`
	// Resource that it is about.
	Resource string    `json:"resource"`
	Message  string    `json:"message"`
	Remedy   string    `json:"remedy,omitempty"`
	Since    time.Time `json:"since,omitzero"`
}

// conditions of a cluster or node, from what stands in the state now.
func conditions(ctx context.Context, q state.Querier, name string, z *Freeze, now time.Time) ([]Condition, error) {
	var out []Condition
	if z != nil {
		e, err := expiringUnder(ctx, q, name, *z, now)
		if err != nil {
			return nil, err
		}
		if c := e.condition(name, *z, now); c != nil {
			out = append(out, *c)
		}
	}
	gone, err := removals(ctx, q, name)
	for _, r := range gone {
		out = append(out, r.condition())
	}
	if err != nil || kindOf(name) != "node" {
		return out, err
	}
	twice, err := copies(ctx, q, name)
	if twice != nil {
		out = append(out, *twice)
	}
	return out, err
}

// expiry sums up which stores of a scope a freeze would let expire.
type expiry struct {
	stores int
	first  time.Time
	node   string
}

// condition is the alarm in words; nil when nothing expires.
func (e expiry) condition(name string, z Freeze, now time.Time) *Condition {
	if e.stores == 0 {
		return nil
	}
	c := &Condition{Type: "expires-frozen", Severity: "warning", Resource: name, Message: e.message(z), Since: z.Since,
		Remedy: "`" + unfreezeCommand(z.Scope) + "` in time: nothing is renewed before; do not restart a node whose certificate has expired"}
	if e.first.Sub(now) < 24*time.Hour {
		c.Severity = "error"
	}
	return c
}

func (e expiry) message(z Freeze) string {
	what := "a store expires"
	if e.stores > 1 {
		what = fmt.Sprintf("%d stores expire", e.stores)
	}
	until := "which has no end"
	if !z.Until.IsZero() {
		until = "which ends at " + z.Until.Format(time.RFC3339)
	}
	return fmt.Sprintf("%s under the freeze of %s, %s: the first at %s on %s", what, z.Scope, until, e.first.Format(time.RFC3339), short(e.node))
}

// unfreezeCommand is the command that lifts the freeze of a scope.
func unfreezeCommand(scope string) string {
	switch kindOf(scope) {
	case System:
		return "csm system unfreeze"
	case "tenant":
		return "csm tenant unfreeze " + scope[len("tenants/"):]
	case "cluster":
		return "csm cluster unfreeze " + short(scope)
	}
	return "csm node unfreeze " + short(scope)
}
