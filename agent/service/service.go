// Package service registers csm-agent with the service manager of a host that has none of our packages: systemd, OpenRC,
// SysV and others through kardianos/service, and the service control manager of Windows.
//
// It refuses to register beside a package, whose unit is stricter, and to start an agent that has not joined. What it
// registers is `csm-agent service run` with the configuration file of its installation.
package service

import (
	"os"
	"path/filepath"
	"slices"

	"github.com/cassandra-security-manager/csm/agent/config"
	"github.com/cassandra-security-manager/csm/shared/fault"
)

// Name under which the service is registered.
const (
	Name        = "csm-agent"
	display     = "CSM agent"
	description = "CSM agent: certificates of the Cassandra on this host"
)

// State of the service.
type State string

// States.
const (
	Running   State = "running"
	Stopped   State = "stopped"
	NotThere  State = "not-installed"
	Undefined State = "unknown"
)

// Options say what is registered.
type Options struct {
	// Program and ConfigPath are absolute paths.
	Program, ConfigPath string
	// User runs it; empty is root, or the local system account of Windows.
	User   string
	Config config.Config
}

// Manager speaks to the service manager of this host. Errors are faults.
type Manager interface {
	// Install registers the service to start with the host; it does not start it now.
	Install() error
	Uninstall() error
	Start() error
	Stop() error
	State() (State, error)
}

// New is the manager of this host.
func New(o Options) (Manager, error) { return newManager(o) }

// Arguments that the service manager gives to the program.
func (o Options) arguments() []string { return []string{"service", "run", "--config", o.ConfigPath} }

// Joined refuses, with reason "not-joined", unless an instance of the configuration has an identity.
func Joined(c config.Config) error {
	for _, in := range c.Cassandra {
		if _, err := os.Stat(filepath.Join(c.Folder(in), "identity.json")); err == nil {
			return nil
		}
	}
	return fault.New(fault.Refused, "not-joined", "the agent has not joined: there is no identity in %s", c.StateDir).
		Do("csm-agent join, as the user that the service runs as")
}

// writable are the folders that the agent writes into.
func writable(c config.Config) []string {
	out := []string{c.StateDir}
	for _, in := range c.Cassandra {
		for _, r := range in.ReadOptions().Roots {
			if !slices.Contains(out, r) {
				out = append(out, r)
			}
		}
	}
	return out
}

func failed(err error, what string) error {
	return fault.Wrap(err, fault.Internal, "service-manager", "the service could not be %s", what).Do("run this as an administrator of the host")
}

// ErrNotInstalled is what is said about a service that is not there.
func ErrNotInstalled() error {
	return fault.New(fault.NotFound, "not-installed", "the service is not installed").Do("csm-agent service install")
}
