//go:build !benchmark

package server

// benchmark lets P-256 through; only a program built for benchmarks has it.
const (
	benchmark = false
	hourlyCap = 0
)
