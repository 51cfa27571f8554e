package rotation

import (
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"slices"

	"github.com/cassandra-security-manager/csm/controller/authority"
	"github.com/cassandra-security-manager/csm/controller/fleet"
	"github.com/cassandra-security-manager/csm/shared/fault"
)

// RotationPlan says what a rotation would do, before anything is done. Its hash is what start takes.
type RotationPlan struct {
	Cluster     string `json:"cluster"`
	TrustDomain string `json:"trustDomain"`
	Kind        Kind   `json:"kind" enum:"root,rekey,takeover,algorithm"`
	// Before and After are authorities by full name.
	Before string `json:"authorityBefore"`
	After  string `json:"authorityAfter"`
	// Add and Withdraw are the SHA-256 of anchors that come at the start, and go at the retire.
	Add      []string `json:"addSha256,omitempty"`
	Withdraw []string `json:"withdrawSha256,omitempty"`
	// Emergency, and what is given up by it.
	Emergency bool         `json:"emergency,omitempty"`
	Relaxed   []Relaxation `json:"relaxed,omitempty" doc:"what an emergency gives up, and what may break by it"`
	Phases    []string     `json:"phases" doc:"what happens in each phase, in order"`
	Members   []PlanMember `json:"members"`
	Clients   []PlanClient `json:"clients,omitempty" doc:"who would break at the retire if nothing changes"`
	// Notes are what cannot be proved, and why, and what else is to be known before.
	Notes []string `json:"notes,omitempty"`
	// Holds would make the first phase wait; Blockers refuse the start.
	Holds    []Reason `json:"holds,omitempty"`
	Blockers []Reason `json:"blockers,omitempty"`
	Hash     string   `json:"hash"`
}

// PlanMember is a member of the ring as the plan saw it.
type PlanMember struct {
	Name        string `json:"name"`
	Node        string `json:"node,omitempty"`
	HostID      string `json:"hostId"`
	Incarnation uint64 `json:"incarnation,omitempty"`
	Up          bool   `json:"up"`
	State       string `json:"state"`
	// Unprovable are ports of which nothing can be proved, with the reason.
	Unprovable []string `json:"unprovable,omitempty"`
}

// PlanClient is an application that would break.
type PlanClient struct {
	Name   string `json:"name" doc:"as --except takes it"`
	Detail string `json:"detail"`
	Named  bool   `json:"named,omitempty" doc:"a person accepted that it may break"`
	// Seen clients come and go: they are no part of the hash.
	Seen bool `json:"seen,omitempty" doc:"nobody registered it: it was seen, or cannot be seen"`
}

// setting is a cluster as a plan needs it.
type setting struct {
	Name, Trust, Authority string
	Anchors                [][]byte // SHA-256 of those of ours
	Released               bool
}

func (s *sight) setting() (c setting, err error) {
	t, err := fleet.TrustOf(s.ctx, s.q, s.r.cluster)
	if err != nil {
		return c, err
	}
	return setting{Name: s.r.cluster, Trust: t.TrustDomain, Authority: t.Authority, Anchors: t.Anchors, Released: t.Released}, nil
}

// plan reads the state and plans a rotation. draft is the row that start would insert.
func (s *sight) plan(w Wanted, gates Gates) (p RotationPlan, draft row, err error) {
	relaxed, err := w.relaxed()
	if err != nil {
		return p, draft, err
	}
	c, err := s.setting()
	if err != nil {
		return p, draft, err
	}
	next, err := authority.InState(s.ctx, s.q, w.Authority)
	if err != nil {
		return p, draft, err
	}
	prev, err := authority.InState(s.ctx, s.q, c.Authority)
	if err != nil {
		return p, draft, err
	}
	draft = row{cluster: c.Name, trust: c.Trust, before: c.Authority, after: w.Authority, phase: Distribute, sumsAfter: sums(next.Roots(s.now)), emergency: w.Emergency, relaxed: relaxed}
	foreign, err := s.foreign()
	if err != nil {
		return p, draft, err
	}
	draft.kind = kindOf(c, prev, next, foreign, draft.sumsAfter)
	if draft.kind != Rekey && draft.kind != Takeover {
		for _, x := range c.Anchors {
			if !contains(draft.sumsAfter, x) {
				draft.sumsBefore = append(draft.sumsBefore, x)
			}
		}
	}
	s.r = draft
	v, err := s.view(nil)
	if err != nil {
		return p, draft, err
	}
	p = describe(c, draft, v)
	if p.Notes, err = s.notes(v); err != nil {
		return p, draft, err
	}
	spread, err := s.compromised()
	if err != nil {
		return p, draft, err
	}
	p.Notes = append(p.Notes, spread...)
	if prev.Algorithm != next.Algorithm {
		p.Notes = append(p.Notes, signedOtherwise(prev.Algorithm, next.Algorithm))
	}
	p.Holds = gates.Ask(StepReissue, v, "")
	p.Holds = slices.DeleteFunc(p.Holds, func(r Reason) bool {
		return slices.Contains([]string{"trust-proved", "installed", "one-version", "signer"}, r.Code)
	})
	p.Blockers, err = s.blockers(c, v, gates)
	if prev.Algorithm != next.Algorithm {
		p.Blockers = append(p.Blockers, takes(next.Algorithm, s.standings)...)
	}
	p.Hash = hex.EncodeToString(p.sum())
	return p, draft, err
}

// foreign counts the stores whose leaves are another CA's.
func (s *sight) foreign() (n int, err error) {
	standings, err := fleet.Standings(s.ctx, s.q, s.r.cluster, s.now)
	for _, x := range standings {
		for _, st := range x.Stores {
			if st.Theirs {
				n++
			}
		}
	}
	return n, err
}

// kindOf says what changes, from what is there. Pure.
func kindOf(c setting, prev, next *authority.Authority, foreign int, sumsAfter [][]byte) Kind {
	known := true
	for _, x := range sumsAfter {
		known = known && contains(c.Anchors, x)
	}
	switch {
	case foreign > 0 && prev.Name == next.Name:
		return Takeover
	case known:
		return Rekey
	case prev.Algorithm != next.Algorithm:
		return Algorithm
	}
	return Root
}

// describe is the plan without what speaks against it. Pure.
func describe(c setting, r row, v View) RotationPlan {
	p := RotationPlan{Cluster: c.Name, TrustDomain: c.Trust, Kind: r.kind, Before: r.before, After: r.after, Emergency: r.emergency, Relaxed: v.relaxations(), Phases: phasesOf(r)}
	for _, x := range r.sumsAfter {
		if !contains(c.Anchors, x) {
			p.Add = append(p.Add, hex.EncodeToString(x))
		}
	}
	for _, x := range r.sumsBefore {
		p.Withdraw = append(p.Withdraw, hex.EncodeToString(x))
	}
	for _, m := range v.Members {
		x := PlanMember{Name: m.Name, Node: m.Node, HostID: m.HostID, Incarnation: m.Incarnation, Up: m.Up, State: m.State}
		if m.Unprovable != "" {
			x.Unprovable = append(x.Unprovable, m.Unprovable)
		}
		for _, s := range m.Stores {
			for _, q := range s.Ports {
				if q.Exempt != "" {
					x.Unprovable = append(x.Unprovable, q.Name+": "+q.Exempt)
				}
			}
		}
		p.Members = append(p.Members, x)
	}
	for _, x := range v.Clients {
		p.Clients = append(p.Clients, PlanClient{Name: x.Name, Detail: x.Detail, Named: x.Named})
	}
	for _, x := range v.Seen {
		p.Clients = append(p.Clients, PlanClient{x.Name, x.Detail, x.Named, true})
	}
	return p
}

func phasesOf(r row) []string {
	switch r.kind {
	case Rekey:
		return []string{"distribute: nothing to do, the root stays", "reissue: leaves of the new issuer, one node of a rack at a time", "retire: by hand; no anchor goes"}
	case Takeover:
		return []string{"distribute: every truststore takes our anchors beside those that are there, proved port by port",
			"reissue: leaves of our CA, one node of a rack at a time", "retire: by hand; anchors of others stay where they are"}
	}
	retire := "retire: by hand; the anchors of the CA before go, a canary first"
	if r.emergency && slices.Contains(r.relaxed, relaxByHand) {
		retire = "retire: by itself, as soon as every leaf is proved and every gate holds; the anchors of the CA before go, a canary first"
	}
	return []string{"distribute: every truststore takes the new anchors beside the old ones, proved port by port by neighbours",
		"reissue: leaves of the new CA, one node of a rack at a time, each proved by a neighbour", retire}
}

// maxBundle is how many anchors of ours a truststore may hold while two CAs are trusted.
const maxBundle = 16

// blockers say why start would be refused.
func (s *sight) blockers(c setting, v View, gates Gates) ([]Reason, error) {
	out := takesNothing(s.r)
	other, ok, err := running(s.ctx, s.q, c.Name)
	if err != nil {
		return nil, err
	}
	if ok {
		out = append(out, Reason{Code: "one-at-a-time", Message: fmt.Sprintf("%s is under way in phase %s", short(other.name), other.phase), Remedy: "wait for its end, or turn it round: `csm rotation rollback`"})
	}
	if c.Released {
		out = append(out, Reason{Code: "released", Message: "the cluster was let go: nothing on its nodes is changed any more"})
	}
	for _, r := range gates.Ask(StepReissue, v, "") {
		if r.Code == "one-version" || r.Code == "signer" || r.Code == "ring-known" && len(v.Members) == 0 {
			out = append(out, r)
		}
	}
	if len(c.Anchors)+len(s.r.sumsAfter) > maxBundle {
		out = append(out, Reason{Code: "bundle", Message: fmt.Sprintf("the bundle would hold more than %d anchors", maxBundle), Remedy: "retire what is no longer used first"})
	}
	if s.r.kind == Rekey && !anyLeaf(v, Before) {
		out = append(out, Reason{Code: "nothing-to-do", Message: "every leaf is of the newest issuer of this authority already", Remedy: "make a new issuer or authority first: `csm ca create`"})
	}
	return out, nil
}

func anyLeaf(v View, side Side) bool {
	return slices.ContainsFunc(v.Members, func(m Member) bool {
		return slices.ContainsFunc(m.Stores, func(s Store) bool { return s.Leaf == side })
	})
}

// sum is the hash of what a person agrees to: who, from what to what, and who would break. What comes and goes by itself (a
// member that is down, a note) is no part of it.
func (p RotationPlan) sum() []byte {
	q := p
	q.Hash, q.Holds, q.Blockers, q.Phases, q.Notes = "", nil, nil, nil, nil
	q.Clients = slices.DeleteFunc(slices.Clone(p.Clients), func(x PlanClient) bool { return x.Seen })
	q.Relaxed = slices.Clone(p.Relaxed)
	for i := range q.Relaxed {
		q.Relaxed[i] = Relaxation{Code: q.Relaxed[i].Code}
	}
	q.Members = slices.Clone(p.Members)
	for i := range q.Members {
		q.Members[i].Up, q.Members[i].State = false, ""
	}
	b, _ := json.Marshal(q) // no type of it can fail
	h := sha256.Sum256(b)
	return h[:]
}

func stale(what string) error {
	return fault.New(fault.Stale, "plan-stale", "the plan is not what it was: %s", what).Do("look at it again, then give its new hash: `csm rotation plan`")
}

// RetirePlan says what a retire would do.
type RetirePlan struct {
	Rotation string       `json:"rotation"`
	Withdraw []string     `json:"withdrawSha256,omitempty"`
	Members  []PlanMember `json:"members"`
	Clients  []PlanClient `json:"clients,omitempty"`
	Reasons  []Reason     `json:"reasons,omitempty" doc:"what is in the way now"`
	Hash     string       `json:"hash"`
}

func retirePlan(r row, v View, gates Gates) RetirePlan {
	d := describe(setting{Name: r.cluster, Trust: r.trust}, r, v)
	p := RetirePlan{Rotation: r.name, Withdraw: d.Withdraw, Members: d.Members, Clients: d.Clients, Reasons: gates.Ask(StepRetire, v, "")}
	d.Cluster = r.name // the hash of a retire is never that of a start
	p.Hash = hex.EncodeToString(d.sum())
	return p
}
