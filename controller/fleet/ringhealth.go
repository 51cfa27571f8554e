package fleet

import (
	"cmp"
	"context"
	"fmt"
	"slices"
	"strings"
	"time"

	agentv1 "github.com/cassandra-security-manager/csm/protocol/agent/v1"

	"github.com/cassandra-security-manager/csm/controller/state"
)

// RingHealth is how a ring is, as its members see each other.
type RingHealth struct {
	Cluster string `json:"cluster"`
	// Look is the newest question that was asked; 0 if none was.
	Look uint64 `json:"look"`
	// Asked is when.
	Asked time.Time `json:"askTime,omitzero"`
	// Members are all that somebody sees or that are enrolled, by node and address.
	Members []MemberHealth `json:"members"`
	// SingleReplica are keyspaces with data of one replica, as any node tells.
	SingleReplica []string `json:"singleReplica,omitempty"`
}

// MemberHealth is what is known of one member: what the others say of it, and what its own agent says it is busy with.
type MemberHealth struct {
	// Node is the full name; empty when it is not enrolled.
	Node string `json:"node,omitempty"`
	// HostID and Address are the ring's; empty when nobody sees it.
	HostID  string `json:"hostId,omitempty"`
	Address string `json:"address,omitempty"`
	// Witnesses are other nodes whose view of the ring counts now, by name, whether they see this member or not.
	Witnesses []Witness `json:"witnesses"`
	// Works is what is under way on the member as its own agent tells, and Unseen why that is not known. Look and Seen are
	// that answer's.
	Works  []Work    `json:"works,omitempty"`
	Unseen string    `json:"unseen,omitempty"`
	Look   uint64    `json:"look"`
	Seen   time.Time `json:"seenTime,omitzero"`
}

// Work is something that a node must not be disturbed in.
type Work struct {
	// Kind is stream, repair, bootstrap, decommission, move or drain.
	Kind   string `json:"kind"`
	Detail string `json:"detail,omitempty"`
}

// Witness is what another node says of a member.
type Witness struct {
	Node string `json:"node"`
	// Lacks: it does not see the member at all. Otherwise Up and State are what its gossip says.
	Lacks bool   `json:"lacks,omitempty"`
	Up    bool   `json:"up"`
	State string `json:"state,omitempty" enum:"normal,joining,leaving,moving,unknown"`
	// Look and Seen are of its newest answer; zero if it never told of health.
	Look uint64    `json:"look"`
	Seen time.Time `json:"seenTime,omitzero"`
	// Probe is what it read of a range of this member; nil when it did not read one. Unprobed says why, where it could read
	// none at all.
	Probe    *RangeProbe `json:"probe,omitempty"`
	Unprobed string      `json:"unprobed,omitempty"`
}

// RangeProbe is the read of one token of a table, of which the member is the first replica.
type RangeProbe struct {
	Table   string        `json:"table"`
	Token   int64         `json:"token,string"`
	Answers []ProbeAnswer `json:"answers"`
}

// ProbeAnswer is how that read ended at one consistency level.
type ProbeAnswer struct {
	Consistency string `json:"consistency"`
	OK          bool   `json:"ok"`
	Error       string `json:"error,omitempty"`
}

// Health says how a cluster's ring is. It is read from the state alone, so it may be asked inside Apply (a.Context(),
// a.Querier()) as well as in a view.
func Health(ctx context.Context, q state.Querier, cluster string) (RingHealth, error) {
	h := RingHealth{Cluster: cluster}
	var asked int64
	if _, err := found(q.QueryRowContext(ctx, `SELECT look, asked_ms FROM ring_looks WHERE cluster = ?`, cluster).Scan(&h.Look, &asked)); err != nil {
		return h, err
	}
	h.Asked = at(asked)
	views, err := ringViews(ctx, q, cluster)
	if err != nil {
		return h, err
	}
	all, err := toldOf(ctx, q, cluster)
	if err != nil {
		return h, err
	}
	enrolled, err := collect(ctx, q, scanString, `SELECT name FROM nodes WHERE cluster = ? AND incarnation > 0 ORDER BY name`, cluster)
	if err != nil {
		return h, err
	}
	h.Members = membersOf(views, enrolled)
	for i := range h.Members {
		m := &h.Members[i]
		m.Witnesses = witnessesOf(*m, views, all)
		if own, ok := all[m.Node]; ok && own.counts {
			m.Works, m.Unseen, m.Look, m.Seen = worksOf(own.facts), own.facts.WorksUnseen, own.look, own.seen
		} else if m.Node != "" {
			m.Unseen = "its agent has not told, or is not connected"
		}
	}
	for _, t := range all {
		if t.counts {
			h.SingleReplica = append(h.SingleReplica, t.facts.SingleReplica...)
		}
	}
	slices.Sort(h.SingleReplica)
	h.SingleReplica = slices.Compact(h.SingleReplica)
	return h, nil
}

// Health reads it from this controller's state.
func (f *Fleet) Health(ctx context.Context, cluster string) (RingHealth, error) {
	return view(ctx, f.read, func(ctx context.Context, q state.Querier) (RingHealth, error) {
		if err := clusterIs(ctx, q, cluster); err != nil {
			return RingHealth{}, err
		}
		return Health(ctx, q, cluster)
	})
}

func clusterIs(ctx context.Context, q state.Querier, cluster string) error {
	var n int
	if err := q.QueryRowContext(ctx, `SELECT count(*) FROM clusters WHERE name = ?`, cluster).Scan(&n); err != nil || n > 0 {
		return err
	}
	return noCluster(cluster)
}

// membersOf are the enrolled nodes and whatever else a view that counts holds. Pure.
func membersOf(views []ringView, enrolled []string) []MemberHealth {
	byNode, byID := map[string]*MemberHealth{}, map[string]*MemberHealth{}
	var out []*MemberHealth
	for _, name := range enrolled {
		m := &MemberHealth{Node: name}
		byNode[name], out = m, append(out, m)
	}
	for _, v := range views {
		if m := byNode[v.node]; m != nil && v.hostID != "" {
			m.HostID = v.hostID
			byID[v.hostID] = m
		}
	}
	for _, v := range views {
		if !v.counts {
			continue
		}
		for _, x := range v.members {
			m := byID[x.hostID]
			if m == nil {
				m = &MemberHealth{HostID: x.hostID}
				byID[x.hostID], out = m, append(out, m)
			}
			if m.Address == "" && x.address.IsValid() {
				m.Address = x.address.String()
			}
		}
	}
	members := make([]MemberHealth, len(out))
	for i, m := range out {
		members[i] = *m
	}
	slices.SortFunc(members, func(a, b MemberHealth) int {
		return cmp.Or(cmp.Compare(flag(a.Node == ""), flag(b.Node == "")), cmp.Compare(a.Node, b.Node), cmp.Compare(a.HostID, b.HostID))
	})
	return members
}

// witnessesOf says what the others say of a member. Pure.
func witnessesOf(m MemberHealth, views []ringView, all map[string]told) (out []Witness) {
	for _, v := range views {
		if !v.counts || v.node == m.Node || v.hostID != "" && v.hostID == m.HostID {
			continue
		}
		w := Witness{Node: v.node, Lacks: true}
		for _, x := range v.members {
			if m.HostID != "" && x.hostID == m.HostID {
				w.Lacks, w.Up, w.State = false, x.up, ringStateName(x.state)
			}
		}
		if t, ok := all[v.node]; ok && t.counts {
			w.Look, w.Seen, w.Unprobed = t.look, t.seen, t.facts.Unprobed
			for _, p := range t.facts.Probes {
				if m.HostID != "" && hostIDText(p.HostId) == m.HostID {
					w.Probe = probeOf(p)
				}
			}
		}
		out = append(out, w)
	}
	return out
}

// HealthReason is why a node's neighbourhood is not well enough to touch the node: a stable word and a sentence.
type HealthReason struct {
	Code string `json:"code"`
	Text string `json:"text"`
}

// HealthNeed is what a gate asks of a ring's health.
type HealthNeed struct {
	// Look is the question that must have been answered, as AskHealth gave it; 0 takes any answer.
	Look uint64
	// After is the oldest answer that counts, by the state's clock; zero takes any.
	After time.Time
	// Probe asks that ranges were read. Without it a node whose Cassandra nobody can log in to is judged by gossip alone.
	Probe bool
}

// Holds says why this node must not be touched now; empty when nothing holds it. Two others must see it up and normal (one
// other in a ring of two), every other member must be up and normal in their eyes, the ranges that they read of any member
// must have answered at every quorum, and neither the node nor a member is at work that a change could break. A ring of
// one has no other eyes. Pure.
func (h RingHealth) Holds(node string, need HealthNeed) (out []HealthReason) {
	say := func(code, text string, args ...any) {
		out = append(out, HealthReason{code, fmt.Sprintf(text, args...)})
	}
	var self *MemberHealth
	for i := range h.Members {
		if h.Members[i].Node == node {
			self = &h.Members[i]
		}
	}
	if self == nil {
		say("health-unknown", "%s is not enrolled in this ring", short(node))
		return out
	}
	fresh := self.fresh(need)
	if wanted := min(2, len(h.Members)-1); len(fresh) < wanted {
		say("health-unknown", "%d of the %d other nodes asked have told how %s is", len(fresh), wanted, short(node))
	}
	probed := 0
	for _, w := range fresh {
		if len(w.answers()) > 0 {
			probed++
		}
	}
	if wanted := min(2, len(h.Members)-1); need.Probe && probed < wanted {
		say("health-unprobed", "%d of %d other nodes could read a range that %s owns%s", probed, wanted, short(node), because(fresh))
	}
	if need != (HealthNeed{}) && (self.Look < need.Look || self.Seen.Before(need.After) || self.Seen.IsZero()) {
		say("health-unknown", "%s has not told yet what it is at work on", short(node))
	}
	for i := range h.Members {
		m := &h.Members[i]
		m.judge(m.fresh(need), say)
		if len(m.Works) > 0 && (need.Look == 0 || m.Look >= need.Look) {
			say("busy", "%s is at work: %s", m.name(), works(m.Works))
		}
	}
	return out
}

func (m MemberHealth) name() string {
	switch {
	case m.Node != "":
		return short(m.Node)
	case m.Address != "":
		return m.Address + " (not enrolled)"
	}
	return m.HostID + " (not enrolled)"
}

// fresh are the witnesses whose answer is what is asked for.
func (m MemberHealth) fresh(need HealthNeed) (out []Witness) {
	for _, w := range m.Witnesses {
		if w.Look >= need.Look && !w.Seen.Before(need.After) && (!w.Seen.IsZero() || need.Look == 0 && need.After.IsZero() && !need.Probe) {
			out = append(out, w)
		}
	}
	return out
}

// judge says what the witnesses hold against a member.
func (m MemberHealth) judge(witnesses []Witness, say func(code, text string, args ...any)) {
	var down, lack, moving, failed []string
	for _, w := range witnesses {
		switch {
		case w.Lacks:
			lack = append(lack, short(w.Node))
		case !w.Up:
			down = append(down, short(w.Node))
		case w.State != "normal":
			moving = append(moving, fmt.Sprintf("%s says %s", short(w.Node), w.State))
		}
		for _, a := range w.answers() {
			if !a.OK && a.Consistency != "ALL" { // ALL is told, and decides nothing: one member down is said by gossip
				failed = append(failed, fmt.Sprintf("%s at %s: %s", short(w.Node), a.Consistency, a.Error))
			}
		}
	}
	if len(down) > 0 {
		say("replica-down", "%s is down in the eyes of %s", m.name(), strings.Join(first(down, 3), ", "))
	}
	if len(lack) > 0 {
		say("member-unseen", "%s is no member in the eyes of %s", m.name(), strings.Join(first(lack, 3), ", "))
	}
	if len(moving) > 0 {
		say("ring-moving", "%s is not normal: %s", m.name(), strings.Join(first(moving, 3), ", "))
	}
	if len(failed) > 0 {
		say("quorum-failed", "a range of %s could not be read: %s", m.name(), strings.Join(first(failed, 3), "; "))
	}
}

func because(ws []Witness) string {
	for _, w := range ws {
		if w.Unprobed != "" {
			return fmt.Sprintf(" (%s: %s)", short(w.Node), w.Unprobed)
		}
	}
	return ""
}

func (w Witness) answers() []ProbeAnswer {
	if w.Probe == nil {
		return nil
	}
	return w.Probe.Answers
}

func worksOf(h *agentv1.HealthFacts) (out []Work) {
	for _, w := range h.GetWorks() {
		out = append(out, Work{w.Kind, w.Detail})
	}
	return out
}

func probeOf(p *agentv1.RangeProbe) *RangeProbe {
	out := &RangeProbe{Table: p.Table, Token: p.Token}
	for _, a := range p.Answers {
		out.Answers = append(out.Answers, ProbeAnswer{a.Consistency, a.Ok, a.Error})
	}
	return out
}

func works(all []Work) string {
	var s []string
	for _, w := range all {
		s = append(s, strings.TrimSpace(w.Kind+" "+w.Detail))
	}
	return strings.Join(first(s, 3), "; ")
}

func first(all []string, n int) []string {
	if len(all) > n {
		return append(slices.Clone(all[:n]), fmt.Sprintf("%d more", len(all)-n))
	}
	return all
}
