package service

import (
	"bytes"
	"context"
	"errors"
	"io"
	"time"

	"golang.org/x/sys/windows"
	"golang.org/x/sys/windows/svc"
	"golang.org/x/sys/windows/svc/eventlog"
	"golang.org/x/sys/windows/svc/mgr"

	"github.com/cassandra-security-manager/csm/shared/fault"
)

// stopTimeout is how long a running transaction may take to end or to roll back.
const stopTimeout = 45 * time.Second

type manager struct{ o Options }

func newManager(o Options) (Manager, error) {
	if o.User != "" {
		return nil, fault.New(fault.Invalid, "no-user", "on Windows the service runs as the local system account").Do("leave --user out")
	}
	return manager{o}, nil
}

// with opens the service; one that is not there is a fault of reason "not-installed".
func (m manager) with(do func(*mgr.Mgr, *mgr.Service) error) error {
	c, err := mgr.Connect()
	if err != nil {
		return failed(err, "reached")
	}
	defer c.Disconnect()
	s, err := c.OpenService(Name)
	if err != nil {
		return ErrNotInstalled()
	}
	defer s.Close()
	return do(c, s)
}

func (m manager) Install() error {
	c, err := mgr.Connect()
	if err != nil {
		return failed(err, "reached")
	}
	defer c.Disconnect()
	s, err := c.CreateService(Name, m.o.Program, mgr.Config{StartType: mgr.StartAutomatic, DisplayName: display, Description: description}, m.o.arguments()...)
	if errors.Is(err, windows.ERROR_SERVICE_EXISTS) {
		return fault.New(fault.Conflict, "installed", "the service is installed already").Do("csm-agent service uninstall, to install it anew")
	}
	if err != nil {
		return failed(err, "installed")
	}
	defer s.Close()
	again := mgr.RecoveryAction{Type: mgr.ServiceRestart, Delay: 5 * time.Second}
	if err := s.SetRecoveryActions([]mgr.RecoveryAction{again, again, again}, 24*60*60); err != nil {
		return failed(err, "told to restart after a failure")
	}
	// Another installation may have left its source behind.
	_ = eventlog.Remove(Name)
	if err := eventlog.InstallAsEventCreate(Name, eventlog.Error|eventlog.Warning|eventlog.Info); err != nil {
		return failed(err, "made a source of the event log")
	}
	return nil
}

func (m manager) Uninstall() error {
	return m.with(func(_ *mgr.Mgr, s *mgr.Service) error {
		if err := stop(s); err != nil {
			return err
		}
		if err := s.Delete(); err != nil {
			return failed(err, "removed")
		}
		_ = eventlog.Remove(Name)
		return nil
	})
}

func (m manager) Start() error {
	return m.with(func(_ *mgr.Mgr, s *mgr.Service) error {
		if err := s.Start(); err != nil {
			return failed(err, "started")
		}
		return nil
	})
}

func (m manager) Stop() error {
	return m.with(func(_ *mgr.Mgr, s *mgr.Service) error { return stop(s) })
}

func stop(s *mgr.Service) error {
	st, err := s.Query()
	if err == nil && st.State == svc.Stopped {
		return nil
	}
	if _, err = s.Control(svc.Stop); err != nil {
		return failed(err, "stopped")
	}
	for end := time.Now().Add(stopTimeout); time.Now().Before(end); time.Sleep(100 * time.Millisecond) {
		if st, err = s.Query(); err == nil && st.State == svc.Stopped {
			return nil
		}
	}
	return fault.New(fault.Running, "stopping", "the service is still stopping after %s", stopTimeout).Do("csm-agent service status")
}

func (m manager) State() (State, error) {
	state := NotThere
	err := m.with(func(_ *mgr.Mgr, s *mgr.Service) error {
		st, err := s.Query()
		if err != nil {
			return failed(err, "asked")
		}
		if state = Stopped; st.State != svc.Stopped {
			state = Running
		}
		return nil
	})
	if fault.HasReason(err, "not-installed") {
		err = nil
	}
	return state, err
}

// Run runs the agent under the service control manager, which stops it; its log goes to the event log. That it was
// started as a service is said by the command line, not guessed from the session: Wine, and containers, run services in
// a session where the guess is wrong.
func Run(ctx context.Context, do func(ctx context.Context, log io.Writer) error) error {
	h := &handler{ctx: ctx, do: do}
	if err := svc.Run(Name, h); err != nil {
		return fault.Wrap(err, fault.Refused, "no-service", "this was not started by the service control manager").Do("csm-agent service start, or csm-agent run in a console")
	}
	return h.err
}

type handler struct {
	ctx context.Context
	do  func(context.Context, io.Writer) error
	err error
}

// Execute implements svc.Handler.
func (h *handler) Execute(_ []string, requests <-chan svc.ChangeRequest, status chan<- svc.Status) (bool, uint32) {
	ctx, cancel := context.WithCancel(h.ctx)
	defer cancel()
	var log io.Writer = io.Discard
	if l, err := eventlog.Open(Name); err == nil {
		defer l.Close()
		log = events{l}
	}
	done := make(chan error, 1)
	go func() { done <- h.do(ctx, log) }()
	status <- svc.Status{State: svc.Running, Accepts: svc.AcceptStop | svc.AcceptShutdown}
	for {
		select {
		case h.err = <-done:
			if h.err != nil && ctx.Err() == nil {
				io.WriteString(log, h.err.Error())
				return true, uint32(fault.ExitCode(h.err))
			}
			return false, 0
		case r := <-requests:
			switch r.Cmd {
			case svc.Interrogate:
				status <- r.CurrentStatus
			case svc.Stop, svc.Shutdown:
				status <- svc.Status{State: svc.StopPending, WaitHint: uint32(stopTimeout.Milliseconds())}
				cancel()
			}
		}
	}
}

// events writes each line of a log as an event.
type events struct{ *eventlog.Log }

func (e events) Write(p []byte) (int, error) {
	line := string(bytes.TrimSpace(p))
	switch {
	case bytes.Contains(p, []byte(`"level":"ERROR"`)):
		return len(p), e.Error(1, line)
	case bytes.Contains(p, []byte(`"level":"WARN"`)):
		return len(p), e.Warning(1, line)
	}
	return len(p), e.Info(1, line)
}
