package cli

import (
	"encoding/json"
	"fmt"
	"slices"
	"time"

	"github.com/spf13/cobra"

	ui "github.com/cassandra-security-manager/csm/shared/cli"
	"github.com/cassandra-security-manager/csm/shared/fault"
	"github.com/cassandra-security-manager/csm/shared/resource"
)

type backupView struct {
	Name, State, Controller, Location, Version, Problem, SHA256, ETag string
	Index, Revision                                                   uint64
	Size                                                              int64
	Scheduled                                                         bool
	CreateTime, VerifyTime                                            time.Time
}

func (a *app) backupCommand() *cobra.Command {
	return group("backup", "Encrypted copies of the state of the system", a.backupCreate(), a.backupList(), a.backupVerify(), a.backupRestore())
}

func (a *app) backupNames(cmd *cobra.Command) []string {
	return a.offered(cmd, func(*session) string { return "system/backups" }, resource.Last)
}

func backupTable(s *session, items []backupView) *ui.Table {
	t := &ui.Table{Columns: []ui.Column{{Name: "BACKUP"}, {Name: "STATE", Style: stateStyle}, {Name: "CREATED"}, {Name: "VERIFIED"}, {Name: "SIZE", Right: true}, {Name: "CONTROLLER"},
		{Name: "PROBLEM"}, {Name: "INDEX", Wide: true, Right: true}, {Name: "SHA256", Wide: true}, {Name: "LOCATION", Wide: true}, {Name: "VERSION", Wide: true}}}
	for _, b := range items {
		verified := "never"
		if !b.VerifyTime.IsZero() {
			verified = s.ago(b.VerifyTime)
		}
		t.Add(resource.Last(b.Name), b.State, s.ago(b.CreateTime), verified, bytesOf(b.Size), b.Controller, b.Problem, fmt.Sprint(b.Index), b.SHA256, b.Location, b.Version)
	}
	return t
}

func bytesOf(n int64) string {
	switch {
	case n >= 1<<30:
		return fmt.Sprintf("%.1f GiB", float64(n)/(1<<30))
	case n >= 1<<20:
		return fmt.Sprintf("%.1f MiB", float64(n)/(1<<20))
	}
	return fmt.Sprintf("%d KiB", (n+1023)/1024)
}

func (a *app) backupList() *cobra.Command {
	c := &cobra.Command{Use: "list", Short: "List backups, newest first", Args: cobra.NoArgs, Example: "  csm backup list\n  csm backup list -o wide"}
	return a.run(c, func(s *session, _ []string) error {
		items, raws, doc, err := list[backupView](s, "system/backups", nil, 0)
		if err != nil {
			return err
		}
		slices.Reverse(items) // the id begins with the time
		slices.Reverse(raws)
		return s.Print(ui.View{Object: doc, Items: raws, Table: backupTable(s, items)})
	})
}

func (a *app) backupCreate() *cobra.Command {
	c := &cobra.Command{Use: "create", Short: "Write a backup on the controller asked, and read it back", Args: cobra.NoArgs,
		Long: "The state as of now is copied, encrypted to every controller and to the recovery share, and written into the folder that\n" +
			"backup.to names. Then it is decrypted, restored for a trial and read to its end. With --wait the command returns after that.",
		Example: "  csm backup create --wait --timeout 10m\n  csm backup create --server https://csm2.example:9640"}
	return a.run(c, func(s *session, _ []string) error {
		ans, err := s.post("system/backups", map[string]any{"reason": s.reason})
		if err != nil || s.dryRun {
			return err
		}
		var b backupView
		if err := decode(ans.body, &b); err != nil {
			return err
		}
		return s.followBackup(ans.body, b, time.Time{})
	})
}

func (a *app) backupVerify() *cobra.Command {
	c := &cobra.Command{Use: "verify BACKUP", Short: "Decrypt a backup, restore it for a trial and read it to its end", Args: cobra.ExactArgs(1), ValidArgsFunction: a.completeWith(a.backupNames),
		Long:    "The controller asked must reach the file. It needs no recovery share: each controller can open the backups of its system.",
		Example: "  csm backup verify 20261122t043000z-1842 --wait"}
	return a.run(c, func(s *session, args []string) error {
		ans, err := s.post(resource.Backup(resource.Last(args[0]))+":verify", map[string]any{})
		if err != nil {
			return err
		}
		var b backupView
		if err := decode(ans.body, &b); err != nil {
			return err
		}
		return s.followBackup(ans.body, b, b.VerifyTime)
	})
}

// followBackup prints a backup; with --wait it first waits until it is verified after the time since, or failed.
func (s *session) followBackup(raw json.RawMessage, b backupView, since time.Time) error {
	was := b.Revision
	for s.wait && !s.dryRun {
		if b.State == "failed" || b.Revision > was && b.Problem != "" {
			return fault.New(fault.Internal, "backup-failed", "%s: %s", resource.Last(b.Name), b.Problem).Do("the log of %s says more; earlier backups are untouched", b.Controller)
		}
		if b.State == "ready" && b.VerifyTime.After(since) {
			break
		}
		select {
		case <-s.cmd.Context().Done():
			return s.cmd.Context().Err()
		case <-time.After(500 * time.Millisecond):
		}
		var err error
		if b, raw, err = read[backupView](s, b.Name, nil); err != nil {
			return err
		}
	}
	return s.Print(ui.View{Object: raw, Table: backupTable(s, []backupView{b})})
}
