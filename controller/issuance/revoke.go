package issuance

import (
	"context"
	"time"

	"github.com/cassandra-security-manager/csm/controller/ledger"
	"github.com/cassandra-security-manager/csm/controller/state"
	clusterv1 "github.com/cassandra-security-manager/csm/protocol/cluster/v1"
	"github.com/cassandra-security-manager/csm/shared/resource"
)

// Revocation is what a revocation did, and did not do.
type Revocation struct {
	Name   string
	Time   time.Time
	Reason ledger.Reason
	// Already: it was revoked before; Time and Reason are those of then.
	Already bool
	// Note says what a revocation does not do. Show it.
	Note string
}

// RevocationNote is the truth about revoking a certificate that Cassandra uses.
const RevocationNote = "The certificate is in the next revocation list, but a default Cassandra checks no revocation list: its nodes go on accepting this " +
	"certificate until it expires. To lock its holder out now, close its database role or identity, or rotate trust away from its issuer. " +
	"The identity of an agent or administrator is closed by revoking that agent or administrator."

// Revoke revokes a certificate by its full name, for good. A second time changes nothing.
func (s *Issuance) Revoke(ctx context.Context, name string, reason ledger.Reason, actor string) (*Revocation, error) {
	if err := reason.Check(); err != nil {
		return nil, err
	}
	r, err := state.Reply[*clusterv1.RevokedCertificate](ctx, s.log, state.Proposal{Actor: actor, Tenant: resource.Segment(name, "tenants"),
		Reason: reason.String(), Command: &clusterv1.RevokeCertificate{Name: name, Reason: uint32(reason)}})
	if err != nil {
		return nil, err
	}
	return &Revocation{Name: r.Name, Time: time.UnixMilli(r.RevokedMs).UTC(), Reason: ledger.Reason(r.Reason), Already: r.Already, Note: RevocationNote}, nil
}
