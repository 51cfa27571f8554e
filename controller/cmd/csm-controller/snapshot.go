package main

import (
	"fmt"
	"os"
	"strings"
	"time"

	"filippo.io/age"
	"github.com/spf13/cobra"

	"github.com/cassandra-security-manager/csm/controller/backup"
	"github.com/cassandra-security-manager/csm/controller/keyring"
	"github.com/cassandra-security-manager/csm/controller/server"
	"github.com/cassandra-security-manager/csm/shared/cli"
	"github.com/cassandra-security-manager/csm/shared/fault"
)

// openers are the files that open a backup.
type openers struct{ share, identity string }

func (o *openers) flags(c *cobra.Command) {
	c.Flags().StringVar(&o.share, "recovery-share", "", "file of the recovery share that init wrote")
	c.Flags().StringVar(&o.identity, "identity", "", "file of age-keygen, for a backup made for backup.recipients")
}

// maxKeyFile bounds a file that holds a share or identities.
const maxKeyFile = 64 << 10

func readKeyFile(path, what string) ([]byte, error) {
	st, err := os.Stat(path)
	if err == nil && st.Size() > maxKeyFile {
		err = fmt.Errorf("it has %d bytes", st.Size())
	}
	var b []byte
	if err == nil {
		b, err = os.ReadFile(path)
	}
	if err != nil {
		return nil, fault.Wrap(err, fault.Invalid, "no-key-file", "the file of the %s cannot be read", what).Do("name it and run as who may read it")
	}
	return b, nil
}

func (o *openers) identities() ([]age.Identity, error) {
	if o.identity == "" {
		return nil, nil
	}
	b, err := readKeyFile(o.identity, "age identity")
	if err != nil {
		return nil, err
	}
	return backup.ParseIdentities(string(b))
}

func (o *openers) secret() (keyring.Secret, error) {
	b, err := readKeyFile(o.share, "recovery share")
	return keyring.NewSecret(b), err
}

func snapshotCommand() *cobra.Command {
	group := &cobra.Command{Use: "snapshot", Short: "Look into a backup, or begin anew from one"}
	group.AddCommand(snapshotInspect(), snapshotRestore())
	return group
}

func snapshotInspect() *cobra.Command {
	var o openers
	c := &cobra.Command{
		Use: "inspect FILE", Short: "Say what a backup is and whether it is whole", Args: cobra.ExactArgs(1),
		Long: "Without a key the description and the checksum of the file are read. With the recovery share (or an identity of age) the\n" +
			"backup is decrypted, restored for a trial in a temporary folder, and read to its end. It needs no controller.",
		Example: "  csm-controller snapshot inspect /var/backups/csm/20261122t043000z-1842.csmbackup --recovery-share recovery.key",
		RunE: func(cmd *cobra.Command, args []string) error {
			keys, err := o.identities()
			if err != nil {
				return err
			}
			if o.share != "" {
				share, err := o.secret()
				if err != nil {
					return err
				}
				kek, err := keyring.OpenRecovery(share)
				if err != nil {
					return err
				}
				keys = append(keys, backup.Key(kek))
			}
			res, err := server.InspectBackup(cmd.Context(), args[0], keys...)
			if err != nil {
				return err
			}
			var p cli.Pairs
			p.Add("backup", "%s", res.ID)
			p.Add("system", "%s", res.SystemID)
			p.Add("created", "%s by %s, csm-controller %s", res.Created.Format(time.RFC3339), res.Controller, res.Version)
			p.Add("newest entry", "%d (term %d)", res.Index, res.Term)
			p.Add("size", "%d bytes, checksum right", res.Size)
			p.Add("opens for", "%s", strings.Join(res.Opens, ", "))
			if res.Verified {
				p.Add("verified", "decrypted, restored for a trial, read to its end")
			} else {
				p.Add("verified", "no key was given: only the checksum was compared")
			}
			return cli.Of(cmd).Print(cli.View{Object: res, Pairs: p})
		},
	}
	o.flags(c)
	return c
}

func snapshotRestore() *cobra.Command {
	var o openers
	c := &cobra.Command{
		Use: "restore FILE", Short: "Begin anew from a backup, as the only controller", Args: cobra.ExactArgs(1),
		Long: "The data folder must be empty (see reset-identity). The controllers of before are shut out: they come back only by joining.\n" +
			"The system keeps its id, its CAs, its administrators and its agents; what was written after the backup is lost.\n" +
			"Interrupted, the same command begins again.",
		Example: "  csm-controller snapshot restore /var/backups/csm/20261122t043000z-1842.csmbackup --recovery-share recovery.key",
		RunE: func(cmd *cobra.Command, args []string) error {
			cfg, err := load(cmd)
			if err != nil {
				return err
			}
			g := cli.Of(cmd)
			log, err := quiet(cfg.Log).Logger(g.Err)
			if err != nil {
				return err
			}
			opt := server.RestoreOptions{File: args[0], Step: func(what string) { g.Detail("%s", what) }}
			if opt.Share, err = o.secret(); err != nil {
				return err
			}
			if opt.Identities, err = o.identities(); err != nil {
				return err
			}
			res, err := server.Restore(cmd.Context(), cfg, opt, log)
			if err != nil {
				return err
			}
			var p cli.Pairs
			p.Add("system", "%s, era %d", res.SystemID, res.Era)
			p.Add("pin of the system CA", "%s", res.Pin)
			p.Add("controller", "%s, key %s", res.Controller, res.Fingerprint)
			p.Add("state", "of %s, entry %d; what came later is lost", res.Created.Format(time.RFC3339), res.Index)
			p.Add("shut out", "%s", strings.Join(res.Removed, ", "))
			g.Say("next: csm-controller run; then let the others join with new tokens, and repeat revocations made after %s", res.Created.Format(time.RFC3339))
			return g.Print(cli.View{Object: res, Pairs: p})
		},
	}
	o.flags(c)
	_ = c.MarkFlagRequired("recovery-share")
	return c
}
