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
	// Witnesses are other nodes whose view of the ring counts now, by name: all that hold something against this member or
	// have read a range of it, and of the others the few that told last.
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
	tell := tellersOf(views, all)
	for i := range h.Members {
		m := &h.Members[i]
		m.Witnesses = tell.of(*m)
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
	for _, s := range sightsOf(views) {
		for _, x := range s.members {
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

// enoughContent is how many witnesses are told that hold nothing against a member. Two are asked for; in a ring of a thousand all of
// them would be a million.
const enoughContent = 6

// tellers are who may tell of members, so that each member costs by what is said of it and not by the size of the ring.
type tellers struct {
	sights ringSights
	self   map[string]string // host id of each node
	// sightOf is the number of the sight that a node has.
	sightOf map[string]int
	all     map[string]told
	// newest of each sight, those that told last first.
	newest [][]string
	// probed are the nodes that have read a range of a member, with what they read, by its host id.
	probed map[string]map[string]*agentv1.RangeProbe
}

func tellersOf(views []ringView, all map[string]told) tellers {
	t := tellers{sights: sightsOf(views), self: map[string]string{}, sightOf: map[string]int{}, all: all, probed: map[string]map[string]*agentv1.RangeProbe{}}
	for _, v := range views {
		t.self[v.node] = v.hostID
		x := t.told(v.node)
		if !v.counts || !x.counts {
			continue
		}
		for _, p := range x.facts.Probes {
			if id := hostIDText(p.HostId); id != "" {
				if t.probed[id] == nil {
					t.probed[id] = map[string]*agentv1.RangeProbe{}
				}
				t.probed[id][v.node] = p
			}
		}
	}
	for i, s := range t.sights {
		for _, n := range s.nodes {
			t.sightOf[n] = i
		}
		newest := slices.Clone(s.nodes)
		slices.SortStableFunc(newest, func(a, b string) int {
			x, y := t.told(a), t.told(b)
			return cmp.Or(cmp.Compare(y.look, x.look), y.seen.Compare(x.seen))
		})
		t.newest = append(t.newest, newest)
	}
	return t
}

func (t tellers) told(node string) told {
	if x := t.all[node]; x.counts {
		return x
	}
	return told{}
}

// of says what the others say of a member. Pure.
func (t tellers) of(m MemberHealth) (out []Witness) {
	for i, s := range t.sights {
		x, sees := s.byID[m.HostID]
		sees = sees && m.HostID != ""
		names := t.newest[i]
		if sees && x.up && x.state == agentv1.RingState_RING_STATE_NORMAL {
			names = slices.Clone(names[:min(len(names), enoughContent)])
			for node := range t.probed[m.HostID] {
				if t.sightOf[node] == i && !slices.Contains(names, node) {
					names = append(names, node)
				}
			}
		}
		for _, node := range names {
			if node != m.Node && (m.HostID == "" || t.self[node] != m.HostID) {
				out = append(out, t.witness(node, x, sees))
			}
		}
	}
	slices.SortFunc(out, func(a, b Witness) int { return cmp.Compare(a.Node, b.Node) })
	return out
}

func (t tellers) witness(node string, x ringMember, sees bool) Witness {
	w := Witness{Node: node, Lacks: !sees}
	if sees {
		w.Up, w.State = x.up, ringStateName(x.state)
	}
	if told := t.told(node); told.counts {
		w.Look, w.Seen, w.Unprobed = told.look, told.seen, told.facts.Unprobed
		if p := t.probed[x.hostID][node]; sees && p != nil {
			w.Probe = probeOf(p)
		}
	}
	return w
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
	// Without are members, by host id, that need not tell: they are down, and who asks bears that.
	Without []string
}

func (n HealthNeed) any() bool { return n.Look > 0 || !n.After.IsZero() || n.Probe }

// tells says whether a member is asked what it sees of the others.
func (n HealthNeed) tells(m *MemberHealth) bool {
	return !m.unborn() && !slices.Contains(n.Without, m.HostID)
}

// Weighed is what holds any node of a ring, worked out once for those who ask about many.
type Weighed struct {
	need  HealthNeed
	nodes map[string]*MemberHealth
	tell  int // members that tell of the others
	ring  []HealthReason
}

// Weigh works out what the need makes of the ring as it was told.
func (h RingHealth) Weigh(need HealthNeed) Weighed {
	w := Weighed{need: need, nodes: make(map[string]*MemberHealth, len(h.Members))}
	for i := range h.Members {
		m := &h.Members[i]
		if m.Node != "" {
			w.nodes[m.Node] = m
		}
		if need.tells(m) {
			w.tell++
		}
		if !m.unborn() {
			w.ring = append(w.ring, m.held(need)...)
		}
	}
	return w
}

// Holds says why this node must not be touched now; empty when nothing holds it. Two others must see it up and normal (one
// other in a ring of two), every other member must be up and normal in their eyes, the ranges that they read of any member
// must have answered at every quorum, and neither the node nor a member is at work that a change could break. A ring of
// one has no other eyes. Pure.
func (w Weighed) Holds(node string) (out []HealthReason) {
	say := func(code, text string, args ...any) {
		out = append(out, HealthReason{code, fmt.Sprintf(text, args...)})
	}
	self, others, need := w.nodes[node], w.tell, w.need
	if self == nil {
		say("health-unknown", "%s is not enrolled in this ring", short(node))
		return out
	}
	if need.tells(self) {
		others--
	}
	wanted := min(2, others) // witnesses
	fresh := self.fresh(need)
	if len(fresh) < wanted {
		say("health-unknown", "%d of the %d other nodes asked have told how %s is", len(fresh), wanted, short(node))
	}
	probed := 0
	for _, x := range fresh {
		if len(x.answers()) > 0 {
			probed++
		}
	}
	if need.Probe && probed < wanted {
		say("health-unprobed", "%d of %d other nodes could read a range that %s owns%s", probed, wanted, short(node), because(fresh))
	}
	if need.any() && (self.Look < need.Look || self.Seen.Before(need.After) || self.Seen.IsZero()) {
		say("health-unknown", "%s has not told yet what it is at work on", short(node))
	}
	out = append(out, w.ring...)
	if self.unborn() {
		out = append(out, self.held(need)...)
	}
	return out
}

// held is what its witnesses and its own work say against a member.
func (m *MemberHealth) held(need HealthNeed) (out []HealthReason) {
	say := func(code, text string, args ...any) {
		out = append(out, HealthReason{code, fmt.Sprintf(text, args...)})
	}
	m.judge(m.fresh(need), say)
	if len(m.Works) > 0 && (need.Look == 0 || m.Look >= need.Look) {
		say("busy", "%s is at work: %s", m.name(), works(m.Works))
	}
	return out
}

// unborn: enrolled, and no member yet: its Cassandra has never started, so it has no host id and nobody can see it.
func (m MemberHealth) unborn() bool { return m.Node != "" && m.HostID == "" }

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
