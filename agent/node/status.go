package node

import (
	"bytes"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"time"

	"github.com/cassandra-security-manager/csm/agent/cassandra"
	"github.com/cassandra-security-manager/csm/agent/install"
	"github.com/cassandra-security-manager/csm/agent/state"
	agentv1 "github.com/cassandra-security-manager/csm/protocol/agent/v1"
	"github.com/cassandra-security-manager/csm/shared/atomicfile"
	"github.com/cassandra-security-manager/csm/shared/cli"
)

// StatusFile is the name of the status within the node's state folder. The agent opens no port: `csm-agent status` reads it.
const StatusFile = "status.json"

// Status is what the agent last knew of a node. It holds no secret.
type Status struct {
	Instance string `json:"instance"`
	Config   string `json:"config"`
	Version  string `json:"version"`
	Mode     string `json:"mode"`
	// Node is the full name; empty before joining.
	Node             string        `json:"node,omitempty"`
	UID              string        `json:"uid,omitempty"`
	Incarnation      uint64        `json:"incarnation,omitempty"`
	IdentityNotAfter time.Time     `json:"identityNotAfter,omitzero"`
	Copied           bool          `json:"copied,omitempty"`
	Suspended        string        `json:"suspended,omitempty"`
	Released         string        `json:"released,omitempty"`
	Hold             string        `json:"hold,omitempty"`
	Frozen           string        `json:"frozen,omitempty"`
	Link             Link          `json:"link"`
	Running          bool          `json:"running"`
	Problem          string        `json:"problem,omitempty"`
	Findings         int           `json:"findings"`
	Stores           []StoreStatus `json:"stores"`
	// Links are internode connections that live on certificates of before the last reload.
	Links *LinkStatus `json:"links,omitempty"`
	// Wanted are the anchors that the newest target wants trusted, as far as one came: `csm-agent ensure` compares.
	Wanted []string `json:"wantedAnchors,omitempty"`
	// Unreported outcomes wait for a controller.
	Unreported int       `json:"unreported,omitempty"`
	Updated    time.Time `json:"updated"`
}

// StoreStatus is one pair of files, and what comes next.
type StoreStatus struct {
	Name       string    `json:"name"`
	Format     string    `json:"format"`
	Keystore   string    `json:"keystore"`
	Truststore string    `json:"truststore"`
	State      string    `json:"state"`
	Generation uint64    `json:"generation"`
	Wanted     uint64    `json:"wanted,omitempty"`
	Leaf       string    `json:"leaf,omitempty"`
	NotBefore  time.Time `json:"notBefore,omitzero"`
	NotAfter   time.Time `json:"notAfter,omitzero"`
	RenewAt    time.Time `json:"renewAt,omitzero"`
	Anchors    []string  `json:"anchors,omitempty"`
	Ports      []string  `json:"ports,omitempty"`
	Detail     string    `json:"detail,omitempty"`
	// Kept is the certificate of another CA that ours took the place of, with its key.
	Kept *KeptStatus `json:"kept,omitempty"`
	Next Action      `json:"next"`
}

// KeptStatus is what is kept of a certificate for the way back of a take-over.
type KeptStatus struct {
	Leaf string `json:"leaf"`
	// Path holds the keystore as the store held it, with the private key.
	Path  string    `json:"path"`
	Until time.Time `json:"until"`
}

var stateNames = map[agentv1.InstallState]string{agentv1.InstallState_INSTALL_STATE_ABSENT: "absent", agentv1.InstallState_INSTALL_STATE_FOREIGN: "foreign",
	agentv1.InstallState_INSTALL_STATE_INSTALLED_UNPROVEN: "installed-unproven", agentv1.InstallState_INSTALL_STATE_PROVEN: "proven",
	agentv1.InstallState_INSTALL_STATE_ROLLED_BACK: "rolled-back", agentv1.InstallState_INSTALL_STATE_CONTESTED: "contested",
	agentv1.InstallState_INSTALL_STATE_MOVING: "moving", agentv1.InstallState_INSTALL_STATE_FAILED: "failed"}

// note keeps a decision for the status and logs it when it is a new one.
func (n *Node) note(store string, a Action) {
	old := n.actions[store]
	n.actions[store] = a
	if old.Do != a.Do || old.Reason != a.Reason {
		n.log.Info("decision", "store", store, "do", a.Do, "wants", a.Wants, "reason", a.Reason, "why", a.Message)
	}
}

func (n *Node) status() Status {
	s := Status{Instance: n.o.Instance.StateName(), Config: n.o.Instance.Config, Version: cli.Version, Mode: modeWord(n.mode()), Copied: n.folder.Copied(),
		Running: !n.presence.Down(), Unreported: len(n.folder.Reports())}
	if id := n.folder.Identity(); id != nil {
		s.Node, s.UID, s.Incarnation, s.IdentityNotAfter = id.Node, id.UID, id.Incarnation, id.Chain[0].NotAfter
	}
	if why, held := install.Held(n.o.Config.HoldFile); held {
		s.Hold = why
	}
	if n.instErr != nil {
		s.Problem = n.instErr.Error()
	}
	s.Links = n.linkStatus()
	n.mu.Lock()
	s.Link, s.Suspended, s.Released, s.Wanted = n.online, n.suspended, n.released, n.wanted
	if f := inForce(n.frozenBy, n.told()); f != nil {
		s.Frozen = freezeWords(f)
	}
	n.mu.Unlock()
	if n.inst != nil {
		for _, f := range n.inst.Findings {
			if f.Severity == cassandra.Error {
				s.Findings++
			}
		}
	}
	for _, st := range n.storesNow() {
		f := n.factsOf(st.Name)
		x := StoreStatus{Name: st.Name, Format: string(st.Format), Keystore: st.KeystorePath, Truststore: st.TruststorePath, State: stateNames[f.State],
			Generation: f.Generation, Detail: f.Detail, Leaf: hex.EncodeToString(f.LeafSha256), NotBefore: n.births[string(f.LeafSha256)], Next: n.actions[st.Name]}
		if f.NotAfter != nil {
			x.NotAfter = f.NotAfter.AsTime()
		}
		if k, ok := n.installer.Kept(n.site(st)); ok {
			x.Kept = &KeptStatus{hex.EncodeToString(k.Leaf[:]), k.Path, k.Until}
		}
		if t := n.targetOf(st.Name); t != nil {
			x.Wanted = t.Generation
			if t.RenewAt != nil {
				x.RenewAt = t.RenewAt.AsTime()
			}
		}
		for _, a := range f.Anchors {
			x.Anchors = append(x.Anchors, hex.EncodeToString(a))
		}
		for _, p := range st.Ports {
			x.Ports = append(x.Ports, fmt.Sprintf("%s:%d", p.Address, p.Port))
		}
		s.Stores = append(s.Stores, x)
	}
	return s
}

// publish writes the status when it has changed, and at least each hour.
func (n *Node) publish() {
	s := n.status()
	n.publishMetrics(s)
	s.Link.LastContact = s.Link.LastContact.Truncate(time.Minute)
	same, err := json.Marshal(s)
	if err != nil || bytes.Equal(same, n.published) {
		return
	}
	s.Updated = n.o.Clock.Now().UTC()
	data, err := json.MarshalIndent(s, "", "  ")
	if err == nil {
		err = atomicfile.Replace(filepath.Join(n.folder.Dir(), StatusFile), data, 0o600)
	}
	if err != nil {
		n.log.Error("the status could not be written", "error", err)
		return
	}
	n.published = same
}

// ReadStatus reads the status of an instance, and says whether its agent runs.
func ReadStatus(dir string) (s Status, running bool, err error) {
	data, err := os.ReadFile(filepath.Join(dir, StatusFile))
	if err != nil {
		return s, false, err
	}
	if err := json.Unmarshal(data, &s); err != nil {
		return s, false, err
	}
	return s, state.InUse(dir), nil
}

// Level of health.
type Level int

// The levels: as it should be; something to look at; a person is needed.
const (
	Green Level = iota
	Yellow
	Red
)

func (l Level) String() string { return [...]string{"green", "yellow", "red"}[l] }

// Note is one reason for a level.
type Note struct {
	Level   string `json:"level"`
	Message string `json:"message"`
	Remedy  string `json:"remedy,omitempty"`
}

// Health judges a status at a time; it is pure, so that a stopped agent's last words still turn red in time.
func Health(s Status, running bool, now time.Time) (Level, []Note) {
	level := Green
	var notes []Note
	add := func(l Level, remedy, format string, args ...any) {
		level = max(level, l)
		notes = append(notes, Note{l.String(), fmt.Sprintf(format, args...), remedy})
	}
	switch {
	case s.Node == "":
		add(Yellow, "see `csm-agent doctor`", "the agent has not joined: %s", orElse(s.Link.Error, "no attempt yet"))
	case s.Copied:
		add(Red, "on the copy: `csm-agent seal-image --yes`, then a join token of its own; for the original: `csm node resume`", "the state folder was copied from another machine; nothing is changed here")
	case s.Suspended != "":
		add(Red, "see `csm node get`; then `csm node resume`, or `csm cluster join-command NODE --rejoin` for a new host", "the controllers suspended this agent: %s", s.Suspended)
	}
	if !s.IdentityNotAfter.IsZero() && now.After(s.IdentityNotAfter) {
		add(Red, expiredRemedy(s.Node), "the agent's own identity expired at %s: no controller takes its word until it is renewed", s.IdentityNotAfter.UTC().Format(time.RFC3339))
	}
	if !running {
		add(Red, "start csm-agent", "the agent does not run; this is what it knew at %s", s.Updated.Format(time.RFC3339))
	} else if s.Node != "" && !s.Link.Connected {
		add(Yellow, "check that a controller runs and that its port 9641 is open from here", "no controller can be reached since %s: %s", s.Link.Since.UTC().Format(time.RFC3339), s.Link.Error)
	}
	if s.Problem != "" {
		add(Red, "see `csm-agent inspect`", "cassandra.yaml is not understood: %s", s.Problem)
	}
	if s.Hold != "" {
		add(Yellow, "`csm-agent release` when it may act again", "held: %s", s.Hold)
	}
	if s.Frozen != "" {
		add(Yellow, "`csm status` shows it; it is lifted with `csm ... unfreeze`", "%s", s.Frozen)
	}
	if s.Unreported > 0 {
		add(Yellow, "", "outcomes of moves that no controller has taken yet: %d", s.Unreported)
	}
	for _, st := range s.Stores {
		storeHealth(st, now, add)
		if st.Kept != nil && s.Released != "" {
			add(Yellow, "keep it if that CA may be needed again, with its private key, or remove the folder", "the certificate that store %s had before CSM took it over is kept in %s", st.Name, st.Kept.Path)
		}
	}
	linkHealth(s.Links, add)
	return level, notes
}

func storeHealth(st StoreStatus, now time.Time, add func(Level, string, string, ...any)) {
	switch st.State {
	case "failed":
		add(Red, "see the agent's log and Cassandra's; `csm node renew` tries again", "store %s failed: %s", st.Name, st.Detail)
	case "contested":
		add(Red, "stop the other tool, then `csm-agent release`", "store %s is contested: another tool writes its files", st.Name)
	case "foreign":
		add(Yellow, "", "store %s was not written by CSM and is only observed", st.Name)
	case "rolled-back":
		add(Yellow, "", "the last move of store %s was rolled back: %s", st.Name, st.Detail)
	case "installed-unproven":
		add(Yellow, "start Cassandra", "store %s is installed and not proved yet", st.Name)
	case "absent":
		add(Yellow, "", "store %s is not there yet", st.Name)
	}
	if st.NotAfter.IsZero() {
		return
	}
	left, until := st.NotAfter.Sub(now), st.NotAfter.UTC().Format(time.RFC3339)
	red := RepairFloor
	if !st.NotBefore.IsZero() {
		red = floor(StoreView{NotBefore: st.NotBefore, NotAfter: st.NotAfter})
	}
	switch {
	case left <= 0:
		add(Red, "do not restart Cassandra: it could not join the ring", "the certificate of store %s expired at %s", st.Name, until)
	case left < red:
		add(Red, "bring a controller within reach", "the certificate of store %s is good only until %s", st.Name, until)
	}
}

func orElse(s, other string) string {
	if s == "" {
		return other
	}
	return s
}
