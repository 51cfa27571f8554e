package rollout

import (
	"context"
	"encoding/hex"
	"fmt"
	"slices"
	"strconv"
	"time"

	agentv1 "github.com/cassandra-security-manager/csm/protocol/agent/v1"
	clusterv1 "github.com/cassandra-security-manager/csm/protocol/cluster/v1"

	"github.com/cassandra-security-manager/csm/controller/fleet"
	"github.com/cassandra-security-manager/csm/controller/state"
	"github.com/cassandra-security-manager/csm/shared/fault"
	"github.com/cassandra-security-manager/csm/shared/resource"
)

func applyStart(a *state.Apply, c *clusterv1.StartRollout) (*clusterv1.RolloutReply, error) {
	s := specOf(c.Spec)
	switch {
	case s.Owner != "":
		return nil, fault.New(fault.Refused, "owned", "a rollout of %s is begun by it alone", s.Owner).Do("use `csm rotation`")
	case s.Kind != Renew:
		return nil, fault.New(fault.Refused, "step-of-rotation", "a rollout of kind %s is a step of a rotation, which proves what must be proved before", s.Kind).Do("use `csm rotation plan`")
	}
	p, err := planOf(a, s)
	if err != nil {
		return nil, err
	}
	if p.Hash != hex.EncodeToString(c.PlanHash) {
		return nil, fault.New(fault.Stale, "plan-stale", "the plan is no longer what would be done: nodes, stores or their generations are others by now").
			Do("make it again with `csm rollout plan`, look at it, then start that")
	}
	name, err := begin(a, p)
	return &clusterv1.RolloutReply{Rollout: name}, err
}

// Begin starts a rollout that is a part of something greater, whose plan was looked at there. To be used in Apply only.
func Begin(a *state.Apply, s Spec) (name string, err error) {
	if s.Owner == "" {
		return "", fault.New(fault.Internal, "no-owner", "a rollout begun in Apply needs an owner")
	}
	p, err := planOf(a, s)
	if err != nil {
		return "", err
	}
	return begin(a, p)
}

func planOf(a *state.Apply, s Spec) (Plan, error) {
	if err := fleet.ClusterExists(a, s.Cluster); err != nil {
		return Plan{}, err
	}
	if r, err := liveRow(a.Context(), a.Querier(), s.Cluster); err != nil {
		return Plan{}, err
	} else if r != nil {
		return Plan{}, fault.New(fault.Conflict, "rollout-runs", "%s is %s on this ring, and there is one rollout at a time", short(r.name), r.state).
			Do("wait for its end, or `csm rollout abort %s`", short(r.name))
	}
	nodes, err := fleet.Standings(a.Context(), a.Querier(), s.Cluster, a.Now)
	if err != nil {
		return Plan{}, err
	}
	return Make(s, nodes, a.Now, Pace{})
}

func begin(a *state.Apply, p Plan) (string, error) {
	name := nameOf(p.Cluster, p.Kind+"-"+strconv.FormatUint(a.Index, 10))
	spec, err := p.encoded()
	if err != nil {
		return "", err
	}
	hash, err := hex.DecodeString(p.Hash)
	if err != nil {
		return "", fault.Wrap(err, fault.Internal, "bad-hash", "the plan's hash")
	}
	now := a.Now.UnixMilli()
	if _, err := a.Exec(`INSERT INTO rollouts (name, cluster, kind, owner, state, back, spec, plan_hash, reason, note, creator, failures, awaits, awaits_ms, created_ms, state_ms, end_ms, revision)
		VALUES (?,?,?,?,?,0,?,?,?,'',?,0,'',?,?,?,0,?)`, name, p.Cluster, p.Kind, p.Owner, Running, spec, hash, a.Envelope.GetReason(), a.Envelope.GetActor(), now, now, now, a.Index); err != nil {
		return "", err
	}
	nodes, err := fleet.Standings(a.Context(), a.Querier(), p.Cluster, a.Now)
	if err != nil {
		return "", err
	}
	signs := standing(nodes)
	for i, w := range p.Waves {
		if _, err := a.Exec(`INSERT INTO rollout_waves (rollout, wave, title, why) VALUES (?,?,?,?)`, name, i, w.Title, w.Why); err != nil {
			return "", err
		}
		for _, m := range w.Nodes {
			for k, st := range m.Stores {
				s := signs[resource.Store(m.Node, st)]
				if _, err := a.Exec(`INSERT INTO rollout_stores (rollout, wave, node, store, incarnation, datacenter, rack, state, generation, before_generation, before_authority, named_before, refusals, since_ms, told_ms, detail)
					VALUES (?,?,?,?,?,?,?,?,0,?,?,?,0,?,0,'')`, name, i, m.Node, st, m.Incarnation, m.Datacenter, m.Rack, storePending, m.generations[k], s.Authority, s.Named, now); err != nil {
					return "", err
				}
			}
		}
	}
	a.Touch(state.Created, name)
	r, err := readRow(a.Context(), a.Querier(), name)
	if err != nil {
		return "", err
	}
	return name, advance(a, &r)
}

// standing is how the stores of a cluster stand, by full name.
func standing(nodes []fleet.Standing) map[string]fleet.StoreStanding {
	out := map[string]fleet.StoreStanding{}
	for _, n := range nodes {
		for _, s := range n.Stores {
			out[resource.Store(n.Node, s.Store)] = s
		}
	}
	return out
}

func applyAdvance(a *state.Apply, c *clusterv1.AdvanceRollout) (*clusterv1.RolloutReply, error) {
	r, err := readRow(a.Context(), a.Querier(), c.Rollout)
	if err != nil {
		return nil, err
	}
	return &clusterv1.RolloutReply{Rollout: r.name}, advance(a, &r)
}

// advance decides once and does it. It may be asked by anybody at any time.
func advance(a *state.Apply, r *row) error {
	if !live(r.state) {
		return nil
	}
	f, from, err := factsOf(a.Context(), a.Querier(), *r, a.Now)
	if err != nil {
		return err
	}
	if f.gone {
		if err := forgetGone(a, r, from); err != nil {
			return err
		}
		return advance(a, r)
	}
	act, reasons := decide(f)
	switch act.Do {
	case Look:
		return ask(a, r, f)
	case Open:
		return open(a, r, from, act.Nodes)
	case Halt:
		return setState(a, r, Halted, act.Why)
	case Finish:
		end := Done
		if r.back {
			end = RolledBack
		}
		if err := forgetFailed(a, from.stores); err != nil {
			return err
		}
		return setState(a, r, end, summary(f))
	case Abort:
		if err := forgetFailed(a, from.stores); err != nil {
			return err
		}
		return setState(a, r, Aborted, r.note)
	}
	if k := key(reasons); k != r.awaits {
		_, err := a.Exec(`UPDATE rollouts SET awaits = ?, awaits_ms = ?, revision = ? WHERE name = ?`, k, a.Now.UnixMilli(), a.Index, r.name)
		a.Touch(state.Updated, r.name)
		return err
	}
	return nil
}

// ask lets the agents look at their ring before a wave begins, and decides again: where none can tell, it goes on at once.
func ask(a *state.Apply, r *row, f Facts) (err error) {
	if r.look, err = fleet.AskHealth(a, r.spec.Cluster); err != nil {
		return err
	}
	r.lookWave, _ = f.wave()
	if _, err := a.Exec(`UPDATE rollouts SET look = ?, look_wave = ? WHERE name = ?`, r.look, r.lookWave, r.name); err != nil {
		return err
	}
	return advance(a, r)
}

// summary is the last word of a rollout.
func summary(f Facts) string {
	n := map[string]int{}
	for _, x := range f.Nodes {
		n[x.Phase]++
	}
	out := fmt.Sprintf("%d of %s proved", n[Proved], count(len(f.Nodes), "node"))
	if n[Failed] > 0 {
		out += fmt.Sprintf(", %d failed and serve what they served before", n[Failed])
	}
	if n[Gone] > 0 {
		out += fmt.Sprintf(", %d are gone, set aside or joined anew", n[Gone])
	}
	return out
}

// forgetGone lets go of nodes that are no longer what the plan was made for (who joined anew got its certificate there), and of
// those that have nothing to do any more.
func forgetGone(a *state.Apply, r *row, from sources) error {
	for _, g := range gone(*r, from.stores, from.nodes) {
		if g.idle {
			if _, err := fleet.Withdraw(a, g.node, g.store, g.generation, g.before, g.named); err != nil {
				return err
			}
		}
		if err := setStore(a, r.name, g.storeRow, storeGone, g.why); err != nil {
			return err
		}
	}
	return nil
}

// forgetFailed takes back what stores that failed were told: they keep what they have, and do not go on trying by themselves.
func forgetFailed(a *state.Apply, stores []storeRow) error {
	for _, x := range stores {
		if x.state != storeFailed && x.state != storeBroken {
			continue
		}
		if _, err := fleet.Withdraw(a, x.node, x.store, x.generation, x.before, x.named); err != nil {
			return err
		}
	}
	return nil
}

type goneStore struct {
	storeRow
	why string
	// idle: the node is what it was, and what it was told is taken back.
	idle bool
}

// gone are the stores whose node is another by now, and those that had claimed their move when it was called off and ended the
// claim without moving. Pure.
func gone(r row, stores []storeRow, nodes []fleet.Standing) (out []goneStore) {
	byName := standingOf(nodes)
	for _, x := range stores {
		if x.state != storePending && x.state != storeOpen {
			continue
		}
		switch n := byName[x.node]; {
		case n.Incarnation != x.incarnation:
			out = append(out, goneStore{x, fmt.Sprintf("joined anew as incarnation %d", n.Incarnation), false})
		case n.Agent == fleet.Revoked:
			out = append(out, goneStore{x, "its agent was revoked", false})
		case !has(n, x.store):
			out = append(out, goneStore{x, "its cassandra.yaml no longer names store " + x.store, false})
		case contains(r.spec.Aside, x.node) && !moving(x, n):
			out = append(out, goneStore{x, "set aside while it is down", true})
		case r.state == Aborting && x.state == storeOpen && waits(x, n):
			out = append(out, goneStore{x, "not begun: it was aborted", true})
		case r.back && x.state == storePending && asked(n, x) && waits(x, n):
			out = append(out, goneStore{x, "not begun: it has nothing to take back", true})
		}
	}
	return out
}

func moving(x storeRow, n fleet.Standing) bool { return n.Claim != nil && n.Claim.Store == x.store }

// waits says whether a node has neither begun nor done what it was told. Pure.
func waits(x storeRow, n fleet.Standing) bool {
	x.state = storeOpen
	phase, _ := phaseOf(x, n)
	return phase == Told
}

// asked says whether what a store is to do is still what this rollout asked it for last, and is not done. Pure.
func asked(n fleet.Standing, x storeRow) bool {
	return slices.ContainsFunc(n.Stores, func(s fleet.StoreStanding) bool {
		return s.Store == x.store && s.Generation == x.generation && s.Installed < x.generation
	})
}

func has(n fleet.Standing, store string) bool {
	for _, s := range n.Stores {
		if s.Store == store {
			return true
		}
	}
	return false
}

// moves are what the stores of a kind are to do.
var moves = map[string]agentv1.MoveKind{
	Renew: agentv1.MoveKind_MOVE_KIND_RENEW, Leaf: agentv1.MoveKind_MOVE_KIND_RENEW, Trust: agentv1.MoveKind_MOVE_KIND_TRUST, Shrink: agentv1.MoveKind_MOVE_KIND_SHRINK,
	Back: agentv1.MoveKind_MOVE_KIND_GIVE_BACK,
}

// open lets nodes begin: their stores' generations are raised.
func open(a *state.Apply, r *row, from sources, nodes []string) error {
	now := standing(from.nodes)
	for _, x := range from.stores {
		if x.state != storePending || !contains(nodes, x.node) {
			continue
		}
		before := now[resource.Store(x.node, x.store)]
		if r.spec.Kind == Back && !before.Kept {
			if err := setStore(a, r.name, x, storeGone, "it has the certificate of before already"); err != nil {
				return err
			}
			continue
		}
		w := fleet.Wish{Node: x.node, Store: x.store, Move: moves[r.spec.Kind], Authority: r.spec.Authority, PlanHash: r.hash, Reason: r.spec.Kind + " by rollout " + resource.Last(r.name),
			TakeOver: r.spec.Kind == Leaf && r.spec.Owner != ""} // only a rotation replaces the leaf of another CA
		if r.back {
			w.Move, w.Authority, w.Reason = agentv1.MoveKind_MOVE_KIND_RENEW, x.authority, "rollback of "+resource.Last(r.name)
		}
		g, err := fleet.RaiseStore(a, w)
		if err != nil {
			return err
		}
		if _, err := a.Exec(`UPDATE rollout_stores SET state = ?, generation = ?, before_generation = ?, named_before = ?, since_ms = ?, told_ms = ?, detail = '', refusals = 0 WHERE rollout = ? AND node = ? AND store = ?`,
			storeOpen, g, before.Generation, before.Named, a.Now.UnixMilli(), a.Now.UnixMilli(), r.name, x.node, x.store); err != nil {
			return err
		}
	}
	_, err := a.Exec(`UPDATE rollouts SET awaits = '', awaits_ms = ?, revision = ? WHERE name = ?`, a.Now.UnixMilli(), a.Index, r.name)
	a.Touch(state.Updated, r.name)
	return err
}

// Verbs by which a rollout is stopped or goes on.
const (
	Pause    = "pause"
	Resume   = "resume"
	AbortIt  = "abort"
	Rollback = "rollback"
)

func applySet(a *state.Apply, c *clusterv1.SetRollout) (*clusterv1.RolloutReply, error) {
	r, err := readRow(a.Context(), a.Querier(), c.Rollout)
	if err != nil {
		return nil, err
	}
	if r.spec.Owner != "" && (c.Verb == AbortIt || c.Verb == Rollback) {
		return nil, fault.New(fault.Refused, "owned", "%s is a step of %s, which alone ends it", short(r.name), resource.Last(r.spec.Owner)).Do("use `csm rotation rollback`")
	}
	return &clusterv1.RolloutReply{Rollout: r.name}, set(a, &r, c.Verb, c.Reason)
}

// SetState pauses, resumes, aborts or rolls back the rollout of an owner. To be used in Apply only.
func SetState(a *state.Apply, name, verb, reason string) error {
	r, err := readRow(a.Context(), a.Querier(), name)
	if err != nil {
		return err
	}
	return set(a, &r, verb, reason)
}

// set is the table of what may follow what.
func set(a *state.Apply, r *row, verb, reason string) error {
	note := fmt.Sprintf("%s (%s)", reason, actorOf(a))
	allowed := map[string][]string{Pause: {Running, RollingBack}, Resume: {Paused, Halted}, AbortIt: {Running, Paused, Halted, RollingBack}, Rollback: {Running, Paused, Halted, Aborting, Aborted, Done}}
	from, known := allowed[verb]
	if !known {
		return fault.New(fault.Invalid, "bad-verb", "a rollout cannot be told to %.20q", verb).Do("use pause, resume, abort or rollback")
	}
	if !contains(from, r.state) {
		return fault.New(fault.Refused, "bad-state", "%s is %s: it cannot %s now", short(r.name), r.state, verb).Do("see `csm rollout explain %s`", short(r.name))
	}
	switch verb {
	case Pause:
		return setState(a, r, Paused, note)
	case Resume:
		return resume(a, r)
	case AbortIt:
		if err := withdraw(a, r); err != nil {
			return err
		}
		if err := setState(a, r, Aborting, note); err != nil {
			return err
		}
		return advance(a, r)
	}
	return rollback(a, r, note)
}

// resume lets it go on: what failed is tried again, and the failures until now are forgiven. What a store that failed was told is
// taken back until its turn comes: an abort meanwhile would else leave it behind, as nothing that was begun.
func resume(a *state.Apply, r *row) error {
	stores, err := storesOf(a.Context(), a.Querier(), r.name)
	if err != nil {
		return err
	}
	if err := forgetFailed(a, stores); err != nil {
		return err
	}
	if _, err := a.Exec(`UPDATE rollout_stores SET state = ?, detail = '', refusals = 0, since_ms = ? WHERE rollout = ? AND state IN (?,?)`,
		storePending, a.Now.UnixMilli(), r.name, storeFailed, storeBroken); err != nil {
		return err
	}
	if err := forgetLook(a, r); err != nil {
		return err
	}
	r.failures = 0
	st := Running
	if r.back {
		st = RollingBack
	}
	if err := setState(a, r, st, ""); err != nil {
		return err
	}
	fleet.SignalWave(a, r.spec.Cluster)
	return advance(a, r)
}

// Excuse says which members its owner has set aside by now, by host id and by full name of the node. What has ended stays as it
// is. To be used in Apply only.
func Excuse(a *state.Apply, name string, members []string) error {
	r, err := readRow(a.Context(), a.Querier(), name)
	if err != nil || !live(r.state) || slices.Equal(r.spec.Aside, members) {
		return err
	}
	r.spec.Aside = members
	spec, err := r.spec.encoded()
	if err != nil {
		return err
	}
	if _, err := a.Exec(`UPDATE rollouts SET spec = ?, revision = ? WHERE name = ?`, spec, a.Index, r.name); err != nil {
		return err
	}
	a.Touch(state.Updated, r.name)
	return advance(a, &r)
}

// forgetLook has the ring looked at again before anything begins.
func forgetLook(a *state.Apply, r *row) error {
	r.lookWave = -1
	_, err := a.Exec(`UPDATE rollouts SET look_wave = -1 WHERE name = ?`, r.name)
	return err
}

// withdraw takes back what no node has taken up: pending stores are let go, told ones are as if they had never been. Who is on the
// move ends that first.
func withdraw(a *state.Apply, r *row) error {
	stores, err := storesOf(a.Context(), a.Querier(), r.name)
	if err != nil {
		return err
	}
	nodes, err := fleet.Standings(a.Context(), a.Querier(), r.spec.Cluster, a.Now)
	if err != nil {
		return err
	}
	byName := standingOf(nodes)
	for _, x := range stores {
		if x.state == storeDone || x.state == storeGone {
			continue
		}
		back, err := fleet.Withdraw(a, x.node, x.store, x.generation, x.before, x.named)
		switch {
		case err != nil:
			return err
		case x.state == storePending && asked(byName[x.node], x) && !back: // it had begun before its turn to go back came
			err = setStore(a, r.name, x, storeOpen, x.detail)
		case x.state == storePending || x.state == storeOpen && back:
			err = setStore(a, r.name, x, storeGone, "not begun: it was aborted")
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// rollback takes back what has not begun, and lets the nodes that moved move once more, in reverse order, to a leaf of the
// authority that signed for them before. The keys of before are not used again.
func rollback(a *state.Apply, r *row, note string) error {
	if r.spec.Kind == Trust || r.spec.Kind == Shrink || r.spec.Kind == Back {
		return fault.New(fault.Refused, "no-rollback", "a rollout of kind %s goes back by the rotation that it is a step of", r.spec.Kind).Do("use `csm rotation rollback`")
	}
	if r.back {
		return fault.New(fault.Refused, "bad-state", "%s goes back already", short(r.name)).Do("see `csm rollout explain %s`", short(r.name))
	}
	if other, err := liveRow(a.Context(), a.Querier(), r.spec.Cluster); err != nil {
		return err
	} else if other != nil && other.name != r.name {
		return fault.New(fault.Conflict, "rollout-runs", "%s is %s on this ring", short(other.name), other.state).Do("wait for its end, or abort it")
	}
	if err := withdraw(a, r); err != nil {
		return err
	}
	var top int
	if err := a.QueryRow(`SELECT coalesce(max(wave), 0) FROM rollout_stores WHERE rollout = ?`, r.name).Scan(&top); err != nil {
		return err
	}
	// What is written and not proved goes back too; what failed is back already, or needs a person.
	if _, err := a.Exec(`UPDATE rollout_stores SET state = ?, since_ms = ? WHERE rollout = ? AND state IN (?,?)`, storePending, a.Now.UnixMilli(), r.name, storeDone, storeOpen); err != nil {
		return err
	}
	for _, t := range []string{"rollout_stores", "rollout_waves"} {
		// In two steps: the waves' numbers are unique.
		if _, err := a.Exec(`UPDATE `+t+` SET wave = -1 - wave WHERE rollout = ?`, r.name); err != nil {
			return err
		}
		if _, err := a.Exec(`UPDATE `+t+` SET wave = ? + wave + 1 WHERE rollout = ?`, top, r.name); err != nil {
			return err
		}
	}
	if err := forgetLook(a, r); err != nil {
		return err
	}
	r.back, r.failures, r.endMs = true, 0, 0
	if err := setState(a, r, RollingBack, note); err != nil {
		return err
	}
	return advance(a, r)
}

func actorOf(a *state.Apply) string { return resource.Last(a.Envelope.GetActor()) }

func short(name string) string { return resource.Last(name) }

func contains(all []string, s string) bool {
	for _, x := range all {
		if x == s {
			return true
		}
	}
	return false
}

// due is what the leader has to ask for: rollouts that would not simply go on waiting for what they wait for, and clusters whose
// rollouts wait for the ring while nobody has looked at it for a while.
type due struct{ rollouts, clusters []string }

func dueNow(ctx context.Context, q state.Querier, now time.Time) (out due, err error) {
	rows, err := collect(ctx, q, scanRow, rowColumns+`WHERE end_ms = 0 ORDER BY name`)
	if err != nil {
		return out, err
	}
	for _, r := range rows {
		f, _, err := factsOf(ctx, q, r, now)
		if err != nil {
			return out, err
		}
		act, reasons := decide(f)
		if act.Do != Wait || key(reasons) != r.awaits || f.gone {
			out.rollouts = append(out.rollouts, r.name)
		}
		if act.Do != Wait || !slices.ContainsFunc(reasons, Reason.OfRing) {
			continue
		}
		switch again, err := fleet.MayLookAgain(ctx, q, r.spec.Cluster, now); {
		case err != nil:
			return out, err
		case again && !slices.Contains(out.clusters, r.spec.Cluster):
			out.clusters = append(out.clusters, r.spec.Cluster)
		}
	}
	return out, nil
}
