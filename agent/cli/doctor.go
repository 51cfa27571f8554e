package cli

import (
	"context"
	"crypto/tls"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"time"

	"github.com/spf13/cobra"

	"github.com/cassandra-security-manager/csm/agent/cassandra"
	"github.com/cassandra-security-manager/csm/agent/config"
	"github.com/cassandra-security-manager/csm/agent/install"
	"github.com/cassandra-security-manager/csm/agent/node"
	"github.com/cassandra-security-manager/csm/agent/sync"
	"github.com/cassandra-security-manager/csm/shared/cli"
	"github.com/cassandra-security-manager/csm/shared/fault"
)

// check is one line of the doctor: good, warning or bad.
type check struct {
	Check  string `json:"check"`
	Result string `json:"result"`
	Detail string `json:"detail"`
	Remedy string `json:"remedy,omitempty"`
}

type doctor struct{ checks []check }

func (d *doctor) add(name, result, remedy, format string, args ...any) {
	d.checks = append(d.checks, check{name, result, fmt.Sprintf(format, args...), remedy})
}

func (d *doctor) err(name string, err error) {
	f := fault.From(err)
	d.add(name, "bad", f.Remedy, "%s", f.Message)
}

func doctorCommand() *cobra.Command {
	return &cobra.Command{Use: "doctor", Short: "Look at everything that must be right for the agent to work", Args: cobra.NoArgs,
		Long:    "doctor checks configuration, state folder, controllers, clock, cassandra.yaml, stores, the reload command and the HOLD file. It changes nothing.",
		Example: "  csm-agent doctor",
		RunE: func(cmd *cobra.Command, _ []string) error {
			conf, err := loadToRun(cmd)
			if err != nil {
				return err
			}
			g := cli.Of(cmd)
			ctx, cancel := g.Context(cmd.Context())
			defer cancel()
			d := &doctor{}
			d.add("configuration", "good", "", "mode %s, %d instances", conf.Mode, len(conf.Cassandra))
			d.hold(conf)
			d.controllers(ctx, conf)
			for _, in := range conf.Cassandra {
				d.instance(ctx, conf, in)
			}
			t := &cli.Table{Columns: []cli.Column{{Name: "CHECK"}, {Name: "RESULT", Style: resultStyle}, {Name: "DETAIL"}, {Name: "DO"}}}
			var items []any
			bad := 0
			for _, c := range d.checks {
				t.Add(c.Check, c.Result, c.Detail, c.Remedy)
				items = append(items, c)
				if c.Result == "bad" {
					bad++
				}
			}
			if err := g.Print(cli.View{Object: items, Items: items, Table: t, Name: func(i any) string { return i.(check).Check }}); err != nil {
				return err
			}
			if bad > 0 {
				return fault.New(fault.Differs, "findings", "%d checks failed", bad).Do("each says what to do")
			}
			return nil
		}}
}

func resultStyle(cell string) cli.Style {
	return map[string]cli.Style{"good": cli.Good, "warning": cli.Warn, "bad": cli.Bad}[cell]
}

func (d *doctor) hold(conf config.Config) {
	if why, held := install.Held(conf.HoldFile); held {
		d.add("HOLD", "warning", "`csm-agent release` when it may act again", "%s", why)
		return
	}
	d.add("HOLD", "good", "", "%s is not there", conf.HoldFile)
}

func (d *doctor) controllers(ctx context.Context, conf config.Config) {
	for _, a := range conf.Controllers {
		name := "controller " + a
		c := &tls.Config{}
		var err error
		if conf.Pin != "" {
			if c, err = sync.PinnedTLS(conf.Pin, time.Now); err != nil {
				d.err(name, err)
				continue
			}
		} else {
			d.add(name, "warning", "set pin in agent.yaml", "no pin is configured, so it is not known whether this is our system")
			continue
		}
		c.NextProtos = []string{"h2"}
		began := time.Now()
		one, cancel := context.WithTimeout(ctx, 5*time.Second)
		conn, err := (&tls.Dialer{NetDialer: &net.Dialer{}, Config: c}).DialContext(one, "tcp", a)
		cancel()
		if err != nil {
			f := fault.From(err)
			if f.Code == fault.Internal {
				f = fault.New(fault.Unavailable, "unreachable", "%v", err).Do("check that the controller runs and that its port is open from here")
			}
			d.err(name, f)
			continue
		}
		_ = conn.Close()
		d.add(name, "good", "", "answers in %s, and is of the pinned system", time.Since(began).Round(time.Millisecond))
	}
}

func (d *doctor) instance(ctx context.Context, conf config.Config, in config.Instance) {
	name := in.StateName()
	d.folder(conf, in)
	inst, findings, err := in.ReadOptions().Read(in.Config)
	if err != nil {
		d.err(name+" cassandra.yaml", err)
		return
	}
	errs := 0
	for _, f := range findings {
		if f.Severity == cassandra.Error {
			errs++
		}
	}
	switch {
	case errs > 0:
		d.add(name+" cassandra.yaml", "bad", "see `csm-agent inspect`", "%d findings", errs)
	default:
		d.add(name+" cassandra.yaml", "good", "", "cluster %s, %d stores", inst.ClusterName, len(inst.Stores))
	}
	p := node.Detect(ctx, inst)
	switch {
	case p.Down():
		d.add(name+" ports", "warning", "stores can be written before Cassandra's first start", "Cassandra does not listen")
	case !p.Normal():
		d.add(name+" ports", "warning", "nothing is changed while a node joins, leaves or drains", "only some ports listen")
	default:
		d.add(name+" ports", "good", "", "%s:%d and %s:%d listen", inst.Listen, inst.StoragePort, inst.RPC, inst.NativePort)
	}
	for _, s := range inst.Stores {
		d.store(name, s)
	}
	d.reload(name, in)
}

func (d *doctor) folder(conf config.Config, in config.Instance) {
	name, dir := in.StateName()+" state", conf.Folder(in)
	s, running, err := node.ReadStatus(dir)
	switch {
	case err != nil:
		d.add(name, "warning", "csm-agent run", "the agent has not run here yet (%s)", dir)
	case !running:
		d.add(name, "warning", "start csm-agent", "the agent does not run")
	case s.Node == "":
		d.add(name, "bad", "give it a token: csm cluster join-command", "the agent has not joined: %s", s.Link.Error)
	default:
		d.add(name, "good", "", "the agent of %s runs", s.Node)
	}
}

func (d *doctor) store(instance string, s *cassandra.Store) {
	name := instance + " store " + s.Name
	if !s.Manageable {
		d.add(name, "warning", "see `csm-agent inspect`", "can only be observed")
		return
	}
	dir := filepath.Dir(s.KeystorePath)
	f, err := os.CreateTemp(dir, ".csm-doctor-*")
	if err != nil {
		d.add(name, "bad", "give the folder to the agent's user", "%s cannot be written: %v", dir, err)
		return
	}
	_ = f.Close()
	_ = os.Remove(f.Name())
	d.add(name, "good", "", "%s can be written", dir)
}

func (d *doctor) reload(instance string, in config.Instance) {
	c := in.Command()
	path, err := exec.LookPath(c.Path)
	if err != nil {
		d.add(instance+" reload", "bad", "set reload.command in agent.yaml to a program with its full path", "%s is not found: %v", c.Path, err)
		return
	}
	d.add(instance+" reload", "good", "", "%s %v", path, c.Args)
}
