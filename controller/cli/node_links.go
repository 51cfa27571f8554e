package cli

import (
	"context"
	"encoding/json"
	"fmt"
	"strings"
	"time"

	"github.com/spf13/cobra"

	ui "github.com/cassandra-security-manager/csm/shared/cli"
	"github.com/cassandra-security-manager/csm/shared/fault"
	"github.com/cassandra-security-manager/csm/shared/resource"
)

func (a *app) nodeCycleLinks() *cobra.Command {
	c := &cobra.Command{Use: "cycle-links NODE", Short: "End the internode connections that live on certificates of before the node's last reload", Args: cobra.ExactArgs(1), ValidArgsFunction: a.completeWith(a.nodeNames),
		Long: "A reload changes no connection that exists: it lives on with the certificates of its handshake. A rotation that retires a CA has these\n" +
			"ended by itself; this command is for one node, by hand. The node ends its old connections with one peer after the other, never while\n" +
			"Cassandra streams, and goes on when the peer has come back. Connections of clients are never touched.\n" +
			"--dry-run says what would be ended and whether it would be refused. --wait shows how it goes: exit code 0 when none is left, 1 when it\n" +
			"ended otherwise, 9 when --timeout ended first.",
		Example: "  csm node cycle-links prod-eu/n7 --dry-run\n  csm node cycle-links prod-eu/n7 --wait --timeout 10m --reason 'leaf of the old CA'"}
	return a.run(c, func(s *session, args []string) error {
		name, err := s.nodeName(args[0])
		if err != nil {
			return err
		}
		ans, err := s.post(name+":cycleLinks", map[string]any{"reason": s.reason})
		if err != nil {
			return err
		}
		var r struct {
			Node       nodeView
			Generation uint64
		}
		if err := decode(ans.body, &r); err != nil {
			return err
		}
		if s.dryRun || !s.wait {
			text := oldLinks(r.Node)
			if s.dryRun {
				text += "; nothing was done"
			}
			return s.Print(linksText(name, ans.body, text))
		}
		n, raw, err := s.waitForLinks(name, r.Node, r.Generation)
		if err != nil {
			return err
		}
		if err := s.Print(linksText(name, raw, oldLinks(n))); err != nil || n.Links.Result == "done" {
			return err
		}
		return fault.New(fault.Internal, n.Links.Result, "%s: %s", short(name), n.Links.Detail).Do("put it right and ask again; `csm node get %s` shows what is left", short(name))
	})
}

func linksText(name string, raw json.RawMessage, text string) ui.View {
	return ui.View{Object: raw, Text: text + "\n", Name: func(any) string { return name }}
}

// oldLinks says in a sentence what is known.
func oldLinks(n nodeView) string {
	l := n.Links
	switch {
	case l == nil:
		return short(n.Name) + ": its agent tells nothing of connections"
	case l.Unseen != "":
		return short(n.Name) + ": its connections are not known: " + l.Unseen
	case l.Old == 0:
		return short(n.Name) + ": no internode connection lives on certificates of before the last reload"
	}
	shown := l.Peers
	if len(shown) > 8 {
		shown = append(append([]string{}, shown[:8]...), fmt.Sprintf("and %d more", len(l.Peers)-8))
	}
	return fmt.Sprintf("%s: %d internode connections live on certificates of before %s, with %s", short(n.Name), l.Old, l.SinceTime.UTC().Format(time.RFC3339), strings.Join(shown, ", "))
}

// waitForLinks follows a node until the wish of a generation has come to its end.
func (s *session) waitForLinks(name string, n nodeView, generation uint64) (nodeView, json.RawMessage, error) {
	ctx, cancel := context.WithTimeout(s.cmd.Context(), s.Timeout)
	defer cancel()
	line := s.Progress()
	var raw json.RawMessage
	show := func() {
		if n.Links != nil {
			line.Show("%s: %d old connections left; %s", short(name), n.Links.Old, n.Links.WaitsFor)
		}
	}
	show()
	err := s.watchFrom(ctx, resource.Parent(name)+"/nodes", generation, func(e event) error {
		if e.Type != "BOOKMARK" {
			var seen nodeView
			if err := decode(e.Object, &seen); err != nil || seen.Name != name {
				return err
			}
			n, raw = seen, e.Object
		}
		show()
		if raw == nil || n.Links == nil || n.Links.Cycled < generation {
			return nil
		}
		return errDone
	})
	line.Done()
	if err != nil && s.cmd.Context().Err() == nil && ctx.Err() != nil {
		err = fault.New(fault.Running, "still-running", "%s has not ended within %s", short(name), s.Timeout).Do("it goes on: `csm node get %s`", short(name))
	}
	return n, raw, err
}
