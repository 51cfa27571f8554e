package install

import (
	"crypto/x509"
	"encoding/hex"
	"slices"

	"github.com/cassandra-security-manager/csm/agent/cassandra"
	"github.com/cassandra-security-manager/csm/agent/probe"
	"github.com/cassandra-security-manager/csm/shared/certificate"
	"github.com/cassandra-security-manager/csm/shared/fault"
	"github.com/cassandra-security-manager/csm/shared/keystore"
)

// withdrawn says whether the plan takes an anchor, by its id, out of the truststore.
func (t *transaction) withdrawn(id string) bool {
	return t.plan.Shrink && slices.ContainsFunc(t.plan.Withdraw, func(w [32]byte) bool { return hex.EncodeToString(w[:]) == id })
}

// goes says whether an anchor found in the truststore is taken out: it is named, and it was CSM that placed it.
func (t *transaction) goes(c *x509.Certificate) bool {
	id := anchorID(c)
	return t.withdrawn(id) && t.rec != nil && slices.Contains(t.rec.Ours, id)
}

// shrinkFits refuses a shrinking that would do more than shrink, or that takes away what is wanted or needed.
func (t *transaction) shrinkFits(grows int, anchors []*x509.Certificate) error {
	p := t.plan
	if !p.Shrink {
		return nil
	}
	switch {
	case p.Key != nil || p.givesBack() || grows > 0:
		return fault.New(fault.Refused, "mixed-move", "trust would shrink while it grows or the leaf changes").Do("first install, then retire the old CA by a move of its own")
	case slices.ContainsFunc(p.Anchors, func(c *x509.Certificate) bool { return t.withdrawn(anchorID(c)) }):
		return fault.New(fault.Refused, "bad-plan", "an anchor is both wanted and withdrawn").Do("ask for the current target")
	}
	return t.stillNeeded(anchors)
}

// stillNeeded refuses when the leaf in the store would no longer lead to an anchor.
func (t *transaction) stillNeeded(anchors []*x509.Certificate) error {
	if t.old.key == nil {
		return nil
	}
	l := t.old.key.Leaf()
	if err := certificate.VerifyChain(l, t.old.key.Chain[1:], anchors, l.NotBefore.Add(l.NotAfter.Sub(l.NotBefore)/2)); err != nil {
		return needed("the certificate in store " + t.site.Store.Name)
	}
	return nil
}

// servedNeeds refuses when what a port serves, which may be older than the file, would no longer lead to an anchor.
func (t *transaction) servedNeeds(port cassandra.Port, r probe.Result) error {
	if !t.plan.Shrink || len(r.Chain) == 0 {
		return nil
	}
	l := r.Chain[0]
	if err := certificate.VerifyChain(l, r.Chain[1:], t.new.anchors, l.NotBefore.Add(l.NotAfter.Sub(l.NotBefore)/2)); err != nil {
		return needed("the certificate served on " + port.Address.String())
	}
	return nil
}

func needed(what string) error {
	return fault.New(fault.Refused, "anchor-needed", "%s chains to an anchor that is to go", what).Do("bring this node a certificate of the new CA first: `csm node renew`")
}

// distributed refuses a leaf of another CA than the one in use while the truststore on disk does not hold that CA: where it
// has not come to this node, it need not have come to the others either. A first install, or one over another CA's leaf,
// brings both.
func (t *transaction) distributed() error {
	if t.plan.Key == nil && !t.plan.givesBack() || t.old.key == nil || t.rec == nil || t.rec.Theirs || len(t.rec.History) == 0 || t.oldBroken() != nil {
		return nil
	}
	problems := keystore.Check(t.new.key, t.old.anchors, keystore.Expect{Now: t.i.o.Clock.Now(), EKUs: []x509.ExtKeyUsage{}})
	for _, p := range problems {
		if p.Code == "untrusted" {
			return fault.New(fault.Refused, "trust-not-distributed", "the truststore in place does not hold the CA of the new certificate: %s", p.Message).
				Do("trust comes first: a rotation distributes it before it issues")
		}
	}
	return nil
}
