package cli

import (
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"time"

	"github.com/spf13/cobra"

	"github.com/cassandra-security-manager/csm/shared/atomicfile"
	ui "github.com/cassandra-security-manager/csm/shared/cli"
	"github.com/cassandra-security-manager/csm/shared/fault"
	"github.com/cassandra-security-manager/csm/shared/resource"
)

func (a *app) clusterOnboard() *cobra.Command {
	c := &cobra.Command{Use: "onboard NAME", Short: "Let a ring of another CA trust ours beside it; its certificates stay in service", Args: cobra.ExactArgs(1), ValidArgsFunction: a.completeWith(a.clusterNames),
		Long: "Each agent in mode manage adds the anchors of the cluster's authority to its truststore, one node at a time, reloads Cassandra and has a\n" +
			"neighbour prove that the ring still talks. Certificates and anchors that are there stay. Taking over the certificates is a rotation.",
		Example: "  csm cluster onboard prod-eu --reason 'change 4711' --dry-run\n  csm cluster onboard prod-eu --reason 'change 4711' --plan HASH"}
	return a.run(c, func(s *session, args []string) error {
		name, err := s.clusterName(args[0])
		if err != nil {
			return err
		}
		if err := s.needReason(); err != nil {
			return err
		}
		nodes, _, _, err := list[nodeView](s, name+"/nodes", nil, 0)
		if err != nil {
			return err
		}
		effects := []string{"certificates and anchors in place stay"}
		for _, n := range nodes {
			for _, st := range n.Stores {
				if st.State == "foreign" {
					effects = append(effects, fmt.Sprintf("%s: our anchors are added to %s (agent in mode %s)", short(n.Name), st.TruststorePath, n.Agent.Mode))
				}
			}
		}
		return s.clusterChange(name, "onboard", effects, "its stores of another CA take our anchors, one node at a time: csm node list -c "+short(name))
	})
}

// clusterChange does a grave change of a cluster by the hash of its plan.
func (s *session) clusterChange(name, verb string, effects []string, done string) error {
	now, _, err := read[struct{ ETag string }](s, name, nil)
	if err != nil {
		return err
	}
	if err := s.confirm(change{verb: verb, name: name, etag: now.ETag, grave: true, effects: effects}); err != nil {
		return err
	}
	ans, err := s.post(name+":"+verb, map[string]any{"reason": s.reason})
	if err != nil || s.dryRun {
		return err
	}
	return s.Print(ui.View{Object: ans.body, Text: fmt.Sprintf("%s: %s\n", short(name), done)})
}

// handover is what the next owner of a ring must know. It holds no secret: keys and passwords stay on the nodes.
type handover struct {
	Cluster  string            `json:"cluster"`
	Written  time.Time         `json:"writeTime"`
	Reason   string            `json:"reason"`
	Nodes    []json.RawMessage `json:"nodes"`
	Anchors  []anchorView      `json:"anchors"`
	Expiries []handoverExpiry  `json:"expiries"`
	Next     []string          `json:"next"`
}

type handoverExpiry struct {
	NotAfter time.Time `json:"notAfter"`
	Node     string    `json:"node"`
	Store    string    `json:"store"`
	State    string    `json:"state"`
	Leaf     string    `json:"leafSha256"`
	Keystore string    `json:"keystore"`
}

func (a *app) clusterRelease() *cobra.Command {
	var to string
	c := &cobra.Command{Use: "release NAME", Short: "Let a cluster go for good: files stay, nothing on its nodes is changed any more", Args: cobra.ExactArgs(1), ValidArgsFunction: a.completeWith(a.clusterNames),
		Long: "What expires when is printed, and a hand-over file is written before anything changes: nodes, stores, anchors in PEM, expiries. It holds\n" +
			"no key and no password. Afterwards nobody renews these certificates but their new owner.",
		Example: "  csm cluster release prod-eu --reason 'goes to team B' --dry-run\n  csm cluster release prod-eu --reason 'goes to team B' --to prod-eu.json --plan HASH"}
	c.Flags().StringVar(&to, "to", "", "hand-over file, which must not exist yet (default CLUSTER-handover.json)")
	return a.run(c, func(s *session, args []string) error {
		name, err := s.clusterName(args[0])
		if err != nil {
			return err
		}
		if err := s.needReason(); err != nil {
			return err
		}
		if to == "" {
			to = short(name) + "-handover.json"
		}
		h, err := s.handover(name)
		if err != nil {
			return err
		}
		effects := []string{"agents change nothing any more; join tokens are revoked; no certificate is issued for its nodes", "hand-over file: " + to}
		for _, e := range h.Expiries {
			effects = append(effects, fmt.Sprintf("%s/%s expires %s", short(e.Node), e.Store, s.ago(e.NotAfter)))
		}
		if !s.dryRun {
			if err := writeNew(to, h); err != nil {
				return err
			}
		}
		if err := s.clusterChange(name, "release", effects, "let go; hand "+to+" to its new owner"); err != nil {
			if !s.dryRun {
				_ = os.Remove(to)
			}
			return err
		}
		return nil
	})
}

func (s *session) handover(cluster string) (handover, error) {
	h := handover{Cluster: cluster, Written: s.Now().UTC(), Reason: s.reason, Nodes: []json.RawMessage{}, Expiries: []handoverExpiry{}, Next: []string{
		"renew each certificate before its notAfter: nobody else does",
		"stop and remove csm-agent on each node when the stores have a new owner; it changes nothing meanwhile",
		"keep the anchors in every truststore until no certificate chains to them"}}
	nodes, raws, _, err := list[nodeView](s, cluster+"/nodes", nil, 0)
	if err != nil {
		return h, err
	}
	for i, n := range nodes {
		h.Nodes = append(h.Nodes, raws[i].(json.RawMessage))
		for _, st := range n.Stores {
			if !st.NotAfter.IsZero() {
				h.Expiries = append(h.Expiries, handoverExpiry{st.NotAfter, n.Name, resource.Last(st.Name), st.State, st.LeafSha256, st.KeystorePath})
			}
		}
	}
	d, _, err := read[trustView](s, resource.TrustDomain(resource.Segment(cluster, "tenants"), resource.Last(cluster)), nil)
	h.Anchors = d.Anchors
	return h, err
}

// writeNew writes a file that was not there.
func writeNew(path string, v any) error {
	b, err := json.MarshalIndent(v, "", "  ")
	if err != nil {
		return err
	}
	if err := atomicfile.Create(path, append(b, '\n'), 0o600); err != nil {
		return fault.Wrap(err, fault.Refused, "no-handover", "the hand-over file cannot be written, so nothing was changed").Do("name another file with --to, in a folder that you may write: %s", filepath.Dir(path))
	}
	return nil
}
