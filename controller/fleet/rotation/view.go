package rotation

import (
	"bytes"
	"context"
	"crypto/sha256"
	"fmt"
	"slices"
	"strings"
	"time"

	agentv1 "github.com/cassandra-security-manager/csm/protocol/agent/v1"

	"github.com/cassandra-security-manager/csm/controller/authority"
	"github.com/cassandra-security-manager/csm/controller/fleet"
	"github.com/cassandra-security-manager/csm/controller/ledger"
	"github.com/cassandra-security-manager/csm/controller/state"
	"github.com/cassandra-security-manager/csm/shared/resource"
)

// sight reads what decisions are made from. It is used in Apply and by readers alike, so that explain says what Apply would do.
type sight struct {
	ctx context.Context
	q   state.Querier
	now time.Time
	r   row
	// issuers remembers who signed which leaf.
	issuers map[string]string
	// standings are what stores has read of the cluster's nodes, stored what it made of them.
	standings []fleet.Standing
	stored    map[string][]Store
}

func look(ctx context.Context, q state.Querier, now time.Time, r row) *sight {
	return &sight{ctx: ctx, q: q, now: now, r: r, issuers: map[string]string{}}
}

// view reads all of it.
func (s *sight) view(waves Waves) (View, error) {
	v := View{Phase: s.r.phase, Kind: s.r.kind, Paused: s.r.paused, Canary: s.r.canary, Idle: s.r.idle(), Emergency: s.r.emergency, Relaxed: s.r.relaxed}
	z, err := fleet.FrozenAt(s.ctx, s.q, s.r.cluster, s.now)
	if err != nil {
		return v, err
	}
	if z != nil {
		v.Frozen = z.Words()
	}
	if v.Members, v.Doubts, err = s.members(); err != nil {
		return v, err
	}
	v.Wide = wide(s.standings)
	if v.Signer, err = s.signer(); err != nil {
		return v, err
	}
	if v.Clients, err = s.clients(); err != nil {
		return v, err
	}
	if v.Seen, err = s.seen(v.Members); err != nil {
		return v, err
	}
	named, err := exceptionsOf(s.ctx, s.q, s.r.name)
	if err != nil {
		return v, err
	}
	v.LinksAccepted = named[exceptLinks]
	for i := range v.Members {
		if m := &v.Members[i]; s.r.kind == Takeover && m.Node != "" && named[keepsOurs(*m)] {
			m.Stores = staying(m.Stores)
		}
	}
	v.Rollout, err = s.rollout(waves)
	return v, err
}

func (s *sight) rollout(waves Waves) (Rollout, error) {
	switch {
	case s.r.kind == Rekey && s.r.phase == Distribute, s.r.idle():
		return Rollout{State: rolloutDone}, nil // nothing to move
	case s.r.rollout == nothing:
		return Rollout{State: rolloutDone}, nil
	case s.r.rollout == "" || waves == nil:
		return Rollout{}, nil
	}
	return waves.Stand(s.ctx, s.q, s.r.rollout, s.now)
}

// members are those of the ring, with what is known of their stores.
func (s *sight) members() ([]Member, []string, error) {
	ring, err := fleet.RingOf(s.ctx, s.q, s.r.cluster)
	if err != nil {
		return nil, nil, err
	}
	var doubts []string
	for _, d := range ring.Doubts {
		doubts = append(doubts, d.Message)
	}
	asides, err := asidesOf(s.ctx, s.q, s.r.name)
	if err != nil {
		return nil, nil, err
	}
	stores, err := s.stores()
	if err != nil {
		return nil, nil, err
	}
	links, err := s.links()
	if err != nil {
		return nil, nil, err
	}
	var out []Member
	for _, m := range ring.Members {
		x := Member{Name: m.Address, Node: m.Node, HostID: m.HostID, Incarnation: m.Incarnation, Active: m.Active, Up: m.Up, State: m.State, Version: m.Version,
			Datacenter: m.Datacenter, Rack: m.Rack, Stores: stores[m.Node]}
		if m.Node != "" {
			x.Name = short(m.Node)
		}
		if n := s.standing(m.Node); n != nil {
			x.Unprovable = unprovable(n.Internode)
		}
		x.linked(links, s.now)
		for _, a := range asides {
			if a.HostID == m.HostID && a.Incarnation == m.Incarnation {
				x.Aside = a.Reason
			}
		}
		out = append(out, x)
	}
	return append(out, s.waiting(out, asides, stores)...), doubts, nil
}

// standing is what stores has read of a node; nil when it has not.
func (s *sight) standing(node string) *fleet.Standing {
	i, ok := slices.BinarySearchFunc(s.standings, node, func(x fleet.Standing, name string) int { return strings.Compare(x.Node, name) })
	if !ok {
		return nil
	}
	return &s.standings[i]
}

// waiting are the enrolled nodes that no gossip has ever known, with stores of ours that their Cassandra would load. One that
// was a member once and is none now has left the ring.
func (s *sight) waiting(members []Member, asides []Aside, stores map[string][]Store) (out []Member) {
	for _, n := range s.standings {
		if n.Incarnation == 0 || n.Met || slices.ContainsFunc(members, func(m Member) bool { return m.Node == n.Node }) ||
			!slices.ContainsFunc(n.Stores, func(x fleet.StoreStanding) bool { return x.Installed > 0 }) {
			continue
		}
		x := Member{Name: short(n.Node), Node: n.Node, HostID: n.Node, Incarnation: n.Incarnation, State: "not-started", Stores: stores[n.Node], OldLinks: -1, Waiting: true}
		for _, a := range asides {
			if a.HostID == n.Node && a.Incarnation == n.Incarnation {
				x.Aside = a.Reason
			}
		}
		out = append(out, x)
	}
	return out
}

func (s *sight) stores() (map[string][]Store, error) {
	if s.stored != nil {
		return s.stored, nil
	}
	standings, err := fleet.Standings(s.ctx, s.q, s.r.cluster, s.now)
	if err != nil {
		return nil, err
	}
	s.standings = standings
	all, err := fleet.ProvenIn(s.ctx, s.q, s.r.cluster)
	if err != nil {
		return nil, err
	}
	if err := s.signed(all); err != nil {
		return nil, err
	}
	out := map[string][]Store{}
	var back [][]byte // anchors that the leaves of before lead to
	proven := map[string]fleet.Proven{}
	var gone [][]byte // anchors that were withdrawn
	if s.r.phase == Retire || s.r.phase == Withdrawing || s.r.phase.Ended() {
		if gone, err = fleet.Withdrawn(s.ctx, s.q, s.r.trust); err != nil {
			return nil, err
		}
	}
	for _, n := range standings {
		for _, st := range n.Stores {
			x := Store{Name: st.Store, Signer: st.Authority, Move: st.Move, Behind: !s.r.idle() && (st.Installed < st.Generation || st.Installed < s.r.generation), Moving: st.Unproved || n.Claim != nil && n.Claim.Store == st.Store}
			p := all[resource.Store(n.Node, st.Store)]
			if x.Leaf, err = s.side(p.Leaf); err != nil {
				return nil, err
			}
			x.Ports, x.Lacks = s.ports(p)
			x.Files = s.written(p.Authority)
			if (s.r.phase.Ended() || !x.Behind) && slices.ContainsFunc(gone, p.Holds) { // who is behind is told by its wave
				done, err := fleet.Shrunk(s.ctx, s.q, n.Node, st.Store, s.r.generation)
				if err != nil {
					return nil, err
				}
				x.Stale = !done
			}
			if s.r.kind == Takeover {
				s.returns(&x, st, p)
				proven[resource.Store(n.Node, st.Store)] = p
				if k := p.Kept; k != nil && len(k.Anchor) > 0 && !contains(back, k.Anchor) {
					back = append(back, k.Anchor)
				}
			}
			out[n.Node] = append(out[n.Node], x)
		}
	}
	for node, list := range out {
		for i := range list {
			list[i].LacksBefore = untrusted(proven[resource.Store(node, list[i].Name)], back)
		}
	}
	s.stored = out
	return out, nil
}

// signed remembers who signed the leaves that were proved.
func (s *sight) signed(all map[string]fleet.Proven) (err error) {
	var leaves [][]byte
	for _, p := range all {
		if len(p.Leaf) > 0 {
			leaves = append(leaves, p.Leaf)
		}
	}
	s.issuers, err = ledger.IssuersOf(s.ctx, s.q, leaves)
	return err
}

// written is the side of a leaf that is in the files, whether anybody has proved it or not.
func (s *sight) written(signer string) Side {
	switch {
	case s.r.before == s.r.after && s.r.kind != Takeover:
		return Unknown
	case signer == s.r.after:
		return After
	case signer == s.r.before:
		return Before
	}
	return Unknown
}

// ports are those of a store with what is proved of their trust in the CA that comes. lacks: its anchors are not in the files.
func (s *sight) ports(p fleet.Proven) (out []Port, lacks bool) {
	for _, g := range p.Untrusting(s.r.after, s.r.sumsAfter) {
		lacks = lacks || g.Code == "anchor-missing"
	}
	for _, x := range p.Ports {
		_, accepted := x.Accepted[s.r.after]
		q := Port{Name: portName(x), Trusts: accepted, CQL: x.Kind == agentv1.PortKind_PORT_KIND_CQL}
		switch {
		case x.Asks:
		case x.Kind == agentv1.PortKind_PORT_KIND_CQL:
			q.Exempt = "asks clients for no certificate (require_client_auth: false): it trusts no CA, so there is nothing to prove"
		default: // it trusts as a client of its peers
			q.Marker, q.Trusts = true, x.Served && x.Marker && !lacks
		}
		out = append(out, q)
	}
	return out, lacks
}

func portName(p fleet.PortProven) string {
	kind := "CQL"
	if p.Kind == agentv1.PortKind_PORT_KIND_INTERNODE {
		kind = "internode"
	}
	return fmt.Sprintf("%s %s:%d", kind, p.Address, p.Port)
}

// side finds the CA of a leaf that was proved.
func (s *sight) side(leaf []byte) (Side, error) {
	if len(leaf) == 0 {
		return Unknown, nil
	}
	issuer, ok := s.issuers[string(leaf)]
	if !ok {
		var err error
		if issuer, err = ledger.IssuerOf(s.ctx, s.q, leaf); err != nil {
			return Unknown, err
		}
		s.issuers[string(leaf)] = issuer
	}
	signer := resource.Parent(issuer)
	switch {
	case issuer == "" && s.r.kind == Takeover:
		return Before, nil
	case issuer != "" && s.r.before == s.r.after && signer == s.r.after:
		return s.rekeyed(issuer)
	case signer == s.r.after:
		return After, nil
	case signer == s.r.before:
		return Before, nil
	}
	return Neither, nil
}

// rekeyed tells a leaf of the newest issuers from one of those before, within one authority.
func (s *sight) rekeyed(issuer string) (Side, error) {
	if s.r.kind == Takeover {
		return After, nil
	}
	ca, err := authority.InState(s.ctx, s.q, s.r.after)
	if err != nil {
		return Unknown, err
	}
	for _, i := range ca.Issuers {
		if i.Name != issuer {
			continue
		}
		if best := ca.Signing(i.Region, s.now); best != nil && best.Name == i.Name {
			return After, nil
		}
	}
	return Before, nil
}

// signer says why the CA that signs next cannot.
func (s *sight) signer() (string, error) {
	name := s.r.after
	if s.r.phase.Undo() {
		name = s.r.before
	}
	ca, err := authority.InState(s.ctx, s.q, name)
	if err != nil {
		return "", err
	}
	switch {
	case ca.State != authority.Active:
		return fmt.Sprintf("%s is %s", short(name), ca.State), nil
	case ca.Signing("", s.now) == nil:
		return fmt.Sprintf("%s has no active issuer that is valid for another day", short(name)), nil
	case len(ca.Roots(s.now)) == 0:
		return fmt.Sprintf("the root of %s has expired", short(name)), nil
	}
	return "", nil
}

// maxClients bounds how many are named; exceptMore stands for those beyond.
var maxClients = 1000

const exceptMore = "more"

// clients are those that use a living certificate of the CA that goes and have none of the CA that stays under the same subject:
// on the way back the CA that goes is the new one.
func (s *sight) clients() ([]Client, error) {
	goes, stays, which, other := s.r.before, s.r.after, "the CA before", "the new one"
	if s.r.phase.Undo() {
		goes, stays, which, other = stays, goes, "the new CA", "the CA before"
	}
	if goes == stays {
		return nil, nil
	}
	named, err := exceptionsOf(s.ctx, s.q, s.r.name)
	if err != nil {
		return nil, err
	}
	have := map[string]bool{}
	if _, err := s.living(stays, func(l ledger.Living) { have[l.Subject] = true }); err != nil {
		return nil, err
	}
	var out []Client
	more, err := s.living(goes, func(l ledger.Living) {
		if !have[l.Subject] {
			id := fmt.Sprintf("%.16x", l.SHA256)
			out = append(out, Client{Name: id, Until: l.NotAfter, Named: named[id],
				Detail: fmt.Sprintf("%s uses a certificate of %s until %s, and has none of %s", l.Subject, which, l.NotAfter.Format(time.DateOnly), other)})
		}
	})
	if more {
		out = append(out, Client{Name: exceptMore, Named: named[exceptMore], Detail: fmt.Sprintf("more than %d certificates of %s live: the rest was not looked at", maxClients, which)})
	}
	return out, err
}

// living gives the living certificates of applications under an authority. more: there are so many that some were not looked at.
func (s *sight) living(name string, each func(ledger.Living)) (more bool, err error) {
	ca, err := authority.InState(s.ctx, s.q, name)
	if err != nil {
		return false, err
	}
	for _, i := range ca.Issuers {
		list, err := ledger.LivingOf(s.ctx, s.q, i.Name, s.r.cluster, s.now, maxClients+1)
		if err != nil {
			return false, err
		}
		more = more || len(list) > maxClients
		for _, l := range list[:min(len(list), maxClients)] {
			each(l)
		}
	}
	return more, nil
}

// sums are the SHA-256 of certificates.
func sums(ders [][]byte) (out [][]byte) {
	for _, d := range ders {
		s := sha256.Sum256(d)
		out = append(out, s[:])
	}
	return out
}

func contains(all [][]byte, one []byte) bool {
	for _, x := range all {
		if bytes.Equal(x, one) {
			return true
		}
	}
	return false
}
