package server

import (
	"context"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/cassandra-security-manager/csm/controller/consensus"
)

// quorumCollector asks for the status of the quorum at each scrape.
type quorumCollector struct {
	node interface {
		Status(context.Context) (consensus.Status, error)
		Health() consensus.Health
	}
}

// scrapeTimeout bounds what a scrape asks for.
const scrapeTimeout = 5 * time.Second

func desc(name, help string, labels ...string) *prometheus.Desc {
	return prometheus.NewDesc(name, help, labels, nil)
}

func gauge(ch chan<- prometheus.Metric, d *prometheus.Desc, v float64, labels ...string) {
	ch <- prometheus.MustNewConstMetric(d, prometheus.GaugeValue, v, labels...)
}

var (
	hasLeader     = desc("csm_raft_has_leader", "1 if this controller knows a leader and a majority answers.")
	healthyVoters = desc("csm_raft_healthy_voters", "Voters that answer this controller.")
	allVoters     = desc("csm_raft_voters", "Voters that there are.")
	leaderChanges = desc("csm_raft_leader_changes_total", "Leaders that this controller heard of since it started.")
	appliedIndex  = desc("csm_state_applied_index", "Raft index that the state of this controller has reached.")
	appliedLag    = desc("csm_state_applied_lag", "Entries that this controller is behind the leader.")
	stateAge      = desc("csm_state_age_seconds", "How long ago the leader had applied no more than this controller has; absent before the first leader.")
	clockOffset   = desc("csm_clock_offset_seconds", "Clock of another controller minus this one's.", "peer")
	clockAhead    = desc("csm_state_clock_ahead_seconds", "Clock of the state minus this controller's: above 0, an earlier leader dated writes in the future.")
	diskFree      = desc("csm_disk_free_ratio", "Free share of the disk that holds the data folder.")
)

func (q quorumCollector) Describe(ch chan<- *prometheus.Desc) {
	for _, d := range []*prometheus.Desc{hasLeader, healthyVoters, allVoters, leaderChanges, appliedIndex, appliedLag, stateAge, clockOffset, clockAhead, diskFree} {
		ch <- d
	}
}

func (q quorumCollector) Collect(ch chan<- prometheus.Metric) {
	ctx, cancel := context.WithTimeout(context.Background(), scrapeTimeout)
	defer cancel()
	h := q.node.Health()
	gauge(ch, diskFree, h.DiskFree)
	gauge(ch, appliedIndex, float64(h.Applied))
	gauge(ch, appliedLag, float64(h.Lag))
	gauge(ch, clockAhead, max(0, h.ClockAhead.Seconds()))
	ch <- prometheus.MustNewConstMetric(leaderChanges, prometheus.CounterValue, float64(h.LeaderChanges))
	if h.Age != consensus.AgeUnknown {
		gauge(ch, stateAge, h.Age.Seconds())
	}
	st, err := q.node.Status(ctx)
	if err != nil {
		gauge(ch, hasLeader, 0)
		return
	}
	healthy, voters, leads := 0.0, 0.0, 0.0
	if st.Quorum {
		leads = 1
	}
	for _, m := range st.Members {
		if m.Voter {
			voters++
		}
		if m.Voter && m.Reachable {
			healthy++
		}
		if m.Name != st.Name && m.Reachable {
			gauge(ch, clockOffset, m.ClockOffset.Seconds(), m.Name)
		}
	}
	gauge(ch, hasLeader, leads)
	gauge(ch, healthyVoters, healthy)
	gauge(ch, allVoters, voters)
}
