package node

import (
	"bytes"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/cassandra-security-manager/csm/agent/install"
	agentv1 "github.com/cassandra-security-manager/csm/protocol/agent/v1"
	"github.com/cassandra-security-manager/csm/shared/atomicfile"
)

// MetricsFolder lies in the agent's state folder and holds one file for each instance, in the format of node_exporter's
// textfile collector. The agent opens no port for it.
const MetricsFolder = "metrics"

// syncStep is how exactly the time of the last sync is told: without a change the file is written no more often.
const syncStep = 5 * time.Minute

// metrics count since the agent's start; that they begin again at zero is what Prometheus expects of counters.
type metrics struct {
	rollbacks int
	failures  map[[2]string]int // port, verdict
	written   []byte
}

// outcome counts what a step ended with.
func (m *metrics) outcome(o *install.Outcome) {
	if o.Result == agentv1.MoveOutcome_MOVE_OUTCOME_ROLLED_BACK {
		m.rollbacks++
	}
	for _, p := range o.Proofs {
		if p.Verdict == agentv1.Verdict_VERDICT_ACCEPTED {
			continue
		}
		if m.failures == nil {
			m.failures = map[[2]string]int{}
		}
		m.failures[[2]string{word(p.Port.GetKind().String(), "PORT_KIND_"), word(p.Verdict.String(), "VERDICT_")}]++
	}
}

func word(name, prefix string) string {
	return strings.ReplaceAll(strings.ToLower(strings.TrimPrefix(name, prefix)), "_", "-")
}

// text is the whole file, in a stable order.
func (m *metrics) text(s Status, now time.Time) []byte {
	var b bytes.Buffer
	family := func(name, kind, help string) { fmt.Fprintf(&b, "# HELP %s %s\n# TYPE %s %s\n", name, help, name, kind) }
	family("csm_agent_store_not_after_timestamp_seconds", "gauge", "When the certificate in a store of this node expires.")
	for _, st := range s.Stores {
		if !st.NotAfter.IsZero() {
			fmt.Fprintf(&b, "csm_agent_store_not_after_timestamp_seconds{instance=%q,store=%q} %d\n", s.Instance, st.Name, st.NotAfter.Unix())
		}
	}
	if !s.IdentityNotAfter.IsZero() {
		family("csm_system_identity_not_after_timestamp_seconds", "gauge", "When the agent's own identity expires.")
		fmt.Fprintf(&b, "csm_system_identity_not_after_timestamp_seconds{instance=%q,kind=\"agent\"} %d\n", s.Instance, s.IdentityNotAfter.Unix())
	}
	family("csm_agent_last_sync_timestamp_seconds", "gauge", "When the agent last had a controller; 0: never since its start.")
	last := int64(0)
	switch {
	case s.Link.Connected:
		last = now.Truncate(syncStep).Unix()
	case !s.Link.LastContact.IsZero():
		last = s.Link.LastContact.Unix()
	}
	fmt.Fprintf(&b, "csm_agent_last_sync_timestamp_seconds{instance=%q} %d\n", s.Instance, last)
	family("csm_agent_proof_failures_total", "counter", "Proofs of a port that did not show the expected certificate accepted.")
	var keys [][2]string
	for k := range m.failures {
		keys = append(keys, k)
	}
	slices.SortFunc(keys, func(a, b [2]string) int { return strings.Compare(a[0]+"\x00"+a[1], b[0]+"\x00"+b[1]) })
	for _, k := range keys {
		fmt.Fprintf(&b, "csm_agent_proof_failures_total{instance=%q,port=%q,reason=%q} %d\n", s.Instance, k[0], k[1], m.failures[k])
	}
	family("csm_agent_rollbacks_total", "counter", "Moves that were turned back.")
	fmt.Fprintf(&b, "csm_agent_rollbacks_total{instance=%q} %d\n", s.Instance, m.rollbacks)
	return b.Bytes()
}

// publishMetrics writes the file when something in it has changed.
func (n *Node) publishMetrics(s Status) {
	text := n.metrics.text(s, n.o.Clock.Now())
	if bytes.Equal(text, n.metrics.written) {
		return
	}
	dir := filepath.Join(n.o.Config.StateDir, MetricsFolder)
	err := os.MkdirAll(dir, 0o755)
	if err == nil {
		err = atomicfile.Replace(filepath.Join(dir, s.Instance+".prom"), text, 0o644)
	}
	if err != nil {
		n.log.Error("the metrics could not be written", "error", err)
		return
	}
	n.metrics.written = text
}
