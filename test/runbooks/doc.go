// Package runbooks rehearses docs/runbooks: every command that a runbook names exists with its flags, faults are made with
// real controllers and real agents and mended by the commands as they are written there, and a whole system
// comes back after 400 days.
package runbooks
