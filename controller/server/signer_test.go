package server

import (
	"testing"

	"github.com/cassandra-security-manager/csm/shared/config"
)

func TestTheRateOfASignerIsARate(t *testing.T) {
	for rate, good := range map[float64]bool{0: true, 0.1: true, 200: true, 100_000: true, -1: false, 0.01: false, 100_001: false} {
		var p config.Problems
		SignerConfig{RateLimit: rate}.check(&p)
		if (p.Err() == nil) != good {
			t.Errorf("%g: %v", rate, p.Err())
		}
	}
}
