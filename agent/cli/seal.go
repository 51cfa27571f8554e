package cli

import (
	"io/fs"
	"os"
	"path/filepath"
	"sort"

	"github.com/spf13/cobra"

	"github.com/cassandra-security-manager/csm/agent/config"
	"github.com/cassandra-security-manager/csm/agent/node"
	"github.com/cassandra-security-manager/csm/agent/state"
	"github.com/cassandra-security-manager/csm/shared/cli"
	"github.com/cassandra-security-manager/csm/shared/fault"
)

func sealCommand() *cobra.Command {
	var yes, dry, stores bool
	c := &cobra.Command{Use: "seal-image", Short: "Make this host's disk safe to be copied: remove the agent's identity and keys", Args: cobra.NoArgs,
		Long: "seal-image removes the agent's state folder: its identity, the counters by which copies are noticed, and the old generations of stores with\n" +
			"their keys. agent.yaml stays. The next start joins anew, for which it needs a token of its own: two hosts that start from one disk\n" +
			"without this are noticed as copies and both suspended.\n" +
			"--stores also removes the keystores and truststores that CSM wrote: without it each copy has the same private key.",
		Example: "  csm-agent seal-image --stores --dry-run\n  csm-agent seal-image --stores --yes"}
	c.Flags().BoolVar(&yes, "yes", false, "do it")
	c.Flags().BoolVar(&dry, "dry-run", false, "show what would be removed")
	c.Flags().BoolVar(&stores, "stores", false, "also remove the stores that CSM wrote")
	c.RunE = func(cmd *cobra.Command, _ []string) error {
		conf, err := load(cmd)
		if err != nil {
			return err
		}
		gone, kept, err := toSeal(conf, stores)
		if err != nil {
			return err
		}
		g := cli.Of(cmd)
		t := &cli.Table{Columns: []cli.Column{{Name: "REMOVED"}}}
		items := []any{}
		for _, p := range gone {
			t.Add(p)
			items = append(items, p)
		}
		if !dry && !yes {
			return fault.New(fault.Refused, "not-confirmed", "%d files and folders would be removed; nothing was", len(gone)).Do("look at them with --dry-run, then add --yes")
		}
		if !dry {
			for _, p := range gone {
				if err := os.RemoveAll(p); err != nil {
					return fault.Wrap(err, fault.Internal, "seal", "%s could not be removed; the image is not safe", p).Do("run this as the agent's user or as root")
				}
			}
		}
		for _, k := range kept {
			g.Say("kept: %s holds a private key that each copy would have; --stores removes it", k)
		}
		return g.Print(cli.View{Object: gone, Items: items, Table: t, Name: func(i any) string { return i.(string) }})
	}
	return c
}

// toSeal says what goes, and which keys stay. A running agent would write it all again.
func toSeal(conf config.Config, stores bool) (gone, kept []string, err error) {
	for _, in := range conf.Cassandra {
		dir := conf.Folder(in)
		if state.InUse(dir) {
			return nil, nil, fault.New(fault.Refused, "agent-runs", "the agent of %s runs", in.Config).Do("systemctl stop csm-agent, then seal the image and switch the host off")
		}
		s, _, err := node.ReadStatus(dir)
		if err == nil {
			for _, st := range s.Stores {
				switch {
				case st.Generation == 0: // not ours
				case stores:
					gone = append(gone, existing(st.Keystore, st.Truststore)...)
				default:
					kept = append(kept, existing(st.Keystore)...)
				}
			}
		}
		gone = append(gone, existing(dir)...)
	}
	gone = append(gone, existing(filepath.Join(conf.StateDir, node.MetricsFolder))...)
	sort.Strings(gone)
	return gone, kept, nil
}

func existing(paths ...string) (out []string) {
	for _, p := range paths {
		if fi, err := os.Lstat(p); err == nil && (fi.IsDir() || fi.Mode()&fs.ModeType == 0) {
			out = append(out, p)
		}
	}
	return out
}
