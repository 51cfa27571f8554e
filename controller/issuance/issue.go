package issuance

import (
	"context"
	"crypto/rsa"
	"crypto/sha256"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/hex"
	"fmt"
	"time"

	"github.com/cassandra-security-manager/csm/controller/authority"
	"github.com/cassandra-security-manager/csm/controller/issuance/turns"
	"github.com/cassandra-security-manager/csm/controller/ledger"
	"github.com/cassandra-security-manager/csm/controller/state"
	clusterv1 "github.com/cassandra-security-manager/csm/protocol/cluster/v1"
	"github.com/cassandra-security-manager/csm/shared/algorithm"
	"github.com/cassandra-security-manager/csm/shared/certificate"
	"github.com/cassandra-security-manager/csm/shared/fault"
	"github.com/cassandra-security-manager/csm/shared/resource"
)

// Issue signs and records a leaf. On Unavailable and Unknown faults ask again with the same RequestID.
func (s *Issuance) Issue(ctx context.Context, r Request) (*Issued, error) {
	began := s.clock.Now()
	out, err := s.issue(ctx, r)
	s.observe(r.Template, err, began)
	return out, err
}

func (s *Issuance) observe(template string, err error, began time.Time) {
	if s.options.Observe == nil {
		return
	}
	reason := ""
	if err != nil {
		reason = fault.From(err).Reason
	}
	s.options.Observe(template, reason, s.clock.Since(began))
}

func (s *Issuance) issue(ctx context.Context, r Request) (*Issued, error) {
	var o order
	err := s.examining(ctx, func() (err error) {
		o, err = s.order(r)
		return err
	})
	if err != nil {
		return nil, err
	}
	if r.Examined != nil {
		r.Examined()
	}
	return s.produce(ctx, o)
}

// examining does what costs a processor; few do at a time.
func (s *Issuance) examining(ctx context.Context, do func() error) error {
	select {
	case s.room <- struct{}{}:
	case <-ctx.Done():
		return fault.From(ctx.Err())
	}
	defer func() { <-s.room }()
	return do()
}

// Preview is what a request would be given.
type Preview struct {
	Names   certificate.Names
	Subject string
	Issuer  string
}

// Validate says what Issue would refuse before it signs, and signs nothing.
func (s *Issuance) Validate(ctx context.Context, r Request) (*Preview, error) {
	o, err := s.order(r)
	if err != nil {
		return nil, err
	}
	if err := o.wish.prove(); err != nil {
		return nil, err
	}
	i, err := s.authorities.IssuerFor(ctx, o.authority, o.region)
	if err != nil {
		return nil, err
	}
	_, err = o.template.lifetime(o.validity, s.clock.Now(), i.Certificate.NotAfter)
	return &Preview{Names: o.names, Subject: o.subject.CommonName, Issuer: i.Name}, err
}

// order checks all that needs neither issuer nor state, but the proof of possession.
func (s *Issuance) order(r Request) (order, error) {
	t, err := templateOf(r.Template)
	if err != nil {
		return order{}, err
	}
	w, err := s.examine(r.CSR)
	if err != nil {
		return order{}, err
	}
	if r.FromCSR && r.Subject == "" {
		r.Subject = w.subject
	}
	if err := r.check(t); err != nil {
		return order{}, err
	}
	names, err := grant(w.names, r.Names, r.FromCSR)
	if err != nil {
		return order{}, err
	}
	cn := r.commonName(names)
	if err := checkHost(t, names, cn); err != nil {
		return order{}, err
	}
	scope := r.Node
	if scope == "" {
		scope = resource.Tenant(r.Tenant) + "/" + t.Name + "/" + cn
	}
	if t.Name == probeTemplate.Name { // counted apart: proving neighbours must not use up a node's own certificates
		scope += "/probes"
	}
	return order{template: t, wish: w, names: names, authority: r.Authority, region: r.Region, validity: r.Validity, due: r.Due,
		subject: pkix.Name{CommonName: cn, Organization: []string{r.Tenant}}, actor: r.Actor, reason: r.Reason,
		record: &clusterv1.RecordCertificate{RequestId: r.RequestID, Scope: scope, Tenant: r.Tenant, Zone: r.Zone, Node: r.Node,
			Incarnation: r.Incarnation, Store: r.Store, Claim: r.Claim, Task: r.Task}}, nil
}

// order is a request that was found lawful.
type order struct {
	template          Template
	wish              *wish
	names             certificate.Names
	subject           pkix.Name
	authority, region string
	validity          time.Duration
	due               time.Time
	actor, reason     string
	record            *clusterv1.RecordCertificate
}

// produce signs, records and hands out. An issuer that was retired meanwhile, or a serial that is taken, costs another try.
func (s *Issuance) produce(ctx context.Context, o order) (*Issued, error) {
	for attempt := 0; ; attempt++ {
		out, err := s.attempt(ctx, o)
		if err == nil {
			return out, nil
		}
		again := fault.HasReason(err, "issuer-not-active") || fault.HasReason(err, "serial-used")
		if !again || attempt == 2 {
			return nil, err
		}
		s.authorities.Forget(o.authority)
	}
}

func (s *Issuance) attempt(ctx context.Context, o order) (*Issued, error) {
	issuer, err := s.authorities.IssuerFor(ctx, o.authority, o.region)
	if err != nil {
		return nil, err
	}
	chain, err := s.chainAbove(ctx, issuer)
	if err != nil {
		return nil, err
	}
	done, err := s.options.Turns.Take(ctx, o.turn())
	if err != nil {
		return nil, err
	}
	defer done()
	// Not before its turn: of a storm most are told to come back, and to prove each of them then would cost what signing it does.
	if err := s.examining(ctx, o.wish.prove); err != nil {
		return nil, err
	}
	now := s.clock.Now().UTC().Truncate(time.Second)
	end, err := o.template.lifetime(o.validity, now, issuer.Certificate.NotAfter)
	if err != nil {
		return nil, err
	}
	der, err := s.make(ctx, o, issuer, now, end)
	if err != nil {
		return nil, err
	}
	done() // recording it is not the signer's work
	renew, err := drawRenewal(s.rand, now, end)
	if err != nil {
		return nil, fault.Wrap(err, fault.Internal, "randomness", "no random bytes for a renewal time")
	}
	c := o.record
	spki, parent := sha256.Sum256(o.wish.spki), certificate.Fingerprint(issuer.Certificate.Raw)
	c.Der, c.Issuer, c.IssuerSha256, c.KeySha256 = der.raw, issuer.Name, parent[:], spki[:]
	c.Serial, c.Subject, c.Names = der.serial, o.subject.String(), recordNames(o.names, o.subject.CommonName)
	c.Template, c.TemplateVersion, c.Algorithm = o.template.Name, o.template.Version, string(o.wish.algorithm)
	c.NotBeforeMs, c.NotAfterMs, c.RenewAtMs, c.SignedAtMs = now.Add(-authority.Backdate).UnixMilli(), end.UnixMilli(), renew.UnixMilli(), now.UnixMilli()
	c.HourlyCap = s.cap(o.template)
	res, err := s.log.Propose(ctx, state.Proposal{Command: c, Actor: o.actor, Reason: o.reason, Tenant: c.Tenant, Zone: c.Zone, Whole: true})
	if err != nil {
		return nil, err // signed but unrecorded is not issued: the bytes end here
	}
	rec, ok := res.Reply.(*clusterv1.RecordedCertificate)
	if !ok {
		return nil, fmt.Errorf("issuance: a record was answered with %T", res.Reply)
	}
	if rec.Repeated {
		return s.repeated(ctx, rec)
	}
	out := ledger.Recorded(c, o.actor, res.Index, res.Time)
	if rec.Name != out.Name {
		return nil, fault.New(fault.Internal, "other-record", "%s was recorded in place of %s; nothing was handed out", rec.Name, out.Name).Do("ask again with a new request id")
	}
	out.Names = o.names
	return &Issued{Name: out.Name, Serial: out.Serial, Chain: append([][]byte{der.raw}, certificate.Raw(chain)...), Issuer: c.Issuer,
		NotAfter: out.NotAfter, RenewAt: out.RenewAt, Record: out}, nil
}

// turn is its place in the signer's line; who cannot repeat the request is kept none.
func (o order) turn() turns.Request {
	r := turns.Request{Due: o.due}
	if o.record.RequestId != "" {
		r.ID = o.record.Scope + " " + o.record.RequestId
	}
	return r
}

func (s *Issuance) cap(t Template) uint32 {
	switch {
	case s.options.HourlyCap < 0:
		return 0
	case s.options.HourlyCap > 0:
		return uint32(s.options.HourlyCap)
	}
	return t.HourlyCap
}

// chainAbove is what follows the leaf, verified up to a root.
func (s *Issuance) chainAbove(ctx context.Context, i *authority.Issuer) ([]*x509.Certificate, error) {
	chain, err := s.authorities.Chain(ctx, i)
	if err != nil {
		return nil, err
	}
	root := i
	for n := 0; root.Kind != authority.Root && n < 8; n++ {
		if root, err = s.authorities.Issuer(ctx, root.Parent); err != nil {
			return nil, err
		}
	}
	return chain, s.verifyIssuer(i, chain, root.Certificate)
}

type made struct{ raw, serial []byte }

// make builds, rehearses, lints and signs.
func (s *Issuance) make(ctx context.Context, o order, i *authority.Issuer, now, end time.Time) (made, error) {
	if !o.wish.proved {
		return made{}, fault.New(fault.Internal, "unproved", "nothing is signed for a request that its own key has not signed")
	}
	sig, err := algorithm.Signature(i.Certificate.PublicKey)
	if err != nil {
		return made{}, err
	}
	serial, err := certificate.Serial(s.rand)
	if err != nil {
		return made{}, err
	}
	ski, err := authority.KeyID(o.wish.spki)
	if err != nil {
		return made{}, err
	}
	tmpl := &x509.Certificate{SerialNumber: serial, Subject: o.subject, NotBefore: now.Add(-authority.Backdate), NotAfter: end,
		KeyUsage: x509.KeyUsageDigitalSignature, ExtKeyUsage: o.template.Usages, BasicConstraintsValid: true, SubjectKeyId: ski,
		SignatureAlgorithm: sig, DNSNames: o.names.DNS}
	if _, isRSA := o.wish.public.(*rsa.PublicKey); isRSA {
		tmpl.KeyUsage |= x509.KeyUsageKeyEncipherment
	}
	if tmpl.IPAddresses, tmpl.URIs, err = o.names.X509(); err != nil {
		return made{}, err
	}
	i.Point(tmpl)
	der, err := s.sign(ctx, tmpl, i, expected{template: o.template, names: o.names, spki: o.wish.spki, now: now,
		issuer: i.Certificate, signature: sig, pointed: len(i.BaseURLs) > 0})
	return made{der, serial.Bytes()}, err
}

func recordNames(n certificate.Names, cn string) []*clusterv1.CertificateName {
	var out []*clusterv1.CertificateName
	add := func(kind string, values ...string) {
		for _, v := range values {
			if v != "" {
				out = append(out, &clusterv1.CertificateName{Kind: kind, Value: v})
			}
		}
	}
	add("dns", n.DNS...)
	add("ip", n.IPStrings()...)
	add("uri", n.URIs...)
	add("cn", cn)
	return out
}

// repeated answers with the certificate of the first time, whose issuer may be another one by now.
func (s *Issuance) repeated(ctx context.Context, rec *clusterv1.RecordedCertificate) (*Issued, error) {
	i, err := s.authorities.Issuer(ctx, rec.Issuer)
	if err != nil {
		return nil, err
	}
	chain, err := s.authorities.Chain(ctx, i)
	if err != nil {
		return nil, err
	}
	leaf, err := certificate.Parse(rec.Der)
	if err != nil {
		return nil, err
	}
	return &Issued{Name: rec.Name, Serial: hex.EncodeToString(leaf.SerialNumber.Bytes()), Chain: append([][]byte{rec.Der}, certificate.Raw(chain)...), Issuer: rec.Issuer,
		NotAfter: leaf.NotAfter.UTC(), RenewAt: time.UnixMilli(rec.RenewAtMs).UTC(), Repeated: true}, nil
}
