package authority

import (
	"context"
	"crypto"
	"crypto/sha256"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/asn1"
	"encoding/hex"
	"errors"
	"fmt"
	"strconv"
	"strings"
	"time"

	"golang.org/x/crypto/cryptobyte"
	cbasn1 "golang.org/x/crypto/cryptobyte/asn1"

	"github.com/cassandra-security-manager/csm/controller/state"
	clusterv1 "github.com/cassandra-security-manager/csm/protocol/cluster/v1"
	"github.com/cassandra-security-manager/csm/shared/algorithm"
	"github.com/cassandra-security-manager/csm/shared/certificate"
	"github.com/cassandra-security-manager/csm/shared/fault"
	"github.com/cassandra-security-manager/csm/shared/resource"
)

// CreateOptions of an authority.
type CreateOptions struct {
	DisplayName string
	// Algorithm of the root and the issuers, P-384 when empty.
	Algorithm algorithm.Key
	// Validity of the root, 15 years when zero.
	Validity time.Duration
	Actor    string
	Reason   string
}

// Genesis makes the system authority: a self-signed P-384 CA of 15 years for the trust domain "<systemID>.csm". Again with the
// same id it returns the one there is.
func (s *Authorities) Genesis(ctx context.Context, systemID, actor string) (*Authority, error) {
	if err := resource.CheckID("system id", systemID); err != nil {
		return nil, err
	}
	td := systemID + ".csm"
	if a, err := s.Get(ctx, SystemName); err == nil {
		if a.TrustDomain == td {
			return a, nil
		}
		return nil, fault.New(fault.Conflict, "system-exists", "the system authority belongs to %s", a.TrustDomain).Do("use an empty data_dir for a new system")
	} else if !fault.Is(err, fault.NotFound) {
		return nil, err
	}
	subject := systemSubject(systemID, 1)
	return s.createRoot(ctx, SystemName, "", td, subject, CreateOptions{DisplayName: "System", Actor: actor, Reason: "genesis"})
}

// CreateRoot makes a tenant's authority with its self-signed root. The root signs issuing CAs and nothing else.
func (s *Authorities) CreateRoot(ctx context.Context, tenant, id string, o CreateOptions) (*Authority, error) {
	if err := resource.CheckID("tenant", tenant); err != nil {
		return nil, err
	}
	if err := resource.CheckID("authority", id); err != nil {
		return nil, err
	}
	name := resource.Authority(tenant, id)
	if _, err := s.Get(ctx, name); err == nil {
		return nil, exists(name)
	} else if !fault.Is(err, fault.NotFound) {
		return nil, err
	}
	subject := pkix.Name{CommonName: id + " root", OrganizationalUnit: []string{tenant}, Organization: []string{"Cassandra Security Manager"}}
	return s.createRoot(ctx, name, tenant, "", subject, o)
}

func exists(name string) error {
	return fault.New(fault.Conflict, "authority-exists", "there is an authority %s", name).Do("take another id, or use this one")
}

func (s *Authorities) createRoot(ctx context.Context, name, tenant, td string, subject pkix.Name, o CreateOptions) (*Authority, error) {
	alg, err := s.algorithm(o.Algorithm)
	if err != nil {
		return nil, err
	}
	if o.Validity == 0 {
		o.Validity = RootValidity
	}
	issuer := resource.Issuer(name, "root")
	rec, pub, err := s.newKey(ctx, issuer, alg, o.Actor)
	if err != nil {
		return nil, err
	}
	tmpl, err := s.caTemplate(subject, pub, o.Validity)
	if err != nil {
		return nil, err
	}
	if td != "" {
		systemRoot(tmpl, td)
	} else {
		tmpl.MaxPathLen = 1
	}
	signer, err := s.keys.Signer(ctx, rec.Key)
	if err != nil {
		return nil, err
	}
	if err := s.sign(rec, tmpl, tmpl, signer, pub); err != nil {
		return nil, err
	}
	rec.Kind, rec.Parent = string(Root), issuer
	err = s.propose(ctx, state.Proposal{Actor: o.Actor, Tenant: tenant, Reason: o.Reason, Command: &clusterv1.CreateAuthority{
		Name: name, Tenant: tenant, DisplayName: o.DisplayName, Algorithm: string(alg), Root: rec, TrustDomain: td}})
	if err != nil {
		return nil, err
	}
	return s.Get(ctx, name)
}

// CreateIssuer makes an issuing CA (path length 0, 3 years, never past its root) for a region of a tenant's authority. A
// second one in the same region takes over at once; the first stays active until it is retired.
func (s *Authorities) CreateIssuer(ctx context.Context, authority, region, actor string) (*Issuer, error) {
	if err := resource.CheckID("region", region); err != nil {
		return nil, err
	}
	if authority == SystemName {
		return nil, fault.New(fault.Invalid, "system-issuer", "the system authority signs by its root")
	}
	a, err := s.Get(ctx, authority)
	if err != nil {
		return nil, err
	}
	root := newestRoot(a)
	if root == nil {
		return nil, fault.New(fault.Unavailable, "no-root", "%s has no active root", authority)
	}
	if strings.HasPrefix(root.Key, externalKey) {
		return nil, fault.New(fault.Refused, "external-root", "the root of %s is not here", authority).
			Do("make a request with `csm ca csr %s --region %s`, have it signed, and install the chain", resource.Last(authority), region)
	}
	n := 1 + a.issuing(region)
	name := resource.Issuer(authority, region+"-"+strconv.Itoa(n))
	rec, pub, err := s.newKey(ctx, name, a.Algorithm, actor)
	if err != nil {
		return nil, err
	}
	validity := min(IssuerValidity, root.Certificate.NotAfter.Sub(s.clock.Now()))
	tmpl, err := s.caTemplate(subject(authority, a.Tenant, region, n), pub, validity)
	if err != nil {
		return nil, err
	}
	tmpl.MaxPathLen, tmpl.MaxPathLenZero = 0, true
	root.Point(tmpl)
	signer, err := s.keys.Signer(ctx, root.Key)
	if err != nil {
		return nil, err
	}
	if err := s.sign(rec, tmpl, root.Certificate, signer, pub); err != nil {
		return nil, err
	}
	rec.Kind, rec.Region, rec.Zone, rec.Parent = string(Issuing), region, a.Zone, root.Name
	if err := s.propose(ctx, state.Proposal{Actor: actor, Tenant: a.Tenant, Reason: "issuing CA of " + region,
		Command: &clusterv1.CreateIssuer{Authority: authority, Issuer: rec}}); err != nil {
		return nil, err
	}
	if a, err = s.Get(ctx, authority); err != nil {
		return nil, err
	}
	return a.issuer(name), nil
}

func newestRoot(a *Authority) *Issuer {
	var best *Issuer
	for k := range a.Issuers {
		if i := &a.Issuers[k]; i.Kind == Root && i.State == Active && (best == nil || i.CreateTime.After(best.CreateTime)) {
			best = i
		}
	}
	return best
}

// SetState activates or retires an issuer. Certificates that it signed stay valid, and its lists go on.
func (s *Authorities) SetState(ctx context.Context, issuer string, st State, actor, reason string) error {
	err := s.propose(ctx, state.Proposal{Actor: actor, Tenant: resource.Segment(issuer, "tenants"), Reason: reason,
		Command: &clusterv1.SetIssuerState{Issuer: issuer, State: string(st)}})
	s.Forget(resource.Parent(issuer))
	return err
}

func (s *Authorities) propose(ctx context.Context, p state.Proposal) error {
	if _, err := s.log.Propose(ctx, p); err != nil {
		return err
	}
	switch c := p.Command.(type) {
	case *clusterv1.CreateAuthority:
		s.Forget(c.Name)
	case *clusterv1.CreateIssuer:
		s.Forget(c.Authority)
	}
	return nil
}

func (s *Authorities) algorithm(k algorithm.Key) (algorithm.Key, error) {
	if k == algorithm.P256 && !s.options.AllowBenchmark {
		return "", fault.New(fault.Invalid, "weak-key", "P-256 is for benchmarks only").Do("leave the algorithm out: %s is the default", algorithm.Default)
	}
	return algorithm.Parse(string(k))
}

// newKey makes the key of an issuer under a name of its own: a try that failed later leaves a key that nothing refers to.
func (s *Authorities) newKey(ctx context.Context, issuer string, alg algorithm.Key, actor string) (*clusterv1.IssuerRecord, crypto.PublicKey, error) {
	serial, err := certificate.Serial(s.rand)
	if err != nil {
		return nil, nil, err
	}
	info, err := s.keys.CreateKey(ctx, issuer+"/keys/"+hex.EncodeToString(serial.Bytes()[:4]), alg, actor)
	if err != nil {
		return nil, nil, err
	}
	spki, err := x509.MarshalPKIXPublicKey(info.Public)
	if err != nil {
		return nil, nil, fmt.Errorf("authority: encode public key: %w", err)
	}
	sum := sha256.Sum256(spki)
	return &clusterv1.IssuerRecord{Name: issuer, PublicId: hex.EncodeToString(sum[:10]), Key: info.Name,
		CrlShards: uint32(s.options.CRLShards), BaseUrls: s.baseURLs()}, info.Public, nil
}

func (s *Authorities) baseURLs() []string {
	urls := make([]string, 0, len(s.options.BaseURLs))
	for _, u := range s.options.BaseURLs {
		if u = strings.TrimRight(u, "/"); u != "" {
			urls = append(urls, u)
		}
	}
	return urls
}

func (s *Authorities) caTemplate(subject pkix.Name, pub crypto.PublicKey, validity time.Duration) (*x509.Certificate, error) {
	serial, err := certificate.Serial(s.rand)
	if err != nil {
		return nil, err
	}
	spki, err := x509.MarshalPKIXPublicKey(pub)
	if err != nil {
		return nil, fmt.Errorf("authority: encode public key: %w", err)
	}
	ski, err := KeyID(spki)
	if err != nil {
		return nil, err
	}
	now := s.clock.Now().UTC().Truncate(time.Second)
	return &x509.Certificate{SerialNumber: serial, Subject: subject, NotBefore: now.Add(-Backdate), NotAfter: now.Add(validity),
		KeyUsage: x509.KeyUsageCertSign | x509.KeyUsageCRLSign, BasicConstraintsValid: true, IsCA: true, SubjectKeyId: ski}, nil
}

// KeyID is the subject key identifier: the leftmost 160 bits of the SHA-256 of the public key's bit string (RFC 7093, 2(1)).
// spki is the SubjectPublicKeyInfo in DER.
func KeyID(spki []byte) ([]byte, error) {
	var info, algorithm cryptobyte.String
	var key asn1.BitString
	if rest := cryptobyte.String(spki); !rest.ReadASN1(&info, cbasn1.SEQUENCE) || !info.ReadASN1(&algorithm, cbasn1.SEQUENCE) || !info.ReadASN1BitString(&key) {
		return nil, errors.New("authority: the public key cannot be read")
	}
	sum := sha256.Sum256(key.Bytes)
	return sum[:20], nil
}

// sign makes the certificate, reads it back, verifies it under its parent and puts it into the record.
func (s *Authorities) sign(rec *clusterv1.IssuerRecord, tmpl, parent *x509.Certificate, signer crypto.Signer, pub crypto.PublicKey) error {
	sig, err := algorithm.Signature(signer.Public())
	if err != nil {
		return err
	}
	tmpl.SignatureAlgorithm = sig
	der, err := x509.CreateCertificate(s.rand, tmpl, parent, pub, signer)
	if err != nil {
		return fault.Wrap(err, fault.Internal, "sign-ca", "the certificate of %s could not be signed", rec.Name)
	}
	c, err := certificate.Parse(der)
	if err != nil {
		return err
	}
	above := parent
	if parent == tmpl {
		above = c
	}
	if err := c.CheckSignatureFrom(above); err != nil || !c.IsCA || !certificate.SameKey(c.PublicKey, pub) {
		return fault.New(fault.Internal, "sign-ca", "the certificate of %s came out wrong and is thrown away", rec.Name)
	}
	rec.Certificate, rec.NotBeforeMs, rec.NotAfterMs = der, c.NotBefore.UnixMilli(), c.NotAfter.UnixMilli()
	return nil
}
