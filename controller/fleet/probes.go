package fleet

import (
	"context"
	"time"

	clusterv1 "github.com/cassandra-security-manager/csm/protocol/cluster/v1"

	"github.com/cassandra-security-manager/csm/controller/state"
	"github.com/cassandra-security-manager/csm/shared/fault"
	"github.com/cassandra-security-manager/csm/shared/resource"
)

// TemplateProbe is the template of a certificate that a prober offers to a neighbour's port.
const TemplateProbe = "probe"

// MaxProbeLife is how long such a certificate may live.
const MaxProbeLife = time.Hour

// ProbeTask is what a prober's certificate may be issued for.
type ProbeTask struct {
	Task        string
	Prober      string
	Incarnation uint64
	Authority   string
	Region      string
	Names       Names
}

// OpenProbe reads a task that names an authority and is open; NotFound when it is not, or not yet.
func (f *Fleet) OpenProbe(ctx context.Context, task string) (ProbeTask, error) {
	now := f.clock.Now().UnixMilli()
	return view(ctx, f.read, func(ctx context.Context, q state.Querier) (ProbeTask, error) {
		p := ProbeTask{Task: task}
		var names string
		ok, err := found(q.QueryRowContext(ctx, `SELECT t.prober, t.authority, n.incarnation, n.names, c.region FROM proof_tasks t JOIN nodes n ON n.name = t.prober JOIN clusters c ON c.name = n.cluster
			WHERE t.task = ? AND t.authority <> '' AND t.recorded = 0 AND t.deadline_ms > ?`, task, now).Scan(&p.Prober, &p.Authority, &p.Incarnation, &names, &p.Region))
		if err == nil && !ok {
			err = fault.New(fault.NotFound, "no-task", "there is no such open task that needs a certificate").Do("wait to be asked again")
		}
		if err == nil {
			p.Names, err = namesFrom(names)
		}
		return p, err
	})
}

// probeAllowed is the guard of a prober's certificate: for an open task of its own, of the authority that the task names, with
// the prober's own names, for minutes. No claim is needed: nothing on any node changes by it.
func probeAllowed(a *state.Apply, c *clusterv1.RecordCertificate) error {
	t, ok, err := readTask(a, c.Task)
	if err != nil {
		return err
	}
	if !ok || t.prober != c.Node {
		return fault.New(fault.Refused, "not-your-task", "%.200q was not asked for this proof", c.Node)
	}
	n, err := readNode(a, t.prober)
	if err != nil {
		return err
	}
	now := a.Now.UnixMilli()
	switch {
	case t.authority == "":
		return fault.New(fault.Refused, "no-authority", "this task is answered with the node's own certificate")
	case t.recorded != 0 || t.deadline <= now:
		return fault.New(fault.Stale, "task-closed", "the task was answered, or its time is over").Do("wait to be asked again")
	case c.Incarnation != n.incarnation:
		return oldIncarnation(n, c.Incarnation)
	case c.Template != TemplateProbe || c.Claim != "" || c.Store != "" || c.NotAfterMs-now > MaxProbeLife.Milliseconds():
		return fault.New(fault.Refused, "not-a-probe", "what answers a task is a probe's certificate of minutes, and nothing else")
	case resource.Parent(c.Issuer) != t.authority:
		return fault.New(fault.Stale, "other-authority", "the task asks for a certificate of %s", t.authority).Do("ask again")
	}
	if err := (Caller{Node: n.name, State: n.agent.state, Reason: n.agent.reason}).Allowed(); err != nil {
		return err
	}
	return namesAllowed(a, n, c.Names)
}
