package cli

import (
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	ui "github.com/cassandra-security-manager/csm/shared/cli"
	"github.com/cassandra-security-manager/csm/shared/fault"
	"github.com/cassandra-security-manager/csm/shared/resource"
)

// limits of the rules; check's flags change those of leaves.
type limits struct {
	leafWarning, leafCritical time.Duration
}

// Defaults: 21 days is the repair floor of renewal, below 24 h nothing is left to try twice.
var defaultLimits = limits{leafWarning: 21 * 24 * time.Hour, leafCritical: 7 * 24 * time.Hour}

const (
	caWarning, caCritical = 180 * 24 * time.Hour, 60 * 24 * time.Hour
	unheardFor            = 15 * time.Minute
	frozenLong            = 24 * time.Hour
)

// rule is a pure judgement over the facts.
type rule func(f facts, l limits) []finding

// rules by what `csm check` can be asked for. The order is the order in which findings of one severity are shown.
var rules = []struct {
	name  string
	judge []rule
}{
	{"restart", []rule{doNotRestart}},
	{"quorum", []rule{quorumRule}},
	{"controllers", []rule{serverRule, controllerRule}},
	{"expiry", []rule{leafRule, authorityRule, ownRule, pinRule}},
	{"agents", []rule{agentRule, storeRule, graceRule}},
	{"freeze", []rule{freezeRule, holdRule}},
}

// judge runs the rules of these names, all when there are none, and puts the worst first.
func judge(f facts, l limits, names ...string) []finding {
	out := []finding{}
	for _, r := range rules {
		if len(names) > 0 && !slices.Contains(names, r.name) {
			continue
		}
		for _, j := range r.judge {
			out = append(out, j(f, l)...)
		}
	}
	slices.SortStableFunc(out, func(a, b finding) int { return severities[a.Severity] - severities[b.Severity] })
	return out
}

// doNotRestart comes before all else: Cassandra looks at certificates in handshakes only. A node whose leaf has expired goes on
// with the links that stand, and is alone once it restarts.
func doNotRestart(f facts, _ limits) []finding {
	var names []string
	for _, n := range f.nodes {
		for _, s := range n.Stores {
			if n.Instance.Running && !s.NotAfter.IsZero() && s.NotAfter.Before(f.now.Add(24*time.Hour)) && !slices.Contains(names, short(n.Name)) {
				names = append(names, short(n.Name))
			}
		}
	}
	if len(names) == 0 {
		return nil
	}
	cluster, _, _ := strings.Cut(names[0], "/")
	return []finding{found(critical, "do-not-restart", names[0], "csm emergency reissue -c "+cluster+" --dry-run",
		fmt.Sprintf("do NOT restart Cassandra on %s: the certificate has expired or ends within a day, and the links that stand outlive it; after a restart no peer would take the node back",
			listed(names))).book("certificate-expired")}
}

func quorumRule(f facts, _ limits) []finding {
	if f.status == nil {
		if fault.Is(f.err, fault.Unavailable) {
			return []finding{found(critical, "no-controller", "", "csm-agent doctor   # on a node: needs no controller",
				"no controller answers; nodes keep what they have, so do NOT restart Cassandra on a node whose certificate is about to end: "+f.err.Error()).book("all-controllers-lost")}
		}
		return []finding{found(critical, "not-asked", "", remedyOf(f.err), f.err.Error())}
	}
	if f.status.Quorum {
		return nil
	}
	return []finding{found(critical, "no-quorum", "system", "csm system controllers   # then start csm-controller on those that are not reachable",
		"the controllers have no quorum: nothing is issued, nothing is changed; nodes keep what they have").book("no-quorum")}
}

func serverRule(f facts, _ limits) (out []finding) {
	for _, s := range f.servers {
		switch {
		case s.err == nil:
		case fault.HasReason(s.err, "not-ready"):
			out = append(out, found(warning, "not-ready", s.host, remedyOf(s.err), s.err.(*fault.Error).Message).book("controller-lost"))
		default:
			out = append(out, found(warning, "unreachable", s.host, "systemctl status csm-controller   # there", fault.From(s.err).Message).book("controller-lost"))
		}
	}
	return out
}

func controllerRule(f facts, _ limits) (out []finding) {
	if f.status == nil {
		return nil
	}
	if f.status.Quorum { // without one, its problem is told by quorumRule
		for _, p := range f.status.Problems {
			sev, book := warning, "controller-lost"
			switch {
			case strings.Contains(p, "clock"):
				book = "clock-wrong"
			case strings.Contains(p, "disk"):
				sev, book = critical, "disk-full"
			case strings.Contains(p, "waits for approval"):
				out = append(out, found(info, "approval", "", "csm system controllers -o wide", p))
				continue
			}
			message, next, _ := strings.Cut(p, ": ")
			out = append(out, found(sev, "problem", "", next, message).book(book))
		}
	}
	versions := map[string]bool{}
	for _, c := range f.status.Controllers {
		if c.Reachable && c.Version != "" {
			versions[c.Version] = true
		}
	}
	if len(versions) > 1 {
		out = append(out, found(info, "versions", "system", "csm system controllers", "the controllers run different versions: finish the upgrade"))
	}
	return out
}

// leafRule looks at what stands in the stores. Below the repair floor renewal has failed for weeks: somebody has to look.
func leafRule(f facts, l limits) (out []finding) {
	for _, n := range f.nodes {
		for _, s := range n.Stores {
			left := s.NotAfter.Sub(f.now)
			if s.NotAfter.IsZero() || left > l.leafWarning {
				continue
			}
			sev := warning
			if left <= l.leafCritical {
				sev = critical
			}
			next, name := "csm node renew "+short(n.Name)+" --wait", short(n.Name)
			if !n.Agent.Connected {
				next = "csm-agent doctor   # on " + short(n.Name)
			}
			message := fmt.Sprintf("the certificate of store %s ends %s; why it was not renewed: %s", s.Name, ui.Ago(f.now, s.NotAfter), n.Why)
			if left <= 0 {
				message = fmt.Sprintf("the certificate of store %s ended %s: do NOT restart this node; why it was not renewed: %s", s.Name, ui.Ago(f.now, s.NotAfter), n.Why)
			}
			out = append(out, found(sev, "leaf-expires", name, next, message).book("certificate-expired"))
		}
	}
	return out
}

func authorityRule(f facts, _ limits) (out []finding) {
	for _, a := range f.authorities {
		for _, i := range a.Issuers {
			left := i.NotAfter.Sub(f.now)
			if i.State != "active" || i.NotAfter.IsZero() || left > caWarning {
				continue
			}
			sev := warning
			if left <= caCritical {
				sev = critical
			}
			out = append(out, found(sev, "authority-expires", i.Name, "csm ca get "+short(a.Name),
				fmt.Sprintf("the %s ends %s, and no certificate outlives it", i.Kind, ui.Ago(f.now, i.NotAfter))))
		}
	}
	return out
}

func ownRule(f facts, _ limits) []finding {
	if f.own.IsZero() || f.own.Sub(f.now) > 7*24*time.Hour {
		return nil
	}
	return []finding{found(warning, "own-certificate", "", "csm-controller admin add NAME   # on a controller's host",
		"your own client certificate ends "+ui.Ago(f.now, f.own))}
}

// pinRule: a pin that was good enough to ask is of a root that is still trusted; another one signs already.
func pinRule(f facts, _ limits) []finding {
	if f.status == nil || f.status.CAPin == "" || f.pin == "" || strings.EqualFold(f.pin, f.status.CAPin) {
		return nil
	}
	return []finding{found(warning, "old-pin", "", "csm context set NAME --ca-pin "+f.status.CAPin,
		"the ca_pin of this context is of a root of the system CA that goes: after its retire this context trusts no controller")}
}

func agentRule(f facts, _ limits) (out []finding) {
	for _, n := range f.nodes {
		name := short(n.Name)
		switch {
		case n.State == "suspended":
			out = append(out, found(critical, "agent-suspended", name, "csm node get "+name, "the agent is suspended: "+n.StateReason).book("identity-conflict"))
		case n.State == "revoked":
			out = append(out, found(warning, "agent-revoked", name, "csm node rejoin "+name, "the agent's identity is revoked: "+n.StateReason))
		case n.State == "active" && !n.Agent.Connected && f.now.Sub(n.Agent.TransitionTime) > unheardFor:
			out = append(out, found(warning, "agent-unheard", name, "csm-agent doctor   # on the node", "nothing is heard of the agent since "+ui.Ago(f.now, n.Agent.TransitionTime)).book("agent-not-heard"))
		}
	}
	return out
}

// graceRule keeps an exception in sight while it lasts.
func graceRule(f facts, _ limits) []finding {
	if f.status == nil || f.status.Grace == nil {
		return nil
	}
	return []finding{found(info, "grace", "system", "csm system grace --end --reason WHY", "agents may renew identities that expired however long ago, until "+f.status.Grace.Until.Format(time.RFC3339)+": "+f.status.Grace.Reason)}
}

func storeRule(f facts, _ limits) (out []finding) {
	for _, n := range f.nodes {
		name := short(n.Name)
		for _, s := range n.Stores {
			switch s.State {
			case "failed":
				out = append(out, found(critical, "store-failed", name, "csm-agent doctor   # on the node", "store "+s.Name+" could neither go forward nor back: "+s.Detail).book("proof-fails"))
			case "contested":
				out = append(out, found(critical, "store-contested", name, "csm node get "+name, "another tool writes store "+s.Name+": "+s.Detail).book("store-contested"))
			case "rolled-back":
				out = append(out, found(warning, "store-rolled-back", name, "csm why "+name, "the last install of store "+s.Name+" was rolled back: "+s.Detail).book("proof-fails"))
			}
		}
	}
	return out
}

// freezeRule: frozen is a decision of a person, and a forgotten one lets certificates run out.
func freezeRule(f facts, l limits) (out []finding) {
	freezes := map[string]freezeView{}
	if f.status != nil {
		for _, z := range f.status.Freezes {
			freezes[z.Scope] = z
		}
	}
	for _, n := range f.nodes {
		if n.Frozen != nil {
			freezes[n.Frozen.Scope] = *n.Frozen
		}
	}
	for _, scope := range slices.Sorted(maps.Keys(freezes)) {
		z := freezes[scope]
		sev, why := info, ""
		if f.now.Sub(z.Since) > frozenLong {
			sev, why = warning, ", longer than a day"
		}
		if ends := endsUnder(f, scope, l); len(ends) > 0 {
			sev, why = critical, fmt.Sprintf("; under it the certificates of %s run out", listed(ends))
		}
		out = append(out, found(sev, "frozen", scope, "csm "+unfreezeCommand(scope), fmt.Sprintf("frozen since %s by %s (%s)%s", ui.Ago(f.now, z.Since), actorName(z.Actor), z.Reason, why)).book("frozen-too-long"))
	}
	return out
}

// endsUnder names the nodes under a freeze with a leaf that is due.
func endsUnder(f facts, scope string, l limits) (out []string) {
	for _, n := range f.nodes {
		if scope != "system" && n.Name != scope && !strings.HasPrefix(n.Name, scope+"/") {
			continue
		}
		for _, s := range n.Stores {
			if !s.NotAfter.IsZero() && s.NotAfter.Sub(f.now) <= l.leafWarning {
				out = append(out, short(n.Name))
				break
			}
		}
	}
	return out
}

func unfreezeCommand(scope string) string {
	switch {
	case scope == "system":
		return "system unfreeze --reason WHY"
	case resource.Segment(scope, "nodes") != "":
		return "node unfreeze " + short(scope) + " --reason WHY"
	case resource.Segment(scope, "clusters") != "":
		return "cluster unfreeze " + resource.Last(scope) + " --reason WHY"
	}
	return "tenant unfreeze " + resource.Last(scope) + " --reason WHY"
}

func holdRule(f facts, _ limits) (out []finding) {
	for _, n := range f.nodes {
		if n.Agent.Hold != "" {
			out = append(out, found(warning, "held", short(n.Name), "csm-agent release   # on the node", "the file HOLD stops the agent: "+n.Agent.Hold).book("frozen-too-long"))
		}
	}
	return out
}

// listed shortens a list of names for a sentence.
func listed(names []string) string {
	if len(names) > 5 {
		return strings.Join(names[:5], ", ") + fmt.Sprintf(" and %d more", len(names)-5)
	}
	return strings.Join(names, ", ")
}
