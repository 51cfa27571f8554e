package server

import (
	"context"
	"errors"
	"log/slog"
	"net/http"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"
	"github.com/prometheus/client_golang/prometheus/promhttp"

	"github.com/cassandra-security-manager/csm/controller/state"
	"github.com/cassandra-security-manager/csm/shared/fault"
)

// metrics are what this controller counts as it goes; the rest is asked for at each scrape.
type metrics struct {
	issued   *prometheus.CounterVec
	duration prometheus.Histogram
	commit   prometheus.Histogram
	waited   prometheus.Histogram
	busy     prometheus.Counter
	mismatch prometheus.Gauge
	verified prometheus.Gauge
	// handshakes with agents
	handshakes *prometheus.CounterVec
}

func newMetrics() *metrics {
	gauge := func(name, help string) prometheus.Gauge {
		return prometheus.NewGauge(prometheus.GaugeOpts{Name: name, Help: help})
	}
	return &metrics{
		issued: prometheus.NewCounterVec(prometheus.CounterOpts{Name: "csm_issue_requests_total",
			Help: "Requests for certificates, by result and by the reason of a refusal."}, []string{"result", "reason"}),
		duration: prometheus.NewHistogram(prometheus.HistogramOpts{Name: "csm_issue_duration_seconds",
			Help: "Time from a request to the recorded certificate.", Buckets: prometheus.ExponentialBuckets(0.001, 2, 14)}),
		commit: prometheus.NewHistogram(prometheus.HistogramOpts{Name: "csm_raft_commit_duration_seconds",
			Help: "Time from proposing a command here to its decision by a majority.", Buckets: prometheus.ExponentialBuckets(0.001, 2, 14)}),
		waited: prometheus.NewHistogram(prometheus.HistogramOpts{Name: "csm_signer_wait_seconds",
			Help: "Time that a request waited for its turn at the signer; nothing is counted without signer.rate_limit.", Buckets: prometheus.ExponentialBuckets(0.001, 2, 15)}),
		busy: prometheus.NewCounter(prometheus.CounterOpts{Name: "csm_signer_busy_total",
			Help: "Requests that were told when to come back, because their turn at the signer could not come in time."}),
		handshakes: prometheus.NewCounterVec(prometheus.CounterOpts{Name: "csm_agent_handshakes_total",
			Help: "TLS handshakes on the agents' port, by result: full, resumed, failed, crowded (sent to another controller after waiting for a turn), no-leader."}, []string{"result"}),
		mismatch: gauge("csm_state_checksum_mismatch", "Controllers whose state differed from the leader's when it was last compared; only the leader compares."),
		verified: gauge("csm_state_checksum_last_verified_timestamp_seconds", "When the states of all controllers were last proved equal, by this controller as leader; 0 when it never did."),
	}
}

// observeIssue counts what passes the one door for signing.
func (m *metrics) observeIssue(_, reason string, took time.Duration) {
	result := "issued"
	if reason != "" {
		result = "refused"
	}
	m.issued.WithLabelValues(result, reason).Inc()
	m.duration.Observe(took.Seconds())
}

// observeTurn counts the turns at the signer.
func (m *metrics) observeTurn(waited time.Duration, turnedAway bool) {
	if turnedAway {
		m.busy.Inc()
		return
	}
	m.waited.Observe(waited.Seconds())
}

// signerGauges tell how long the line before the signer is.
func (s *Server) signerGauges() []prometheus.Collector {
	gauge := func(name, help string, of func() float64) prometheus.Collector {
		return prometheus.NewGaugeFunc(prometheus.GaugeOpts{Name: name, Help: help}, of)
	}
	return []prometheus.Collector{
		gauge("csm_signer_queue_length", "Requests that wait for their turn at the signer.", func() float64 { n, _ := s.dom.turns.Len(); return float64(n) }),
		gauge("csm_signer_queue_expected", "Requests that were told when to come back and have a place kept.", func() float64 { _, n := s.dom.turns.Len(); return float64(n) }),
	}
}

// timedLog measures how long commands take to be decided.
type timedLog struct {
	state.Log
	took prometheus.Observer
}

// Propose implements state.Log. What was not decided by a majority (no quorum, outcome unknown) is not a commit.
func (l timedLog) Propose(ctx context.Context, p state.Proposal) (state.Result, error) {
	began := time.Now()
	res, err := l.Log.Propose(ctx, p)
	if !fault.Is(err, fault.Unavailable) && !fault.Is(err, fault.Unknown) {
		l.took.Observe(time.Since(began).Seconds())
	}
	return res, err
}

// metricsHandler serves /metrics, and the two probes for who watches the process and has no client certificate.
func (s *Server) metricsHandler(api http.Handler) http.Handler {
	reg := prometheus.NewRegistry()
	m := s.dom.metrics
	reg.MustRegister(s.lastVerifiedGauge(), quorumCollector{s.dom.node}, &fleetCollector{s: s}, m.issued, m.duration, m.commit, m.waited, m.busy, m.mismatch, m.verified, m.handshakes,
		collectors.NewGoCollector(), collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}))
	reg.MustRegister(s.signerGauges()...)
	mux := http.NewServeMux()
	mux.Handle("GET /metrics", promhttp.HandlerFor(reg, promhttp.HandlerOpts{ErrorLog: slog.NewLogLogger(s.log.Handler(), slog.LevelWarn)}))
	mux.Handle("GET /livez", api)
	mux.Handle("GET /readyz", api)
	return mux
}

// verifyEvery is how often the leader has all states compared.
const verifyEvery = 6 * time.Hour

// verifyLoop proves the states of all controllers equal while this one leads.
func (s *Server) verifyLoop(ctx context.Context) error {
	for next := time.Minute; wait(ctx, nil, next); {
		next = verifyEvery
		if !s.dom.node.IsLeader() {
			s.dom.metrics.mismatch.Set(0)
			next = 10 * time.Minute
			continue
		}
		bounded, cancel := context.WithTimeout(ctx, 5*time.Minute)
		differ, err := s.compareStates(bounded)
		cancel()
		if err != nil {
			s.log.Warn("the states of the controllers could not be compared", "error", err)
			next = 10 * time.Minute
			continue
		}
		s.dom.metrics.mismatch.Set(float64(differ))
		if differ > 0 {
			s.log.Error("controllers hold different states: `csm status --verify` names them; remove the ones that differ and let them join again", "controllers", differ)
			continue
		}
		s.dom.metrics.verified.SetToCurrentTime()
	}
	return nil
}

// compareStates counts the controllers whose state is not this one's at the same index. Who does not answer is not counted,
// but nothing is proved then.
func (s *Server) compareStates(ctx context.Context) (int, error) {
	sums, err := s.dom.node.Verify(ctx, "system")
	if err != nil {
		return 0, err
	}
	own, differ := -1, 0
	var missing []error
	for i, c := range sums {
		if c.Name == s.in.Name && c.Err == nil {
			own = i
		}
	}
	for _, c := range sums {
		switch {
		case c.Err != nil:
			missing = append(missing, fault.Wrap(c.Err, fault.Unavailable, "no-checksum", "%s gave no checksum", c.Name))
		case own >= 0 && c.Index == sums[own].Index && c.Sum != sums[own].Sum:
			differ++
		}
	}
	if differ > 0 {
		return differ, nil
	}
	return 0, errors.Join(missing...)
}
