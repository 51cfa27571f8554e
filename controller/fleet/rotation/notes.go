package rotation

import (
	"fmt"
	"slices"
	"strings"

	"github.com/cassandra-security-manager/csm/controller/fleet"
	agentv1 "github.com/cassandra-security-manager/csm/protocol/agent/v1"
)

// unprovable says why nothing can be proved between a node and its peers; empty when it can, or when nothing is known. Pure.
func unprovable(internode *agentv1.TLSSection) string {
	switch mode := internode.GetMode(); mode {
	case "none":
		return "internode: internode_encryption is none: nodes show each other no certificate, so there is no trust between them to prove or to lose"
	case "dc", "rack":
		return fmt.Sprintf("internode: internode_encryption is %s: within a %s nodes speak plaintext, so a neighbour there proves nothing of the links that are encrypted", mode, place[mode])
	}
	return ""
}

var place = map[string]string{"dc": "data centre", "rack": "rack"}

// notes are what a person should know before a rotation begins and no gate says. They come and go by themselves, so no plan is
// stale by them.
func (s *sight) notes(v View) ([]string, error) {
	h, err := fleet.Health(s.ctx, s.q, s.r.cluster)
	if err != nil {
		return nil, err
	}
	var out []string
	if n := len(v.Members); n == 1 {
		out = append(out, "a ring of one has no neighbour: the node proves itself, and nobody else sees what it serves")
	}
	if len(h.SingleReplica) > 0 {
		out = append(out, fmt.Sprintf("keyspaces of one replica: %s: their data cannot be read while its node restarts; a rotation restarts none by itself, but a host that cannot end old connections needs it",
			strings.Join(firstOf(h.SingleReplica, 5), ", ")))
	} else if !slices.ContainsFunc(h.Members, func(m fleet.MemberHealth) bool { return m.Look > 0 || !m.Seen.IsZero() }) {
		out = append(out, "whether a keyspace has one replica only is not known: no agent has read it over CQL (docs/agent.md)")
	}
	if s.r.kind == Takeover {
		out = append(out, returnNotes(s.standings)...)
	}
	return out, nil
}

func firstOf(all []string, n int) []string {
	if len(all) > n {
		return append(slices.Clone(all[:n]), fmt.Sprintf("%d more", len(all)-n))
	}
	return all
}
