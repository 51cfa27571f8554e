//go:build benchmark

package server

import (
	"github.com/cassandra-security-manager/csm/controller/api/rest"
	"github.com/cassandra-security-manager/csm/shared/algorithm"
)

// This program measures: P-256 is let through beside what is safe, and neither the hourly cap nor the rate limit of the API stops
// the load. It is never installed.
const (
	benchmark = true
	hourlyCap = -1
)

var apiLimits = rest.Limits{PerSecond: 1e9, Burst: 1 << 30}

func init() { algorithm.AllowBenchmark() }
