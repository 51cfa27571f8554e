// Package alerts tests the alert rules of deploy/prometheus with Prometheus' own promtool, and that each leads to a runbook.
package alerts
