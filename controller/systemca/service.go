package systemca

import (
	"bytes"
	"context"
	"crypto/sha256"
	"crypto/x509"
	"encoding/hex"
	"maps"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/jonboulle/clockwork"
	"google.golang.org/protobuf/proto"

	"github.com/cassandra-security-manager/csm/controller/authority"
	"github.com/cassandra-security-manager/csm/controller/fleet"
	"github.com/cassandra-security-manager/csm/controller/ledger"
	"github.com/cassandra-security-manager/csm/controller/state"
	clusterv1 "github.com/cassandra-security-manager/csm/protocol/cluster/v1"
	"github.com/cassandra-security-manager/csm/shared/certificate"
	"github.com/cassandra-security-manager/csm/shared/fault"
)

// Store is what this package needs of the state machine.
type Store interface {
	View(ctx context.Context, fn func(ctx context.Context, q state.Querier) error) error
	Watch(names ...string) *state.Watch
}

// Successions makes the root that comes; *authority.Authorities is it.
type Successions interface {
	Succeed(ctx context.Context, actor string) (*authority.Succession, error)
}

// Rotations forms commands and reads.
type Rotations struct {
	store Store
	log   state.Log
	clock clockwork.Clock
	roots Successions
	machine

	mu    sync.Mutex
	watch *state.Watch
	wish  *Wish
	used  map[string]Sighting // by identity, since Used was asked last
}

// New makes Rotations.
func New(store Store, log state.Log, clock clockwork.Clock, roots Successions) *Rotations {
	return &Rotations{store: store, log: log, clock: clock, roots: roots, machine: machine{All()}}
}

// Rotation is one change of the root of the system CA.
type Rotation struct {
	Name  string `json:"name"`
	Kind  string `json:"kind" enum:"system"`
	Phase Phase  `json:"phase" enum:"distribute,reissue,reissued,retire,done,undo-reissue,undo-distribute,rolled-back"`
	// State is running, waiting (for a gate), paused, done or rolled-back.
	State      string    `json:"state" enum:"running,waiting,paused,done,rolled-back"`
	Before     string    `json:"authorityBefore" doc:"issuer that signed identities before"`
	After      string    `json:"authorityAfter"`
	Turn       string    `json:"turn,omitempty" doc:"who takes its identity now: a controller, or agents"`
	Reason     string    `json:"reason"`
	Creator    string    `json:"creator"`
	CreateTime time.Time `json:"createTime"`
	PhaseTime  time.Time `json:"phaseTime" doc:"since when it is in this phase"`
	EndTime    time.Time `json:"endTime,omitzero"`
	Revision   uint64    `json:"revision"`
	// Reasons are what it waits for, as the gates say it, the first hundred of them; Next is what happens when they hold.
	Reasons []Reason `json:"reasons,omitempty"`
	Next    string   `json:"next,omitempty"`
	// Controllers and Administrators one by one; of the agents the first hundred that are not where this phase wants them.
	Controllers    []Identity            `json:"controllers,omitempty"`
	Administrators []Identity            `json:"administrators,omitempty"`
	Agents         SystemAgents          `json:"agents"`
	Timeline       []SystemTimelineEntry `json:"timeline,omitempty"`
}

// SystemAgents counts agents.
type SystemAgents struct {
	Total     int        `json:"total"`
	Connected int        `json:"connected"`
	Trusting  int        `json:"trusting" doc:"hold the root that stays in their verifier"`
	Moved     int        `json:"moved" doc:"were seen with an identity of the root that stays"`
	Named     int        `json:"named" doc:"are not waited for"`
	Behind    []Identity `json:"behind,omitempty"`
}

// SystemTimelineEntry is one line of the timeline.
type SystemTimelineEntry struct {
	Time    time.Time `json:"time"`
	Phase   Phase     `json:"phase"`
	Message string    `json:"message"`
	Actor   string    `json:"actor,omitempty"`
}

const maxShown = 100

func view[T any](ctx context.Context, r *Rotations, read func(ctx context.Context, q state.Querier) (T, error)) (T, error) {
	var out T
	err := r.store.View(ctx, func(ctx context.Context, q state.Querier) (err error) {
		out, err = read(ctx, q)
		return err
	})
	return out, err
}

// Plan says what a rotation would do, and changes nothing.
func (r *Rotations) Plan(ctx context.Context) (SystemPlan, error) {
	return view(ctx, r, func(ctx context.Context, q state.Querier) (SystemPlan, error) { return plan(ctx, q, r.clock.Now()) })
}

// Start makes a root and begins. Stale when the plan would be another one now.
func (r *Rotations) Start(ctx context.Context, planHash, reason, actor string) (Rotation, error) {
	hash, err := hashFrom(planHash)
	if err != nil {
		return Rotation{}, err
	}
	p, err := r.Plan(ctx)
	switch {
	case err != nil:
		return Rotation{}, err
	case len(p.Blockers) > 0:
		return Rotation{}, refusal(p.Blockers)
	case p.Hash != planHash: // before a key is made
		return Rotation{}, stale("controllers or administrators are others now")
	}
	s, err := r.roots.Succeed(ctx, actor)
	if err != nil {
		return Rotation{}, err
	}
	out, err := state.Reply[*clusterv1.SystemRotationReply](ctx, r.log, state.Proposal{Actor: actor, Reason: reason,
		Command: &clusterv1.StartSystemRotation{Root: s.Root, NewWithOld: s.NewWithOld, OldWithNew: s.OldWithNew, PlanHash: hash, Reason: reason}})
	if err != nil {
		return Rotation{}, err
	}
	return r.Get(ctx, out.Name)
}

func hashFrom(text string) ([]byte, error) {
	b, err := hex.DecodeString(text)
	if err != nil || len(b) != 32 {
		return nil, fault.New(fault.Invalid, "bad-plan-hash", "%.80q is not the hash of a plan", text).Do("take it from `csm rotation plan --system`")
	}
	return b, nil
}

func (r *Rotations) propose(ctx context.Context, actor, reason string, c proto.Message) error {
	_, err := r.log.Propose(ctx, state.Proposal{Actor: actor, Reason: reason, Command: c})
	return err
}

// Control pauses, resumes or turns a rotation round: verb is pause, resume or rollback. except names who is not waited for any more.
func (r *Rotations) Control(ctx context.Context, name, verb, reason, actor string, except ...string) (Rotation, error) {
	if err := r.propose(ctx, actor, reason, &clusterv1.ControlSystemRotation{Name: name, Verb: verb, Reason: reason, Exceptions: except}); err != nil {
		return Rotation{}, err
	}
	return r.Get(ctx, name)
}

// PlanRetire says what a retire would do and what is in the way.
func (r *Rotations) PlanRetire(ctx context.Context, name string) (SystemRetirePlan, error) {
	return view(ctx, r, func(ctx context.Context, q state.Querier) (SystemRetirePlan, error) {
		x, err := get(ctx, q, name)
		if err != nil {
			return SystemRetirePlan{}, err
		}
		v, err := look(ctx, q, r.clock.Now(), x)
		return retirePlan(x, v, r.gates), err
	})
}

// Retire withdraws the root before. except names agents and administrators that lose their identity by it.
func (r *Rotations) Retire(ctx context.Context, name, planHash string, except []string, reason, actor string) (Rotation, error) {
	hash, err := hashFrom(planHash)
	if err != nil {
		return Rotation{}, err
	}
	if err := r.propose(ctx, actor, reason, &clusterv1.RetireSystemRotation{Name: name, PlanHash: hash, Reason: reason, Exceptions: except}); err != nil {
		return Rotation{}, err
	}
	return r.Get(ctx, name)
}

// Watch lets the rotation that runs decide anew. The leader calls it now and then; what is decided, Apply decides again.
func (r *Rotations) Watch(ctx context.Context) error {
	name, err := view(ctx, r, func(ctx context.Context, q state.Querier) (string, error) {
		x, ok, err := running(ctx, q)
		if err != nil || !ok {
			return "", err
		}
		v, err := look(ctx, q, r.clock.Now(), x)
		if d := r.gates.Decide(v); err != nil || d.Action != Enter && d.Action != Turn {
			return "", err
		}
		return x.name, nil
	})
	if err != nil || name == "" {
		return err
	}
	return r.propose(ctx, "rotation watch", "", &clusterv1.AdvanceSystemRotation{Name: name})
}

// Get reads a rotation with why it waits and its timeline.
func (r *Rotations) Get(ctx context.Context, name string) (Rotation, error) {
	return view(ctx, r, func(ctx context.Context, q state.Querier) (Rotation, error) {
		x, err := get(ctx, q, name)
		if err != nil {
			return Rotation{}, err
		}
		return r.whole(ctx, q, x)
	})
}

// List reads the rotations, the newest first, without identities and timelines.
func (r *Rotations) List(ctx context.Context) ([]Rotation, error) {
	return view(ctx, r, func(ctx context.Context, q state.Querier) ([]Rotation, error) {
		rows, err := many(ctx, q)
		out := make([]Rotation, len(rows))
		for i, x := range rows {
			out[i] = plain(x)
		}
		return out, err
	})
}

func plain(x row) Rotation {
	out := Rotation{Name: x.name, Kind: "system", Phase: x.phase, State: "running", Before: x.before, After: x.after, Turn: x.turn, Reason: x.reason,
		Creator: x.actor, CreateTime: x.created, PhaseTime: x.since, EndTime: x.ended, Revision: x.revision}
	switch {
	case x.phase.Ended():
		out.State = string(x.phase)
	case x.paused:
		out.State = "paused"
	case x.phase == Reissued:
		out.State = "waiting"
	}
	return out
}

// whole adds what the gates say now, who stands how, and the timeline.
func (r *Rotations) whole(ctx context.Context, q state.Querier, x row) (Rotation, error) {
	out := plain(x)
	var err error
	if out.Timeline, err = timeline(ctx, q, x.name); err != nil {
		return out, err
	}
	v, err := look(ctx, q, r.clock.Now(), x)
	if err != nil {
		return out, err
	}
	out.count(v)
	if x.phase.Ended() {
		return out, nil
	}
	d := r.gates.Decide(v)
	out.Reasons, out.Next = d.Reasons[:min(len(d.Reasons), maxShown)], next(v)
	if d.Action == Wait && !x.paused && x.turn == "" {
		out.State = "waiting"
	}
	return out, nil
}

func (r *Rotation) count(v View) {
	for _, x := range v.Identities {
		switch x.Kind {
		case Controller:
			r.Controllers = append(r.Controllers, x)
			continue
		case Admin:
			r.Administrators = append(r.Administrators, x)
			continue
		}
		t := &r.Agents
		t.Total++
		trusts, moved := x.TrustsAfter, x.Leaf == v.Phase.want()
		if v.Phase.Undo() {
			trusts = x.TrustsBefore
		}
		t.Connected, t.Trusting, t.Moved, t.Named = t.Connected+one(x.Connected), t.Trusting+one(trusts), t.Moved+one(moved), t.Named+one(x.Named != "")
		if (!trusts || !moved) && len(t.Behind) < maxShown {
			t.Behind = append(t.Behind, x)
		}
	}
}

func one(b bool) int {
	if b {
		return 1
	}
	return 0
}

// next says what happens when nothing is in the way any more.
func next(v View) string {
	switch {
	case v.Paused:
		return "nothing, until a person resumes it"
	case v.Phase == Reissued:
		return "a person withdraws the root before: csm rotation retire --system"
	}
	_, to := leaving(v.Phase)
	return "phase " + string(to)
}

func timeline(ctx context.Context, q state.Querier, name string) ([]SystemTimelineEntry, error) {
	rows, err := q.QueryContext(ctx, `SELECT time_ms, phase, message, actor FROM system_rotation_events WHERE rotation = ? ORDER BY idx, part`, name)
	if err != nil {
		return nil, err
	}
	defer rows.Close()
	var out []SystemTimelineEntry
	for rows.Next() {
		var e SystemTimelineEntry
		var ms int64
		if err := rows.Scan(&ms, &e.Phase, &e.Message, &e.Actor); err != nil {
			return nil, err
		}
		e.Time = at(ms)
		out = append(out, e)
	}
	return out, rows.Err()
}

// Wish is what a controller has to do now about the system CA.
type Wish struct {
	// Running: a rotation has not ended; what is seen in handshakes is told. Rotation is its name.
	Running  bool
	Rotation string
	Phase    Phase
	// Turn is whose turn it is: the full name of a controller, or Agents.
	Turn string
	// Signing is the root that signs; Bundle are those that are trusted.
	Signing *authority.Issuer
	Bundle  []*authority.Issuer
	// Sums are the SHA-256 of the roots in Bundle; Signers their names in one word.
	Sums    [][]byte
	Signers string
	// Retired are roots that are trusted no more and have not ended: what an agent has missed is told by them.
	Retired []*x509.Certificate
	// Cross leads from each of the two roots to the other.
	Cross [][]byte
	// Agents is how many there are.
	Agents int
	// Stray are the last certificates of the root that goes again, on the way back, by SPIFFE ID. Who uses an older one may be about to
	// take it, and is to renew all the same.
	Stray map[string]ledger.Leaf
	// Foreign are the SHA-256 of leaves that were seen and that the ledger does not know, by SPIFFE ID: they were signed after the backup was
	// made that this state came out of.
	Foreign map[string][]byte
}

// Due says whether an identity with this leaf is to be renewed when its turn comes.
func (w Wish) Due(id string, leaf *x509.Certificate) bool {
	if w.Signing == nil {
		return false
	}
	sum := sha256.Sum256(leaf.Raw)
	return !bytes.Equal(leaf.AuthorityKeyId, w.Signing.Certificate.SubjectKeyId) || !leaf.NotAfter.After(w.Stray[id].NotAfter) || bytes.Equal(w.Foreign[id], sum[:])
}

// Moves says whether a controller, by its full name, or the agents (Agents) are to have an identity of the root that signs now.
func (w Wish) Moves(who string) bool {
	return w.Running && (w.Turn == who || w.Phase == Reissued || w.Phase.moves() && who != Agents && w.Turn == Agents)
}

// Wish reads what is to be done, from memory while nothing changed.
func (r *Rotations) Wish(ctx context.Context) (Wish, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.watch == nil {
		r.watch = r.store.Watch(authority.SystemName, authority.SystemName+"/")
	}
	select {
	case <-r.watch.C():
		r.wish = nil
	default:
	}
	if r.wish != nil {
		return *r.wish, nil
	}
	w, err := view(ctx, r, wished)
	if err == nil {
		r.wish = &w
	}
	return w, err
}

func wished(ctx context.Context, q state.Querier) (Wish, error) {
	var w Wish
	sys, err := authority.InState(ctx, q, authority.SystemName)
	if err != nil {
		return w, err
	}
	for i := range sys.Issuers {
		x := &sys.Issuers[i]
		if x.State == authority.Retired {
			w.Retired = append(w.Retired, x.Certificate)
			continue
		}
		if x.State == authority.Active {
			w.Signing = x
		}
		sum := certificate.Fingerprint(x.Certificate.Raw)
		w.Bundle, w.Sums, w.Signers = append(w.Bundle, x), append(w.Sums, sum[:]), w.Signers+" "+x.Name
	}
	x, ok, err := running(ctx, q)
	if err != nil || !ok {
		return w, err
	}
	w.Running, w.Rotation, w.Phase, w.Turn = true, x.name, x.phase, x.turn
	agents, err := fleet.Agents(ctx, q)
	if err != nil {
		return w, err
	}
	w.Agents = len(agents)
	seen, err := sightings(ctx, q)
	if err != nil {
		return w, err
	}
	w.Foreign = map[string][]byte{}
	for id, k := range seen {
		if k.issuer == "" {
			w.Foreign[id] = k.leaf
		}
	}
	if x.phase.Undo() {
		if w.Stray, err = ledger.LastOf(ctx, q, x.after, x.since); err != nil {
			return w, err
		}
	}
	if len(w.Bundle) > 1 {
		w.Cross = [][]byte{x.newWithOld, x.oldWithNew}
	}
	return w, nil
}

// Sighting is an identity as this controller saw it in a handshake.
type Sighting struct {
	Identity string
	Leaf     [32]byte
	Trusts   [][]byte
}

// maxUsed bounds who is kept between two looks; the names come from verified certificates only.
const maxUsed = 256

// Use notes that somebody has used his certificate at this controller. It costs the request nothing: Used gives it to the loop that tells.
func (r *Rotations) Use(identity string, leaf [32]byte) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.used == nil {
		r.used = map[string]Sighting{}
	}
	if len(r.used) < maxUsed {
		r.used[identity] = Sighting{Identity: identity, Leaf: leaf}
	}
}

// Used are those who were noted since it was asked last.
func (r *Rotations) Used() []Sighting {
	r.mu.Lock()
	defer r.mu.Unlock()
	out := slices.SortedFunc(maps.Values(r.used), func(a, b Sighting) int { return strings.Compare(a.Identity, b.Identity) })
	r.used = nil
	return out
}

// again is how often a sighting is told anew of who has not changed, so that it stays known that he is there.
const again = 5 * time.Second

// batch bounds one command.
const batch = 200

// Saw tells the state what differs from what it knows, as long as a rotation runs. keep repeats it each again.
func (r *Rotations) Saw(ctx context.Context, by string, keep bool, saw []Sighting) error {
	w, err := r.Wish(ctx)
	if err != nil || !w.Running || len(saw) == 0 {
		return err
	}
	known, err := view(ctx, r, func(ctx context.Context, q state.Querier) (map[string]seen, error) {
		var ids []string
		for _, s := range saw {
			ids = append(ids, s.Identity)
		}
		return sightingsOf(ctx, q, ids)
	})
	if err != nil {
		return err
	}
	now := r.clock.Now()
	saw = slices.DeleteFunc(slices.Clone(saw), func(s Sighting) bool {
		k, ok := known[s.Identity]
		return ok && string(k.leaf) == string(s.Leaf[:]) && slices.Equal(k.trusts, hexes(s.Trusts)) && (!keep || now.Sub(k.at) < again)
	})
	for part := range slices.Chunk(saw, batch) {
		c := &clusterv1.SawIdentities{By: by}
		for _, s := range part {
			c.Seen = append(c.Seen, &clusterv1.IdentitySighting{Identity: s.Identity, LeafSha256: s.Leaf[:], Trusts: s.Trusts})
		}
		if err := r.propose(ctx, "controller/"+by, "", c); err != nil {
			return err
		}
	}
	return nil
}
