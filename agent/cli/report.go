package cli

import (
	"context"
	"log/slog"
	"path/filepath"
	"time"

	"github.com/cassandra-security-manager/csm/agent/cassandra"
	"github.com/cassandra-security-manager/csm/agent/config"
	"github.com/cassandra-security-manager/csm/agent/install"
	"github.com/cassandra-security-manager/csm/agent/node"
	agentv1 "github.com/cassandra-security-manager/csm/protocol/agent/v1"
	"github.com/cassandra-security-manager/csm/shared/readiness"
	"github.com/cassandra-security-manager/csm/shared/scan"
)

// report judges this node alone, as the controllers judge it among its neighbours: the same facts, the same words.
func report(ctx context.Context, conf config.Config, in config.Instance, inst *cassandra.Instance, now time.Time) (readiness.NodeReport, error) {
	installer, err := install.New(install.Options{StateDir: filepath.Join(conf.Folder(in), "install"), Hold: conf.HoldFile, Reloader: noReload{}, Logger: slog.New(slog.DiscardHandler)})
	if err != nil {
		return readiness.NodeReport{}, err
	}
	n := readiness.Node{Name: in.StateName(), Scanned: true, Agent: &agentv1.AgentFacts{Mode: conf.AgentMode()}, Instance: inst.Facts(!node.Detect(ctx, inst).Down())}
	for _, s := range inst.Stores {
		n.Stores = append(n.Stores, installer.Facts(install.Site{Instance: inst, Store: s}))
	}
	found, err := scan.Files(ctx, node.ScanRoots(conf, in, inst), node.ScanOptions(conf, inst, now))
	if err != nil {
		return readiness.NodeReport{}, err
	}
	for _, f := range found.Found {
		if p, err := readiness.Parse(f.DER); err == nil {
			n.Found = append(n.Found, readiness.Found{Parsed: p, Path: f.Path, Entry: f.Entry, HasPrivateKey: f.HasPrivateKey, Mode: uint32(f.Mode)})
		}
	}
	return readiness.Judge([]readiness.Node{n}, now).Nodes[0], nil
}
