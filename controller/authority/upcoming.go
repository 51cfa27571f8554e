package authority

import (
	"context"
	"time"

	"github.com/cassandra-security-manager/csm/controller/state"
)

// End is when an issuer's certificate ends, and when the first of its revocation lists must be replaced.
type End struct {
	Authority, Issuer string
	Kind              Kind
	NotAfter          time.Time
	// NextUpdate is zero when a list could not be made: the issuer's key is out of reach.
	NextUpdate time.Time
}

// Ends lists the active issuers of every authority, the system's too. It makes the revocation lists that are due, as a
// client that fetches them would.
func (s *Authorities) Ends(ctx context.Context) ([]End, error) {
	var all []Authority
	err := s.store.View(ctx, func(ctx context.Context, q state.Querier) (err error) {
		all, err = read(ctx, q, `1 = 1`)
		return err
	})
	var out []End
	for _, a := range all {
		for _, i := range a.Issuers {
			if i.State != Active {
				continue
			}
			e := End{Authority: a.Name, Issuer: i.Name, Kind: i.Kind, NotAfter: i.Certificate.NotAfter}
			for shard := range i.Shards {
				l, err := s.CRL(ctx, i.PublicID, shard)
				if err != nil {
					e.NextUpdate = time.Time{}
					break
				}
				if e.NextUpdate.IsZero() || l.NextUpdate.Before(e.NextUpdate) {
					e.NextUpdate = l.NextUpdate
				}
			}
			out = append(out, e)
		}
	}
	return out, err
}
