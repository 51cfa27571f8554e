package rotation

import (
	"fmt"
	"time"

	"github.com/cassandra-security-manager/csm/controller/fleet"
	"github.com/cassandra-security-manager/csm/controller/state"
)

// exceptLinks is the name under which a person accepts that connections between nodes from before the swap live on.
const exceptLinks = "links"

// links are the connections of each node to other nodes from before the swap, by full name of the node.
func (s *sight) links() (map[string]fleet.NodeLinks, error) {
	list, err := fleet.Links(s.ctx, s.q, s.r.cluster)
	out := map[string]fleet.NodeLinks{}
	for _, l := range list {
		out[l.Node] = l
	}
	return out, err
}

// linked fills in what is known of a member's links.
func (m *Member) linked(all map[string]fleet.NodeLinks, now time.Time) {
	l, ok := all[m.Node]
	switch {
	case !ok:
		m.OldLinks, m.Links = -1, "nobody tells of them"
	case l.Unseen != "":
		m.OldLinks, m.Links = -1, l.Unseen
	case l.Old > 0:
		m.OldLinks, m.Links = int(l.Old), l.Uncuttable
		switch {
		case l.Wish == nil:
		case l.Cycled < l.Wish.Generation:
			m.Cycling, m.Links = now.Before(l.Wish.Until), l.WaitsFor
		case l.Result != "done":
			m.Links = l.Detail // it was asked and could not: a person looks
		}
	}
}

// toCycle is the node whose links are to be cycled next: one at a time, when every leaf is proved and a person is about to retire. Pure.
func toCycle(v View) string {
	next := ""
	for _, m := range v.Members {
		switch {
		case m.Cycling:
			return ""
		case next == "" && m.OldLinks > 0 && m.Links == "" && m.Active && m.Up:
			next = m.Node
		}
	}
	return next
}

// cycle asks that node. One that cannot is a reason for people, not an error.
func (m machine) cycle(a *state.Apply, r row, node string) error {
	if _, err := fleet.WishCycle(a, node, short(r.name)); err != nil {
		return err
	}
	return event(a, r, fmt.Sprintf("%s ends its connections from before the swap, one peer after the other", short(node)))
}
