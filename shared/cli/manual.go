package cli

import (
	"os"

	"github.com/spf13/cobra"
	"github.com/spf13/cobra/doc"

	"github.com/cassandra-security-manager/csm/shared/fault"
)

// manualCommand writes the man pages of the program's own commands; packages are built with it.
func manualCommand() *cobra.Command {
	return &cobra.Command{
		Use: "manual FOLDER", Short: "Write a man page for each command into a folder", Args: cobra.ExactArgs(1), Hidden: true,
		Long:    "manual writes one page for each command in section 1. SOURCE_DATE_EPOCH sets their date.",
		Example: "  csm manual ./man",
		RunE: func(cmd *cobra.Command, args []string) error {
			err := os.MkdirAll(args[0], 0o755)
			if err == nil {
				err = doc.GenManTree(cmd.Root(), &doc.GenManHeader{Section: "1", Source: "CSM " + Version, Manual: "Cassandra Security Manager"}, args[0])
			}
			if err != nil {
				return fault.Wrap(err, fault.Internal, "manual", "the man pages cannot be written to %s", args[0]).Do("choose a folder that you may write")
			}
			return nil
		},
	}
}
