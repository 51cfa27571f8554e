package fleet

import (
	"context"
	"net/netip"

	"github.com/cassandra-security-manager/csm/controller/state"
)

// gossip counts the enrolled nodes of a cluster besides one, and for each address how many of them see a member there. Where
// the host id of who asks is known, the member must have it too.
func gossip(ctx context.Context, q state.Querier, cluster, besides, hostID string, addresses []string) (enrolled int, seenBy map[string]int, err error) {
	if err := q.QueryRowContext(ctx, `SELECT count(*) FROM nodes n JOIN agents g ON g.uid = n.uid AND g.incarnation = n.incarnation WHERE n.cluster = ? AND n.name <> ? AND g.state = ?`,
		cluster, besides, Active).Scan(&enrolled); err != nil {
		return 0, nil, err
	}
	views, err := ringViews(ctx, q, cluster)
	if err != nil {
		return 0, nil, err
	}
	seenBy = map[string]int{}
	for _, s := range addresses {
		a, err := netip.ParseAddr(s)
		if err != nil {
			continue
		}
		see, _ := witnesses(views, besides, func(m ringMember) bool {
			return m.address == a.Unmap() && (hostID == "" || m.hostID == hostID || a.IsLoopback())
		})
		seenBy[s] = len(see)
	}
	return enrolled, seenBy, nil
}
