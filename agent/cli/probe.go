package cli

import (
	"fmt"
	"net"
	"strconv"

	"github.com/spf13/cobra"

	"github.com/cassandra-security-manager/csm/agent/cassandra"
	"github.com/cassandra-security-manager/csm/agent/install"
	"github.com/cassandra-security-manager/csm/agent/probe"
	agentv1 "github.com/cassandra-security-manager/csm/protocol/agent/v1"
	"github.com/cassandra-security-manager/csm/shared/certificate"
	"github.com/cassandra-security-manager/csm/shared/cli"
	"github.com/cassandra-security-manager/csm/shared/fault"
)

var verdicts = map[agentv1.Verdict]string{agentv1.Verdict_VERDICT_ACCEPTED: "accepted", agentv1.Verdict_VERDICT_REFUSED: "refused",
	agentv1.Verdict_VERDICT_UNKNOWN: "unknown", agentv1.Verdict_VERDICT_WRONG_LEAF: "wrong-leaf", agentv1.Verdict_VERDICT_DOWN: "down"}

type probed struct {
	Port      string `json:"port"`
	Kind      string `json:"kind"`
	Verdict   string `json:"verdict"`
	Served    string `json:"servedSha256,omitempty"`
	Until     string `json:"notAfter,omitempty"`
	Untrusted string `json:"untrusted,omitempty"`
	Detail    string `json:"detail,omitempty"`
	Millis    int64  `json:"millis"`
}

func probeCommand() *cobra.Command {
	c := &cobra.Command{Use: "probe [HOST:PORT]", Short: "Shake hands with the node's TLS ports, or another's, by the node's own certificate", Args: cobra.MaximumNArgs(1),
		Long: "probe connects with the certificate in the node's keystore and waits for an answer of the application: an Accept frame between\n" +
			"nodes, SUPPORTED on CQL. Silence is \"unknown\", never a success. Exit code 10: some port did not accept.",
		Example: "  csm-agent probe\n  csm-agent probe --kind cql 10.0.0.7:9042",
		RunE: func(cmd *cobra.Command, args []string) error {
			conf, err := load(cmd)
			if err != nil {
				return err
			}
			which, _ := cmd.Flags().GetString("instance")
			var pick []string
			if which != "" {
				pick = []string{which}
			}
			list, err := instances(conf, pick)
			if err != nil {
				return err
			}
			inst, _, err := list[0].ReadOptions().Read(list[0].Config)
			if err != nil {
				return err
			}
			kind, _ := cmd.Flags().GetString("kind")
			return probeAll(cmd, inst, args, kind)
		}}
	c.Flags().String("kind", "", "internode or cql; guessed by the port of cassandra.yaml")
	c.Flags().String("instance", "", "which instance of agent.yaml; the first one")
	return c
}

func probeAll(cmd *cobra.Command, inst *cassandra.Instance, args []string, kind string) error {
	g := cli.Of(cmd)
	ctx, cancel := g.Context(cmd.Context())
	defer cancel()
	if len(inst.Stores) == 0 {
		return fault.New(fault.NotFound, "no-store", "%s has no TLS store", inst.ConfigPath).Do("see `csm-agent inspect`")
	}
	t := &cli.Table{Columns: []cli.Column{{Name: "PORT"}, {Name: "KIND"}, {Name: "VERDICT"}, {Name: "SERVED"}, {Name: "GOOD UNTIL"}, {Name: "MS", Right: true}, {Name: "DETAIL"}}}
	var items []any
	bad := 0
	one := func(s *cassandra.Store, q probe.Request, name string) error {
		cert, err := install.Certificate(s)
		if err != nil {
			return err
		}
		_, anchors, err := readPair(s)
		if err != nil {
			return err
		}
		q.Certificate, q.Roots = cert, anchors
		if inst.Listen.IsValid() && !inst.Listen.IsUnspecified() {
			q.Local = inst.Listen
		}
		r := probe.Probe(ctx, q)
		x := probed{Port: net.JoinHostPort(q.Address, strconv.Itoa(int(q.Port))), Kind: name, Verdict: verdicts[r.Verdict], Untrusted: r.Untrusted, Detail: r.Detail, Millis: r.Took.Milliseconds()}
		if len(r.Chain) > 0 {
			x.Served, x.Until = certificate.Hex(r.Served), r.Chain[0].NotAfter.UTC().Format("2006-01-02")
		}
		if r.Verdict != agentv1.Verdict_VERDICT_ACCEPTED || r.Untrusted != "" {
			bad++
		}
		t.Add(x.Port, name, x.Verdict, short(x.Served), x.Until, fmt.Sprint(x.Millis), orElse(x.Untrusted, x.Detail))
		items = append(items, x)
		return nil
	}
	if len(args) == 1 {
		host, port, err := net.SplitHostPort(args[0])
		n, perr := strconv.ParseUint(port, 10, 16)
		if err != nil || perr != nil {
			return fault.New(fault.Invalid, "usage", "%q is not HOST:PORT", args[0]).Do("write it as 10.0.0.7:7000")
		}
		k, name, err := kindOf(kind, uint16(n), inst)
		if err != nil {
			return err
		}
		if err := one(storeFor(inst, k), probe.Request{Kind: k, Address: host, Port: uint16(n)}, name); err != nil {
			return err
		}
	} else {
		for _, s := range inst.Stores {
			for _, p := range s.Ports {
				_, name, err := kindOf("", p.Port, inst)
				if err != nil {
					return err
				}
				if err := one(s, probe.Request{Kind: p.Kind, Address: p.Address.String(), Port: p.Port}, name); err != nil {
					return err
				}
			}
		}
	}
	if err := g.Print(cli.View{Object: items, Items: items, Table: t, Name: func(i any) string { return i.(probed).Port }}); err != nil {
		return err
	}
	if bad > 0 {
		return fault.New(fault.Differs, "not-proved", "%d ports did not accept the node's certificate", bad).Do("compare both truststores; Cassandra's log tells more")
	}
	return nil
}

func short(s string) string { return s[:min(len(s), 16)] }

func orElse(s, other string) string {
	if s == "" {
		return other
	}
	return s
}

func storeFor(i *cassandra.Instance, k agentv1.PortKind) *cassandra.Store {
	for _, s := range i.Stores {
		for _, p := range s.Ports {
			if p.Kind == k {
				return s
			}
		}
	}
	return i.Stores[0]
}

func kindOf(kind string, port uint16, i *cassandra.Instance) (agentv1.PortKind, string, error) {
	switch {
	case kind == "internode" || kind == "" && port == i.StoragePort:
		return agentv1.PortKind_PORT_KIND_INTERNODE, "internode", nil
	case kind == "cql" || kind == "" && port == i.NativePort:
		return agentv1.PortKind_PORT_KIND_CQL, "cql", nil
	}
	return 0, "", fault.New(fault.Invalid, "usage", "what speaks on port %d is not known", port).Do("say --kind internode or --kind cql")
}
