package scan

import (
	"crypto/rsa"
	"crypto/x509"
	"fmt"
	"time"

	"github.com/cassandra-security-manager/csm/shared/algorithm"
	"github.com/cassandra-security-manager/csm/shared/certificate"
)

// Weakness is what is wrong with a certificate or its file.
type Weakness struct {
	// Code is a stable kebab-case word; Severity is "error", "warning" or "info".
	Code     string `json:"code"`
	Severity string `json:"severity"`
	Message  string `json:"message"`
}

// NearExpiry is when a certificate that still lives is called near its end: the repair floor, 21 days.
const NearExpiry = 21 * 24 * time.Hour

// Weaknesses says what is weak about a certificate in itself: time, key, signature, names. near <= 0 means NearExpiry.
func Weaknesses(c *x509.Certificate, now time.Time, near time.Duration) []Weakness {
	if near <= 0 {
		near = NearExpiry
	}
	var out []Weakness
	add := func(code, severity, format string, args ...any) {
		out = append(out, Weakness{code, severity, fmt.Sprintf(format, args...)})
	}
	switch {
	case now.After(c.NotAfter):
		add("expired", "error", "expired on %s", c.NotAfter.UTC().Format(time.DateOnly))
	case c.NotAfter.Sub(now) < near:
		add("near-expiry", "warning", "expires on %s", c.NotAfter.UTC().Format(time.DateOnly))
	}
	if now.Before(c.NotBefore) {
		add("not-yet-valid", "warning", "valid only from %s", c.NotBefore.UTC().Format(time.DateOnly))
	}
	if k, ok := c.PublicKey.(*rsa.PublicKey); ok && k.N.BitLen() < 2048 {
		add("weak-key", "error", "the key is %s", algorithm.Name(k))
	} else if algorithm.CheckFloor(c.PublicKey) != nil {
		add("key-below-floor", "info", "the key is %s, below the floor of this system", algorithm.Name(c.PublicKey))
	}
	// The signature of a self-issued root is never relied upon.
	if !certificate.SelfIssued(c) {
		switch c.SignatureAlgorithm {
		case x509.MD2WithRSA, x509.MD5WithRSA, x509.SHA1WithRSA, x509.DSAWithSHA1, x509.ECDSAWithSHA1:
			add("weak-signature", "error", "signed with %s", c.SignatureAlgorithm)
		}
	}
	if !c.IsCA {
		if len(c.DNSNames)+len(c.IPAddresses)+len(c.URIs) == 0 {
			add("no-names", "warning", "only a common name: no peer can verify the endpoint")
		}
		if life := c.NotAfter.Sub(c.NotBefore); life > 825*24*time.Hour {
			add("long-lived", "warning", "lives %d days", int(life.Hours()/24))
		}
	}
	return out
}

// sharedKeys marks each certificate whose public key stands in several different certificates of the findings with a
// private key, in files of different folders: one stolen file is then several stolen identities.
func sharedKeys(found []Found) {
	type use struct {
		leaf string
		at   []int
	}
	uses := map[string]*use{}
	mixed := map[string]bool{}
	for i, f := range found {
		if !f.HasPrivateKey {
			continue
		}
		k := string(f.Certificate.RawSubjectPublicKeyInfo)
		u := uses[k]
		if u == nil {
			u = &use{leaf: string(f.DER)}
			uses[k] = u
		}
		u.at = append(u.at, i)
		mixed[k] = mixed[k] || u.leaf != string(f.DER)
	}
	for k, u := range uses {
		if !mixed[k] {
			continue
		}
		for _, i := range u.at {
			found[i].Weak = append(found[i].Weak, Weakness{"shared-key", "warning",
				fmt.Sprintf("the same private key serves %d certificates here", len(u.at))})
		}
	}
}
