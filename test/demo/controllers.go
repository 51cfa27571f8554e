//go:build linux

package main

import (
	"context"
	"fmt"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"time"

	"github.com/cassandra-security-manager/csm/test/process"
)

var regions = []string{"eu-west", "us-east", "ap-south"}

// controller is one csm-controller, in a region that is a loopback address here.
type controller struct {
	name, region string
	ip           netip.Addr
	dir, config  string
	program      string
	process      *process.Process
}

func newController(d *demo, i int, region string, ip netip.Addr) *controller {
	name := "csm" + strconv.Itoa(i+1)
	dir := filepath.Join(d.dir, "controllers", name)
	return &controller{name: name, region: region, ip: ip, dir: dir, config: filepath.Join(dir, "controller.yaml"), program: filepath.Join(d.bin, "csm-controller")}
}

func (c *controller) address(port int) string {
	return net.JoinHostPort(c.ip.String(), strconv.Itoa(port))
}

func (c *controller) log() string { return filepath.Join(c.dir, "controller.log") }

func (c *controller) write(peers []*controller) error {
	if err := os.MkdirAll(c.dir, 0o700); err != nil {
		return err
	}
	var join []string
	for _, p := range peers {
		if p != c {
			join = append(join, p.address(9642))
		}
	}
	config := fmt.Sprintf(`name: %s
region: %s
zone: a
advertise: %s
data_dir: %s
seal: {type: file}
join_peers: [%s]
listen: {api: "%s", agents: "%s", cluster: "%s", pki: "%s"}
metrics: %s
log: {level: info, format: json}
`, c.name, c.region, c.ip, filepath.Join(c.dir, "data"), strings.Join(join, ", "),
		c.address(9640), c.address(9641), c.address(9642), c.address(9643), c.address(9644))
	return os.WriteFile(c.config, []byte(config), 0o600)
}

func (c *controller) start() (err error) {
	c.process, err = process.Start(process.Spec{Name: c.name, Path: c.program, Args: []string{"run", "--config", c.config}, Dir: c.dir, Log: c.log()})
	return err
}

// startControllers makes the first controller's system, lets two others in by token and approval, and waits for a quorum.
func startControllers(ctx context.Context, d *demo) (string, error) {
	for _, c := range d.controllers {
		if err := c.write(d.controllers); err != nil {
			return "", err
		}
	}
	if err := d.found(ctx); err != nil {
		return "", err
	}
	for _, c := range d.controllers[1:] {
		if err := d.admit(ctx, c); err != nil {
			return "", fmt.Errorf("letting %s in: %w", c.name, err)
		}
	}
	var s status
	err := eventually(ctx, 60*time.Second, func() (err error) {
		if s, err = d.status(ctx); err == nil && s.voters() < len(d.controllers) {
			err = fmt.Errorf("%d of %d controllers vote", s.voters(), len(d.controllers))
		}
		return err
	})
	if err != nil {
		return "", err
	}
	var where []string
	for _, c := range d.controllers {
		where = append(where, c.region+" "+c.ip.String())
	}
	return strings.Join(where, ", ") + "; leader " + s.Leader, nil
}

// found makes the system with its first controller and the administrator's certificate.
func (d *demo) found(ctx context.Context) error {
	first := d.controllers[0]
	made, err := mustJSON[struct {
		Pin string `json:"pin"`
	}](ctx, d, "csm-controller", "init", "--config", first.config, "--root", "none", "--admin", "demo",
		"--admin-out", d.adminFile(), "--recovery-out", filepath.Join(d.dir, "recovery.key"))
	if err != nil {
		return err
	}
	d.pin = made.Pin
	if err := first.start(); err != nil {
		return err
	}
	if err := d.configure(ctx); err != nil {
		return err
	}
	return first.process.Settle(ctx, 100*time.Millisecond, func() bool {
		_, err := d.status(ctx)
		return err == nil
	})
}

var fingerprint = regexp.MustCompile(`--fingerprint (\S+)`)

// admit lets a controller in: a one-time token, the fingerprint that it prints, an administrator's approval.
func (d *demo) admit(ctx context.Context, c *controller) error {
	made, err := mustJSON[struct {
		Token string `json:"token"`
	}](ctx, d, "csm", "system", "join-token")
	if err != nil {
		return err
	}
	token := filepath.Join(c.dir, "join.token")
	if err := os.WriteFile(token, []byte(made.Token+"\n"), 0o600); err != nil {
		return err
	}
	joining, err := process.Start(process.Spec{Name: c.name + " join", Path: c.program, Dir: c.dir, Log: filepath.Join(c.dir, "join.log"),
		Args: []string{"join", "--config", c.config, "--pin", d.pin, "--token-file", token, "--timeout", "60s"}})
	if err != nil {
		return err
	}
	defer joining.Kill()
	var key string
	err = joining.Settle(ctx, 50*time.Millisecond, func() bool {
		if m := fingerprint.FindStringSubmatch(joining.Tail(20)); m != nil {
			key = m[1]
		}
		return key != ""
	})
	if err != nil {
		return err
	}
	if _, err := d.must(ctx, "csm", "system", "approve", c.name, "--fingerprint", key); err != nil {
		return err
	}
	select {
	case <-joining.Done():
	case <-ctx.Done():
		return ctx.Err()
	}
	if err := joining.Err(); err != nil {
		return fmt.Errorf("join ended with %w: %s", err, joining.Tail(5))
	}
	if err := c.start(); err != nil {
		return err
	}
	return eventually(ctx, 60*time.Second, func() error {
		if !c.process.Running() {
			return fmt.Errorf("%s ended: %s", c.name, c.process.Tail(5))
		}
		s, err := d.status(ctx)
		if err == nil && !s.votes(c.name) {
			err = fmt.Errorf("%s is not a voter yet: %s", c.name, s.state(c.name))
		}
		return err
	})
}
