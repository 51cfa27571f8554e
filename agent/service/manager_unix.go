//go:build unix

package service

import (
	"context"
	"errors"
	"io"
	"os"
	"os/user"

	kardianos "github.com/kardianos/service"

	"github.com/cassandra-security-manager/csm/shared/fault"
)

// packaged are the places where a package puts its unit.
var packaged = []string{"/usr/lib/systemd/system/csm-agent.service", "/lib/systemd/system/csm-agent.service"}

type manager struct {
	kardianos.Service
	o Options
}

func newManager(o Options) (Manager, error) {
	unit, err := o.unit()
	if err != nil {
		return nil, err
	}
	s, err := kardianos.New(nil, &kardianos.Config{Name: Name, DisplayName: display, Description: description, UserName: o.User,
		Executable: o.Program, Arguments: o.arguments(), Option: kardianos.KeyValue{"SystemdScript": unit}})
	if err != nil {
		return nil, fault.Wrap(err, fault.Refused, "no-service-manager", "no service manager is known on this host").Do("have your own supervisor start `csm-agent run`")
	}
	return manager{s, o}, nil
}

func (m manager) Install() error {
	for _, p := range packaged {
		if _, err := os.Stat(p); err == nil {
			return fault.New(fault.Conflict, "packaged", "the package of csm-agent is installed, with a unit of its own").Do("systemctl enable --now csm-agent")
		}
	}
	if m.o.User != "" {
		if _, err := user.Lookup(m.o.User); err != nil {
			return fault.New(fault.Invalid, "no-user", "there is no user %q", m.o.User).Do("name the user that Cassandra runs as: --user NAME")
		}
	}
	if s, err := m.State(); err == nil && s != NotThere {
		return fault.New(fault.Conflict, "installed", "the service is installed already, and %s", s).Do("csm-agent service uninstall, to install it anew")
	}
	if err := m.Service.Install(); err != nil {
		return failed(err, "installed")
	}
	return nil
}

func (m manager) Uninstall() error {
	if err := m.there(); err != nil {
		return err
	}
	if s, _ := m.State(); s == Running {
		if err := m.Service.Stop(); err != nil {
			return failed(err, "stopped")
		}
	}
	if err := m.Service.Uninstall(); err != nil {
		return failed(err, "removed")
	}
	return nil
}

func (m manager) Start() error {
	if err := m.there(); err != nil {
		return err
	}
	if err := m.Service.Start(); err != nil {
		return failed(err, "started")
	}
	return nil
}

func (m manager) Stop() error {
	if err := m.there(); err != nil {
		return err
	}
	if err := m.Service.Stop(); err != nil {
		return failed(err, "stopped")
	}
	return nil
}

func (m manager) there() error {
	if s, _ := m.State(); s == NotThere {
		return ErrNotInstalled()
	}
	return nil
}

func (m manager) State() (State, error) {
	s, err := m.Service.Status()
	switch {
	case errors.Is(err, kardianos.ErrNotInstalled):
		return NotThere, nil
	case err != nil:
		return Undefined, failed(err, "asked")
	case s == kardianos.StatusRunning:
		return Running, nil
	case s == kardianos.StatusStopped:
		return Stopped, nil
	}
	return Undefined, nil
}

// Run runs the agent under the service manager, which stops it by a signal that ends ctx. log is where the service
// manager takes its log from.
func Run(ctx context.Context, do func(ctx context.Context, log io.Writer) error) error {
	return do(ctx, os.Stderr)
}
