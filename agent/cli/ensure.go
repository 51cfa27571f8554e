package cli

import (
	"fmt"
	"log/slog"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/cassandra-security-manager/csm/agent/cassandra"
	"github.com/cassandra-security-manager/csm/agent/config"
	"github.com/cassandra-security-manager/csm/agent/install"
	"github.com/cassandra-security-manager/csm/agent/node"
	agentv1 "github.com/cassandra-security-manager/csm/protocol/agent/v1"
	"github.com/cassandra-security-manager/csm/shared/certificate"
	"github.com/cassandra-security-manager/csm/shared/cli"
	"github.com/cassandra-security-manager/csm/shared/fault"
	"github.com/cassandra-security-manager/csm/shared/keystore"
)

// ensured is what is wrong with one store. Fatal: Cassandra would not join its ring with it.
type ensured struct {
	Instance string `json:"instance"`
	Store    string `json:"store"`
	Fatal    bool   `json:"fatal"`
	Code     string `json:"code"`
	Message  string `json:"message"`
	Remedy   string `json:"remedy,omitempty"`
}

func ensureCommand() *cobra.Command {
	var before bool
	c := &cobra.Command{Use: "ensure [INSTANCE]", Short: "Say whether Cassandra can start with its stores as they are; asks nobody", Args: cobra.MaximumNArgs(1),
		Long: "ensure looks whether the stores that cassandra.yaml names are there, open with their passwords, hold a key with its certificate, have not\n" +
			"expired, and trust what the controllers last asked for. It changes nothing, needs neither a controller nor a running agent, and goes well in\n" +
			"Cassandra's unit:  ExecStartPre=/usr/bin/csm-agent ensure --before-start\n" +
			"A node that starts with a wrong store cannot join its ring; one that is not started keeps nobody waiting but itself.\n" +
			"Exit code 0: start it. 3 (with --before-start): do not. 10 (without): something is wrong.",
		Example: "  csm-agent ensure --before-start\n  csm-agent ensure -o json"}
	c.Flags().BoolVar(&before, "before-start", false, "refuse with exit code 3 what Cassandra must not start with; warnings are only printed")
	c.RunE = func(cmd *cobra.Command, args []string) error {
		conf, err := load(cmd)
		if err != nil {
			return err
		}
		list, err := instances(conf, args)
		if err != nil {
			return err
		}
		g := cli.Of(cmd)
		all := []ensured{}
		fatal := 0
		for _, in := range list {
			found, err := ensure(conf, in, g.Now())
			if err != nil {
				return err
			}
			all = append(all, found...)
		}
		t := &cli.Table{Columns: []cli.Column{{Name: "INSTANCE"}, {Name: "STORE"}, {Name: "RESULT", Style: resultStyle}, {Name: "WHAT"}, {Name: "DO"}}}
		items := []any{}
		for _, e := range all {
			result := "warning"
			if e.Fatal {
				result = "bad"
				fatal++
			}
			t.Add(e.Instance, e.Store, result, e.Code+": "+e.Message, e.Remedy)
			items = append(items, e)
		}
		if err := g.Print(cli.View{Object: all, Items: items, Table: t, Name: func(i any) string { return i.(ensured).Code }}); err != nil {
			return err
		}
		switch {
		case before && fatal > 0:
			return fault.New(fault.Refused, "not-fit-to-start", "Cassandra must not start with these stores").Do("each line says what to do")
		case !before && len(all) > 0:
			return fault.New(fault.Differs, "findings", "the stores are not as they should be").Do("each line says what to do")
		}
		return nil
	}
	return c
}

// ensure looks at the stores of one instance. The error means that not even cassandra.yaml was understood.
func ensure(conf config.Config, in config.Instance, now time.Time) ([]ensured, error) {
	inst, _, err := in.ReadOptions().Read(in.Config)
	if err != nil {
		return nil, err
	}
	// What the controllers last asked for; a node that has never run has no such memory, and is judged without.
	last, _, _ := node.ReadStatus(conf.Folder(in))
	installer, err := install.New(install.Options{StateDir: conf.Folder(in) + "/install", Hold: conf.HoldFile, Reloader: noReload{}, Logger: slog.New(slog.DiscardHandler)})
	if err != nil {
		return nil, err
	}
	var out []ensured
	for _, s := range inst.Stores {
		for _, e := range ensureStore(inst, s, installer.Facts(install.Site{Instance: inst, Store: s}), last, now) {
			e.Instance, e.Store = in.StateName(), s.Name
			out = append(out, e)
		}
	}
	return out, nil
}

func ensureStore(i *cassandra.Instance, s *cassandra.Store, f *agentv1.StoreFacts, last node.Status, now time.Time) (out []ensured) {
	add := func(fatal bool, code, message, remedy string) {
		out = append(out, ensured{Fatal: fatal, Code: code, Message: message, Remedy: remedy})
	}
	ks, anchors, err := readPair(s)
	switch {
	case err != nil:
		e := fault.From(err)
		add(true, e.Reason, e.Message, e.Remedy)
		return out
	case ks == nil || anchors == nil:
		missing := s.KeystorePath
		if ks != nil {
			missing = s.TruststorePath
		}
		add(true, "store-absent", missing+" is not there", "start csm-agent and wait until `csm-agent status` says installed-unproven")
		return out
	}
	for _, p := range keystore.Check(ks, anchors, keystore.Expect{Now: now, Names: i.RequiredNamesFor(s.Name)}) {
		// Names count for Cassandra only where it verifies them; a truststore without the node's own CA is common and works.
		fatal := p.Fatal && (p.Code != "wrong-names" || s.EndpointVerification) && p.Code != "untrusted"
		if p.Code == "empty-truststore" && !s.ClientAuth && s.Name == cassandra.StoreClient {
			fatal = false // CQL loads it only to verify clients
		}
		add(fatal, p.Code, p.Message, p.Remedy)
	}
	switch {
	case f.State == agentv1.InstallState_INSTALL_STATE_MOVING:
		add(false, "interrupted-install", "an install was interrupted; the pair that lies there is valid by itself", "start csm-agent, which brings it to its end")
	case strings.HasPrefix(f.Detail, "store-changed"):
		add(false, "store-changed", "the files are not as CSM left them", "start csm-agent, which puts them back; or `csm-agent release`")
	}
	if f.Generation == 0 { // not ours: what CSM wants trusted does not hold here
		return out
	}
	have := map[string]bool{}
	for _, a := range anchors {
		have[certificate.Hex(certificate.Fingerprint(a.Raw))] = true
	}
	for _, want := range last.Wanted {
		if !have[want] {
			add(true, "trust-behind", fmt.Sprintf("the truststore lacks the anchor %s, which the ring already uses: peers with new certificates would be refused", want[:min(16, len(want))]),
				"start csm-agent within reach of a controller and wait until `csm-agent status` is green; a DOWN node is let in by it, not by a restart")
		}
	}
	return out
}
