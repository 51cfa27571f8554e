package authority

import (
	"context"
	"crypto/rand"
	"crypto/sha256"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/hex"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/cassandra-security-manager/csm/controller/keyring"
	"github.com/cassandra-security-manager/csm/controller/state"
	clusterv1 "github.com/cassandra-security-manager/csm/protocol/cluster/v1"
	"github.com/cassandra-security-manager/csm/shared/algorithm"
	"github.com/cassandra-security-manager/csm/shared/certificate"
	"github.com/cassandra-security-manager/csm/shared/fault"
	"github.com/cassandra-security-manager/csm/shared/resource"
)

// An authority under a root of somebody else: the key of its issuing CA is made here and never leaves, a request goes out, and the
// chain comes back. Roots and intermediates of that chain stand in the state without a key, so they sign nothing here.

// Intermediate is a CA between a foreign root and an issuing CA of ours. Its key is not here.
const Intermediate Kind = "intermediate"

// externalKey begins the name of a key that is not in the keyring.
const externalKey = "external/"

// minInstalled is how long a chain must still be valid to be worth installing.
const minInstalled = 30 * 24 * time.Hour

// subject of an issuing CA: the request asks for it, and the certificate must carry its common name.
func subject(authority, tenant, region string, n int) pkix.Name {
	return pkix.Name{CommonName: fmt.Sprintf("%s %s %d", resource.Last(authority), region, n), OrganizationalUnit: []string{tenant},
		Organization: []string{"Cassandra Security Manager"}}
}

// Request makes a key for an issuing CA of a region and a certificate request (PKCS#10, DER) for it, to be signed by a CA
// elsewhere. The authority need not exist yet. Each call makes another key; Install takes the one that was certified.
func (s *Authorities) Request(ctx context.Context, name, region string, alg algorithm.Key, actor string) ([]byte, error) {
	if err := checkExternal(name, region); err != nil {
		return nil, err
	}
	n := 1
	a, err := s.Get(ctx, name)
	switch {
	case err == nil:
		if root := newestRoot(a); root != nil && !strings.HasPrefix(root.Key, externalKey) {
			return nil, fault.New(fault.Refused, "own-root", "%s has a root of its own", name).Do("make issuers with `csm ca create-issuer`, or request for another authority")
		}
		n += a.issuing(region)
		alg = a.Algorithm
	case !fault.Is(err, fault.NotFound):
		return nil, err
	}
	if alg, err = s.algorithm(alg); err != nil {
		return nil, err
	}
	rec, _, err := s.newKey(ctx, resource.Issuer(name, fmt.Sprintf("%s-%d", region, n)), alg, actor)
	if err != nil {
		return nil, err
	}
	signer, err := s.keys.Signer(ctx, rec.Key)
	if err != nil {
		return nil, err
	}
	sig, err := algorithm.Signature(signer.Public())
	if err != nil {
		return nil, err
	}
	der, err := x509.CreateCertificateRequest(rand.Reader, &x509.CertificateRequest{SignatureAlgorithm: sig,
		Subject: subject(name, resource.Segment(name, "tenants"), region, n)}, signer)
	if err != nil {
		return nil, fault.Wrap(err, fault.Internal, "csr", "the certificate request could not be made")
	}
	return der, nil
}

func checkExternal(name, region string) error {
	if err := resource.CheckID("region", region); err != nil {
		return err
	}
	if err := resource.CheckID("tenant", resource.Segment(name, "tenants")); err != nil {
		return err
	}
	return resource.CheckID("authority", resource.Last(name))
}

func (a *Authority) issuing(region string) (n int) {
	for _, i := range a.Issuers {
		if i.Kind == Issuing && i.Region == region {
			n++
		}
	}
	return n
}

// Install takes the chain that answers a Request: the issuing CA's certificate, what is above it, the root last. It makes the
// authority if there is none.
func (s *Authorities) Install(ctx context.Context, name string, chain []*x509.Certificate, actor string) (*Issuer, error) {
	if err := CheckInstalled(chain, s.clock.Now()); err != nil {
		return nil, err
	}
	key, err := s.requested(ctx, name, chain[0])
	if err != nil {
		return nil, err
	}
	issuer, _, _ := strings.Cut(key.Name, "/keys/")
	region, n := regionOf(issuer)
	if want := subject(name, "", region, n).CommonName; chain[0].Subject.CommonName != want {
		return nil, fault.New(fault.Invalid, "wrong-subject", "the certificate is for %q, the request was for %q", chain[0].Subject.CommonName, want).
			Do("let the CA keep the common name of the request")
	}
	parent, err := s.installAbove(ctx, name, key.Algorithm, chain[1:], actor)
	if err != nil {
		return nil, err
	}
	rec := s.record(issuer, key.Name, chain[0], Issuing, parent)
	rec.Region, rec.BaseUrls, rec.CrlShards = region, s.baseURLs(), uint32(s.options.CRLShards)
	if err := s.propose(ctx, state.Proposal{Actor: actor, Tenant: resource.Segment(name, "tenants"), Reason: "issuing CA of " + region + ", signed elsewhere",
		Command: &clusterv1.CreateIssuer{Authority: name, Issuer: rec}}); err != nil {
		return nil, err
	}
	a, err := s.Get(ctx, name)
	if err != nil {
		return nil, err
	}
	return a.issuer(issuer), nil
}

// regionOf takes the name of an issuing CA apart: …/issuers/eu-west-1 is the first of eu-west.
func regionOf(issuer string) (region string, n int) {
	id := resource.Last(issuer)
	i := strings.LastIndexByte(id, '-')
	if i < 0 {
		return id, 0
	}
	n, _ = strconv.Atoi(id[i+1:])
	return id[:i], n
}

// CheckInstalled says whether a chain, issuing CA first and root last, may sign for us now: a pure rule.
func CheckInstalled(chain []*x509.Certificate, now time.Time) error {
	bad := func(reason, format string, args ...any) *fault.Error {
		return fault.New(fault.Invalid, reason, format, args...)
	}
	if len(chain) < 2 || len(chain) > certificate.MaxChain {
		return bad("bad-chain", "a chain of %d certificates is not taken", len(chain)).Do("give the issuing CA's certificate, what is above it, and the root last, as PEM")
	}
	leaf, root := chain[0], chain[len(chain)-1]
	if root.CheckSignatureFrom(root) != nil {
		return bad("no-root", "the last certificate (%s) is not a root", root.Subject).Do("put the self-signed root at the end of the file")
	}
	for i, c := range chain {
		if _, err := algorithm.OfPublic(c.PublicKey); err != nil {
			return err
		}
		if !c.IsCA || !c.BasicConstraintsValid || c.KeyUsage != 0 && c.KeyUsage&x509.KeyUsageCertSign == 0 { // no keyUsage: anything
			return bad("not-a-ca", "%s is not a CA certificate", c.Subject).Do("ask for basicConstraints CA:TRUE and keyUsage keyCertSign, cRLSign")
		}
		if now.Before(c.NotBefore) || c.NotAfter.Sub(now) < minInstalled {
			return bad("expired-chain", "%s is valid from %s to %s", c.Subject, c.NotBefore.Format(time.DateOnly), c.NotAfter.Format(time.DateOnly)).
				Do("install a chain that is valid now and for another 30 days")
		}
		if i > 0 && c.MaxPathLen >= 0 && (c.MaxPathLen > 0 || c.MaxPathLenZero) && c.MaxPathLen < i-1 {
			return bad("path-length", "%s allows %d CAs below it, the chain has %d", c.Subject, c.MaxPathLen, i-1).Do("let a CA sign that has a longer path length")
		}
		if i > 0 {
			if err := chain[i-1].CheckSignatureFrom(c); err != nil || string(chain[i-1].RawIssuer) != string(c.RawSubject) {
				return bad("bad-chain", "%s is not signed by %s", chain[i-1].Subject, c.Subject).Do("put the certificates in order: issuing CA first, root last")
			}
		}
	}
	if signs := x509.KeyUsageCertSign | x509.KeyUsageCRLSign; leaf.KeyUsage&signs != signs {
		return bad("not-a-ca", "%s may not sign certificates and revocation lists", leaf.Subject).Do("ask for keyUsage keyCertSign, cRLSign")
	}
	roots, above := x509.NewCertPool(), x509.NewCertPool()
	roots.AddCert(root)
	for _, c := range chain[1 : len(chain)-1] {
		above.AddCert(c)
	}
	_, err := leaf.Verify(x509.VerifyOptions{Roots: roots, Intermediates: above, CurrentTime: now, KeyUsages: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth}})
	if err != nil {
		return fault.Wrap(err, fault.Invalid, "bad-chain", "the chain does not verify").Do("ask for a CA certificate without extendedKeyUsage and name constraints that shut out your nodes")
	}
	return nil
}

// requested finds the key of a Request by the public key that was certified.
func (s *Authorities) requested(ctx context.Context, name string, c *x509.Certificate) (keyring.KeyInfo, error) {
	var k keyring.KeyInfo
	err := s.store.View(ctx, func(ctx context.Context, q state.Querier) error {
		rows, err := q.QueryContext(ctx, `SELECT name, kind, algorithm, public FROM keys WHERE name LIKE ? ORDER BY name`, name+"/issuers/%")
		if err != nil {
			return err
		}
		defer rows.Close()
		for rows.Next() {
			var n, kind, alg string
			var public []byte
			if err := rows.Scan(&n, &kind, &alg, &public); err != nil {
				return err
			}
			if slices.Equal(public, c.RawSubjectPublicKeyInfo) {
				k = keyring.KeyInfo{Name: n, Kind: kind, Algorithm: algorithm.Key(alg), Public: c.PublicKey}
			}
		}
		return rows.Err()
	})
	if err == nil && k.Name == "" {
		err = fault.New(fault.Invalid, "no-request", "the certificate is for a key that was not requested for %s", name).
			Do("make a request with `csm ca csr %s`, have that signed, and install its answer", resource.Last(name))
	}
	return k, err
}

// installAbove records the CAs above an issuing CA, root first, those that are not there yet; it gives the name of the lowest.
func (s *Authorities) installAbove(ctx context.Context, name string, alg algorithm.Key, above []*x509.Certificate, actor string) (parent string, err error) {
	tenant := resource.Segment(name, "tenants")
	for i := len(above) - 1; i >= 0; i-- {
		c := above[i]
		known, err := s.holds(ctx, name, c)
		if err != nil {
			return "", err
		}
		if known != "" {
			parent = known
			continue
		}
		issuer, kind := externalName(name, c), Intermediate
		if i == len(above)-1 {
			kind = Root
		}
		rec := s.record(issuer, externalKey+issuer, c, kind, parent)
		var cmd state.Proposal
		if kind == Root {
			rec.Parent = issuer
		}
		if _, err := s.Get(ctx, name); fault.Is(err, fault.NotFound) {
			cmd = state.Proposal{Command: &clusterv1.CreateAuthority{Name: name, Tenant: tenant, Algorithm: string(alg), Root: rec}}
		} else if err != nil {
			return "", err
		} else if kind == Root {
			return "", fault.New(fault.Refused, "another-root", "%s is anchored in another root", name).Do("install it as an authority of its own; changing a cluster's root is a rotation")
		} else {
			cmd = state.Proposal{Command: &clusterv1.CreateIssuer{Authority: name, Issuer: rec}}
		}
		cmd.Actor, cmd.Tenant, cmd.Reason = actor, tenant, "CA of somebody else"
		if err := s.propose(ctx, cmd); err != nil {
			return "", err
		}
		parent = issuer
	}
	return parent, nil
}

func (s *Authorities) holds(ctx context.Context, name string, c *x509.Certificate) (string, error) {
	a, err := s.Get(ctx, name)
	if fault.Is(err, fault.NotFound) {
		return "", nil
	}
	if err != nil {
		return "", err
	}
	for _, i := range a.Issuers {
		if i.Certificate.Equal(c) {
			return i.Name, nil
		}
	}
	return "", nil
}

func externalName(authority string, c *x509.Certificate) string {
	sum := sha256.Sum256(c.Raw)
	return resource.Issuer(authority, "external-"+hex.EncodeToString(sum[:6]))
}

func (s *Authorities) record(name, key string, c *x509.Certificate, kind Kind, parent string) *clusterv1.IssuerRecord {
	id := sha256.Sum256(append([]byte(name+"\x00"), c.RawSubjectPublicKeyInfo...))
	if kind == Issuing {
		id = sha256.Sum256(c.RawSubjectPublicKeyInfo)
	}
	return &clusterv1.IssuerRecord{Name: name, PublicId: hex.EncodeToString(id[:10]), Kind: string(kind), Key: key, Certificate: c.Raw, Parent: parent, CrlShards: 1,
		NotBeforeMs: c.NotBefore.UnixMilli(), NotAfterMs: c.NotAfter.UnixMilli()}
}
