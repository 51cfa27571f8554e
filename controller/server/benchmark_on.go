//go:build benchmark

package server

// This program measures: P-256 is let through beside what is safe, and no hourly cap stops the load. It is never installed.
const (
	benchmark = true
	hourlyCap = -1
)
