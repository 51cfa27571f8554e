package rollout

import (
	"context"
	"encoding/hex"
	"time"

	"github.com/cassandra-security-manager/csm/controller/state"
)

// Rollout is what people see of one.
type Rollout struct {
	Name string `json:"name"`
	Spec Spec   `json:"spec"`
	// BakeSeconds is the rest between waves.
	BakeSeconds float64 `json:"bakeSeconds"`
	State       string  `json:"state" enum:"running,paused,halted,aborting,aborted,rolling-back,rolled-back,done"`
	// Note says why it is paused, halted or aborted, or how it ended.
	Note     string `json:"note,omitempty"`
	PlanHash string `json:"planHash"`
	Reason   string `json:"reason"`
	Creator  string `json:"creator"`
	// Back: the nodes that moved go back.
	Back     bool       `json:"back,omitempty"`
	Failures int        `json:"failures"`
	Waves    []WaveView `json:"waves"`
	// Awaits is what it waits for, since when.
	Awaits      []Reason  `json:"awaits,omitempty"`
	AwaitsSince time.Time `json:"awaitsSince,omitzero"`
	// Next says what happens when that is over.
	Next       string    `json:"next,omitempty"`
	CreateTime time.Time `json:"createTime"`
	StateTime  time.Time `json:"stateTime"`
	EndTime    time.Time `json:"endTime,omitzero"`
	// ExpectedEnd is when it would be at its end if nothing held it, while it runs; lists leave it out.
	ExpectedEnd time.Time `json:"expectedEndTime,omitzero"`
	Revision    uint64    `json:"revision"`
}

// WaveView is a wave and its nodes.
type WaveView struct {
	Title string     `json:"title"`
	Why   string     `json:"why"`
	State string     `json:"state" enum:"pending,open,done"`
	Nodes []NodeView `json:"nodes"`
}

// NodeView is a node in a rollout.
type NodeView struct {
	Node       string    `json:"node"`
	Datacenter string    `json:"datacenter,omitempty"`
	Rack       string    `json:"rack,omitempty"`
	Phase      string    `json:"phase" enum:"pending,told,moving,unproved,proved,failed,gone"`
	Since      time.Time `json:"since"`
	Detail     string    `json:"detail,omitempty"`
}

// Live says whether it is under way.
func (r Rollout) Live() bool { return live(r.State) }

// Get reads a rollout with what it waits for at that time. It may be asked in Apply and by readers.
func Get(ctx context.Context, q state.Querier, name string, now time.Time) (Rollout, error) {
	r, err := readRow(ctx, q, name)
	if err != nil {
		return Rollout{}, err
	}
	return viewOf(ctx, q, r, now)
}

func viewOf(ctx context.Context, q state.Querier, r row, now time.Time) (Rollout, error) {
	v := Rollout{Name: r.name, Spec: r.spec, BakeSeconds: r.spec.Bake.Seconds(), State: r.state, Note: r.note, PlanHash: hex.EncodeToString(r.hash), Reason: r.reason, Creator: r.creator,
		Back: r.back, Failures: r.failures, CreateTime: at(r.createdMs), StateTime: at(r.stateMs), EndTime: at(r.endMs), Revision: r.revision}
	f, from, err := factsOf(ctx, q, r, now)
	if err != nil {
		return v, err
	}
	stores := from.stores
	if live(r.state) {
		act, reasons := decide(f)
		v.Awaits = reasons
		if len(reasons) > 0 {
			v.AwaitsSince = at(r.awaitsMs)
		}
		v.Next = next(f, act)
	} else {
		settled(&f, stores)
	}
	titles, err := collect(ctx, q, func(s scanner) (w WaveView, err error) { return w, s.Scan(&w.Title, &w.Why) }, `SELECT title, why FROM rollout_waves WHERE rollout = ? ORDER BY wave`, r.name)
	v.Waves = titles
	places := map[string]storeRow{}
	for _, x := range stores {
		places[x.node] = x
	}
	for _, n := range f.Nodes {
		x := places[n.Name]
		w := &v.Waves[n.Wave]
		w.Nodes = append(w.Nodes, NodeView{Node: n.Name, Datacenter: x.datacenter, Rack: x.rack, Phase: n.Phase, Since: n.Since, Detail: n.Detail})
	}
	for i := range v.Waves {
		v.Waves[i].State = waveState(v.Waves[i].Nodes)
	}
	return v, err
}

// settled leaves out of a rollout that has ended what its nodes do since.
func settled(f *Facts, stores []storeRow) {
	words := map[string]string{storePending: Pending, storeOpen: Unproved, storeDone: Proved, storeFailed: Failed, storeBroken: Failed, storeGone: Gone}
	of := map[string]string{}
	for _, x := range stores {
		if of[x.node] == "" || x.state != storeDone {
			of[x.node] = words[x.state]
		}
	}
	for i := range f.Nodes {
		f.Nodes[i].Phase = of[f.Nodes[i].Name]
	}
}

func waveState(nodes []NodeView) string {
	pending, ended := 0, 0
	for _, n := range nodes {
		switch n.Phase {
		case Pending:
			pending++
		case Proved, Failed, Gone:
			ended++
		}
	}
	switch {
	case ended == len(nodes):
		return "done"
	case pending == len(nodes):
		return "pending"
	}
	return "open"
}

// next says what comes when nothing is waited for any more. Pure.
func next(f Facts, act Action) string {
	switch f.State {
	case Paused, Halted:
		return "nothing, until a person says so"
	case Aborting:
		return "it ends as aborted"
	}
	switch act.Do {
	case Look:
		return "the agents look at the ring"
	case Open:
		return "begins: " + shortAll(act.Nodes)
	case Halt:
		return "it halts: " + act.Why
	case Finish:
		return "it ends"
	}
	var pending []string
	wave := -1
	for _, n := range f.Nodes {
		if n.Phase == Pending && (wave < 0 || n.Wave == wave) {
			wave = n.Wave
			pending = append(pending, n.Name)
		}
	}
	if len(pending) == 0 {
		return "it ends"
	}
	return "then: " + shortAll(pending[:min(len(pending), f.Spec.Width)])
}

func shortAll(names []string) string {
	out := ""
	for i, n := range names {
		if i == 8 {
			return out + ", …"
		}
		if i > 0 {
			out += ", "
		}
		out += short(n)
	}
	return out
}

// Get reads one.
func (r *Rollouts) Get(ctx context.Context, name string) (out Rollout, err error) {
	err = r.read.View(ctx, func(ctx context.Context, q state.Querier) (err error) {
		now := r.clock.Now()
		if out, err = Get(ctx, q, name, now); err != nil || out.State != Running && out.State != RollingBack {
			return err
		}
		pace, err := paceOf(ctx, q, out.Spec)
		out.ExpectedEnd = expected(out, now, pace)
		return err
	})
	return out, err
}

// expected is when a rollout that runs would be at its end: as a plan of what has not ended yet. Pure.
func expected(r Rollout, now time.Time, pace Pace) time.Time {
	p := Plan{Spec: r.Spec}
	for _, w := range r.Waves {
		var left []Member
		for _, n := range w.Nodes {
			if n.Phase != Proved && n.Phase != Failed && n.Phase != Gone {
				left = append(left, Member{Node: n.Node})
			}
		}
		if len(left) > 0 {
			p.Waves = append(p.Waves, Wave{Nodes: left})
		}
	}
	p.times(now, pace)
	return p.End.Truncate(time.Second)
}

// List reads the rollouts of a cluster, those of a tenant with "-" for the cluster, the newest first, at most limit.
func (r *Rollouts) List(ctx context.Context, cluster string, limit int) (out []Rollout, err error) {
	err = r.read.View(ctx, func(ctx context.Context, q state.Querier) error {
		where, arg := `WHERE cluster = ?`, cluster
		if short(cluster) == "-" {
			where, arg = `WHERE substr(cluster, 1, length(?1)) = ?1`, cluster[:len(cluster)-1]
		}
		rows, err := collect(ctx, q, scanRow, rowColumns+where+` ORDER BY created_ms DESC, name DESC LIMIT ?2`, arg, limit)
		for _, x := range rows {
			v, verr := viewOf(ctx, q, x, r.clock.Now())
			if verr != nil {
				return verr
			}
			out = append(out, v)
		}
		return err
	})
	return out, err
}

// Part is what a rollout that is under way says of one node.
type Part struct {
	Rollout string   `json:"rollout"`
	State   string   `json:"state"`
	Wave    string   `json:"wave"`
	Phase   string   `json:"phase"`
	Awaits  []Reason `json:"awaits,omitempty"`
}

// PartOf finds the rollout that a node takes part in now, with what the node waits for; nil when there is none.
func (r *Rollouts) PartOf(ctx context.Context, cluster, node string) (part *Part, err error) {
	err = r.read.View(ctx, func(ctx context.Context, q state.Querier) error {
		x, err := liveRow(ctx, q, cluster)
		if err != nil || x == nil {
			return err
		}
		v, err := viewOf(ctx, q, *x, r.clock.Now())
		if err != nil {
			return err
		}
		for _, w := range v.Waves {
			for _, n := range w.Nodes {
				if n.Node == node {
					part = &Part{Rollout: v.Name, State: v.State, Wave: w.Title, Phase: n.Phase, Awaits: relevant(v.Awaits, n)}
				}
			}
		}
		return nil
	})
	return part, err
}

// relevant are the reasons that a node waits for: all of them before its turn, its own while it is under way.
func relevant(all []Reason, n NodeView) (out []Reason) {
	for _, r := range all {
		if n.Phase == Pending || r.Node == n.Node || n.Phase != Proved && n.Phase != Gone && r.Node == "" {
			out = append(out, r)
		}
	}
	return out
}

// Tally is what metrics need of one rollout under way.
type Tally struct {
	Cluster, State string
	Since          time.Time
	Awaits         []Reason
}

// Tallies reads those under way.
func (r *Rollouts) Tallies(ctx context.Context) (out []Tally, err error) {
	err = r.read.View(ctx, func(ctx context.Context, q state.Querier) error {
		rows, err := collect(ctx, q, scanRow, rowColumns+`WHERE end_ms = 0 ORDER BY name`)
		for _, x := range rows {
			f, _, ferr := factsOf(ctx, q, x, r.clock.Now())
			if ferr != nil {
				return ferr
			}
			_, reasons := decide(f)
			out = append(out, Tally{Cluster: x.spec.Cluster, State: x.state, Since: at(x.stateMs), Awaits: reasons})
		}
		return err
	})
	return out, err
}
