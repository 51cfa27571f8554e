package server

import (
	"context"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/cassandra-security-manager/csm/controller/fleet"
	"github.com/cassandra-security-manager/csm/controller/ledger"
	"github.com/cassandra-security-manager/csm/shared/resource"
)

// fleetCollector reads the replicated state at each scrape: figures by cluster and authority, never by certificate. Every
// controller gives the same ones; alert rules take the maximum.
type fleetCollector struct {
	s *Server

	failed failed
}

var (
	authorityEnd = desc("csm_authority_not_after_timestamp_seconds", "When the certificate of an active issuer ends.", "authority", "issuer")
	crlDue       = desc("csm_crl_next_update_timestamp_seconds", "When the first revocation list of an issuer must be replaced; absent when it cannot be made.", "authority", "issuer")
	identityEnd  = desc("csm_system_identity_not_after_timestamp_seconds", "When this program's own identity ends.", "kind")
	expiringNow  = desc("csm_certificates_expiring", "Node stores whose leaf ends within the window; each store stands in the narrowest one.", "cluster", "window")
	unmanaged    = desc("csm_certificates_unmanaged", "Certificates with a private key that agents found and CSM did not issue.", "cluster", "severity")
	agentsNow    = desc("csm_agents", "Agents by state.", "cluster", "state")
	conflicts    = desc("csm_agent_identity_conflicts_total", "Copied state folders and tokens used with two keys, since the system was made.")
	graceUntil   = desc("csm_renewal_grace_until_timestamp_seconds", "When the exception ends by which agents renew long expired identities; absent when there is none.")
	rolloutPhase = desc("csm_rollout_phase_seconds", "How long a rollout under way has been in its state.", "cluster", "phase")
	rolloutGates = desc("csm_rollout_blocked", "1 for each thing that a rollout under way waits for.", "cluster", "gate")
	rotationNow  = desc("csm_rotation_phase", "Phase of the rotation that runs: 1 distribute, 2 reissue, 3 reissued, 4 retire; -1 and -2 on the way back. Absent when none runs.", "trust_domain")
	freezes      = desc("csm_freeze_active", "1 for each freeze in force.", "scope")
	sealedNow    = desc("csm_keyring_sealed", "1 while this controller cannot use its keys.")
	proofsFailed = desc("csm_agent_proof_failures_total", "Proofs of a node's port that were not accepted, by port and verdict, since this controller started.", "cluster", "port", "reason")
	rolledBack   = desc("csm_agent_rollbacks_total", "Installs that were rolled back, since this controller started.", "cluster")
	stateRead    = desc("csm_state_readable", "1 if the figures of this scrape could be read from the local state.")
)

func (c *fleetCollector) Describe(ch chan<- *prometheus.Desc) {
	for _, d := range []*prometheus.Desc{authorityEnd, crlDue, identityEnd, expiringNow, unmanaged, agentsNow, conflicts, freezes, rolloutPhase, rolloutGates, rotationNow, graceUntil, proofsFailed, rolledBack, sealedNow, stateRead} {
		ch <- d
	}
}

func (c *fleetCollector) Collect(ch chan<- prometheus.Metric) {
	ctx, cancel := context.WithTimeout(context.Background(), scrapeTimeout)
	defer cancel()
	gauge(ch, identityEnd, float64(c.s.id.leaf().NotAfter.Unix()), "controller")
	gauge(ch, sealedNow, truth(!c.s.dom.keyring.Unsealed()))
	readable := 1.0
	for _, part := range []func(context.Context, chan<- prometheus.Metric) error{c.authorities, c.fleet, c.rollouts, c.rotations, c.found, c.failures} {
		if err := part(ctx, ch); err != nil {
			c.s.log.Warn("a part of the metrics could not be read", "error", err)
			readable = 0
		}
	}
	gauge(ch, stateRead, readable)
}

func (c *fleetCollector) authorities(ctx context.Context, ch chan<- prometheus.Metric) error {
	ends, err := c.s.dom.authorities.Ends(ctx)
	for _, e := range ends {
		gauge(ch, authorityEnd, float64(e.NotAfter.Unix()), e.Authority, resource.Last(e.Issuer))
		if !e.NextUpdate.IsZero() {
			gauge(ch, crlDue, float64(e.NextUpdate.Unix()), e.Authority, resource.Last(e.Issuer))
		}
	}
	return err
}

func (c *fleetCollector) fleet(ctx context.Context, ch chan<- prometheus.Metric) error {
	t, err := c.s.dom.fleet.Tally(ctx)
	if err != nil {
		return err
	}
	for k, n := range t.Agents {
		gauge(ch, agentsNow, float64(n), k.Cluster, k.What)
	}
	for k, n := range t.Expiring {
		gauge(ch, expiringNow, float64(n), k.Cluster, k.What)
	}
	for _, f := range t.Freezes {
		gauge(ch, freezes, 1, f.Scope)
	}
	g, err := c.s.dom.grace.Current(ctx)
	if g != nil {
		gauge(ch, graceUntil, float64(g.Until.Unix()))
	}
	n := 0
	for _, v := range t.Alarms {
		n += v
	}
	ch <- prometheus.MustNewConstMetric(conflicts, prometheus.CounterValue, float64(n))
	return err
}

func (c *fleetCollector) rollouts(ctx context.Context, ch chan<- prometheus.Metric) error {
	all, err := c.s.dom.rollouts.Tallies(ctx)
	for _, t := range all {
		gauge(ch, rolloutPhase, time.Since(t.Since).Seconds(), t.Cluster, t.State)
		said := map[string]bool{}
		for _, r := range t.Awaits {
			if !said[r.Code] {
				gauge(ch, rolloutGates, 1, t.Cluster, r.Code)
			}
			said[r.Code] = true
		}
	}
	return err
}

func (c *fleetCollector) rotations(ctx context.Context, ch chan<- prometheus.Metric) error {
	phases, err := c.s.dom.rotations.Phases(ctx)
	for trust, n := range phases {
		gauge(ch, rotationNow, float64(n), trust)
	}
	return err
}

func (c *fleetCollector) found(ctx context.Context, ch chan<- prometheus.Metric) error {
	counts, err := ledger.Unmanaged(ctx, c.s.dom.store, time.Now())
	for k, n := range counts {
		gauge(ch, unmanaged, float64(n), k[0], k[1])
	}
	return err
}

// failures adds what went wrong since the last scrape, which this scrape shows already: collectors are asked side by side, so that a
// counter of its own would show it one scrape later.
func (c *fleetCollector) failures(ctx context.Context, ch chan<- prometheus.Metric) error {
	c.failed.mu.Lock()
	defer c.failed.mu.Unlock()
	list, next, err := c.s.dom.fleet.Failures(ctx, c.failed.mark)
	if err != nil {
		return err
	}
	c.failed.add(list, next)
	for f, n := range c.failed.sums {
		if f.Port == "" {
			ch <- prometheus.MustNewConstMetric(rolledBack, prometheus.CounterValue, float64(n), f.Cluster)
			continue
		}
		ch <- prometheus.MustNewConstMetric(proofsFailed, prometheus.CounterValue, float64(n), f.Cluster, f.Port, f.Verdict)
	}
	return nil
}

// failed sums failures up: their records are pruned, counters never go back.
type failed struct {
	mu   sync.Mutex
	mark fleet.Mark
	sums map[fleet.Failure]int
}

func (f *failed) add(list map[fleet.Failure]int, next fleet.Mark) {
	if f.mark = next; f.sums == nil {
		f.sums = map[fleet.Failure]int{}
	}
	for k, n := range list {
		f.sums[k] += n
	}
}

func truth(b bool) float64 {
	if b {
		return 1
	}
	return 0
}
