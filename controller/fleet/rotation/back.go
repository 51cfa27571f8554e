package rotation

import (
	"fmt"
	"slices"
	"time"

	"github.com/cassandra-security-manager/csm/controller/fleet"
)

// keepsOurs is the name under which a person lets a member keep the leaf of ours on the way back of a take-over.
func keepsOurs(m Member) string { return "leaf-" + m.Name }

// staying marks stores that keep the leaf of ours.
func staying(stores []Store) []Store {
	out := slices.Clone(stores)
	for i := range out {
		out[i].Stays = true
	}
	return out
}

// returns fills in whether the leaf that a store had before it was taken over can come back.
func (s *sight) returns(x *Store, st fleet.StoreStanding, p fleet.Proven) {
	x.Kept = st.Kept
	x.Stays = !st.Kept && !st.Theirs
	if st.Kept && p.Kept != nil {
		x.Gone = p.Kept.Gone(s.now)
	}
}

// untrusted says which of the anchors that leaves of before lead to a store lacks; empty when it holds them all.
func untrusted(p fleet.Proven, anchors [][]byte) string {
	for _, a := range anchors {
		if !p.Holds(a) {
			return fmt.Sprintf("its truststore lacks the anchor %.12x, which certificates of before lead to", a)
		}
	}
	return ""
}

// keptGate asks whether every agent still keeps the leaf that is to come back, good for long enough.
func keptGate(v View, who string) (out []Reason) {
	if v.Kind != Takeover {
		return nil
	}
	for _, m := range v.Members {
		for _, s := range m.Stores {
			if who != "" && m.Node != who || s.Gone == "" || s.Stays || s.Leaf == Before {
				continue
			}
			out = append(out, Reason{Node: m.Name, Message: "store " + s.Name + ": " + s.Gone,
				Remedy: "let it keep the certificate of ours, which all trust: add --except " + keepsOurs(m) + " and --reason to `csm rotation rollback` or `resume`; or go on to the end"})
		}
	}
	return out
}

// trustedBefore asks whether every member would accept the leaves that come back: one that joined since the take-over may have never
// known the CA before. What the one that claims serves itself is not asked: it is about to serve something else.
func trustedBefore(v View, who string) []Reason {
	if v.Kind != Takeover {
		return nil
	}
	return members(func(_ View, m Member) *Reason {
		for _, s := range m.Stores {
			switch {
			case s.LacksBefore != "":
				return &Reason{Message: "store " + s.Name + ": " + s.LacksBefore, Remedy: "put that anchor into its truststore, or take the node out of the ring; else go on to the end"}
			case s.Leaf == Unknown && !s.Moving && m.Up && m.Node != who: // one that is cut off may be what is to be healed
				return &Reason{Message: "store " + s.Name + ": no neighbour has proved what it serves, so it is not known which truststore it has loaded", Remedy: "see `csm why NODE`"}
			}
		}
		return nil
	})(v, who)
}

// wayBack says what would refuse to turn a rotation round now. Only a take-over that has given out leaves needs anything: the CA
// before of any other can sign.
func (g Gates) wayBack(v View) []Reason {
	if v.Kind != Takeover || v.Phase.Undo() || !anyLeaf(v, After) {
		return nil
	}
	return g.Ask(StepTurn, v, "")
}

// usualReturn is what agents leave of a kept leaf's life: within that long before its end it does not come back.
const usualReturn = 7 * 24 * time.Hour

// returnNotes say before a take-over what its way back will need. Pure.
func returnNotes(nodes []fleet.Standing) []string {
	out := []string{fmt.Sprintf("the way back: each agent keeps certificate and key of before in its state folder until the retire, and puts them back by a rollback, up to %d days before the certificate's end", int(usualReturn.Hours()/24))}
	for _, n := range nodes {
		for _, s := range n.Stores {
			if s.Theirs && !s.NotAfter.IsZero() {
				out = append(out, fmt.Sprintf("%s: the certificate of store %s ends on %s", short(n.Node), s.Store, s.NotAfter.UTC().Format(time.DateOnly)))
			}
		}
	}
	return firstOf(out, 13)
}
