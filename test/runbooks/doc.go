// Package runbooks rehearses docs/runbooks: every command that a runbook names exists with its flags, and the faults of the control
// plane are made with real controllers and mended by the commands as they are written there.
package runbooks
