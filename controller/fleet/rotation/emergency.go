package rotation

import (
	"fmt"
	"slices"

	"github.com/cassandra-security-manager/csm/controller/fleet"
	"github.com/cassandra-security-manager/csm/shared/fault"
)

// What an emergency gives up unless a person keeps it. Everything else holds as in any rotation: what is between live members of the
// ring is never given up, nor an application that is registered and not named.
const (
	relaxWidth  = "width"   // leaves one after the other
	relaxCanary = "canary"  // the others wait for the clients of the first node
	relaxSeen   = "seen"    // the retire waits for clients that were only seen
	relaxByHand = "by-hand" // a person retires
)

var relaxable = []string{relaxWidth, relaxCanary, relaxSeen, relaxByHand}

// Wanted is what a rotation is asked to do.
type Wanted struct {
	Cluster, Authority string
	// Emergency: the key of the CA before may be in other hands, so that time costs more than what is named in Relaxation.
	Emergency bool
	// Keep names what is not given up all the same.
	Keep []string
}

// relaxed gives the codes of what is given up, in their order.
func (w Wanted) relaxed() ([]string, error) {
	if !w.Emergency {
		if len(w.Keep) > 0 {
			return nil, fault.New(fault.Invalid, "not-an-emergency", "only an emergency gives anything up").Do("leave --keep out, or add --emergency")
		}
		return nil, nil
	}
	for _, k := range w.Keep {
		if !slices.Contains(relaxable, k) {
			return nil, fault.New(fault.Invalid, "bad-keep", "an emergency does not give up %.40q", k).Do("use one of %v; all else is kept always", relaxable)
		}
	}
	return slices.DeleteFunc(slices.Clone(relaxable), func(x string) bool { return slices.Contains(w.Keep, x) }), nil
}

// relaxes says whether this rotation gives that up. What is not on the list is never given up, whatever the state says.
func (v View) relaxes(code string) bool {
	return v.Emergency && slices.Contains(relaxable, code) && slices.Contains(v.Relaxed, code)
}

// Relaxation is one thing that an emergency gives up, and what may come of it.
type Relaxation struct {
	Code string `json:"code" doc:"as --keep takes it"`
	// GivesUp is what is not waited for; Risk is what may break by it.
	GivesUp string `json:"givesUp"`
	Risk    string `json:"risk"`
	// Who may break, as far as it is known. They come and go, so they are no part of the plan's hash.
	Who []string `json:"who,omitempty"`
}

// relaxations tells people what an emergency gives up. Pure.
func (v View) relaxations() (out []Relaxation) {
	var seen []string
	for _, x := range v.awaited("") {
		seen = append(seen, x.Name+": "+x.Detail)
	}
	for _, code := range relaxable {
		if !v.relaxes(code) {
			continue
		}
		r := Relaxation{Code: code}
		switch code {
		case relaxWidth:
			r.GivesUp = fmt.Sprintf("trust goes to %d nodes at once, leaves and the withdrawal to %d", wideTrust, v.Wide)
			r.Risk = "what is wrong with the new files is met by that many nodes before it halts; the canary of each phase goes first all the same"
			if v.Wide > 1 {
				r.Risk += ". They are of one rack: a keyspace whose replicas are not placed by rack can lose its quorum until they are put back"
			} else {
				r.GivesUp += ", because some data centre has fewer than three racks: a quorum may be in one of them"
			}
		case relaxCanary:
			r.GivesUp = "no node waits until the clients of the first one have connected anew"
			r.Risk, r.Who = "clients that do not trust the new CA are refused by every node within minutes, when they connect", seen
		case relaxSeen:
			r.GivesUp = "the old CA is withdrawn though clients that were only seen have not connected since"
			r.Risk, r.Who = "those that show a certificate of the old CA are refused from then on, and there is no way back", seen
		case relaxByHand:
			r.GivesUp = "the old CA is withdrawn as soon as every other gate holds, without a person"
			r.Risk = "`csm rotation rollback` ends at that moment; until then it gives leaves of the CA that is in other hands"
		}
		out = append(out, r)
	}
	return out
}

// The widths of an emergency: more trust takes nothing from anybody; leaves stay within one rack.
const (
	wideTrust = 64
	wideLeaf  = 16
)

// wide is how many nodes of a rack may take a leaf at once in an emergency: one, unless every data centre has three racks or more, so
// that the replicas of the other racks are a quorum. Pure.
func wide(nodes []fleet.Standing) int {
	racks := map[string]map[string]bool{}
	for _, n := range nodes {
		if n.Incarnation == 0 {
			continue
		}
		if n.Datacenter == "" || n.Rack == "" {
			return 1
		}
		if racks[n.Datacenter] == nil {
			racks[n.Datacenter] = map[string]bool{}
		}
		racks[n.Datacenter][n.Rack] = true
	}
	for _, r := range racks {
		if len(r) < 3 {
			return 1
		}
	}
	return wideLeaf
}

// width is how many nodes the waves of a kind move at once; 0: as usual.
func (v View) width(kind string) int {
	switch {
	case !v.relaxes(relaxWidth):
		return 0
	case kind == waveTrust:
		return wideTrust
	}
	return v.Wide
}

// takesNothing refuses an emergency that would leave the CA before trusted.
func takesNothing(r row) []Reason {
	if !r.emergency || len(r.sumsBefore) > 0 {
		return nil
	}
	why := "the root stays, so whoever has the key of the issuer before is trusted as before: Cassandra looks at no revocation list"
	if r.kind == Takeover {
		why = "the anchors of the CA before are not ours, and stay in the truststores"
	}
	return []Reason{{Code: "nothing-withdrawn", Message: "an emergency must take trust away, and this takes none: " + why,
		Remedy: "make an authority with a root of its own (`csm ca create`) and go to that; anchors of others: `csm trust anchor-remove`"}}
}

// compromised are notes for whoever believes that a CA key is in other hands.
func (s *sight) compromised() ([]string, error) {
	if !s.r.emergency || len(s.r.sumsBefore) == 0 {
		return nil, nil
	}
	out := []string{
		"trust is withdrawn last: a node needs the old anchor as long as one live peer serves a leaf of it, so no pair can lose it before the last leaf is proved, and then all can",
		"connections outlive certificates: those between nodes are ended before the withdrawal; one of a client or an intruder on a CQL port lives on until it ends (`nodetool disablebinary` and `enablebinary`, node by node)",
		"clients trust the old CA until they take it out of their own truststores: whoever has its key can pose as a node to them until then",
	}
	all, err := fleet.ClustersTrusting(s.ctx, s.q, s.r.sumsBefore)
	for _, c := range all {
		if c != s.r.cluster {
			out = append(out, fmt.Sprintf("%s has the same CA and goes on trusting it: it needs an emergency rotation of its own", short(c)))
		}
	}
	return out, err
}
