package fleet

import (
	"encoding/json"
	"fmt"
	"net/netip"
	"path"
	"slices"
	"strings"

	clusterv1 "github.com/cassandra-security-manager/csm/protocol/cluster/v1"

	"github.com/cassandra-security-manager/csm/shared/fault"
)

// Rule says which names a node that proves possession may get without a person's approval. The zero Rule: none.
type Rule struct {
	DNS        []string `json:"dns,omitempty" maxItems:"64" doc:"patterns of DNS names, label by label; * stands for any part of one label"`
	Networks   []string `json:"networks,omitempty" maxItems:"64" doc:"networks of addresses, like 10.1.0.0/16"`
	FirstNodes int      `json:"firstNodes,omitempty" minimum:"0" maximum:"2" doc:"so many nodes may join by this rule alone while fewer than two peers of the ring can be asked"`
	AnySource  bool     `json:"anySource,omitempty" doc:"the join may come from an address that is not one of the node's"`
}

// enough is how many peers' gossip must know an address.
const enough = 2

// Normalise gives the rule's one form, or refuses it.
func (r Rule) Normalise() (Rule, error) {
	out := Rule{FirstNodes: r.FirstNodes, AnySource: r.AnySource}
	for _, d := range r.DNS {
		d = strings.ToLower(strings.TrimSuffix(d, "."))
		if _, err := path.Match(d, ""); err != nil || d == "" || len(d) > 253 || strings.ContainsAny(d, "/ \\[]?") {
			return Rule{}, fault.New(fault.Invalid, "bad-rule", "%.100q is not a pattern of DNS names", d).Do("write it like *.prod.example or n*.prod.example")
		}
		out.DNS = append(out.DNS, d)
	}
	for _, n := range r.Networks {
		p, err := netip.ParsePrefix(n)
		if err != nil {
			return Rule{}, fault.New(fault.Invalid, "bad-rule", "%.100q is not a network", n).Do("write it like 10.1.0.0/16")
		}
		out.Networks = append(out.Networks, p.Masked().String())
	}
	if r.FirstNodes < 0 || r.FirstNodes > enough {
		return Rule{}, fault.New(fault.Invalid, "bad-rule", "%d first nodes may join alone, at most %d make sense", r.FirstNodes, enough)
	}
	slices.Sort(out.DNS)
	slices.Sort(out.Networks)
	out.DNS, out.Networks = slices.Compact(out.DNS), slices.Compact(out.Networks)
	return out, nil
}

func (r Rule) wire() *clusterv1.JoinRule {
	return &clusterv1.JoinRule{Dns: r.DNS, Networks: r.Networks, FirstNodes: uint32(r.FirstNodes), AnySource: r.AnySource}
}

func ruleOf(w *clusterv1.JoinRule) Rule {
	return Rule{DNS: w.GetDns(), Networks: w.GetNetworks(), FirstNodes: int(w.GetFirstNodes()), AnySource: w.GetAnySource()}
}

func ruleFrom(column string) (r Rule, err error) {
	if err := json.Unmarshal([]byte(column), &r); err != nil {
		return Rule{}, fault.Wrap(err, fault.Internal, "bad-row", "a rule in the state cannot be read")
	}
	return r, nil
}

// uncovered are the names that the rule does not cover.
func (r Rule) uncovered(n Names) (out Names) {
	for _, d := range n.DNS {
		if !slices.ContainsFunc(r.DNS, func(p string) bool { return matches(p, d) }) {
			out.DNS = append(out.DNS, d)
		}
	}
	for _, i := range n.IPs {
		a, err := netip.ParseAddr(i)
		if err != nil || !slices.ContainsFunc(r.Networks, func(p string) bool { n, err := netip.ParsePrefix(p); return err == nil && n.Contains(a) }) {
			out.IPs = append(out.IPs, i)
		}
	}
	return out
}

// matches compares label by label: a star never spans a dot.
func matches(pattern, name string) bool {
	p, n := strings.Split(pattern, "."), strings.Split(name, ".")
	if len(p) != len(n) {
		return false
	}
	for i := range p {
		if ok, err := path.Match(p[i], n[i]); err != nil || !ok {
			return false
		}
	}
	return true
}

// claimant is everything that a join by possession is judged by.
type claimant struct {
	// Names asked for; those that Cassandra's certificate of today carries; those recorded for the node by a person, if any.
	names, attested, recorded Names
	// peer is the address that asked.
	peer string
	// incarnation of the node that exists by that name, 0 when none has joined.
	incarnation uint64
	// sharedWith is another node that joined with the same key of Cassandra's.
	sharedWith string
	// taken are addresses and DNS names that another node of the cluster has.
	taken map[string]string
	// enrolled nodes besides this one; seenBy says how many of their gossip views know an address.
	enrolled int
	seenBy   map[string]int
}

// doubts says why a person must decide; none: the rule and the peers cover it. Pure.
func doubts(rule Rule, c claimant) (out []string) {
	say := func(format string, args ...any) { out = append(out, fmt.Sprintf(format, args...)) }
	if c.incarnation > 0 {
		say("a node of this name has joined before (incarnation %d): approving replaces it and revokes its identity", c.incarnation)
	}
	if c.sharedWith != "" {
		say("the same private key was used by %s: a shared key proves no single node", short(c.sharedWith))
	}
	if len(c.names.IPs) == 0 {
		say("the node names no address of its own, so its peers cannot confirm it")
	}
	for _, n := range slices.Concat(c.names.DNS, c.names.IPs) {
		if other := c.taken[n]; other != "" && !loopback(n) {
			say("%s is a name of %s", n, short(other))
		}
	}
	if c.recorded.Empty() {
		for _, n := range rule.uncovered(c.names).all() {
			say("the rule does not cover %s", n)
		}
		for _, d := range without(c.names.DNS, c.attested.DNS) {
			say("the certificate in use does not carry the DNS name %s, and gossip knows none", d)
		}
	} else {
		for _, n := range append(without(c.names.DNS, c.recorded.DNS), without(c.names.IPs, c.recorded.IPs)...) {
			say("%s is not one of the names that were set for this node", n)
		}
	}
	if !rule.AnySource && !slices.Contains(c.names.IPs, c.peer) {
		say("the request came from %s, which is none of the node's addresses", c.peer)
	}
	if c.enrolled < enough && c.enrolled < rule.FirstNodes {
		return out
	}
	for _, i := range c.names.IPs {
		if i == "127.0.0.1" && len(c.names.IPs) > 1 {
			continue // where links on one machine come from, and the address of no member
		}
		if k := c.seenBy[i]; k < enough {
			say("%s is known to the gossip of %d enrolled peers, %d are needed", i, k, enough)
		}
	}
	return out
}

// loopback addresses name no single host: rings on one machine carry them side by side.
func loopback(name string) bool {
	a, err := netip.ParseAddr(name)
	return err == nil && a.IsLoopback()
}

func (n Names) all() []string { return slices.Concat(n.DNS, n.IPs) }

func without(all, known []string) (out []string) {
	for _, a := range all {
		if !slices.Contains(known, a) {
			out = append(out, a)
		}
	}
	return out
}
