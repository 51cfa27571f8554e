package rotation

import (
	"bytes"
	"encoding/hex"
	"fmt"
	"slices"
	"time"

	"github.com/cassandra-security-manager/csm/controller/authority"
	"github.com/cassandra-security-manager/csm/controller/fleet"
	"github.com/cassandra-security-manager/csm/controller/state"
	clusterv1 "github.com/cassandra-security-manager/csm/protocol/cluster/v1"
	"github.com/cassandra-security-manager/csm/shared/fault"
)

// applyStart makes the plan again from the state, compares it with the one that a person has read, and begins.
func (m machine) applyStart(a *state.Apply, c *clusterv1.StartRotation) (*clusterv1.StartRotationReply, error) {
	if c.Reason == "" {
		return nil, fault.NoReason()
	}
	w := Wanted{Cluster: c.Cluster, Authority: c.Authority, Emergency: c.Emergency, Keep: c.Keep}
	p, r, err := look(a.Context(), a.Querier(), a.Now, row{cluster: c.Cluster}).plan(w, m.gates)
	if err != nil {
		return nil, err
	}
	if len(p.Blockers) > 0 {
		return nil, refusal(p.Blockers)
	}
	if !bytes.Equal(p.sum(), c.PlanHash) {
		return nil, stale("members, ports, clients or anchors are others now")
	}
	r.name, r.reason, r.planHash = fmt.Sprintf("%s/rotations/r%d", r.trust, a.Index), c.Reason, c.PlanHash
	r.bake = time.Duration(c.BakeMs) * time.Millisecond
	if err := insert(a, r); err != nil {
		return nil, err
	}
	if err := m.pin(a, r, r.before); err != nil {
		return nil, err
	}
	next, err := authority.InState(a.Context(), a.Querier(), r.after)
	if err != nil {
		return nil, err
	}
	if r.kind != Rekey {
		if _, err := fleet.AddAnchors(a, r.cluster, next.Roots(a.Now)); err != nil {
			return nil, err
		}
	}
	v, err := look(a.Context(), a.Querier(), a.Now, r).view(m.waves)
	if err == nil {
		err = except(a, r, v, c.Exceptions, c.Reason)
	}
	if err != nil {
		return nil, err
	}
	return &clusterv1.StartRotationReply{Name: r.name}, event(a, r, fmt.Sprintf("started (%s, %s to %s%s): %s", r.kind, short(r.before), short(r.after), r.urgency(), c.Reason))
}

// pin says for each store that there is who signs its next leaf, so that the cluster's own choice holds for those that join.
func (m machine) pin(a *state.Apply, r row, authority string) error {
	standings, err := fleet.Standings(a.Context(), a.Querier(), r.cluster, a.Now)
	if err != nil {
		return err
	}
	for _, n := range standings {
		for _, s := range n.Stores {
			if err := fleet.SetAuthority(a, n.Node, s.Store, authority); err != nil {
				return err
			}
		}
	}
	return nil
}

// applyAdvance does what Decide says. It can be asked by anybody at any time: it does nothing that is not due.
func (m machine) applyAdvance(a *state.Apply, c *clusterv1.AdvanceRotation) (*clusterv1.AdvanceRotationReply, error) {
	r, err := get(a.Context(), a.Querier(), c.Name)
	if err != nil {
		return nil, err
	}
	v, err := look(a.Context(), a.Querier(), a.Now, r).view(m.waves)
	if err != nil {
		return nil, err
	}
	if r.phase.Ended() {
		return &clusterv1.AdvanceRotationReply{Action: string(Rest)}, m.finish(a, r, v)
	}
	if err := m.welcome(a, r, &v); err != nil {
		return nil, err
	}
	if err := m.tend(a, r, v); err != nil {
		return nil, err
	}
	d := m.gates.Decide(v)
	switch d.Action {
	case Begin:
		err = m.begin(a, r, v)
	case Enter:
		err = m.enter(a, r, d.Next)
	case Cycle:
		err = m.cycle(a, r, d.Node)
	}
	return &clusterv1.AdvanceRotationReply{Action: string(d.Action)}, err
}

// begin opens waves for all that lack what the phase asks for.
func (m machine) begin(a *state.Apply, r row, v View) error {
	w := Wave{Cluster: r.cluster, Owner: r.name, PlanHash: r.planHash, Bake: r.bake, Reason: fmt.Sprintf("%s: %s", short(r.name), r.phase)}
	switch r.phase {
	case Distribute:
		if w.Kind = waveTrust; onlyMarkers(v) {
			w.Kind = waveRenew
		}
	case Reissue:
		w.Kind, w.Authority = waveLeaf, r.after
	case Undoing:
		if w.Kind, w.Authority, w.Undo = waveLeaf, r.before, true; r.kind == Takeover {
			w.Kind, w.Authority = waveBack, ""
		}
	default:
		w.Kind = waveShrink
	}
	for _, x := range v.Members {
		if moves(v, x) {
			w.Members = append(w.Members, x.Node)
		}
	}
	w.Width, w.Aside = v.width(w.Kind), leftOut(v)
	first := canary(v, w.Members)
	if first != "" {
		w.Members = []string{first}
	}
	name := nothing
	if len(w.Members) > 0 {
		var err error
		if name, err = m.waves.Begin(a, w); err != nil {
			return err
		}
	}
	if _, err := a.Exec(`UPDATE rotations SET rollout = ?, canary = iif(? <> '', ?, canary), rounds = rounds + 1, updated_ms = ?, revision = ? WHERE name = ?`, name, first, first, a.Now.UnixMilli(), a.Index, r.name); err != nil {
		return err
	}
	if first != "" {
		return event(a, r, fmt.Sprintf("%s goes first (%s); the others follow when its clients have connected anew", short(first), short(name)))
	}
	return event(a, r, fmt.Sprintf("waves begin: %s for %d nodes (%s)", w.Kind, len(w.Members), short(name)))
}

// nothing stands for waves that had nobody to move.
const nothing = "none"

// onlyMarkers says that every truststore is as it should be, and what is not proved needs a newer leaf of the CA before.
func onlyMarkers(v View) bool {
	for _, m := range v.Members {
		for _, s := range m.Stores {
			if !m.counts() || !lacking(v, s) {
				continue
			}
			if s.Behind || s.Lacks || slices.ContainsFunc(s.Ports, func(p Port) bool { return !p.Trusts && p.Exempt == "" && !p.Marker }) {
				return false
			}
		}
	}
	return true
}

// lacks says whether waves of this phase would give a member something.
func lacks(v View, m Member) bool {
	for _, s := range m.Stores {
		if lacking(v, s) {
			return true
		}
	}
	return false
}

// enter does what belongs to the beginning of a phase, then enters it.
func (m machine) enter(a *state.Apply, r row, to Phase) error {
	switch to {
	case Reissue: // who joins from now on gets its first leaf of the CA that comes; those that are there by waves
		if err := fleet.SetClusterAuthority(a, r.cluster, r.after); err != nil {
			return err
		}
	case Withdrawing:
		if err := withdraw(a, r, Withdrawing); err != nil {
			return err
		}
	case Retire:
		if err := m.retire(a, r); err != nil {
			return err
		}
	case Done, RolledBack:
		if err := m.pin(a, r, ""); err != nil {
			return err
		}
		if r.kind == Takeover {
			if err := fleet.ForgetKept(a, r.cluster); err != nil {
				return err
			}
		}
	}
	return enter(a, r, to, fmt.Sprintf("every gate of %s holds: %s begins", r.phase, to))
}

// applyControl pauses, resumes, or turns round.
func (m machine) applyControl(a *state.Apply, c *clusterv1.ControlRotation) (*clusterv1.Empty, error) {
	r, err := get(a.Context(), a.Querier(), c.Name)
	switch {
	case err != nil:
		return nil, err
	case r.phase.Ended():
		return nil, ended(r)
	}
	if len(c.Exceptions) > 0 && c.Verb == "pause" {
		return nil, fault.New(fault.Invalid, "bad-exceptions", "nothing is waited for while it is paused, so nothing is named").Do("`csm rotation resume --except ID --reason ...`")
	}
	switch c.Verb {
	case "pause":
		return &clusterv1.Empty{}, m.pause(a, r, true, "paused: "+c.Reason)
	case "resume":
		return &clusterv1.Empty{}, m.resume(a, r, c)
	case "rollback":
		return &clusterv1.Empty{}, m.rollback(a, r, c)
	}
	return nil, fault.New(fault.Invalid, "bad-verb", "%.16q is nothing that a rotation can do", c.Verb).Do("use pause, resume or rollback")
}

func (m machine) pause(a *state.Apply, r row, on bool, message string) error {
	paused := 0
	if on {
		paused = 1
	}
	if _, err := a.Exec(`UPDATE rotations SET paused = ?, updated_ms = ?, revision = ? WHERE name = ?`, paused, a.Now.UnixMilli(), a.Index, r.name); err != nil {
		return err
	}
	if on {
		if err := m.set(a, r, "pause", message); err != nil {
			return err
		}
	}
	return event(a, r, message)
}

// set tells the waves of the phase, if there are any.
func (m machine) set(a *state.Apply, r row, verb, reason string) error {
	if r.rollout == "" || r.rollout == nothing {
		return nil
	}
	return m.waves.Set(a, r.rollout, verb, reason)
}

// resume goes on. Waves that were stopped, or halted, begin again for those that still lack something.
// Clients that it names are not waited for from now on.
func (m machine) resume(a *state.Apply, r row, c *clusterv1.ControlRotation) error {
	v, err := look(a.Context(), a.Querier(), a.Now, r).view(m.waves)
	if err != nil {
		return err
	}
	if err := except(a, r, v, c.Exceptions, c.Reason); err != nil {
		return err
	}
	if err := m.pause(a, r, false, "resumed"); err != nil {
		return err
	}
	switch v.Rollout.State {
	case "", rolloutRunning, rolloutDone:
		return nil
	case "paused", "halted":
		return m.set(a, r, "resume", "the rotation goes on")
	}
	_, err = a.Exec(`UPDATE rotations SET rollout = '' WHERE name = ?`, r.name) // it ended early: new waves for those that lack something
	return err
}

// rollback turns round: leaves of the CA before again, then the new anchors go. After the retire began there is no way back:
// somebody may trust the CA before no more.
func (m machine) rollback(a *state.Apply, r row, c *clusterv1.ControlRotation) error {
	reason := c.Reason
	switch {
	case r.phase == Retire:
		return fault.New(fault.Refused, "retired", "anchors of the CA before are withdrawn already: a leaf of it may be refused by a peer").
			Do("go on to the end; to return to that CA, start a rotation to it")
	case r.phase.Undo():
		return fault.New(fault.Conflict, "undoing", "the rotation is on its way back already")
	case reason == "":
		return fault.NoReason()
	}
	s := look(a.Context(), a.Querier(), a.Now, r)
	v, err := s.view(m.waves)
	if err != nil {
		return err
	}
	if err := except(a, r, v, c.Exceptions, c.Reason); err != nil {
		return err
	}
	if named, err := nameExceptions(v, c.Exceptions); err != nil {
		return err
	} else if reasons := m.gates.wayBack(named); len(reasons) > 0 {
		return refusal(reasons)
	}
	if err := m.set(a, r, "abort", "the rotation turns round: "+reason); err != nil {
		return err
	}
	if err := fleet.SetClusterAuthority(a, r.cluster, r.before); err != nil {
		return err
	}
	if err := m.pin(a, r, r.before); err != nil {
		return err
	}
	if _, err := a.Exec(`UPDATE rotations SET paused = 0 WHERE name = ?`, r.name); err != nil {
		return err
	}
	if r.kind == Rekey && r.before == r.after {
		return enter(a, r, RolledBack, "rolled back: leaves of both issuers chain to the same root, none has to change: "+reason)
	}
	return enter(a, r, Undoing, "turned round: "+reason)
}

// applyRetire withdraws the anchors of the CA before: by a person, with the hash of what that person has read.
func (m machine) applyRetire(a *state.Apply, c *clusterv1.RetireRotation) (*clusterv1.Empty, error) {
	r, err := get(a.Context(), a.Querier(), c.Name)
	switch {
	case err != nil:
		return nil, err
	case r.phase.Ended():
		return nil, ended(r)
	case r.phase != Reissued:
		return nil, fault.New(fault.Refused, "rotation-phase", "the rotation is in phase %s: the CA before goes only when every member is proved without it", r.phase).Do("see `csm rotation explain`")
	case c.Reason == "":
		return nil, fault.NoReason()
	}
	s := look(a.Context(), a.Querier(), a.Now, r)
	v, err := s.view(m.waves)
	if err != nil {
		return nil, err
	}
	if p := retirePlan(r, v, m.gates); p.Hash != hex.EncodeToString(c.PlanHash) {
		return nil, stale("members, ports or clients are others now")
	}
	named, err := nameExceptions(v, c.Exceptions)
	if err != nil {
		return nil, err
	}
	if reasons := m.gates.Ask(StepRetire, named, ""); len(reasons) > 0 {
		return nil, refusal(reasons)
	}
	if err := except(a, r, v, c.Exceptions, c.Reason); err != nil {
		return nil, err
	}
	if err := m.retire(a, r); err != nil {
		return nil, err
	}
	return &clusterv1.Empty{}, enter(a, r, Retire, "retired by hand: "+c.Reason)
}

// retire leaves the CA before to nobody: whoever joins is of the new one, and the anchors go. Every gate of StepRetire was asked.
func (m machine) retire(a *state.Apply, r row) error {
	if err := m.pin(a, r, ""); err != nil {
		return err
	}
	return withdraw(a, r, Retire)
}

// withdraw takes the anchors that go in a phase out of what nodes are told to trust.
func withdraw(a *state.Apply, r row, phase Phase) error {
	if sums := r.goes(phase); len(sums) > 0 {
		return fleet.WithdrawAnchors(a, r.trust, sums)
	}
	return nil
}

// except writes down who may break, by the names that the plan or the reasons give.
func except(a *state.Apply, r row, v View, names []string, reason string) error {
	if len(names) == 0 {
		return nil
	}
	if reason == "" {
		return fault.NoReason()
	}
	if _, err := nameExceptions(v, names); err != nil {
		return err
	}
	for _, x := range names {
		if _, err := a.Exec(`INSERT INTO rotation_exceptions (rotation, client, reason, actor) VALUES (?,?,?,?) ON CONFLICT DO NOTHING`, r.name, x, reason, a.Envelope.GetActor()); err != nil {
			return err
		}
		if err := event(a, r, "not waited for any more: "+x+": "+reason); err != nil {
			return err
		}
	}
	return nil
}

func nameExceptions(v View, names []string) (View, error) {
	clients, seen, members := slices.Clone(v.Clients), slices.Clone(v.Seen), slices.Clone(v.Members)
	for _, n := range names {
		v.LinksAccepted = v.LinksAccepted || n == exceptLinks
		found := n == exceptLinks || n == exceptSeen || n == exceptUnseen
		for i := range members {
			if v.Kind == Takeover && members[i].Node != "" && keepsOurs(members[i]) == n {
				members[i].Stores, found = staying(members[i].Stores), true
			}
		}
		for i := range clients {
			if clients[i].Name == n {
				clients[i].Named, found = true, true
			}
		}
		for i := range seen {
			if x := &seen[i]; x.Name == n || n == exceptSeen && x.Name != exceptUnseen {
				x.Named, found = true, true
			}
		}
		if !found {
			return v, fault.New(fault.NotFound, "no-client", "the plan names no client %.100q", n).Do("see `csm rotation plan`")
		}
	}
	v.Clients, v.Seen, v.Members = clients, seen, members
	return v, nil
}
