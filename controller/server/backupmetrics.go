package server

import (
	"context"
	"time"

	"github.com/prometheus/client_golang/prometheus"
)

func (s *Server) lastVerifiedGauge() prometheus.Collector {
	return prometheus.NewGaugeFunc(prometheus.GaugeOpts{Name: "csm_backup_last_verified_timestamp_seconds",
		Help: "When a backup was last read back whole, anywhere in the system; 0 when that never happened."}, func() float64 {
		ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
		defer cancel()
		at, err := s.copies.LastVerified(ctx)
		if err != nil || at.IsZero() {
			return 0
		}
		return float64(at.Unix())
	})
}
