package cli

import (
	"fmt"

	"github.com/spf13/cobra"

	ui "github.com/cassandra-security-manager/csm/shared/cli"
	"github.com/cassandra-security-manager/csm/shared/fault"
)

func (a *app) doctorCommand() *cobra.Command {
	c := &cobra.Command{Use: "doctor", Short: "What is wrong, the worst first, each with the command to run next", Args: cobra.NoArgs,
		Long: "doctor looks at every controller of the context, the quorum, authorities, nodes, freezes and clocks. It changes nothing, and says what it\n" +
			"could not ask. Where a certificate of a running node is about to end, its first line is: do NOT restart that node.\n" +
			"Exit code 0 when nothing was found, 10 when something was. With no controller, `csm-agent doctor` on a node goes on.",
		Example: "  csm doctor\n  csm doctor -c prod-eu\n  csm doctor -o json | jq '.[] | select(.severity==\"critical\")'"}
	return a.run(c, func(s *session, _ []string) error {
		cluster := ""
		if s.cluster != "" {
			var err error
			if cluster, err = s.clusterName(""); err != nil {
				return err
			}
		}
		f := gather(s, cluster)
		findings := judge(f, defaultLimits)
		for _, err := range f.missing {
			findings = append(findings, found(warning, "not-asked", "", remedyOf(err), fault.From(err).Message))
		}
		return s.printFindings(findings)
	})
}

func (s *session) printFindings(findings []finding) error {
	if s.Machine() {
		if err := s.Print(ui.View{Object: findings}); err != nil {
			return err
		}
	} else {
		for _, f := range findings {
			fmt.Fprintf(s.Out, "%-8s %s%s\n", f.Severity, subjectOf(f), f.Message)
			if f.Next != "" {
				fmt.Fprintf(s.Out, "         next: %s\n", f.Next)
			}
			if f.Runbook != "" {
				fmt.Fprintf(s.Out, "         read: %s\n", f.Runbook)
			}
		}
	}
	for _, f := range findings {
		if f.Severity != info {
			return fault.New(fault.Differs, "findings", "")
		}
	}
	if len(findings) == 0 {
		s.Say("nothing was found")
	}
	return nil
}

func subjectOf(f finding) string {
	if f.Subject == "" {
		return ""
	}
	return f.Subject + ": "
}
