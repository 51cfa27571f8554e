package authority

import (
	"context"
	"crypto/sha256"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/asn1"
	"encoding/hex"
	"math/big"
	"sync"
	"time"

	"github.com/cassandra-security-manager/csm/controller/ledger"
	"github.com/cassandra-security-manager/csm/controller/state"
	"github.com/cassandra-security-manager/csm/shared/algorithm"
	"github.com/cassandra-security-manager/csm/shared/fault"
)

// crlCache holds the newest list of each issuer and shard. Each has a lock of its own, so that one list is built once,
// and building one holds up no other.
type crlCache struct {
	mu      sync.Mutex
	entries map[crlKey]*crlEntry
}

type crlKey struct {
	issuer string
	shard  int
}

type crlEntry struct {
	mu         sync.Mutex
	revision   uint64
	der        []byte
	etag       string
	thisUpdate time.Time
	nextUpdate time.Time
}

func newCRLCache() *crlCache { return &crlCache{entries: map[crlKey]*crlEntry{}} }

func (c *crlCache) entry(k crlKey) *crlEntry {
	c.mu.Lock()
	defer c.mu.Unlock()
	e := c.entries[k]
	if e == nil {
		e = &crlEntry{}
		c.entries[k] = e
	}
	return e
}

// List is one signed revocation list.
type List struct {
	DER        []byte
	ETag       string
	ThisUpdate time.Time
	NextUpdate time.Time
}

// CRL gives the list of an issuer (its public id) and shard: from memory until something is revoked or half of its
// validity is over. Without the issuer's key (a sealed controller) a list that is still valid is given as it is.
func (s *Authorities) CRL(ctx context.Context, issuerID string, shard int) (List, error) {
	i, err := s.ByPublicID(ctx, issuerID)
	if err != nil {
		return List{}, err
	}
	if shard < 0 || shard >= i.Shards {
		return List{}, fault.New(fault.NotFound, "no-crl", "issuer %s has no list %d", issuerID, shard)
	}
	e := s.crls.entry(crlKey{i.Name, shard})
	e.mu.Lock()
	defer e.mu.Unlock()
	now := s.clock.Now()
	var (
		revision uint64
		revoked  []ledger.Revocation
	)
	err = s.store.View(ctx, func(ctx context.Context, q state.Querier) error {
		if revision, err = ledger.RevocationRevision(ctx, q, i.Name); err != nil {
			return err
		}
		if e.fresh(revision, now) {
			return nil
		}
		// RFC 5280, 3.3: an entry stays until one list was issued after the certificate has expired.
		revoked, err = ledger.Revocations(ctx, q, i.Name, shard, i.Shards, now.Add(-s.options.CRLValidity))
		return err
	})
	if err != nil {
		return List{}, err
	}
	if !e.fresh(revision, now) {
		err := s.clockDoubt()
		if err == nil {
			err = s.buildCRL(ctx, i, shard, e, revision, revoked, now)
		}
		if err != nil {
			if e.der == nil || e.revision != revision || now.After(e.nextUpdate) {
				return List{}, err
			}
		}
	}
	return List{DER: e.der, ETag: e.etag, ThisUpdate: e.thisUpdate, NextUpdate: e.nextUpdate}, nil
}

// fresh: a list of the future was made by a clock that was set back since, and leaves out what it took for expired.
func (e *crlEntry) fresh(revision uint64, now time.Time) bool {
	return !e.thisUpdate.After(now) && e.der != nil && e.revision == revision && now.Before(e.thisUpdate.Add(e.nextUpdate.Sub(e.thisUpdate)/2))
}

func (s *Authorities) buildCRL(ctx context.Context, i *Issuer, shard int, e *crlEntry, revision uint64, revoked []ledger.Revocation, now time.Time) error {
	signer, err := s.keys.Signer(ctx, i.Key)
	if err != nil {
		return err
	}
	sig, err := algorithm.Signature(signer.Public())
	if err != nil {
		return err
	}
	this := now.UTC().Truncate(time.Second)
	tmpl := &x509.RevocationList{SignatureAlgorithm: sig, Number: crlNumber(revision, this), ThisUpdate: this, NextUpdate: this.Add(s.options.CRLValidity)}
	if urls := i.CRLURLs(shard); len(urls) > 0 {
		idp, err := distributionPoint(urls)
		if err != nil {
			return err
		}
		tmpl.ExtraExtensions = append(tmpl.ExtraExtensions, idp)
	}
	for _, r := range revoked {
		tmpl.RevokedCertificateEntries = append(tmpl.RevokedCertificateEntries,
			x509.RevocationListEntry{SerialNumber: r.Serial, RevocationTime: r.Time.Truncate(time.Second), ReasonCode: int(r.Reason)})
	}
	der, err := x509.CreateRevocationList(s.rand, tmpl, i.Certificate, signer)
	if err != nil {
		return fault.Wrap(err, fault.Internal, "crl", "the revocation list of %s could not be signed", i.Name)
	}
	sum := sha256.Sum256(der)
	e.revision, e.der, e.etag = revision, der, `"`+hex.EncodeToString(sum[:12])+`"`
	e.thisUpdate, e.nextUpdate = this, tmpl.NextUpdate
	return nil
}

// crlNumber grows first with what is revoked and then with time: of two lists from two controllers the one with more
// revocations has the higher number, whatever their clocks say (RFC 5280, 5.2.3).
func crlNumber(revision uint64, at time.Time) *big.Int {
	n := new(big.Int).SetUint64(revision)
	return n.Lsh(n, 40).Add(n, big.NewInt(at.Unix()))
}

// distributionPoint is the critical issuing distribution point (RFC 5280, 5.2.5) with the URLs of this shard: it says that
// the list holds only the certificates that point at it.
func distributionPoint(urls []string) (pkix.Extension, error) {
	names := make([]asn1.RawValue, 0, len(urls))
	for _, u := range urls {
		names = append(names, asn1.RawValue{Class: asn1.ClassContextSpecific, Tag: 6, Bytes: []byte(u)})
	}
	var full []byte
	for _, n := range names {
		b, err := asn1.Marshal(n)
		if err != nil {
			return pkix.Extension{}, err
		}
		full = append(full, b...)
	}
	value, err := asn1.Marshal(struct {
		Point asn1.RawValue
	}{asn1.RawValue{Class: asn1.ClassContextSpecific, Tag: 0, IsCompound: true,
		Bytes: mustMarshal(asn1.RawValue{Class: asn1.ClassContextSpecific, Tag: 0, IsCompound: true, Bytes: full})}})
	if err != nil {
		return pkix.Extension{}, err
	}
	return pkix.Extension{Id: asn1.ObjectIdentifier{2, 5, 29, 28}, Critical: true, Value: value}, nil
}

func mustMarshal(v asn1.RawValue) []byte {
	b, err := asn1.Marshal(v)
	if err != nil {
		panic(err) // a raw value always encodes
	}
	return b
}
