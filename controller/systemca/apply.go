package systemca

import (
	"bytes"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"slices"

	"github.com/cassandra-security-manager/csm/controller/authority"
	"github.com/cassandra-security-manager/csm/controller/consensus/members"
	"github.com/cassandra-security-manager/csm/controller/ledger"
	"github.com/cassandra-security-manager/csm/controller/state"
	clusterv1 "github.com/cassandra-security-manager/csm/protocol/cluster/v1"
	"github.com/cassandra-security-manager/csm/shared/certificate"
	"github.com/cassandra-security-manager/csm/shared/fault"
	"github.com/cassandra-security-manager/csm/shared/identity"
)

// applyStart makes the plan again from the state, compares it with the one that a person has read, and brings the root that comes.
func (m machine) applyStart(a *state.Apply, c *clusterv1.StartSystemRotation) (*clusterv1.SystemRotationReply, error) {
	if c.Reason == "" {
		return nil, fault.NoReason()
	}
	p, err := plan(a.Context(), a.Querier(), a.Now)
	if err != nil {
		return nil, err
	}
	if len(p.Blockers) > 0 {
		return nil, refusal(p.Blockers)
	}
	if p.Hash != hex.EncodeToString(c.PlanHash) {
		return nil, stale("controllers or administrators are others now")
	}
	if err := crossed(a, p.issuer, c); err != nil {
		return nil, err
	}
	r := row{name: fmt.Sprintf("%s/rotations/r%d", authority.SystemName, a.Index), phase: Distribute, before: p.issuer.Name, after: c.GetRoot().GetName(),
		newWithOld: c.NewWithOld, oldWithNew: c.OldWithNew, planHash: c.PlanHash, reason: c.Reason}
	if err := authority.AddSystemRoot(a, c.Root); err != nil {
		return nil, err
	}
	if _, err := a.Exec(`DELETE FROM identity_sightings`); err != nil { // nothing that was seen before counts
		return nil, err
	}
	if err := insert(a, r); err != nil {
		return nil, err
	}
	return &clusterv1.SystemRotationReply{Name: r.name, Action: "start"}, event(a, r, fmt.Sprintf("started (%s to %s): %s", short(r.before), short(r.after), c.Reason))
}

// crossed refuses a root that is the one of now, or that nothing leads to from it.
func crossed(a *state.Apply, before *authority.Issuer, c *clusterv1.StartSystemRotation) error {
	next, err := certificate.Parse(c.GetRoot().GetCertificate())
	if err != nil {
		return err
	}
	if certificate.SameKey(next.PublicKey, before.Certificate.PublicKey) || bytes.Equal(next.RawSubject, before.Certificate.RawSubject) {
		return fault.New(fault.Invalid, "bad-root", "the root that comes has the name or the key of the one before")
	}
	if err := authority.CheckCross(c.NewWithOld, next, before.Certificate); err != nil {
		return err
	}
	return authority.CheckCross(c.OldWithNew, before.Certificate, next)
}

// applyAdvance does what Decide says. It can be asked by anybody at any time: it does nothing that is not due.
func (m machine) applyAdvance(a *state.Apply, c *clusterv1.AdvanceSystemRotation) (*clusterv1.SystemRotationReply, error) {
	r, err := get(a.Context(), a.Querier(), c.Name)
	if err != nil {
		return nil, err
	}
	v, err := look(a.Context(), a.Querier(), a.Now, r)
	if err != nil {
		return nil, err
	}
	d := m.gates.Decide(v)
	switch d.Action {
	case Turn:
		err = giveTurn(a, r, d.Turn)
	case Enter:
		err = m.enter(a, r, d.Next)
	}
	return &clusterv1.SystemRotationReply{Name: r.name, Action: string(d.Action)}, err
}

func giveTurn(a *state.Apply, r row, who string) error {
	if _, err := a.Exec(`UPDATE system_rotations SET turn = ?, revision = ? WHERE name = ?`, who, int64(a.Index), r.name); err != nil {
		return err
	}
	if who == Agents {
		return event(a, r, "every controller is proved: the agents renew")
	}
	return event(a, r, short(who)+" takes its new identity")
}

// enter does what belongs to the beginning of a phase, then enters it. Every gate was asked.
func (m machine) enter(a *state.Apply, r row, to Phase) (err error) {
	switch to {
	case Reissue:
		err = r.set(a, r.after, r.before, authority.Trusted)
	case Withdrawing:
		err = r.set(a, r.before, r.after, authority.Retired)
	}
	if err != nil {
		return err
	}
	return enter(a, r, to, fmt.Sprintf("every gate of %s holds: %s begins", r.phase, to))
}

// applyControl pauses, resumes, or turns round.
func (m machine) applyControl(a *state.Apply, c *clusterv1.ControlSystemRotation) (*clusterv1.Empty, error) {
	r, err := get(a.Context(), a.Querier(), c.Name)
	switch {
	case err != nil:
		return nil, err
	case r.phase.Ended():
		return nil, ended(r)
	}
	if len(c.Exceptions) > 0 && c.Verb != "resume" {
		return nil, fault.New(fault.Invalid, "bad-exceptions", "somebody is named with resume or retire").Do("`csm rotation resume --system --except NAME --reason ...`")
	}
	switch c.Verb {
	case "pause":
		return &clusterv1.Empty{}, pause(a, r, 1, "paused: "+c.Reason)
	case "resume":
		v, err := look(a.Context(), a.Querier(), a.Now, r)
		if err == nil {
			err = except(a, r, v, c.Exceptions, c.Reason)
		}
		if err != nil {
			return nil, err
		}
		return &clusterv1.Empty{}, pause(a, r, 0, "resumed")
	case "rollback":
		return &clusterv1.Empty{}, rollback(a, r, c.Reason)
	}
	return nil, fault.New(fault.Invalid, "bad-verb", "%.16q is nothing that a rotation can do", c.Verb).Do("use pause, resume or rollback")
}

func pause(a *state.Apply, r row, on int, message string) error {
	if _, err := a.Exec(`UPDATE system_rotations SET paused = ?, revision = ? WHERE name = ?`, on, int64(a.Index), r.name); err != nil {
		return err
	}
	return event(a, r, message)
}

// rollback turns round: the root before signs again, then the one that came goes. After the retire there is no way back: somebody may
// have forgotten the root before.
func rollback(a *state.Apply, r row, reason string) error {
	switch {
	case r.phase == Retire:
		return fault.New(fault.Refused, "retired", "the root before is withdrawn already").Do("go on to the end; another change is another rotation")
	case r.phase.Undo():
		return fault.New(fault.Conflict, "undoing", "the rotation is on its way back already")
	case reason == "":
		return fault.NoReason()
	}
	if err := r.set(a, r.before, r.after, authority.Trusted); err != nil {
		return err
	}
	if _, err := a.Exec(`UPDATE system_rotations SET paused = 0 WHERE name = ?`, r.name); err != nil {
		return err
	}
	return enter(a, r, Undoing, "turned round: "+reason)
}

// applyRetire withdraws the root before: by a person, with the hash of what that person has read.
func (m machine) applyRetire(a *state.Apply, c *clusterv1.RetireSystemRotation) (*clusterv1.Empty, error) {
	r, err := get(a.Context(), a.Querier(), c.Name)
	switch {
	case err != nil:
		return nil, err
	case r.phase.Ended():
		return nil, ended(r)
	case r.phase != Reissued:
		return nil, fault.New(fault.Refused, "rotation-phase", "the rotation is in phase %s: the root before goes only when every identity is proved without it", r.phase).Do("see `csm rotation explain --system`")
	case c.Reason == "":
		return nil, fault.NoReason()
	}
	v, err := look(a.Context(), a.Querier(), a.Now, r)
	if err != nil {
		return nil, err
	}
	if retirePlan(r, v, m.gates).Hash != hex.EncodeToString(c.PlanHash) {
		return nil, stale("identities are others now")
	}
	if err := except(a, r, v, c.Exceptions, c.Reason); err != nil {
		return nil, err
	}
	if v, err = look(a.Context(), a.Querier(), a.Now, r); err != nil {
		return nil, err
	}
	if reasons := m.gates.Ask(StepRetire, v); len(reasons) > 0 {
		return nil, refusal(reasons)
	}
	if err := r.set(a, r.after, r.before, authority.Retired); err != nil {
		return nil, err
	}
	return &clusterv1.Empty{}, enter(a, r, Retire, "retired by hand: "+c.Reason)
}

// except writes down who is not waited for, by the names that the reasons give. A controller cannot be named: it is removed.
func except(a *state.Apply, r row, v View, names []string, reason string) error {
	if len(names) > 0 && reason == "" {
		return fault.NoReason()
	}
	for _, n := range names {
		i := slices.IndexFunc(v.Identities, func(x Identity) bool { return x.Name == n })
		switch {
		case i < 0:
			return fault.New(fault.NotFound, "no-identity", "there is no agent and no administrator %.200q", n).Do("take the names from `csm rotation explain --system`")
		case v.Identities[i].Kind == Controller:
			return fault.New(fault.Refused, "controller-named", "%s is a controller: the quorum is never cut", short(n)).Do("start it; one that is gone for good: `csm system remove %s`", short(n))
		}
		if _, err := a.Exec(`INSERT INTO system_rotation_exceptions (rotation, identity, reason, actor) VALUES (?,?,?,?) ON CONFLICT DO NOTHING`, r.name, v.Identities[i].id, reason, a.Envelope.GetActor()); err != nil {
			return err
		}
		if err := event(a, r, "not waited for any more: "+n+": "+reason); err != nil {
			return err
		}
	}
	return nil
}

func ended(r row) error {
	return fault.New(fault.Conflict, "ended", "the rotation %s has ended: %s", short(r.name), r.phase).Do("see `csm rotation list --system`")
}

func stale(why string) error {
	return fault.New(fault.Stale, "plan-hash", "the plan is not what would be done now: %s", why).Do("look at it again with `csm rotation plan --system`, or `retire --system --dry-run`")
}

// applySaw keeps what was seen while a rotation runs. Whose leaf it is and which root signed it says the ledger; a controller is no
// witness of itself while there is another one.
func applySaw(a *state.Apply, c *clusterv1.SawIdentities) (*clusterv1.Empty, error) {
	if _, ok, err := running(a.Context(), a.Querier()); err != nil || !ok {
		return &clusterv1.Empty{}, err
	}
	all, err := members.List(a.Context(), a.Querier())
	if err != nil {
		return nil, err
	}
	others := slices.ContainsFunc(all, func(m members.Member) bool { return m.Trusted() && m.Name != c.By }) // who asks to be let in sees nobody
	for _, s := range c.Seen {
		id, err := identity.Parse(s.Identity)
		if err != nil {
			return nil, err
		}
		if id.Kind == identity.Controller && id.Path == c.By && others {
			return nil, fault.New(fault.Refused, "own-witness", "%s is no witness of itself", c.By)
		}
		if len(s.LeafSha256) != 32 {
			return nil, fault.New(fault.Invalid, "bad-leaf", "a leaf is named by its SHA-256")
		}
		leaf, err := ledger.IdentityLeaf(a.Context(), a.Querier(), s.Identity, hex.EncodeToString(s.LeafSha256))
		if err != nil {
			return nil, err
		}
		if leaf.Issuer == "" {
			a.Touch(state.Updated, authority.SystemName) // its owner is to be told: see Wish.Foreign
		}
		trusts, err := json.Marshal(hexes(s.Trusts))
		if err != nil {
			return nil, err
		}
		if _, err := a.Exec(`INSERT INTO identity_sightings (identity, issuer, leaf_sha256, trusts, by, seen_ms, revision) VALUES (?,?,?,?,?,?,?)
			ON CONFLICT (identity) DO UPDATE SET issuer = excluded.issuer, leaf_sha256 = excluded.leaf_sha256, trusts = excluded.trusts, by = excluded.by, seen_ms = excluded.seen_ms,
				revision = excluded.revision`,
			s.Identity, leaf.Issuer, s.LeafSha256, string(trusts), c.By, a.Now.UnixMilli(), int64(a.Index)); err != nil {
			return nil, err
		}
	}
	return &clusterv1.Empty{}, nil
}
