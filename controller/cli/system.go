package cli

import (
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"strings"
	"time"

	"github.com/spf13/cobra"

	ui "github.com/cassandra-security-manager/csm/shared/cli"
	"github.com/cassandra-security-manager/csm/shared/fault"
	"github.com/cassandra-security-manager/csm/shared/resource"
)

func (a *app) systemCommand() *cobra.Command {
	return group("system", "The control plane itself", a.systemControllers(), a.systemToken(), a.systemApprove(), a.systemRemove(), a.freezeCommand("system", "freeze"), a.freezeCommand("system", "unfreeze"), a.systemGrace())
}

func (a *app) systemControllers() *cobra.Command {
	c := &cobra.Command{Use: "controllers", Short: "List controllers, those that ask to join too", Args: cobra.NoArgs, Example: "  csm system controllers -o wide"}
	return a.run(c, func(s *session, _ []string) error {
		items, raws, doc, err := list[controllerView](s, "system/controllers", nil, 0)
		if err != nil {
			return err
		}
		return s.Print(ui.View{Object: doc, Items: raws, Table: controllerTable(items)})
	})
}

func (a *app) systemToken() *cobra.Command {
	var ttl time.Duration
	var uses int
	var name string
	c := &cobra.Command{Use: "join-token [create]", Short: "Make a token by which a controller asks to join, and print how", Args: cobra.MatchAll(cobra.MaximumNArgs(1), cobra.OnlyValidArgs), ValidArgs: []string{"create"},
		Example: "  csm system join-token --controller csm4\n  csm system join-token -o json | jq -r .token"}
	c.Flags().DurationVar(&ttl, "ttl", time.Hour, "the token lives so long")
	c.Flags().IntVar(&uses, "uses", 1, "it may be used so often")
	c.Flags().StringVar(&name, "controller", "", "only this controller may use it")
	return a.run(c, func(s *session, _ []string) error {
		ans, err := s.post("system/controllerJoinTokens", map[string]any{"ttl": ttl.String(), "uses": uses, "controller": name})
		if err != nil {
			return err
		}
		var t struct{ Token, CAPin string }
		if err := decode(ans.body, &t); err != nil {
			return err
		}
		text := fmt.Sprintf("# on the new controller, whose /etc/csm/controller.yaml names the others as join_peers, as root; without the package, as the user who is to\n"+
			"# run it, and without runuser:\n(umask 077; echo '%s' > /etc/csm/join.token) && chown csm: /etc/csm/join.token\n"+
			"cd /var/lib/csm && runuser -u csm -- csm-controller join --pin %s --token-file /etc/csm/join.token && systemctl start csm-controller\n"+
			"# then here, with the fingerprint that it prints:\ncsm system approve %s --fingerprint FINGERPRINT\n", t.Token, t.CAPin, pick(name, "NAME"))
		if s.dryRun {
			text = ""
		}
		return s.Print(ui.View{Object: ans.body, Text: text})
	})
}

func (a *app) systemApprove() *cobra.Command {
	var fingerprint string
	c := &cobra.Command{Use: "approve CONTROLLER", Short: "Let a controller in that asks to join", Args: cobra.ExactArgs(1), ValidArgsFunction: a.completeWith(a.controllerNames),
		Long: "Take the fingerprint from the joining controller's own console: it is given here by hand for that reason.", Example: "  csm system approve csm4 --fingerprint 9f2c…"}
	c.Flags().StringVar(&fingerprint, "fingerprint", "", "SHA-256 of its public key, as it prints it")
	_ = c.MarkFlagRequired("fingerprint")
	return a.run(c, func(s *session, args []string) error {
		key, err := keyFingerprint(fingerprint)
		if err != nil {
			return err
		}
		ans, err := s.post(resource.Controller(args[0])+":approve", map[string]any{"fingerprint": key})
		if err != nil {
			return err
		}
		var v controllerView
		if err := decode(ans.body, &v); err != nil {
			return err
		}
		return s.Print(ui.View{Object: ans.body, Table: controllerTable([]controllerView{v})})
	})
}

// keyFingerprint takes a fingerprint as people copy it: in capitals, with colons, with "sha256:" before it.
func keyFingerprint(given string) (string, error) {
	key := strings.ReplaceAll(strings.TrimPrefix(strings.ToLower(strings.TrimSpace(given)), "sha256:"), ":", "")
	if b, err := hex.DecodeString(key); err != nil || len(b) != sha256.Size {
		return "", fault.New(fault.Invalid, "bad-fingerprint", "%.80q is not the fingerprint of a key, which has 64 hexadecimal digits", given).
			Do("copy it whole from the console of the controller that joins: `csm-controller join` prints it and waits there")
	}
	return key, nil
}

func (a *app) systemRemove() *cobra.Command {
	c := &cobra.Command{Use: "remove CONTROLLER", Short: "Remove a controller for good", Args: cobra.ExactArgs(1), ValidArgsFunction: a.completeWith(a.controllerNames),
		Example: "  csm system remove csm4 --reason 'host is gone' --dry-run\n  csm system remove csm4 --reason 'host is gone' --plan HASH"}
	return a.run(c, func(s *session, args []string) error {
		if err := s.needReason(); err != nil {
			return err
		}
		name := resource.Controller(args[0])
		v, _, err := read[controllerView](s, name, nil)
		if err != nil {
			return err
		}
		err = s.confirm(change{verb: "remove", name: name, etag: v.KeyFingerprint, grave: true, effects: []string{
			"it leaves the quorum and is shut out", "it comes back only as a new controller: empty data_dir, join token, approval", "the data key that it held is replaced, and every key under it sealed anew"}})
		if err != nil {
			return err
		}
		if _, err := s.post(name+":remove", map[string]any{"reason": s.reason}); err != nil || s.dryRun {
			return err
		}
		return s.Print(ui.View{Object: map[string]string{"name": name, "state": "removed"}, Text: args[0] + " is removed\n"})
	})
}
