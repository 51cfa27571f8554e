package node

import (
	"fmt"
	"time"

	agentv1 "github.com/cassandra-security-manager/csm/protocol/agent/v1"
)

// Floors: defaults of the product.
const (
	// RepairFloor is the remaining life below which a leaf is renewed at once and a node is red.
	RepairFloor = 21 * 24 * time.Hour
	// MaxSkew is the most that this host's clock may differ from the controllers'.
	MaxSkew = 10 * time.Minute
)

// View is everything that the next step of one store depends on. Decide is pure: what is not in here does not count.
type View struct {
	Now time.Time
	// Mode is the local ceiling, Hold the reason of a HOLD file, Copied says that the state folder is another machine's.
	Mode   agentv1.Mode
	Hold   string
	Copied bool
	// Suspended is why the controllers suspended this identity, Frozen what freezes the node.
	Suspended string
	Frozen    *agentv1.Frozen
	// Connected says that a stream lives; Skew is controller's clock minus ours.
	Connected bool
	Skew      time.Duration
	// Running: something of Cassandra listens. Settled: everything that should listen does, or nothing does.
	Running, Settled bool
	// Store as it is, Target as it should be (nil when no controller ever said).
	Store  StoreView
	Target *agentv1.StoreTarget
	// Anchors are the fingerprints that the target wants trusted.
	Anchors [][]byte
	// Released is why the controllers let the cluster go; empty when they did not.
	Released string
	// Last is how the last attempt ended, if it did not succeed.
	Last *Attempt
	// NextProof is when the store must be proved again; zero when it need not.
	NextProof time.Time
}

// StoreView is one pair of files as it is.
type StoreView struct {
	Name       string
	Manageable bool
	// Why it is not manageable.
	Blocked    string
	State      agentv1.InstallState
	Generation uint64
	Leaf       []byte
	NotBefore  time.Time
	NotAfter   time.Time
	Anchors    [][]byte
	// Changed: the files are not as CSM left them. Unsettled: an install was interrupted and must be settled first.
	Changed, Unsettled bool
	// Acknowledged is the leaf that the controllers hold for proven.
	Acknowledged []byte
}

// Attempt is a step that did not succeed: a claim not granted, a move refused or rolled back, a restore that failed.
type Attempt struct {
	Do         Do
	Generation uint64
	// Reason is a stable word; Message is for people.
	Reason, Message string
	// Again is when the same may be tried once more; a newer generation is tried at once.
	Again time.Time
}

// Do is what comes next.
type Do string

// The things to do.
const (
	Rest    Do = "rest"    // as it should be, or nothing can be done
	Wait    Do = "wait"    // something is to be done and a gate says no
	Settle  Do = "settle"  // an interrupted install is to be brought to an end
	Restore Do = "restore" // somebody changed the files
	Install Do = "install" // claim, key, certificate, install
	Prove   Do = "prove"   // claim, proof by neighbours, report
	Reprove Do = "reprove" // prove at rest, without a claim
)

// Action is the decision, with the words that explain it.
type Action struct {
	Do Do `json:"do"`
	// Move is the kind of claim that Install and Prove need.
	Move agentv1.MoveKind `json:"-"`
	// Wants is what would be done if no gate said no; equal to Do when none did.
	Wants Do `json:"wants,omitempty"`
	// Reason is a stable kebab-case word.
	Reason  string `json:"reason"`
	Message string `json:"message"`
	// Again is when to decide again without a change; zero: only a change matters.
	Again time.Time `json:"again,omitzero"`
}

// Decide says what to do next with one store, and why. The same words go to the log, to status and to `csm-agent plan`.
func Decide(v View) Action {
	want := need(v)
	want.Wants = want.Do
	if want.Do == Rest || want.Do == Wait {
		return want
	}
	for _, g := range gates {
		if reason, message, again, closed := g(v, want); closed {
			return Action{Do: Wait, Move: want.Move, Wants: want.Do, Reason: reason, Message: fmt.Sprintf("%s (to do: %s)", message, want.Message), Again: again}
		}
	}
	return want
}

// need says what the store lacks, without asking whether it may be done now.
func need(v View) Action {
	s, t := v.Store, v.Target
	act := func(do Do, kind agentv1.MoveKind, reason, format string, args ...any) Action {
		return Action{Do: do, Move: kind, Reason: reason, Message: fmt.Sprintf(format, args...)}
	}
	const none = agentv1.MoveKind_MOVE_KIND_UNSPECIFIED
	switch {
	case s.Unsettled:
		return act(Settle, none, "interrupted-install", "an interrupted install is brought to its end")
	case v.Released != "":
		return act(Rest, none, "released", "the cluster was %s; its files stay as they are", v.Released)
	case s.State == agentv1.InstallState_INSTALL_STATE_CONTESTED:
		return act(Rest, none, "store-contested", "another tool puts its own files back; nothing is written until an operator runs `csm-agent release`")
	case s.Changed:
		return act(Restore, none, "store-changed", "the files are not as CSM left them")
	case t != nil && t.TrustOnly:
		return trustFirst(v)
	case s.State == agentv1.InstallState_INSTALL_STATE_FOREIGN && !given(v):
		return act(Rest, none, "store-foreign", "the files were not written by CSM; they are observed")
	case t == nil:
		if a := due(v); a.Do == Reprove {
			return a
		}
		return act(Rest, none, "no-target", "no controller has said yet what this store should hold")
	}
	if kind, reason, message := move(v); kind != none {
		return act(Install, kind, reason, "%s", message)
	}
	if v.Running && s.Generation > 0 && len(s.Leaf) > 0 && string(s.Acknowledged) != string(s.Leaf) {
		return act(Prove, agentv1.MoveKind_MOVE_KIND_FIRST, "unproven", "Cassandra is up and its certificate is not proved yet")
	}
	return due(v)
}

// given says whether the leaf in the files is one that the controllers gave this store, although this agent knows nothing of
// it: its state folder was lost, or an operator released the store.
func given(v View) bool {
	return len(v.Store.Leaf) > 0 && string(v.Target.GetLeafSha256()) == string(v.Store.Leaf)
}

// trustFirst is all that may be done to files with another CA's leaf: our anchors are added beside theirs, and proved. The leaf
// is replaced only where that is asked by its own name, and never before our anchors are there.
func trustFirst(v View) Action {
	s, trust := v.Store, agentv1.MoveKind_MOVE_KIND_TRUST
	t := v.Target
	raised := t.Generation > s.Generation
	switch {
	case raised && s.Generation > 0 && t.Move == agentv1.MoveKind_MOVE_KIND_TAKE_OVER && !missing(v.Anchors, s.Anchors):
		return Action{Do: Install, Move: t.Move, Reason: "take-over", Message: "a certificate of our CA takes the place of another CA's (" + t.Reason + ")"}
	case raised && s.Generation > 0 && (t.Move == trust || t.Move == agentv1.MoveKind_MOVE_KIND_SHRINK):
		return Action{Do: Install, Move: t.Move, Reason: "new-generation", Message: "the truststore is to change (" + t.Reason + "); the certificate of another CA stays in service"}
	case raised && missing(v.Anchors, s.Anchors):
		return Action{Do: Install, Move: trust, Reason: "trust-first", Message: "our CA is added to the truststore; the certificate of another CA stays in service"}
	case v.Running && s.Generation > 0 && len(s.Leaf) > 0 && string(s.Acknowledged) != string(s.Leaf):
		return Action{Do: Prove, Move: trust, Reason: "unproven", Message: "Cassandra is up and its new truststore is not proved yet"}
	}
	a := due(v) // Cassandra's polls come for a truststore of theirs as for one of ours
	if a.Do == Reprove {
		return a
	}
	return Action{Do: Rest, Reason: "store-foreign", Message: "the truststore holds our CA; the certificate is another CA's and is observed", Again: a.Again}
}

// move says whether the store must change, and how: the first cause counts.
func move(v View) (agentv1.MoveKind, string, string) {
	s, t := v.Store, v.Target
	kind := agentv1.MoveKind_MOVE_KIND_RENEW
	if s.State == agentv1.InstallState_INSTALL_STATE_ABSENT || s.State == agentv1.InstallState_INSTALL_STATE_INSTALLED_UNPROVEN && !v.Running {
		kind = agentv1.MoveKind_MOVE_KIND_FIRST
	}
	if w := t.Move; w != agentv1.MoveKind_MOVE_KIND_UNSPECIFIED && s.Generation < t.Generation && s.State != agentv1.InstallState_INSTALL_STATE_ABSENT {
		kind = w
	}
	left := s.NotAfter.Sub(v.Now)
	switch {
	case s.State == agentv1.InstallState_INSTALL_STATE_ABSENT:
		return kind, "first-install", "there is no store yet"
	case s.Generation < t.Generation:
		return kind, "new-generation", fmt.Sprintf("generation %d is wanted (%s), %d is installed", t.Generation, t.Reason, s.Generation)
	case t.RenewAt != nil && !v.Now.Before(t.RenewAt.AsTime()) && (len(t.LeafSha256) == 0 || string(t.LeafSha256) == string(s.Leaf)):
		return kind, "renewal-due", "the certificate is due for renewal"
	case len(s.Leaf) > 0 && left < floor(s):
		return kind, "expires-soon", fmt.Sprintf("the certificate expires on %s", s.NotAfter.UTC().Format(time.DateOnly))
	}
	return agentv1.MoveKind_MOVE_KIND_UNSPECIFIED, "", ""
}

// floor is the repair floor; a leaf that lives shortly by design has a third of its life.
func floor(s StoreView) time.Duration {
	if s.NotBefore.IsZero() {
		return 0
	}
	return min(RepairFloor, s.NotAfter.Sub(s.NotBefore)/3)
}

func missing(want, have [][]byte) bool {
	known := map[string]bool{}
	for _, h := range have {
		known[string(h)] = true
	}
	for _, w := range want {
		if !known[string(w)] {
			return true
		}
	}
	return false
}

// due says whether a proof at rest is due.
func due(v View) Action {
	switch {
	case v.NextProof.IsZero():
		return Action{Do: Rest, Reason: "as-wanted", Message: "nothing of ours to prove"}
	case v.Mode != agentv1.Mode_MODE_MANAGE:
		// A proof that fails leads back to the old store, and what is found changed is put back: both write.
		return Action{Do: Rest, Reason: "not-managed", Message: "the mode in agent.yaml is not manage: what CSM installed earlier is left alone and not proved again"}
	case !v.Running:
		return Action{Do: Rest, Reason: "cassandra-down", Message: "Cassandra does not run; its store is in place"}
	case !v.Now.Before(v.NextProof):
		return Action{Do: Reprove, Reason: "proof-due", Message: "the store is proved again"}
	}
	return Action{Do: Rest, Reason: "as-wanted", Message: "the store is as it should be", Again: v.NextProof}
}

// gate says whether what is wanted may be done now: the reason, for people, and when to look again (zero: at a change).
type gate func(v View, want Action) (reason, message string, again time.Time, closed bool)

// gates in the order in which they are told. Looking (Reprove) passes those that stop effects only.
var gates = []gate{
	func(v View, w Action) (string, string, time.Time, bool) {
		return "observe", "mode is observe: nothing is changed", time.Time{}, v.Mode != agentv1.Mode_MODE_MANAGE && v.Mode != agentv1.Mode_MODE_STAGE && effect(w)
	},
	func(v View, w Action) (string, string, time.Time, bool) {
		return "stage", "mode is stage: it is shown, not done", time.Time{}, v.Mode == agentv1.Mode_MODE_STAGE && effect(w)
	},
	func(v View, w Action) (string, string, time.Time, bool) {
		return "copied-state", "the state folder was copied from another machine", time.Time{}, v.Copied && effect(w)
	},
	func(v View, w Action) (string, string, time.Time, bool) {
		return "suspended", "the controllers suspended this agent: " + v.Suspended, time.Time{}, v.Suspended != "" && effect(w)
	},
	func(v View, w Action) (string, string, time.Time, bool) {
		return "held", "held by the HOLD file: " + v.Hold, time.Time{}, v.Hold != "" && effect(w)
	},
	func(v View, w Action) (string, string, time.Time, bool) {
		return "unmanageable", "the store may only be observed: " + v.Store.Blocked, time.Time{}, !v.Store.Manageable && effect(w)
	},
	func(v View, w Action) (string, string, time.Time, bool) {
		f := v.Frozen
		// An interrupted install ends in a freeze too: a half-written node is worse than a change.
		if !f.GetActive() || !effect(w) || w.Do == Settle {
			return "", "", time.Time{}, false
		}
		again := time.Time{}
		if f.Until != nil {
			again = f.Until.AsTime()
		}
		return "frozen", freezeWords(f), again, true
	},
	func(v View, w Action) (string, string, time.Time, bool) {
		return "offline", "no controller can be reached", time.Time{}, !v.Connected && claimed(w)
	},
	func(v View, w Action) (string, string, time.Time, bool) {
		return "clock-skew", fmt.Sprintf("this host's clock differs by %s from the controllers'", v.Skew.Abs().Round(time.Second)), v.Now.Add(5 * time.Minute), v.Skew.Abs() > MaxSkew && claimed(w)
	},
	func(v View, w Action) (string, string, time.Time, bool) {
		return "node-not-normal", "only some of Cassandra's ports listen: it is starting, joining, leaving or draining", v.Now.Add(2 * time.Second), v.Running && !v.Settled && (claimed(w) || w.Do == Reprove)
	},
	func(v View, w Action) (string, string, time.Time, bool) {
		l := v.Last
		if l == nil || l.Do != w.Do || !v.Now.Before(l.Again) || claimed(w) && v.Target != nil && v.Target.Generation > l.Generation {
			return "", "", time.Time{}, false
		}
		return l.Reason, l.Message, l.Again, true
	},
}

// effect says whether doing it may change something on the node.
func effect(w Action) bool { return w.Do != Reprove }

// claimed says whether doing it needs a claim.
func claimed(w Action) bool { return w.Do == Install || w.Do == Prove }

// Pause is how long to wait after n failures of one step in a row: 30 s, doubled up to 4 h. A claim that was refused
// because others are on the move is asked again when the controllers say so, at the latest after 20 s.
func Pause(n int) time.Duration {
	return min(30*time.Second<<min(n, 20), 4*time.Hour)
}
