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

func (a *app) tenantCommand() *cobra.Command {
	return group("tenant", "Tenants: owners of clusters", a.tenantGet(), a.freezeCommand("tenant", "freeze"), a.freezeCommand("tenant", "unfreeze"))
}

type tenantView struct {
	Name, State string
	Clusters    int
	Frozen      *freezeView
}

func (a *app) tenantGet() *cobra.Command {
	c := &cobra.Command{Use: "get [NAME]", Short: "Show a tenant", Args: cobra.MaximumNArgs(1), Example: "  csm tenant get\n  csm tenant get default -o json"}
	return a.run(c, func(s *session, args []string) error {
		v, raw, err := read[tenantView](s, resource.Tenant(pick(first(args), s.ctx.Tenant)), nil)
		if err != nil {
			return err
		}
		t := &ui.Table{Columns: []ui.Column{{Name: "TENANT"}, {Name: "STATE", Style: stateStyle}, {Name: "CLUSTERS", Right: true}}}
		t.Add(resource.Last(v.Name), v.State, fmt.Sprint(v.Clusters))
		return s.Print(ui.View{Object: raw, Table: t, Note: s.notes(v.Frozen, nil)})
	})
}

// freezeText is a freeze in a line: what, by whom, since, until, why.
func (s *session) freezeText(f freezeView) string {
	until := ""
	if !f.Until.IsZero() {
		until = " until " + s.at(f.Until)
	}
	return fmt.Sprintf("%s by %s %s%s: %s", f.Scope, actorName(f.Actor), s.ago(f.Since), until, f.Reason)
}

// notes are the lines below a table: what stops effects, and what a person should know.
func (s *session) notes(f *freezeView, conditions []conditionView) string {
	var lines []string
	if f != nil {
		lines = append(lines, "frozen: "+s.freezeText(*f))
	}
	for _, c := range conditions {
		lines = append(lines, fmt.Sprintf("%s: %s\n  do:  %s", c.Severity, c.Message, c.Remedy))
	}
	return strings.Join(lines, "\n")
}

// freezeCommand makes freeze and unfreeze of the system, tenants, clusters and nodes.
func (a *app) freezeCommand(noun, verb string) *cobra.Command {
	shorts := map[string]string{"freeze": "Let no effect begin; reports, proofs and renewals of agents' identities go on", "unfreeze": "Lift a freeze; wider and narrower ones stay"}
	use, args := verb+" NAME", cobra.ExactArgs(1)
	if noun == "system" {
		use, args = verb, cobra.NoArgs
	}
	line := strings.TrimSuffix(fmt.Sprintf("csm %s %s", noun, use), " ")
	c := &cobra.Command{Use: use, Short: shorts[verb], Args: args, Example: fmt.Sprintf("  %s --reason 'incident 4711' --dry-run\n  %s --reason 'incident 4711' --plan HASH", line, line)}
	switch noun {
	case "node":
		c.ValidArgsFunction = a.completeWith(a.nodeNames)
	case "cluster":
		c.ValidArgsFunction = a.completeWith(a.clusterNames)
	}
	var until string
	if verb == "freeze" {
		c.Long = "No agent below begins a move until the freeze is lifted; a move under way ends, or rolls back, within 30 s. Frozen is not blind:\n" +
			"agents report, prove each other and renew their own identity. `csm status` names what will expire under a freeze."
		c.Flags().StringVar(&until, "until", "", "lifted by itself then: a time span like 4h, or 2026-01-31T18:00:00Z")
	}
	return a.run(c, func(s *session, args []string) error {
		name, err := s.scopeName(noun, first(args))
		if err != nil {
			return err
		}
		if err := s.needReason(); err != nil {
			return err
		}
		end, err := s.untilTime(until)
		if err != nil {
			return err
		}
		return s.freeze(verb, name, end)
	})
}

func (s *session) scopeName(noun, arg string) (string, error) {
	switch noun {
	case "system":
		return "system", nil
	case "tenant":
		return resource.Tenant(strings.TrimPrefix(arg, "tenants/")), nil
	case "node":
		return s.nodeName(arg)
	}
	return s.clusterName(arg)
}

// untilTime reads the end of a freeze: a time, or a span from now.
func (s *session) untilTime(v string) (time.Time, error) {
	if v == "" {
		return time.Time{}, nil
	}
	if t, err := time.Parse(time.RFC3339, v); err == nil {
		return t, nil
	}
	d, err := time.ParseDuration(v)
	if err != nil || d <= 0 {
		return time.Time{}, fault.New(fault.Invalid, "bad-until", "--until: %.40q is neither a time nor a span", v).Do("write 4h or 2026-01-31T18:00:00Z")
	}
	return s.Now().Add(d), nil
}

func (s *session) freeze(verb, name string, until time.Time) error {
	now, _, err := read[struct {
		ETag    string
		Freezes []freezeView
	}](s, name, nil)
	if err != nil {
		return err
	}
	if name == "system" { // which has no etag: its plan dies with the freeze that it found
		for _, f := range now.Freezes {
			if f.Scope == name {
				now.ETag = f.Since.String()
			}
		}
	}
	ch := change{verb: verb, name: name, etag: now.ETag, grave: verb == "freeze",
		effects: []string{"no agent below begins a move until it is lifted", "a move under way ends, or rolls back, within 30 s"}}
	body := map[string]any{"reason": s.reason}
	if !until.IsZero() {
		ch.effects = append(ch.effects, "it ends by itself: "+s.at(until))
		body["until"] = until.UTC().Format(time.RFC3339)
	}
	if verb == "unfreeze" {
		ch.effects = []string{"moves that waited for it may begin"}
	}
	if err := s.confirm(ch); err != nil {
		return err
	}
	ans, err := s.post(name+":"+verb, body)
	if err != nil {
		return err
	}
	text := fmt.Sprintf("%s %s\n", short(name), map[string]string{"freeze": "frozen", "unfreeze": "no longer frozen"}[verb])
	if s.dryRun {
		text = ""
	}
	return s.Print(ui.View{Object: ans.body, Text: text})
}
