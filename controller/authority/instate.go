package authority

import (
	"context"
	"time"

	"github.com/cassandra-security-manager/csm/controller/state"
)

// InState reads an authority in a transaction that is open already: for those who decide by it in Apply.
func InState(ctx context.Context, q state.Querier, name string) (*Authority, error) {
	list, err := read(ctx, q, `name = ?`, name)
	if err != nil {
		return nil, err
	}
	if len(list) == 0 {
		return nil, noAuthority(name)
	}
	return &list[0], nil
}

// Roots are the anchors (DER) of an authority that are valid at a time, by name.
func (a *Authority) Roots(now time.Time) (out [][]byte) {
	for _, i := range a.Issuers {
		if i.Kind == Root && i.Certificate.NotAfter.After(now) {
			out = append(out, i.Certificate.Raw)
		}
	}
	return out
}

// Signing is who would sign for a region at a time; nil when nobody can.
func (a *Authority) Signing(region string, now time.Time) *Issuer { return choose(a, region, now) }
