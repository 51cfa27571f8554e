package cli

import (
	"fmt"
	"strings"
	"time"

	"github.com/spf13/cobra"

	ui "github.com/cassandra-security-manager/csm/shared/cli"
	"github.com/cassandra-security-manager/csm/shared/fault"
	"github.com/cassandra-security-manager/csm/shared/resource"
)

type anchorView struct {
	Name, Kind, SHA256, Subject, State, Owner, Reason, Creator, PEM string
	NotAfter, ExpireTime, CreateTime                                time.Time
	Rule                                                            *ruleView
	Revision                                                        uint64
}

type ruleView struct {
	DNS, Networks []string
	FirstNodes    int
	AnySource     bool
}

type trustView struct {
	Name, Cluster, ETag string
	BundleVersion       uint64
	Anchors             []anchorView
}

func (r *ruleView) String() string {
	if r == nil || len(r.DNS)+len(r.Networks) == 0 {
		return "each join is asked"
	}
	words := append(append([]string{}, r.DNS...), r.Networks...)
	if r.FirstNodes > 0 {
		words = append(words, fmt.Sprintf("first %d alone", r.FirstNodes))
	}
	if r.AnySource {
		words = append(words, "from any address")
	}
	return strings.Join(words, " ")
}

func (a *app) trustCommand() *cobra.Command {
	return group("trust", "Trust domains and the CAs that they know", a.trustList(), a.trustGet(), a.anchorAdd(), a.anchorRemove())
}

func (a *app) trustNames(cmd *cobra.Command) []string {
	return a.offered(cmd, func(s *session) string { return s.tenantName() + "/trustDomains" }, resource.Last)
}

// trustName reads a trust domain's name: full, short, or that of the context's cluster when empty.
func (s *session) trustName(arg string) (string, error) {
	if strings.HasPrefix(arg, "tenants/") {
		return arg, nil
	}
	c, err := s.clusterName(arg)
	return resource.TrustDomain(resource.Segment(c, "tenants"), resource.Last(c)), err
}

func anchorTable(s *session, anchors []anchorView) *ui.Table {
	t := &ui.Table{Columns: []ui.Column{{Name: "TRUST"}, {Name: "ANCHOR"}, {Name: "KIND"}, {Name: "STATE", Style: stateStyle}, {Name: "SUBJECT"}, {Name: "CA EXPIRES", Style: expiry},
		{Name: "OWNER"}, {Name: "JOIN UNTIL", Style: expiry}, {Name: "RULE"}, {Name: "REASON", Wide: true}, {Name: "BY", Wide: true}}}
	for _, x := range anchors {
		rule, until := "", ""
		if x.Kind == "external" {
			rule, until = x.Rule.String(), s.ago(x.ExpireTime)
		}
		t.Add(resource.Last(resource.Parent(x.Name)), finger(x.SHA256), x.Kind, x.State, x.Subject, s.ago(x.NotAfter), x.Owner, until, rule, x.Reason, actorName(x.Creator))
	}
	return t
}

func (a *app) trustList() *cobra.Command {
	c := &cobra.Command{Use: "list", Short: "List the anchors of all trust domains", Args: cobra.NoArgs, Example: "  csm trust list\n  csm trust list -o wide"}
	return a.run(c, func(s *session, _ []string) error {
		items, raws, doc, err := list[trustView](s, s.tenantName()+"/trustDomains", nil, 0)
		if err != nil {
			return err
		}
		var all []anchorView
		for _, d := range items {
			all = append(all, d.Anchors...)
		}
		return s.Print(ui.View{Object: doc, Items: raws, Table: anchorTable(s, all)})
	})
}

func (a *app) trustGet() *cobra.Command {
	c := &cobra.Command{Use: "get [CLUSTER]", Short: "Show the anchors of a cluster's trust domain", Args: cobra.MaximumNArgs(1), ValidArgsFunction: a.completeWith(a.trustNames),
		Example: "  csm trust get prod-eu\n  csm trust get prod-eu -o json"}
	return a.run(c, func(s *session, args []string) error {
		name, err := s.trustName(first(args))
		if err != nil {
			return err
		}
		d, raw, err := read[trustView](s, name, nil)
		if err != nil {
			return err
		}
		return s.Print(ui.View{Object: raw, Table: anchorTable(s, d.Anchors)})
	})
}

func (a *app) anchorAdd() *cobra.Command {
	var file, owner, expires string
	var rule struct {
		dns, networks []string
		firstNodes    int
		anySource     bool
	}
	c := &cobra.Command{Use: "anchor-add [CLUSTER]", Short: "Register the CA that signed a ring's certificates of today", Args: cobra.MaximumNArgs(1), ValidArgsFunction: a.completeWith(a.trustNames),
		Long: "Nodes whose certificates chain to this CA may join by proving possession of their key. --dns and --network say which names they get\n" +
			"without being asked, if two enrolled peers know their addresses by gossip; all others wait for `csm node approve`. No truststore changes.",
		Example: "  csm trust anchor-add prod-eu --file corporate-root.pem --owner 'PKI team' --reason 'ring of today' --expires 720h \\\n" +
			"    --dns '*.prod.example' --network 10.1.0.0/16 --first-nodes 2\n  csm trust anchor-add prod-eu --file root.pem --owner pki@example --reason 'each join is asked' --expires 2027-01-31"}
	f := c.Flags()
	f.StringVar(&file, "file", "", "the CA certificate, PEM; - is standard input")
	f.StringVar(&owner, "owner", "", "team or person who runs that CA")
	f.StringVar(&expires, "expires", "", "joining by it ends then: a time span like 720h, a date, or a time")
	f.StringSliceVar(&rule.dns, "dns", nil, "patterns of DNS names that need no approval; * stands for any part of one label")
	f.StringSliceVar(&rule.networks, "network", nil, "networks whose addresses need no approval")
	f.IntVar(&rule.firstNodes, "first-nodes", 0, "so many nodes (at most 2) need no peers' gossip while fewer than two are enrolled")
	f.BoolVar(&rule.anySource, "any-source", false, "the join may come from an address that is not one of the node's")
	for _, n := range []string{"file", "owner", "expires"} {
		_ = c.MarkFlagRequired(n)
	}
	return a.run(c, func(s *session, args []string) error {
		name, err := s.trustName(first(args))
		if err != nil {
			return err
		}
		if err := s.needReason(); err != nil {
			return err
		}
		end, err := when(s.Now(), expires)
		if err != nil {
			return err
		}
		pem, err := s.readInput(file)
		if err != nil {
			return err
		}
		ans, err := s.post(name+"/anchors", map[string]any{"pem": string(pem), "owner": owner, "reason": s.reason, "expireTime": end,
			"rule": map[string]any{"dns": rule.dns, "networks": rule.networks, "firstNodes": rule.firstNodes, "anySource": rule.anySource}})
		if err != nil || s.dryRun {
			return err
		}
		var v anchorView
		if err := decode(ans.body, &v); err != nil {
			return err
		}
		return s.Print(ui.View{Object: ans.body, Table: anchorTable(s, []anchorView{v}), Note: "compare its SHA-256 with the owner's: " + v.SHA256})
	})
}

// when reads a time span from now, a date (its end) or a time.
func when(now time.Time, v string) (time.Time, error) {
	if d, err := time.ParseDuration(v); err == nil && d > 0 {
		return now.Add(d).UTC(), nil
	}
	if t, err := time.Parse(time.DateOnly, v); err == nil {
		return t.Add(24*time.Hour - time.Second), nil
	}
	if t, err := time.Parse(time.RFC3339, v); err == nil {
		return t, nil
	}
	return time.Time{}, fault.New(fault.Invalid, "bad-expiry", "%.40q is neither a time span nor a date", v).Do("write it like 720h, 2027-01-31 or 2027-01-31T12:00:00Z")
}

func (a *app) anchorRemove() *cobra.Command {
	c := &cobra.Command{Use: "anchor-remove CLUSTER SHA256", Short: "End the registration of an external CA; no truststore changes", Args: cobra.ExactArgs(2), ValidArgsFunction: a.completeWith(a.trustNames),
		Example: "  csm trust anchor-remove prod-eu 9f2c1a --reason 'all nodes have joined' --dry-run\n  csm trust anchor-remove prod-eu 9f2c1a --reason 'all nodes have joined' --plan HASH"}
	return a.run(c, func(s *session, args []string) error {
		name, err := s.trustName(args[0])
		if err != nil {
			return err
		}
		if err := s.needReason(); err != nil {
			return err
		}
		d, _, err := read[trustView](s, name, nil)
		if err != nil {
			return err
		}
		x, err := oneAnchor(d, args[1])
		if err != nil {
			return err
		}
		if err := s.confirm(change{verb: "anchor-remove", name: x.Name, etag: fmt.Sprint(x.Revision), grave: true, effects: []string{
			"nobody joins by a certificate of " + x.Subject + " any more", "who has joined stays, and no truststore changes"}}); err != nil {
			return err
		}
		ans, err := s.post(x.Name+":remove", map[string]any{"reason": s.reason})
		if err != nil || s.dryRun {
			return err
		}
		return s.Print(ui.View{Object: ans.body, Text: "removed " + finger(x.SHA256) + "\n"})
	})
}

func oneAnchor(d trustView, prefix string) (anchorView, error) {
	var found []anchorView
	for _, x := range d.Anchors {
		if strings.HasPrefix(x.SHA256, strings.ToLower(prefix)) && x.Kind == "external" {
			found = append(found, x)
		}
	}
	if len(found) == 1 {
		return found[0], nil
	}
	return anchorView{}, fault.New(fault.NotFound, "no-anchor", "%d external anchors of %s begin with %.64q", len(found), short(d.Name), prefix).Do("see `csm trust get %s`", short(d.Name))
}
