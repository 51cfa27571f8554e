package cli

import (
	"fmt"
	"time"

	"github.com/spf13/cobra"

	ui "github.com/cassandra-security-manager/csm/shared/cli"
	"github.com/cassandra-security-manager/csm/shared/fault"
)

func (a *app) systemGrace() *cobra.Command {
	var until string
	var end bool
	c := &cobra.Command{Use: "grace", Short: "Let agents renew an identity that expired however long ago", Args: cobra.NoArgs,
		Long: "After a long absence (a site that was off for more than 210 days) agents are refused because their identity expired longer ago than its\n" +
			"renewal grace. This lets them renew until a time, 30 days ahead at most. Revoked and suspended agents stay shut out. It is replicated, ends\n" +
			"by itself, and stands in the audit log and in `csm status`. Controllers need no grace; an administrator's new certificate comes from\n" +
			"`csm-controller admin add NAME` on a controller's host.",
		Example: "  csm system grace --until 24h --reason 'the site was off for a year'\n  csm system grace --until 2026-12-01T00:00:00Z --reason 'DC move'\n  csm system grace --end --reason 'all agents are back'"}
	c.Flags().StringVar(&until, "until", "", "when it ends: a time (RFC 3339) or so long from now (24h)")
	c.Flags().BoolVar(&end, "end", false, "take it back")
	return a.run(c, func(s *session, _ []string) error {
		if err := s.needReason(); err != nil {
			return err
		}
		verb, body, text := "endGrace", map[string]any{"reason": s.reason}, "no grace is in force any more\n"
		if !end {
			at, err := s.untilTime(until)
			if err != nil {
				return err
			}
			if at.IsZero() {
				return fault.New(fault.Invalid, "bad-until", "a grace needs an end").Do("add --until 24h")
			}
			verb, body["until"] = "grace", at.UTC().Truncate(time.Second)
			text = fmt.Sprintf("agents may renew expired identities until %s\n", s.at(at))
			if err := s.confirm(change{verb: "grace", name: "system", effects: []string{"any agent that is not suspended or revoked may renew its identity, however long ago it expired"}}); err != nil {
				return err
			}
		}
		ans, err := s.post("system:"+verb, body)
		if err != nil {
			return err
		}
		if s.dryRun {
			text = ""
		}
		return s.Print(ui.View{Object: ans.body, Text: text})
	})
}
