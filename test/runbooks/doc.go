// Package runbooks rehearses docs/runbooks: every command that a runbook names exists with its flags, faults are made with
// real controllers, real agents and a real ring (in make test-full) and mended by the commands as they are written there, and a whole system
// comes back after 400 days. Joins that wait for a person are decided here too.
package runbooks
