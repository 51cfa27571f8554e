package server

import (
	"context"
	"net/http"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"
	"github.com/prometheus/client_golang/prometheus/promhttp"

	"github.com/cassandra-security-manager/csm/controller/consensus"
)

// quorumCollector asks for the status of the quorum at each scrape.
type quorumCollector struct {
	status func(context.Context) (consensus.Status, error)
}

var (
	hasLeader     = prometheus.NewDesc("csm_raft_has_leader", "1 if this controller knows a leader and a majority answers.", nil, nil)
	healthyVoters = prometheus.NewDesc("csm_raft_healthy_voters", "Voters that answer this controller.", nil, nil)
	appliedIndex  = prometheus.NewDesc("csm_state_applied_index", "Raft index that the state of this controller has reached.", nil, nil)
	clockOffset   = prometheus.NewDesc("csm_clock_offset_seconds", "Clock of another controller minus this one's.", []string{"peer"}, nil)
	diskFree      = prometheus.NewDesc("csm_disk_free_ratio", "Free share of the disk that holds the data folder.", nil, nil)
)

func (q quorumCollector) Describe(ch chan<- *prometheus.Desc) {
	for _, d := range []*prometheus.Desc{hasLeader, healthyVoters, appliedIndex, clockOffset, diskFree} {
		ch <- d
	}
}

func (q quorumCollector) Collect(ch chan<- prometheus.Metric) {
	ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
	defer cancel()
	gauge := func(d *prometheus.Desc, v float64, labels ...string) {
		ch <- prometheus.MustNewConstMetric(d, prometheus.GaugeValue, v, labels...)
	}
	st, err := q.status(ctx)
	if err != nil {
		gauge(hasLeader, 0)
		return
	}
	voters, leads := 0.0, 0.0
	if st.Quorum {
		leads = 1
	}
	for _, m := range st.Members {
		if m.Voter && m.Reachable {
			voters++
		}
		if m.Name == st.Name {
			gauge(diskFree, m.DiskFree)
		} else if m.Reachable {
			gauge(clockOffset, m.ClockOffset.Seconds(), m.Name)
		}
	}
	gauge(hasLeader, leads)
	gauge(healthyVoters, voters)
	gauge(appliedIndex, float64(st.Applied))
}

// issueMetrics count what passes the one door for signing.
type issueMetrics struct {
	requests *prometheus.CounterVec
	duration prometheus.Histogram
}

func newIssueMetrics() *issueMetrics {
	return &issueMetrics{
		requests: prometheus.NewCounterVec(prometheus.CounterOpts{Name: "csm_issue_requests_total",
			Help: "Requests for certificates, by result and by the reason of a refusal."}, []string{"result", "reason"}),
		duration: prometheus.NewHistogram(prometheus.HistogramOpts{Name: "csm_issue_duration_seconds",
			Help: "Time from a request to the recorded certificate.", Buckets: prometheus.ExponentialBuckets(0.001, 2, 14)}),
	}
}

func (m *issueMetrics) issued(_, reason string, took time.Duration) {
	result := "issued"
	if reason != "" {
		result = "refused"
	}
	m.requests.WithLabelValues(result, reason).Inc()
	m.duration.Observe(took.Seconds())
}

func (s *Server) metricsHandler() http.Handler {
	reg := prometheus.NewRegistry()
	reg.MustRegister(prometheus.NewGaugeFunc(prometheus.GaugeOpts{Name: "csm_backup_last_verified_timestamp_seconds",
		Help: "When a backup was last read back whole, anywhere in the system; 0 when that never happened."}, s.lastVerified), quorumCollector{s.dom.node.Status}, s.dom.metrics.requests, s.dom.metrics.duration, collectors.NewGoCollector(), collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}))
	mux := http.NewServeMux()
	mux.Handle("GET /metrics", promhttp.HandlerFor(reg, promhttp.HandlerOpts{}))
	return mux
}

func (s *Server) lastVerified() float64 {
	ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
	defer cancel()
	at, err := s.copies.LastVerified(ctx)
	if err != nil || at.IsZero() {
		return 0
	}
	return float64(at.Unix())
}
