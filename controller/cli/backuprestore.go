package cli

import (
	"fmt"

	"github.com/spf13/cobra"

	ui "github.com/cassandra-security-manager/csm/shared/cli"
	"github.com/cassandra-security-manager/csm/shared/resource"
)

// backupRestore tells how. Nothing that runs is turned back: a state that goes back in time needs the controllers stopped, a
// recovery share and a person beside each of them, and that is the work of csm-controller.
func (a *app) backupRestore() *cobra.Command {
	c := &cobra.Command{Use: "restore BACKUP", Short: "Print how to restore a backup, with the names filled in", Args: cobra.ExactArgs(1), ValidArgsFunction: a.completeWith(a.backupNames),
		Long: "A restore begins on one machine with an empty data folder and needs the recovery share; the others join afterwards.\n" +
			"It cannot be done through the controllers that it replaces, so this command changes nothing.",
		Example: "  csm backup restore 20261122t043000z-1842"}
	return a.run(c, func(s *session, args []string) error {
		b, raw, err := read[backupView](s, resource.Backup(resource.Last(args[0])), nil)
		if err != nil {
			return err
		}
		text := fmt.Sprintf(`# What was written after entry %d (%s) will be lost: certificates issued since are unknown, revocations since are undone.
# 1. stop every controller:                  systemctl stop csm-controller
# 2. on %s, set the old folder aside and restore with the recovery share:
csm-controller reset-identity --dry-run
csm-controller snapshot restore %s --recovery-share recovery.key
systemctl start csm-controller
# 3. on each other controller: reset-identity as above, then let it join with a new token:
csm system join-token
csm-controller join --pin … --token-file …
`, b.Index, b.CreateTime.Format("2006-01-02 15:04:05 MST"), b.Controller, b.Location)
		return s.Print(ui.View{Object: raw, Text: text})
	})
}
