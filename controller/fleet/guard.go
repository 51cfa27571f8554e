package fleet

import (
	"crypto/sha256"
	"slices"
	"strings"
	"time"

	agentv1 "github.com/cassandra-security-manager/csm/protocol/agent/v1"
	clusterv1 "github.com/cassandra-security-manager/csm/protocol/cluster/v1"

	"github.com/cassandra-security-manager/csm/controller/state"
	"github.com/cassandra-security-manager/csm/shared/fault"
	"github.com/cassandra-security-manager/csm/shared/identity"
	"github.com/cassandra-security-manager/csm/shared/resource"
)

// Guard is asked in Apply before a node's certificate becomes an issued one. It refuses what is not under an open claim
// of that node, and every name that the node may not carry; and it remembers which leaf the claim was given.
// An agent's own identity passes while its agent is active; certificates for neither pass.
func Guard(a *state.Apply, c *clusterv1.RecordCertificate) error {
	if c.GetNode() == "" {
		return identityAllowed(a, c.GetIdentity())
	}
	if c.GetTask() != "" || c.GetTemplate() == TemplateProbe {
		return probeAllowed(a, c)
	}
	m, err := readMove(a, c.Claim)
	if err != nil {
		return err
	}
	n, err := readNode(a, m.node)
	if err != nil {
		return err
	}
	switch {
	case m.node != c.Node || m.store != c.Store:
		return fault.New(fault.Refused, "not-your-claim", "the claim is not for store %.63q of %.200q", c.Store, c.Node)
	case c.Incarnation != n.incarnation || m.incarnation != n.incarnation:
		return oldIncarnation(n, c.Incarnation)
	case m.kind == agentv1.MoveKind_MOVE_KIND_GIVE_BACK:
		return fault.New(fault.Refused, "no-leaf-wanted", "store %s of %s gets a certificate back that it had before, not one of ours", m.store, short(n.name)).Do("an agent too old to know that must be updated")
	case m.state != moveOpen || m.expires <= a.Now.UnixMilli():
		return fault.New(fault.Stale, "claim-closed", "the claim ended at %s", at(m.expires).Format(time.RFC3339)).Do("claim again")
	}
	if err := (Caller{Node: n.name, State: n.agent.state, Reason: n.agent.reason}).Allowed(); err != nil {
		return err
	}
	if err := mayAct(a, n); err != nil {
		return err
	}
	if err := namesAllowed(a, n, c.Names); err != nil {
		return err
	}
	if err := authorityFits(a, m, c.Issuer); err != nil {
		return err
	}
	leaf := sha256.Sum256(c.Der)
	if _, err := a.Exec(`UPDATE moves SET issued_sha256 = ?, issued_renew_at_ms = ?, issued_issuer = ?, issued_issuer_sha256 = ? WHERE claim = ?`, leaf[:], c.RenewAtMs, c.Issuer, c.IssuerSha256, m.claim); err != nil {
		return err
	}
	if m.alone && m.kind != agentv1.MoveKind_MOVE_KIND_FIRST {
		// From here on the node may serve the new leaf: others wait until that is proved or undone.
		if _, err := a.Exec(`UPDATE stores SET unproved = 1 WHERE name = ?`, resource.Store(m.node, m.store)); err != nil {
			return err
		}
	}
	a.Touch(state.Updated, n.name)
	return nil
}

// identityAllowed refuses to renew an agent that was suspended, revoked or replaced while its request was under way.
func identityAllowed(a *state.Apply, spiffe string) error {
	if spiffe == "" {
		return nil
	}
	id, err := identity.Parse(spiffe)
	if err != nil {
		return err
	}
	if id.Kind != identity.Agent {
		return nil
	}
	uid, incarnation, err := id.AgentParts()
	if err != nil {
		return err
	}
	_, err = activeAgent(a, uid, incarnation)
	return err
}

// namesAllowed compares with what the node may carry now: its names, and the SPIFFE ID that says its full name.
func namesAllowed(a *state.Apply, n nodeRow, names []*clusterv1.CertificateName) error {
	var column string
	if err := a.QueryRow(`SELECT names FROM nodes WHERE name = ?`, n.name).Scan(&column); err != nil {
		return err
	}
	allowed, err := namesFrom(column)
	if err != nil {
		return err
	}
	spiffe := "/node/" + strings.Join([]string{resource.Segment(n.name, "tenants"), resource.Segment(n.name, "clusters"), resource.Segment(n.name, "nodes")}, "/")
	for _, x := range names {
		ok := false
		switch x.Kind {
		case "dns":
			ok = slices.Contains(allowed.DNS, x.Value)
		case "ip":
			ok = slices.Contains(allowed.IPs, x.Value)
		case "uri":
			ok = strings.HasPrefix(x.Value, "spiffe://") && strings.HasSuffix(x.Value, spiffe)
		case "cn":
			ok = x.Value == resource.Last(n.name) || slices.Contains(allowed.DNS, x.Value) || slices.Contains(allowed.IPs, x.Value)
		}
		if !ok {
			return fault.New(fault.Refused, "name-not-allowed", "%s may not carry the %s name %.200q", short(n.name), x.Kind, x.Value).
				Do("see what it may carry with `csm node get %s`", short(n.name))
		}
	}
	return nil
}
