package cli

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"strconv"
	"strings"

	"github.com/spf13/cobra"

	"github.com/cassandra-security-manager/csm/agent/cassandra"
	"github.com/cassandra-security-manager/csm/agent/node"
	"github.com/cassandra-security-manager/csm/shared/certificate"
	"github.com/cassandra-security-manager/csm/shared/cli"
	"github.com/cassandra-security-manager/csm/shared/fault"
	"github.com/cassandra-security-manager/csm/shared/keystore"
	"github.com/cassandra-security-manager/csm/shared/readiness"
)

func itoa(n uint64) string { return strconv.FormatUint(n, 10) }

type inspection struct {
	Config      string              `json:"config"`
	ClusterName string              `json:"clusterName"`
	Listen      string              `json:"listenAddress"`
	Broadcast   string              `json:"broadcastAddress"`
	RPC         string              `json:"rpcAddress"`
	StoragePort uint16              `json:"storagePort"`
	NativePort  uint16              `json:"nativePort"`
	Datacenter  string              `json:"datacenter,omitempty"`
	Rack        string              `json:"rack,omitempty"`
	Version     string              `json:"version,omitempty"`
	Running     bool                `json:"running"`
	Names       []string            `json:"requiredNames"`
	Stores      []inspectedStore    `json:"stores"`
	Findings    []cassandra.Finding `json:"findings"`
	// Report is what the controllers would say of this node alone.
	Report readiness.NodeReport `json:"report"`
}

type inspectedStore struct {
	Name       string                   `json:"name"`
	Format     string                   `json:"format"`
	Keystore   string                   `json:"keystore"`
	Truststore string                   `json:"truststore"`
	Manageable bool                     `json:"manageable"`
	Ports      []string                 `json:"ports"`
	Leaf       *certificate.Description `json:"leaf,omitempty"`
	Anchors    int                      `json:"anchors"`
	Problems   []keystore.Problem       `json:"problems,omitempty"`
	Unread     string                   `json:"unread,omitempty"`
}

func inspectCommand() *cobra.Command {
	return &cobra.Command{Use: "inspect [INSTANCE | CASSANDRA.YAML]", Short: "Say what is understood of cassandra.yaml and its stores, and what is wrong", Args: cobra.MaximumNArgs(1),
		Long:    "inspect reads cassandra.yaml and the stores it names, and changes and asks nothing: no controller, no Cassandra.\nExit code 10 says that something is wrong.",
		Example: "  csm-agent inspect\n  csm-agent inspect /etc/cassandra/cassandra.yaml -o json",
		RunE: func(cmd *cobra.Command, args []string) error {
			conf, err := load(cmd)
			if err != nil {
				return err
			}
			list, err := instances(conf, args)
			if err != nil {
				return err
			}
			g := cli.Of(cmd)
			bad := 0
			var items []any
			var text strings.Builder
			for _, in := range list {
				inst, _, err := in.ReadOptions().Read(in.Config)
				if err != nil {
					return err
				}
				x := inspect(cmd, inst, g)
				if x.Report, err = report(cmd.Context(), conf, in, inst, g.Now()); err != nil {
					return err
				}
				bad += x.wrong()
				items = append(items, x)
				x.write(&text)
			}
			var object any = items
			if len(items) == 1 {
				object = items[0]
			}
			if err := g.Print(cli.View{Object: object, Items: items, Name: func(i any) string { return i.(inspection).Config }, Text: text.String()}); err != nil {
				return err
			}
			if bad == 1 {
				return fault.New(fault.Differs, "findings", "one thing is wrong").Do("it says above what to do")
			}
			if bad > 0 {
				return fault.New(fault.Differs, "findings", "%d things are wrong", bad).Do("each says above what to do")
			}
			return nil
		}}
}

// wrong counts what is wrong with the node as it is.
func (x inspection) wrong() (n int) {
	for _, f := range x.Report.Findings {
		if f.Severity == readiness.Blocker || f.Severity == readiness.Error {
			n++
		}
	}
	for _, s := range x.Stores {
		n += len(s.Problems)
		if s.Unread != "" {
			n++
		}
	}
	return n
}

func inspect(cmd *cobra.Command, i *cassandra.Instance, g *cli.Global) inspection {
	x := inspection{Config: i.ConfigPath, ClusterName: i.ClusterName, Listen: i.Listen.String(), Broadcast: i.Broadcast.String(), RPC: i.RPC.String(),
		StoragePort: i.StoragePort, NativePort: i.NativePort, Datacenter: i.Datacenter, Rack: i.Rack, Version: i.Process.Version,
		Running: !node.Detect(cmd.Context(), i).Down(), Findings: i.Findings}
	names := i.RequiredNames()
	x.Names = strings.Split(names.String(), ", ")
	for _, s := range i.Stores {
		x.Stores = append(x.Stores, inspectStore(i, s, g))
	}
	return x
}

func inspectStore(i *cassandra.Instance, s *cassandra.Store, g *cli.Global) inspectedStore {
	out := inspectedStore{Name: s.Name, Format: string(s.Format), Keystore: s.KeystorePath, Truststore: s.TruststorePath, Manageable: s.Manageable}
	for _, p := range s.Ports {
		out.Ports = append(out.Ports, fmt.Sprintf("%s:%d", p.Address, p.Port))
	}
	ks, ts, err := readPair(s)
	if err != nil {
		out.Unread = err.Error()
		return out
	}
	if ks == nil && ts == nil {
		return out
	}
	if ks != nil {
		d := certificate.Describe(ks.Leaf())
		out.Leaf = &d
	}
	out.Anchors = len(ts)
	out.Problems = keystore.Check(ks, ts, keystore.Expect{Now: g.Now(), Names: i.RequiredNamesFor(s.Name), MinRemaining: node.RepairFloor})
	return out
}

// readFile reads a store, bounded; an absent one is nil.
func readFile(path string) ([]byte, error) {
	fi, err := os.Stat(path)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return nil, nil
	case err != nil:
		return nil, fault.Wrap(err, fault.Internal, "store-unreadable", "the store cannot be read").Do("run this as the agent's user")
	case fi.Size() > keystore.MaxSize:
		return nil, fault.New(fault.Invalid, "keystore-too-large", "%s has %d bytes", path, fi.Size())
	}
	data, err := os.ReadFile(path)
	if err != nil {
		return nil, fault.Wrap(err, fault.Internal, "store-unreadable", "the store cannot be read").Do("run this as the agent's user")
	}
	return data, nil
}

// readPair reads the pair of files; absent files are nil without a fault.
func readPair(s *cassandra.Store) (*keystore.KeyStore, certs, error) {
	var ks *keystore.KeyStore
	data, err := readFile(s.KeystorePath)
	if err != nil {
		return nil, nil, err
	}
	if data != nil {
		if ks, err = keystore.DecodeKeyStore(s.Format, data, s.KeystorePassword); err != nil {
			return nil, nil, err
		}
	}
	if data, err = readFile(s.TruststorePath); err != nil || data == nil {
		return ks, nil, err
	}
	ts, err := keystore.DecodeTrustStore(s.Format, data, s.TruststorePassword)
	return ks, ts, err
}

func (x inspection) write(b *strings.Builder) {
	line := func(key, format string, args ...any) {
		if v := fmt.Sprintf(format, args...); v != "" {
			fmt.Fprintf(b, "%-12s %s\n", key, v)
		}
	}
	line("config", "%s", x.Config)
	line("cluster", "%s", x.ClusterName)
	line("place", "%s", strings.Trim(x.Datacenter+"/"+x.Rack, "/"))
	line("cassandra", "%s", strings.TrimSpace(map[bool]string{true: "running ", false: "not running "}[x.Running]+x.Version))
	line("internode", "%s:%d, peers know it as %s", x.Listen, x.StoragePort, x.Broadcast)
	line("cql", "%s:%d", x.RPC, x.NativePort)
	line("names", "%s", strings.Join(x.Names, ", "))
	for _, s := range x.Stores {
		fmt.Fprintf(b, "\nstore %s, %s, on %s: %s\n", s.Name, s.Format, strings.Join(s.Ports, " and "),
			map[bool]string{true: "can be managed", false: "can only be observed"}[s.Manageable])
		line("  keystore", "%s", s.Keystore)
		line("  truststore", "%s", s.Truststore)
		switch {
		case s.Unread != "":
			line("  content", "not read: %s", s.Unread)
		case s.Leaf == nil:
			line("  content", "none yet")
		default:
			line("  leaf", "%s until %s, %s, by %s", s.Leaf.SHA256[:16], s.Leaf.NotAfter.Format("2006-01-02"), s.Leaf.KeyAlgorithm, s.Leaf.Issuer)
			line("  anchors", "%d", s.Anchors)
		}
		for _, p := range s.Problems {
			fmt.Fprintf(b, "  %s: %s\n    do: %s\n", p.Code, p.Message, p.Remedy)
		}
	}
	if len(x.Report.Findings)+len(x.Report.Unseen) > 0 {
		b.WriteString("\n")
	}
	for _, f := range x.Report.Findings {
		fmt.Fprintf(b, "%-8s %s: %s\n", f.Severity, f.Code, f.Message)
		if f.Evidence != "" {
			fmt.Fprintf(b, "         seen: %s\n", f.Evidence)
		}
		if f.Remedy != "" {
			fmt.Fprintf(b, "         do: %s\n", f.Remedy)
		}
	}
	for _, u := range x.Report.Unseen {
		fmt.Fprintf(b, "unseen   %s: %s\n", u.What, u.Why)
	}
}
