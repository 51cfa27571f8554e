package cli

import (
	"fmt"
	"strings"
	"time"

	ui "github.com/cassandra-security-manager/csm/shared/cli"
)

// What tables show of the resources; -o json shows them whole.

type statusView struct {
	ClusterID, TrustDomain, Controller, Leader, State, CAPin string
	Term, Applied                                            uint64
	AgeMs                                                    float64
	Quorum                                                   bool
	Problems                                                 []string
	Controllers                                              []controllerView
	Freezes                                                  []freezeView
	Grace                                                    *freezeView
}

type freezeView struct {
	Scope, Actor, Reason string
	Since, Until         time.Time
}

type conditionView struct {
	Type, Severity, Resource, Message, Remedy string
	Since                                     time.Time
}

type controllerView struct {
	Name, State, Region, Zone, Address, Version, KeyFingerprint string
	Voter, Leader, Reachable                                    bool
	Applied, Lag                                                uint64
	ClockOffsetMs, LastContactMs, DiskFree                      float64
}

type clusterView struct {
	Name, State, Authority, TrustDomain, CassandraName, Region, ETag string
	BundleVersion, Revision                                          uint64
	Nodes, Connected                                                 int
	Moving                                                           []string
	Frozen                                                           *freezeView
	Conditions                                                       []conditionView
	CreateTime                                                       time.Time
}

type nodeView struct {
	Name, UID, Cluster, State, StateReason, Why, ETag string
	Incarnation, Generation, Revision                 uint64
	Names                                             struct{ DNS, IPs []string }
	Agent                                             struct {
		Version, Mode, Hold, Controller string
		Connected                       bool
		TransitionTime, JoinTime        time.Time
	}
	Instance struct {
		ClusterName, HostID, ListenAddress, Datacenter, Rack, Version string
		StoragePort, NativePort                                       uint32
		Running                                                       bool
		Findings                                                      []struct{ Code, Severity, Message, Remedy string }
	}
	Stores     []storeView
	Links      *linksView
	Claim      *moveView
	Frozen     *freezeView
	Conditions []conditionView
}

type linksView struct {
	Unseen, Uncuttable, Result, Detail, Waits, WaitsFor string
	Old                                                 uint32
	Peers                                               []string
	SinceTime, RecordTime                               time.Time
	Cycled                                              uint64
}

type storeView struct {
	Name, Format, State, Reason, LeafSha256, ProvenSha256, KeystorePath, TruststorePath, Detail string
	Generation, Installed                                                                       uint64
	NotAfter, RenewAt                                                                           time.Time
	Ports                                                                                       []struct {
		Kind, Address string
		Port          int
	}
}

type moveView struct {
	Claim, Node, Store, Kind, State, Outcome, BeforeSha256, AfterSha256, Detail string
	Generation                                                                  uint64
	Seconds                                                                     float64
	OpenTime, CloseTime, ExpireTime                                             time.Time
	Proofs                                                                      []proofView
}

type proofView struct {
	Prober, Verdict, ServedSha256, Detail string
	Port                                  struct {
		Kind, Address string
		Port          uint32
	}
	Millis int64
}

type certificateView struct {
	Name, State, Serial, Subject, Issuer, Cluster, Node, Store, Template, Identity, Algorithm, Actor, PEM, Chain, RevokeReason string
	DNS, IPs, URIs                                                                                                             []string
	NotBefore, NotAfter, RenewTime, CreateTime, RevokeTime                                                                     time.Time
}

type foundView struct {
	Node, Path, Entry, Format, SHA256, Subject, Issuer, Algorithm, Mode, Owner, Known string
	NotAfter, SeenTime                                                                time.Time
	HasPrivateKey                                                                     bool
}

type authorityView struct {
	Name, State, DisplayName, Algorithm string
	CreateTime                          time.Time
	Issuers                             []issuerView
}

type issuerView struct {
	Name, State, Kind, Region, Subject, SHA256, Algorithm, PublicID string
	NotAfter                                                        time.Time
	Shards                                                          int
}

func stateStyle(s string) ui.Style {
	switch strings.TrimSuffix(s, "*") {
	case "active", "proven", "healthy", "leader", "voter", "yes", "accepted", "open", "manage":
		return ui.Good
	case "revoked", "expired", "failed", "contested", "no-quorum", "no", "refused", "wrong-leaf", "down":
		return ui.Bad
	case "suspended", "rolled-back", "degraded", "frozen", "foreign", "installed-unproven", "unknown", "pending", "moving", "approved", "unsealed", "non-voter", "observe", "stage":
		return ui.Warn
	}
	return ui.Plain
}

func yesNo(b bool) string {
	if b {
		return "yes"
	}
	return "no"
}

// finger is the beginning of a fingerprint.
func finger(sha string) string {
	if len(sha) > 12 {
		return sha[:12]
	}
	return sha
}

// expiry colours by how much is left.
func expiry(cell string) ui.Style {
	switch {
	case strings.HasSuffix(cell, " ago"):
		return ui.Bad
	case strings.HasPrefix(cell, "in ") && !strings.HasSuffix(cell, "d"):
		return ui.Warn
	}
	return ui.Plain
}

func (s *session) ago(t time.Time) string { return ui.Ago(s.Now(), t) }

func (s *session) at(t time.Time) string {
	if t.IsZero() {
		return ""
	}
	return fmt.Sprintf("%s (%s)", t.UTC().Format(time.RFC3339), s.ago(t))
}

// names of a certificate in one cell.
func namesCell(lists ...[]string) string {
	var all []string
	for _, l := range lists {
		all = append(all, l...)
	}
	if len(all) > 3 {
		return strings.Join(all[:3], ",") + fmt.Sprintf(",+%d", len(all)-3)
	}
	return strings.Join(all, ",")
}

// worstStore sums the stores of a node up: the state that needs most care, and the nearest end.
func (n nodeView) worstStore() (state string, until time.Time) {
	order := map[string]int{"failed": 9, "contested": 8, "rolled-back": 7, "moving": 6, "foreign": 5, "absent": 4, "installed-unproven": 3, "proven": 1}
	for _, st := range n.Stores {
		if state == "" || order[st.State] > order[state] {
			state = st.State
		}
		if !st.NotAfter.IsZero() && (until.IsZero() || st.NotAfter.Before(until)) {
			until = st.NotAfter
		}
	}
	return state, until
}
