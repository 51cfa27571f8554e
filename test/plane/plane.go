//go:build linux

// Package plane runs a control plane of real csm-controller programs on loopback addresses, one per region, for tests, the
// demonstration and benchmarks. It does what the README tells an administrator to do: init, join by token, approve.
package plane

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/netip"
	"os"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"time"

	"github.com/cassandra-security-manager/csm/test/process"
)

// Options say what to run.
type Options struct {
	// Dir takes everything; Bin holds csm-controller.
	Dir, Bin string
	// Host gives the loopback address of controller n, from 1.
	Host func(n int) netip.Addr
	// Regions, one controller each.
	Regions []string
	// Root is init's --root: "lab" or "none".
	Root string
	// Extra is added to every controller.yaml.
	Extra string
	// Administrator lets the controllers in; nil is one who does so over REST.
	Administrator Administrator
	// Env, if set, is added to the environment of controller n, from 1.
	Env func(n int) []string
	// Now is the clock by which the API judges certificates; time.Now when nil.
	Now func() time.Time
}

// Administrator makes join tokens for controllers and approves who shows the fingerprint that its own console printed.
type Administrator interface {
	JoinToken(ctx context.Context) (token string, err error)
	Approve(ctx context.Context, controller, fingerprint string) error
}

// Controller is one csm-controller.
type Controller struct {
	Name, Region, Config, Log string
	IP                        netip.Addr
	process                   *process.Process
	bin, dir                  string
	env                       []string
}

// Address of a port of this controller.
func (c *Controller) Address(port int) string {
	return net.JoinHostPort(c.IP.String(), strconv.Itoa(port))
}

// Plane is a control plane: what runs is told by its controllers.
type Plane struct {
	Options
	Controllers []*Controller
	API         *API
	AdminFile   string
}

// New writes the configurations; nothing runs yet.
func New(o Options) (*Plane, error) {
	p := &Plane{Options: o, AdminFile: filepath.Join(o.Dir, "admin.pem")}
	for i := range o.Regions {
		c, err := newController(o, i+1)
		if err != nil {
			return nil, err
		}
		p.Controllers = append(p.Controllers, c)
	}
	return p, nil
}

// Start makes a system and waits until every controller votes.
func Start(ctx context.Context, o Options) (*Plane, error) {
	p, err := New(o)
	if err != nil {
		return nil, err
	}
	if err := p.Found(ctx); err != nil {
		return p, err
	}
	return p, p.Complete(ctx)
}

// Found makes the system with its first controller and the administrator's certificate.
func (p *Plane) Found(ctx context.Context) error {
	first := p.Controllers[0]
	if out, err := first.command(ctx, "init", "--config", first.Config, "--root", p.Root, "--admin-out", p.AdminFile,
		"--recovery-out", filepath.Join(p.Dir, "recovery.key")); err != nil {
		return fmt.Errorf("init: %w: %s", err, out)
	}
	if err := first.Start(); err != nil {
		return err
	}
	var err error
	if p.API, err = newAPI(p.AdminFile, p.Controllers, p.Now); err != nil {
		return err
	}
	if p.Administrator == nil {
		p.Administrator = p.API
	}
	return p.wait(ctx, 1)
}

// Complete lets the other controllers in and waits until every one votes.
func (p *Plane) Complete(ctx context.Context) error {
	for _, c := range p.Controllers[1:] {
		if err := p.admit(ctx, c); err != nil {
			return fmt.Errorf("letting %s in: %w", c.Name, err)
		}
	}
	return p.Ready(ctx)
}

func newController(o Options, n int) (*Controller, error) {
	c := &Controller{Name: "csm" + strconv.Itoa(n), Region: o.Regions[n-1], IP: o.Host(n), bin: o.Bin}
	c.dir = filepath.Join(o.Dir, c.Name)
	if o.Env != nil {
		c.env = o.Env(n)
	}
	c.Config, c.Log = filepath.Join(c.dir, "controller.yaml"), filepath.Join(c.dir, "controller.log")
	if err := os.MkdirAll(c.dir, 0o700); err != nil {
		return nil, err
	}
	var peers []string
	for i := range o.Regions {
		if i+1 != n {
			peers = append(peers, net.JoinHostPort(o.Host(i+1).String(), "9642"))
		}
	}
	return c, os.WriteFile(c.Config, fmt.Appendf(nil, `name: %s
region: %s
zone: a
advertise: %s
data_dir: %s
join_peers: [%s]
listen: {api: "%s", agents: "%s", cluster: "%s", pki: "%s"}
metrics: "%s"
%s`, c.Name, c.Region, c.IP, filepath.Join(c.dir, "data"), strings.Join(peers, ", "),
		c.Address(9640), c.Address(9641), c.Address(9642), c.Address(9643), c.Address(9644), o.Extra), 0o600)
}

// Start starts the controller's process.
func (c *Controller) Start() (err error) {
	c.process, err = process.Start(process.Spec{Name: c.Name, Path: filepath.Join(c.bin, "csm-controller"),
		Args: []string{"run", "--config", c.Config}, Env: c.env, Dir: c.dir, Log: c.Log})
	return err
}

// Use lets the controller's next start take the program of another folder.
func (c *Controller) Use(bin string) { c.bin = bin }

// Admin gives an administrator a new certificate at the door that needs none: the socket in the data folder.
func (c *Controller) Admin(ctx context.Context, name, file string) error {
	out, err := c.command(ctx, "admin", "add", name, "--config", c.Config, "--out", file)
	if err != nil {
		return fmt.Errorf("%w: %s", err, out)
	}
	return nil
}

// Login makes the API use an administrator's file, by the real clock.
func (p *Plane) Login(file string) (err error) {
	p.AdminFile = file
	p.API, err = newAPI(file, p.Controllers, nil)
	return err
}

// Kill ends the controller with SIGKILL, if it was started. Nobody waits for it any more.
func (c *Controller) Kill() {
	if c.process != nil {
		c.process.Kill()
		c.process = nil
	}
}

// Stop ends it, if it was started, as an operator does; when ctx ends first it is killed.
func (c *Controller) Stop(ctx context.Context) error {
	if c.process == nil {
		return nil
	}
	return c.process.Stop(ctx)
}

// Running says whether its process lives.
func (c *Controller) Running() bool { return c.process != nil && c.process.Running() }

// Usage of its process.
func (c *Controller) Usage() (process.Usage, error) { return c.process.Usage() }

// Data is its data folder.
func (c *Controller) Data() string { return filepath.Join(c.dir, "data") }

// Command runs csm-controller once with this controller's configuration and gives the end of what it printed.
func (c *Controller) Command(ctx context.Context, args ...string) (string, error) {
	return c.command(ctx, append(args, "--config", c.Config)...)
}

// Admit lets a controller in: token, fingerprint, approval; it runs afterwards.
func (p *Plane) Admit(ctx context.Context, c *Controller) error { return p.admit(ctx, c) }

// Wait until n controllers vote.
func (p *Plane) Wait(ctx context.Context, n int) error { return p.wait(ctx, n) }

// Recovery is the file of the recovery share.
func (p *Plane) Recovery() string { return filepath.Join(p.Dir, "recovery.key") }

func (c *Controller) command(ctx context.Context, args ...string) (string, error) {
	log := filepath.Join(c.dir, args[0]+".log")
	proc, err := process.Start(process.Spec{Name: c.Name + " " + args[0], Path: filepath.Join(c.bin, "csm-controller"), Args: args, Dir: c.dir, Log: log})
	if err != nil {
		return "", err
	}
	defer proc.Kill()
	select {
	case <-proc.Done():
		return proc.Tail(40), proc.Err()
	case <-ctx.Done():
		return proc.Tail(40), ctx.Err()
	}
}

var fingerprint = regexp.MustCompile(`--fingerprint ([0-9a-f]{64})`)

// admit lets a controller in: token, fingerprint, approval.
func (p *Plane) admit(ctx context.Context, c *Controller) error {
	token, err := p.Administrator.JoinToken(ctx)
	if err != nil {
		return err
	}
	file := filepath.Join(c.dir, "join.token")
	if err := os.WriteFile(file, []byte(token), 0o600); err != nil {
		return err
	}
	ended := make(chan error, 1)
	go func() {
		out, err := c.command(ctx, "join", "--config", c.Config, "--pin", p.API.Pin, "--token-file", file, "--timeout", "60s")
		if err != nil {
			err = fmt.Errorf("%w: %s", err, out)
		}
		ended <- err
	}()
	approve := func() error {
		all := fingerprint.FindAllStringSubmatch(process.Tail(filepath.Join(c.dir, "join.log"), 20), -1)
		if all == nil {
			return fmt.Errorf("no fingerprint was printed")
		}
		return p.Administrator.Approve(ctx, c.Name, all[len(all)-1][1]) // an earlier join of this controller may stand above
	}
	if err := Eventually(ctx, time.Minute, approve); err != nil {
		return err
	}
	if err := <-ended; err != nil {
		return err
	}
	return c.Start()
}

// wait until n controllers vote.
func (p *Plane) wait(ctx context.Context, n int) error {
	return Eventually(ctx, 2*time.Minute, func() error {
		var list struct {
			Items []struct {
				Voter     bool
				Reachable bool
			}
		}
		if err := p.API.Do(ctx, http.MethodGet, "/v1/system/controllers", nil, &list); err != nil {
			return err
		}
		for _, c := range p.Controllers {
			if c.process != nil && !c.Running() {
				return fmt.Errorf("%s has ended: %s", c.Name, c.process.Tail(5))
			}
		}
		voters := 0
		for _, m := range list.Items {
			if m.Voter && m.Reachable {
				voters++
			}
		}
		if voters < n {
			return fmt.Errorf("%d of %d controllers vote", voters, n)
		}
		return p.answering(ctx, n)
	})
}

// answering fails while fewer than n controllers answer at their own REST door, which opens later than raft's.
func (p *Plane) answering(ctx context.Context, n int) error {
	var silent []error
	for _, c := range p.Controllers {
		if c.process == nil {
			continue
		}
		if err := p.API.On(ctx, c.Address(9640), http.MethodGet, "/v1/system", nil, nil); err != nil {
			silent = append(silent, fmt.Errorf("%s: %w", c.Name, err))
			continue
		}
		n--
	}
	if n > 0 {
		return fmt.Errorf("%d more controllers must answer: %w", n, errors.Join(silent...))
	}
	return nil
}

// Ready waits until every controller votes and answers.
func (p *Plane) Ready(ctx context.Context) error { return p.wait(ctx, len(p.Controllers)) }

// Fleet is what the agents of a cluster must know to join.
func (p *Plane) Fleet(cluster string) Fleet {
	f := Fleet{Pin: p.API.Pin, Cluster: cluster}
	for _, c := range p.Controllers {
		f.Controllers = append(f.Controllers, c.Address(9641))
	}
	return f
}

// Leader gives the controller that leads. One that has just started may not know yet, so it is asked for up to 15 s.
func (p *Plane) Leader(ctx context.Context) (*Controller, error) {
	ctx, cancel := context.WithTimeout(ctx, 15*time.Second)
	defer cancel()
	for {
		var s struct{ Leader string }
		err := p.API.Do(ctx, http.MethodGet, "/v1/system", nil, &s)
		for _, c := range p.Controllers {
			if err == nil && c.Name == s.Leader {
				return c, nil
			}
		}
		select {
		case <-ctx.Done():
			return nil, fmt.Errorf("no controller names a leader (%q): %w", s.Leader, errors.Join(err, ctx.Err()))
		case <-time.After(100 * time.Millisecond):
		}
	}
}

// Stop kills what runs.
func (p *Plane) Stop() {
	for _, c := range p.Controllers {
		if c.process != nil {
			c.process.Kill()
		}
	}
}

// Tails are the last lines of every controller's log, for failures.
func (p *Plane) Tails(lines int) string {
	var b strings.Builder
	for _, c := range p.Controllers {
		fmt.Fprintf(&b, "-- %s\n%s\n", c.Name, process.Tail(c.Log, lines))
	}
	return b.String()
}

// Eventually asks until it is so; the last reason is the error.
func Eventually(ctx context.Context, within time.Duration, ask func() error) error {
	ctx, cancel := context.WithTimeout(ctx, within)
	defer cancel()
	for {
		err := ask()
		if err == nil {
			return nil
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("not within %s: %w", within.Round(time.Second), err)
		case <-time.After(50 * time.Millisecond):
		}
	}
}
