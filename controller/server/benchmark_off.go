//go:build !benchmark

package server

import "github.com/cassandra-security-manager/csm/controller/api/rest"

// Only a program built with the tag benchmark lets P-256 and an unlimited load through.
const (
	benchmark = false
	hourlyCap = 0
)

var apiLimits = rest.Limits{}
