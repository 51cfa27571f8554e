package systemca

import (
	"context"
	"database/sql"
	"encoding/hex"
	"encoding/json"
	"slices"
	"time"

	"github.com/cassandra-security-manager/csm/controller/authority"
	"github.com/cassandra-security-manager/csm/controller/consensus/members"
	"github.com/cassandra-security-manager/csm/controller/fleet"
	"github.com/cassandra-security-manager/csm/controller/ledger"
	"github.com/cassandra-security-manager/csm/controller/people"
	"github.com/cassandra-security-manager/csm/controller/state"
	"github.com/cassandra-security-manager/csm/shared/certificate"
	"github.com/cassandra-security-manager/csm/shared/identity"
	"github.com/cassandra-security-manager/csm/shared/resource"
)

// sight reads what decisions are made from.
type sight struct {
	ctx context.Context
	q   state.Querier
	now time.Time
	r   row

	sys   *authority.Authority
	sums  map[Side]string // SHA-256 of each root, in hex
	seen  map[string]seen
	named map[string]string
	stray map[string]bool
}

// seen is a row of identity_sightings.
type seen struct {
	issuer string
	leaf   []byte
	trusts []string
	at     time.Time
}

// look reads the view of a rotation.
func look(ctx context.Context, q state.Querier, now time.Time, r row) (View, error) {
	s := &sight{ctx: ctx, q: q, now: now, r: r, sums: map[Side]string{}}
	v := View{Now: now, Phase: r.phase, Paused: r.paused, Turn: r.turn}
	if z, err := fleet.FrozenAt(ctx, q, fleet.System, now); err != nil {
		return v, err
	} else if z != nil {
		v.Frozen = z.Words()
	}
	var err error
	if s.sys, err = authority.InState(ctx, q, authority.SystemName); err != nil {
		return v, err
	}
	for _, i := range s.sys.Issuers {
		sum := certificate.Hex(certificate.Fingerprint(i.Certificate.Raw))
		switch i.Name {
		case r.before:
			s.sums[Before] = sum
		case r.after:
			s.sums[After] = sum
			if left := i.Certificate.NotAfter.Sub(now); left < 24*time.Hour || now.Before(i.Certificate.NotBefore) {
				v.Signer = "the root that comes is not valid for another day"
			}
		}
	}
	if s.seen, err = sightings(ctx, q); err != nil {
		return v, err
	}
	if s.named, err = exceptions(ctx, q, r.name); err != nil {
		return v, err
	}
	if r.phase.Undo() {
		if err := s.strays(); err != nil {
			return v, err
		}
	}
	for _, read := range []func() ([]Identity, error){s.controllers, s.agents, s.admins} {
		some, err := read()
		if err != nil {
			return v, err
		}
		v.Identities = append(v.Identities, some...)
	}
	return v, nil
}

// judge fills in what was seen of an identity.
func (s *sight) judge(x Identity, id identity.ID) Identity {
	x.id = id.String()
	x.Leaf, x.Named = Unknown, s.named[x.id]
	x.Stray = s.stray[x.id]
	if k, ok := s.seen[x.id]; ok {
		x.Leaf, x.Seen = s.side(k.issuer), k.at
		x.TrustsBefore, x.TrustsAfter = slices.Contains(k.trusts, s.sums[Before]), slices.Contains(k.trusts, s.sums[After])
	}
	return x
}

// strays finds who was seen with a leaf that is older than a certificate of the root that goes again.
func (s *sight) strays() error {
	last, err := ledger.LastOf(s.ctx, s.q, s.r.after, s.now)
	if err != nil {
		return err
	}
	s.stray = map[string]bool{}
	for id, l := range last {
		k, ok := s.seen[id]
		if !ok {
			continue
		}
		leaf, err := ledger.IdentityLeaf(s.ctx, s.q, id, hex.EncodeToString(k.leaf))
		if err != nil {
			return err
		}
		s.stray[id] = leaf.Seq < l.Seq
	}
	return nil
}

func (s *sight) side(issuer string) Side {
	switch issuer {
	case s.r.before:
		return Before
	case s.r.after:
		return After
	}
	return Neither
}

func (s *sight) controllers() (out []Identity, err error) {
	all, err := members.List(s.ctx, s.q)
	for _, m := range all {
		if m.Trusted() {
			out = append(out, s.judge(Identity{Kind: Controller, Name: resource.Controller(m.Name)}, identity.ControllerID(s.sys.TrustDomain, m.Name)))
		}
	}
	return out, err
}

func (s *sight) agents() (out []Identity, err error) {
	all, err := fleet.Agents(s.ctx, s.q)
	for _, g := range all {
		out = append(out, s.judge(Identity{Kind: Agent, Name: g.Node, Connected: g.Connected}, identity.AgentID(s.sys.TrustDomain, g.UID, g.Incarnation)))
	}
	return out, err
}

// admins are known by their certificates, which the ledger knows; the API sees who uses his.
func (s *sight) admins() (out []Identity, err error) {
	all, err := people.InState(s.ctx, s.q)
	for _, a := range all {
		if err != nil || a.State != people.Active {
			continue
		}
		id := identity.AdminID(s.sys.TrustDomain, short(a.Name)).String()
		x := Identity{Kind: Admin, Name: a.Name, Named: s.named[id], id: id}
		var l ledger.Leaf
		if l, err = ledger.IdentityLeaf(s.ctx, s.q, id, a.Certificate); err != nil {
			return nil, err
		}
		if k, ok := s.seen[id]; ok && (a.Certificate == hex.EncodeToString(k.leaf) || a.Certificate == "" && k.issuer == l.Issuer) {
			x.Seen = k.at
		}
		if x.Leaf = s.side(l.Issuer); !l.NotAfter.After(s.now) {
			continue // it opens nothing any more: a new one is made when he comes back
		}
		out = append(out, x)
	}
	return out, err
}

// sightings are what was seen in this life of the state: what a backup tells of those who went on without it is worth nothing.
func sightings(ctx context.Context, q state.Querier) (map[string]seen, error) {
	return readSightings(q.QueryContext(ctx, selectSightings))
}

// sightingsOf are those of some identities.
func sightingsOf(ctx context.Context, q state.Querier, ids []string) (map[string]seen, error) {
	list, err := json.Marshal(ids)
	if err != nil {
		return nil, err
	}
	return readSightings(q.QueryContext(ctx, selectSightings+` AND identity IN (SELECT value FROM json_each(?))`, string(list)))
}

const selectSightings = `SELECT identity, issuer, leaf_sha256, trusts, seen_ms FROM identity_sightings
	WHERE revision > (SELECT coalesce(max(idx), 0) FROM eras)`

func readSightings(rows *sql.Rows, err error) (map[string]seen, error) {
	if err != nil {
		return nil, err
	}
	defer rows.Close()
	out := map[string]seen{}
	for rows.Next() {
		var id, trusts string
		var x seen
		var ms int64
		if err := rows.Scan(&id, &x.issuer, &x.leaf, &trusts, &ms); err != nil {
			return nil, err
		}
		if err := json.Unmarshal([]byte(trusts), &x.trusts); err != nil {
			return nil, err
		}
		x.at = at(ms)
		out[id] = x
	}
	return out, rows.Err()
}

func exceptions(ctx context.Context, q state.Querier, rotation string) (map[string]string, error) {
	rows, err := q.QueryContext(ctx, `SELECT identity, reason FROM system_rotation_exceptions WHERE rotation = ? ORDER BY identity`, rotation)
	if err != nil {
		return nil, err
	}
	defer rows.Close()
	out := map[string]string{}
	for rows.Next() {
		var id, reason string
		if err := rows.Scan(&id, &reason); err != nil {
			return nil, err
		}
		out[id] = reason
	}
	return out, rows.Err()
}

// hexes are sums as they stand in a row: sorted.
func hexes(sums [][]byte) []string {
	out := []string{}
	for _, s := range sums {
		out = append(out, hex.EncodeToString(s))
	}
	slices.Sort(out)
	return out
}
