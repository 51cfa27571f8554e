// Package readiness judges how ready a ring is to be managed: what expires when, which keys are shared, which names are
// missing, whom nobody trusts, what cannot be replaced by a rename. It is pure: facts and certificates in, findings out;
// the same judgement stands behind `csm cluster readiness` and `csm-agent inspect`.
//
// It never guesses: what was not looked at, or could not be, is listed as unseen with the reason, and counts neither for nor against.
package readiness

import (
	"cmp"
	"crypto/sha256"
	"crypto/x509"
	"slices"
	"time"

	agentv1 "github.com/cassandra-security-manager/csm/protocol/agent/v1"
	"github.com/cassandra-security-manager/csm/shared/certificate"
)

// Severity of a finding, the gravest first.
type Severity string

// The severities.
const (
	// Blocker: CSM cannot manage the node as it is, or the next restart, reload or reconnect breaks it.
	Blocker Severity = "blocker"
	// Error: a hole today.
	Error Severity = "error"
	// Warning: will be a hole or an outage, or makes one easier.
	Warning Severity = "warning"
	// Info: worth knowing.
	Info Severity = "info"
)

var rank = map[Severity]int{Blocker: 0, Error: 1, Warning: 2, Info: 3}

// Soon is how long before its end a certificate is an error: the repair floor, 21 days.
const Soon = 21 * 24 * time.Hour

// Parsed is a certificate, shared by all the places where it lies.
type Parsed struct {
	SHA256, SPKI [sha256.Size]byte
	X            *x509.Certificate
}

// Parse reads DER.
func Parse(der []byte) (*Parsed, error) {
	c, err := certificate.Parse(der)
	if err != nil {
		return nil, err
	}
	return &Parsed{SHA256: sha256.Sum256(der), SPKI: sha256.Sum256(c.RawSubjectPublicKeyInfo), X: c}, nil
}

// Found is a certificate in a file or store of a node.
type Found struct {
	*Parsed
	Path, Entry   string
	HasPrivateKey bool
	Mode          uint32
}

// Node is everything known of one node.
type Node struct {
	Name string
	// State of its agent's identity and why, as the controllers have it; empty in a report of the node itself.
	State, StateReason string
	Connected          bool
	// Since is when it connected or was last seen.
	Since time.Time
	// Scanned says that an inventory came.
	Scanned  bool
	Agent    *agentv1.AgentFacts
	Instance *agentv1.InstanceFacts
	Stores   []*agentv1.StoreFacts
	Found    []Found
}

// Concern is one thing to know, with what shows it and what to do.
type Concern struct {
	Severity Severity `json:"severity" enum:"blocker,error,warning,info"`
	Code     string   `json:"code" doc:"stable word"`
	Store    string   `json:"store,omitempty" doc:"store it concerns; empty: the whole node"`
	Message  string   `json:"message"`
	Evidence string   `json:"evidence,omitempty" doc:"what shows it"`
	Remedy   string   `json:"remedy,omitempty"`
}

// Expiry is the end of one certificate that Cassandra uses.
type Expiry struct {
	Store    string    `json:"store"`
	Kind     string    `json:"kind" enum:"leaf,issuer,anchor"`
	Subject  string    `json:"subject"`
	SHA256   string    `json:"sha256"`
	NotAfter time.Time `json:"notAfter"`
	Path     string    `json:"path"`
}

// Unseen is what was not looked at or could not be.
type Unseen struct {
	What   string `json:"what"`
	Why    string `json:"why"`
	Remedy string `json:"remedy,omitempty"`
}

// NodeReport is how one node stands.
type NodeReport struct {
	Node      string    `json:"node"`
	Ready     bool      `json:"ready" doc:"no blocker"`
	Mode      string    `json:"mode,omitempty"`
	Version   string    `json:"version,omitempty" doc:"of Cassandra"`
	HotReload string    `json:"hotReload" enum:"yes,limited,no,unknown"`
	Findings  []Concern `json:"findings"`
	Expires   []Expiry  `json:"expires,omitempty" doc:"the nearest first"`
	Unseen    []Unseen  `json:"unseen,omitempty"`
}

// Report is how a cluster stands.
type Report struct {
	Time     time.Time    `json:"time"`
	Total    int          `json:"total" doc:"nodes"`
	Ready    int          `json:"ready" doc:"nodes without a blocker"`
	Blockers int          `json:"blockers"`
	Errors   int          `json:"errors"`
	Warnings int          `json:"warnings"`
	First    time.Time    `json:"firstExpiry,omitzero" doc:"when the first leaf in use expires"`
	Nodes    []NodeReport `json:"nodes"`
}

// Judge reports on the nodes of one cluster, in the order given. What concerns several nodes (keys, trust) is judged among them.
func Judge(nodes []Node, now time.Time) Report {
	r := newRing(nodes)
	out := Report{Time: now, Total: len(nodes), Nodes: make([]NodeReport, 0, len(nodes))}
	for i := range nodes {
		j := &judge{node: &nodes[i], ring: r, now: now, report: NodeReport{Node: nodes[i].Name, HotReload: "unknown", Findings: []Concern{}}}
		for _, c := range checks {
			c(j)
		}
		out.take(j.finish())
	}
	return out
}

func (r *Report) take(n NodeReport) {
	for _, f := range n.Findings {
		switch f.Severity {
		case Blocker:
			r.Blockers++
		case Error:
			r.Errors++
		case Warning:
			r.Warnings++
		}
	}
	if n.Ready {
		r.Ready++
	}
	for _, e := range n.Expires {
		if e.Kind == "leaf" && (r.First.IsZero() || e.NotAfter.Before(r.First)) {
			r.First = e.NotAfter
		}
	}
	r.Nodes = append(r.Nodes, n)
}

// judge carries the judgement of one node.
type judge struct {
	node   *Node
	ring   *ring
	now    time.Time
	report NodeReport
}

// check looks at one side of a node.
type check func(*judge)

// checks in the order in which findings of one severity are told.
var checks = []check{(*judge).membership, (*judge).configuration, (*judge).version, (*judge).jmx, (*judge).clients, (*judge).stores, (*judge).otherFiles}

func (j *judge) add(f Concern) { j.report.Findings = append(j.report.Findings, f) }

func (j *judge) unseen(what, why, remedy string) {
	j.report.Unseen = append(j.report.Unseen, Unseen{what, why, remedy})
}

func (j *judge) finish() NodeReport {
	slices.SortStableFunc(j.report.Findings, func(a, b Concern) int { return rank[a.Severity] - rank[b.Severity] })
	slices.SortStableFunc(j.report.Expires, func(a, b Expiry) int { return cmp.Compare(a.NotAfter.Unix(), b.NotAfter.Unix()) })
	j.report.Ready = len(j.report.Findings) == 0 || j.report.Findings[0].Severity != Blocker
	return j.report
}
