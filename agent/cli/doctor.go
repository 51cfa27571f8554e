package cli

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"slices"
	"time"

	"github.com/spf13/cobra"

	"github.com/cassandra-security-manager/csm/agent/cassandra"
	"github.com/cassandra-security-manager/csm/agent/config"
	"github.com/cassandra-security-manager/csm/agent/install"
	"github.com/cassandra-security-manager/csm/agent/node"
	"github.com/cassandra-security-manager/csm/agent/sync"
	"github.com/cassandra-security-manager/csm/shared/cli"
	"github.com/cassandra-security-manager/csm/shared/fault"
	"github.com/cassandra-security-manager/csm/shared/identity"
)

// check is one line of the doctor: good, warning or bad.
type check struct {
	Check  string `json:"check"`
	Result string `json:"result"`
	Detail string `json:"detail"`
	Remedy string `json:"remedy,omitempty"`
}

type doctor struct {
	checks []check
	now    time.Time
}

func (d *doctor) add(name, result, remedy, format string, args ...any) {
	d.checks = append(d.checks, check{name, result, fmt.Sprintf(format, args...), remedy})
}

func (d *doctor) err(name string, err error) {
	f := fault.From(err)
	d.add(name, "bad", f.Remedy, "%s", f.Message)
}

func doctorCommand() *cobra.Command {
	return &cobra.Command{Use: "doctor", Short: "Look at everything that must be right for the agent to work, the worst first", Args: cobra.NoArgs,
		Long: "doctor checks configuration, state folder, identity, controllers, clocks, cassandra.yaml, stores and their certificates, the reload command and the HOLD\n" +
			"file. It needs no controller and no login, and changes nothing. Where the certificate of a running Cassandra has ended or ends within a day, the first\n" +
			"line says so: do NOT restart it. Exit code 10 when something is bad.",
		Example: "  csm-agent doctor",
		RunE: func(cmd *cobra.Command, _ []string) error {
			conf, err := load(cmd)
			if err != nil {
				return err
			}
			g := cli.Of(cmd)
			ctx, cancel := g.Context(cmd.Context())
			defer cancel()
			d := &doctor{now: g.Now()}
			if _, err := loadToRun(cmd); err != nil {
				d.err("configuration", err)
			} else {
				d.add("configuration", "good", "", "mode %s, %d instances", conf.Mode, len(conf.Cassandra))
			}
			d.hold(conf)
			d.controllers(ctx, conf)
			for _, in := range conf.Cassandra {
				d.instance(ctx, conf, in)
			}
			return d.print(g)
		}}
}

var worst = map[string]int{"bad": 0, "warning": 1, "good": 2}

// print shows the worst first; what must not be done before all.
func (d *doctor) print(g *cli.Global) error {
	slices.SortStableFunc(d.checks, func(a, b check) int {
		if r := worst[a.Result] - worst[b.Result]; r != 0 {
			return r
		}
		return first(a) - first(b)
	})
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
}

// doNotRestart is the check whose finding outranks all others.
const doNotRestart = "DO NOT RESTART"

func first(c check) int {
	if c.Check == doNotRestart {
		return 0
	}
	return 1
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
		chain := conn.(*tls.Conn).ConnectionState().PeerCertificates
		ends := chain[0]
		_ = conn.Close()
		if d.now.Before(ends.NotBefore) {
			d.add("clock", "bad", "set this host's clock (chrony, systemd-timesyncd)", "it is before %s, when the certificate of %s begins", ends.NotBefore.UTC().Format(time.RFC3339), a)
		}
		d.add(name, "good", "", "answers in %s, and is of the pinned system", time.Since(began).Round(time.Millisecond))
		d.pin(conf.Pin, chain)
	}
}

// pin says when the pinned root is the one that goes: a chain that is trusted by it tells which one signs now.
func (d *doctor) pin(pin string, chain []*x509.Certificate) {
	for _, root := range chain[1:] {
		if chain[0].CheckSignatureFrom(root) == nil && bytes.Equal(root.RawSubject, root.RawIssuer) && identity.Pin(root) != pin {
			d.add("pin", "warning", "pin: "+identity.Pin(root)+" in agent.yaml", "the pin in agent.yaml is of a root of the system CA that goes: a host that joins anew could not do so later")
			return
		}
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
		d.leaf(name, s, !p.Down())
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
	d.known(in.StateName(), s)
}

// known judges what the agent wrote down last.
func (d *doctor) known(instance string, s node.Status) {
	if s.Copied {
		d.add(instance+" identity", "bad", "on the copy remove the state folder; then csm node resume", "this state folder was copied from another machine, or to one")
	}
	if s.Suspended != "" {
		d.add(instance+" identity", "bad", "csm node get "+orElse(s.Node, "NODE"), "the agent is suspended: %s", s.Suspended)
	}
	if !s.IdentityNotAfter.IsZero() && s.IdentityNotAfter.Before(d.now) {
		d.add(instance+" identity", "bad", "start the agent: it renews by itself within 180 days; later: csm system grace", "the agent's identity ended %s", cli.Ago(d.now, s.IdentityNotAfter))
	}
	if s.Frozen != "" {
		d.add(instance+" freeze", "warning", "ask who froze it: csm status", "%s", s.Frozen)
	}
	for _, st := range s.Stores {
		switch st.State {
		case "failed":
			d.add(instance+" store "+st.Name, "bad", "csm-agent probe; then csm node renew", "could neither go forward nor back: %s", st.Detail)
		case "contested":
			d.add(instance+" store "+st.Name, "bad", "stop the other tool, then csm-agent release", "another tool writes its files: %s", st.Detail)
		}
	}
}

// leaf looks at the certificate in a keystore as it lies there. Cassandra checks certificates in handshakes only: the links
// of a running node outlive its certificate, and after a restart no peer would take it back.
func (d *doctor) leaf(instance string, s *cassandra.Store, running bool) {
	name := instance + " certificate " + s.Name
	keys, _, err := readPair(s)
	if err != nil || keys == nil || len(keys.Chain) == 0 {
		return // an absent or unreadable store is the agent's and inspect's finding
	}
	end := keys.Leaf().NotAfter
	left := end.Sub(d.now)
	switch {
	case running && left < 24*time.Hour:
		d.add(doNotRestart, "bad", "csm node renew, with Cassandra running; csm-agent renew --no-way-back if it has expired", "do NOT restart Cassandra: the certificate of store %s ends %s, and the links that stand outlive it", s.Name, cli.Ago(d.now, end))
	case left <= 0:
		d.add(name, "bad", "start the agent before Cassandra: it writes a new one", "it ended %s", cli.Ago(d.now, end))
	case left < node.RepairFloor:
		d.add(name, "bad", "bring a controller within reach; csm why NODE says why it was not renewed", "it ends %s", cli.Ago(d.now, end))
	default:
		d.add(name, "good", "", "it ends %s", cli.Ago(d.now, end))
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
	path, own, err := c.Program()
	switch {
	case in.Reload.Polls():
		d.add(instance+" reload", "warning", "install nodetool or a Java, then take reload.way out of agent.yaml", "no command: each change waits up to %s for Cassandra's own look at its files", install.PollBound)
	case err != nil && own:
		d.err(instance+" reload", err)
	case err != nil:
		d.add(instance+" reload", "bad", "set reload.command in agent.yaml to a program with its full path", "%s is not found: %v", c.Path, err)
	case own:
		d.add(instance+" reload", "good", "", "there is no nodetool: our own client of JMX, run by %s", path)
	default:
		d.add(instance+" reload", "good", "", "%s %v", path, c.Args)
	}
}
