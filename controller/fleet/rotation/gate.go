package rotation

import (
	"fmt"
	"slices"

	"github.com/cassandra-security-manager/csm/shared/fault"
	"github.com/cassandra-security-manager/csm/shared/release"
)

// Step is something that could cut the ring if it came too early.
type Step string

// The steps.
const (
	StepReissue  Step = "reissue"  // leave distribute: leaves of the CA that comes may be given out
	StepLeaf     Step = "leaf"     // one store claims a leaf of the CA that comes
	StepReissued Step = "reissued" // leave reissue
	StepRetire   Step = "retire"   // withdraw the anchors of the CA before
	StepShrink   Step = "shrink"   // one store takes the withdrawn anchors out
	StepDone     Step = "done"     // nothing is left to do
	StepTurn     Step = "turn"     // turn a take-over round after the first leaf
	StepBack     Step = "back"     // one store claims a leaf of the CA before again
	StepWithdraw Step = "withdraw" // take the new anchors out after the leaves are back
	StepUnshrink Step = "unshrink" // one store takes the new anchors out again
	StepUndone   Step = "undone"   // the way back is over
)

// Gate is one condition of safety. Each has a test that fails without it, and docs/rotation.md says what taught it.
type Gate struct {
	Code  string
	steps []Step
	// asks gives a reason for each thing that is in the way. who is the full name of the node that a claim is of, else empty.
	asks func(v View, who string) []Reason
}

// Gates are asked together.
type Gates []Gate

// Ask gives every reason against a step; none: it is safe as far as the state knows.
func (g Gates) Ask(s Step, v View, who string) []Reason {
	var out []Reason
	for _, x := range g {
		if !slices.Contains(x.steps, s) {
			continue
		}
		for _, r := range x.asks(v, who) {
			r.Code = x.Code
			out = append(out, r)
		}
	}
	return out
}

// Without leaves one gate out: for tests that show what it prevents.
func (g Gates) Without(code string) Gates {
	return slices.DeleteFunc(slices.Clone(g), func(x Gate) bool { return x.Code == code })
}

var (
	forward    = []Step{StepReissue, StepLeaf, StepReissued, StepRetire, StepShrink, StepDone}
	everywhere = append([]Step{StepBack, StepWithdraw, StepUnshrink, StepUndone}, forward...)
	transition = []Step{StepReissue, StepReissued, StepRetire, StepDone, StepWithdraw, StepUndone}
)

// All are the gates, in the order in which people are told of them.
func All() Gates {
	return Gates{
		{"frozen", transition, frozenGate},
		{"paused", []Step{StepReissue, StepLeaf, StepReissued, StepRetire, StepShrink, StepDone, StepWithdraw, StepUnshrink, StepUndone}, pausedGate},
		{"ring-known", without(everywhere, StepBack), ringKnown},
		{"enrolled", without(everywhere, StepBack), members(enrolledGate)},
		{"up", without(everywhere, StepBack), members(upGate)},
		{"started", transition, startedGate},
		{"settled", []Step{StepReissue, StepReissued, StepRetire, StepShrink, StepWithdraw}, members(settledGate)},
		{"one-version", []Step{StepReissue, StepLeaf}, oneVersion},
		{"signer", []Step{StepReissue, StepLeaf, StepBack}, signerGate},
		{"installed", []Step{StepReissue, StepDone, StepUndone}, stores(installedGate)},
		{"trust-proved", []Step{StepReissue, StepLeaf}, stores(trustProved)},
		{"leaf-proved", []Step{StepReissued, StepRetire, StepShrink}, stores(leafProved)},
		{"kept", []Step{StepTurn, StepBack, StepWithdraw}, keptGate},
		{"trusted-before", []Step{StepTurn, StepBack}, trustedBefore},
		{"leaf-back", []Step{StepWithdraw, StepUnshrink}, stores(leafBack)},
		{"still", []Step{StepReissued, StepRetire, StepWithdraw, StepDone, StepUndone}, stores(stillGate)},
		{"links", []Step{StepRetire}, members(linksGate)},
		{"clients", []Step{StepRetire, StepWithdraw}, clientsGate},
		{"canary", []Step{StepLeaf}, canaryGate},
		{"seen", []Step{StepRetire}, seenGate},
	}
}

func without(all []Step, one Step) []Step {
	return slices.DeleteFunc(slices.Clone(all), func(s Step) bool { return s == one })
}

// members asks about each member that counts. Who claims is not asked about itself while it is down: what it takes before its
// Cassandra starts comes in one piece.
func members(ask func(v View, m Member) *Reason) func(View, string) []Reason {
	return func(v View, who string) (out []Reason) {
		for _, m := range v.Members {
			if !m.counts() || who != "" && m.Node == who && !m.Up {
				continue
			}
			if r := ask(v, m); r != nil {
				r.Node = m.Name
				out = append(out, *r)
			}
		}
		return out
	}
}

// stores asks about each store of each member that counts. A member without a store is one of which nothing is known.
func stores(ask func(v View, s Store) string) func(View, string) []Reason {
	return members(func(v View, m Member) *Reason {
		if len(m.Stores) == 0 {
			return &Reason{Message: "no store of it is known", Remedy: "see `csm node get`: its agent reports stores when it has connected"}
		}
		for _, s := range m.Stores {
			if text := ask(v, s); text != "" {
				return &Reason{Message: "store " + s.Name + ": " + text, Remedy: "see `csm why NODE`"}
			}
		}
		return nil
	})
}

func frozenGate(v View, _ string) []Reason {
	if v.Frozen == "" {
		return nil
	}
	return []Reason{{Message: v.Frozen, Remedy: "lift the freeze: `csm cluster unfreeze`"}}
}

func pausedGate(v View, _ string) []Reason {
	if !v.Paused {
		return nil
	}
	return []Reason{{Message: "a person paused it", Remedy: "`csm rotation resume`"}}
}

func ringKnown(v View, _ string) (out []Reason) {
	for _, d := range v.Doubts {
		out = append(out, Reason{Message: d, Remedy: "let the agents of two nodes at least run beside a running Cassandra; a member that is gone for good: `nodetool removenode`"})
	}
	if len(v.Doubts) == 0 && len(v.Members) == 0 {
		out = append(out, Reason{Message: "no member of the ring is known", Remedy: "let its nodes join: `csm cluster join-command`"})
	}
	return out
}

func enrolledGate(_ View, m Member) *Reason {
	switch {
	case m.Node == "":
		return &Reason{Message: "is a member of the ring and has no agent: nothing is known of what it trusts", Remedy: "let it join: `csm cluster join-command`, or remove it from the ring"}
	case !m.Active:
		return &Reason{Message: "its agent may not act (identity not active, or not in mode manage)", Remedy: "see `csm node get`"}
	}
	return nil
}

func upGate(_ View, m Member) *Reason {
	if m.Up {
		return nil
	}
	return &Reason{Message: "is down: what it will trust when it starts is not known", Remedy: "start it, or set it aside by name: `csm rotation set-aside`"}
}

func settledGate(_ View, m Member) *Reason {
	if m.State == "normal" {
		return nil
	}
	return &Reason{Message: "is " + m.State + " in the ring", Remedy: "wait until it is done"}
}

// startedGate asks for nodes that have stores of ours and whose Cassandra has never started: it may do so two phases later, with
// what lies there now.
func startedGate(v View, _ string) (out []Reason) {
	for _, m := range v.Members {
		if m.Waiting && m.Aside == "" {
			out = append(out, Reason{Node: m.Name, Message: "is enrolled and has stores of ours, and its Cassandra has never started: when it does, it trusts what lies there",
				Remedy: "start it, after `csm-agent ensure --before-start`; or `csm node remove` if it is not to come"})
		}
	}
	return out
}

// oneVersion refuses a ring whose releases read their stores again at different moments (CASSANDRA-18681).
func oneVersion(v View, _ string) []Reason {
	versions := map[string]string{}
	for _, m := range v.Members {
		if m.counts() && m.Node != "" {
			versions[m.Name] = m.Version
		}
	}
	if err := release.OneReload(versions); err != nil {
		f := fault.From(err)
		return []Reason{{Message: f.Message, Remedy: f.Remedy}}
	}
	return nil
}

func signerGate(v View, _ string) []Reason {
	if v.Signer == "" || v.Kind == Takeover && v.Phase.Undo() { // on that way back nothing is signed
		return nil
	}
	return []Reason{{Message: v.Signer, Remedy: "see `csm ca get`; make an issuer that can sign"}}
}

func installedGate(_ View, s Store) string {
	if s.Behind {
		return "its files are older than what this phase asks for"
	}
	return ""
}

// trustProved asks for an accepted certificate of the CA that comes on each port, with the files that are there now.
func trustProved(v View, s Store) string {
	if v.Kind == Rekey { // the same root: who trusts the old issuer trusts the new one
		return ""
	}
	if s.Lacks {
		return "its truststore lacks an anchor of the new CA"
	}
	for _, p := range s.Ports {
		switch {
		case p.Trusts || p.Exempt != "":
		case p.Marker:
			return "port " + p.Name + " asks for no certificate, and no leaf newer than its truststore was seen on it"
		default:
			return "no neighbour has proved that port " + p.Name + " trusts the new CA with the files that are in place"
		}
	}
	return ""
}

func leafProved(_ View, s Store) string {
	switch s.Leaf {
	case After:
		return ""
	case Unknown:
		return "no neighbour has proved which leaf it serves now"
	}
	return "the leaf that it serves is not of the new CA"
}

func leafBack(_ View, s Store) string {
	if s.Stays && s.Leaf == After {
		return ""
	}
	switch s.Leaf {
	case Before:
		return ""
	case Unknown:
		return "no neighbour has proved which leaf it serves now"
	}
	return "the leaf that it serves is not of the CA before"
}

func stillGate(_ View, s Store) string {
	if s.Moving {
		return "it is on the move, or moved and is not proved"
	}
	return ""
}

// linksGate asks for links that were made after the swap: one that comes back proves that its client side trusts the new CA, and
// one that lives on from before hides that it does not.
func linksGate(v View, m Member) *Reason {
	switch {
	case v.LinksAccepted:
		return nil
	case m.OldLinks < 0:
		return &Reason{Message: "it is not known whether connections between nodes from before the swap live on" + why(m.Links), Remedy: "restart its Cassandra when its turn comes, or accept it by name: `csm rotation retire --except links --reason ...`"}
	case m.OldLinks > 0:
		return &Reason{Message: fmt.Sprintf("%d connections to other nodes live on with certificates from before the swap%s", m.OldLinks, why(m.Links)), Remedy: "they are cycled one node after the other; where the host cannot, restart its Cassandra"}
	}
	return nil
}

func why(text string) string {
	if text == "" {
		return ""
	}
	return ": " + text
}

func clientsGate(v View, _ string) (out []Reason) {
	for _, c := range v.Clients {
		if !c.Named {
			out = append(out, c.reason(v.Phase))
		}
	}
	return out
}

func (c Client) reason(p Phase) Reason {
	r := Reason{Node: c.Name, Message: "would break: " + c.Detail, Remedy: "give it a certificate of the new CA, or name it: `csm rotation retire --except " + c.Name + " --reason ...`"}
	if p.Undo() {
		r.Remedy = "give it a certificate of the CA before, or name it: `csm rotation resume --except " + c.Name + " --reason ...`"
	}
	return r
}
