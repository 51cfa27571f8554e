package issuance

import (
	"crypto"
	"crypto/x509"
	"encoding/asn1"
	"math/bits"
	"slices"
	"time"

	"golang.org/x/crypto/cryptobyte"
	cbasn1 "golang.org/x/crypto/cryptobyte/asn1"

	"github.com/cassandra-security-manager/csm/shared/fault"
)

// Extensions of a leaf (RFC 5280, 4.2.1 and 4.2.2) and what stands in them.
var (
	oidSubjectKeyID   = asn1.ObjectIdentifier{2, 5, 29, 14}
	oidKeyUsage       = asn1.ObjectIdentifier{2, 5, 29, 15}
	oidSubjectAltName = asn1.ObjectIdentifier{2, 5, 29, 17}
	oidBasic          = asn1.ObjectIdentifier{2, 5, 29, 19}
	oidCRLPoints      = asn1.ObjectIdentifier{2, 5, 29, 31}
	oidAuthorityKeyID = asn1.ObjectIdentifier{2, 5, 29, 35}
	oidExtKeyUsage    = asn1.ObjectIdentifier{2, 5, 29, 37}
	oidAuthorityInfo  = asn1.ObjectIdentifier{1, 3, 6, 1, 5, 5, 7, 1, 1}
	oidCAIssuers      = asn1.ObjectIdentifier{1, 3, 6, 1, 5, 5, 7, 48, 2}
	oidUsages         = map[x509.ExtKeyUsage]asn1.ObjectIdentifier{
		x509.ExtKeyUsageServerAuth: {1, 3, 6, 1, 5, 5, 7, 3, 1}, x509.ExtKeyUsageClientAuth: {1, 3, 6, 1, 5, 5, 7, 3, 2}}
)

// signing is how an issuer's key signs: its AlgorithmIdentifier in DER (RFC 5758, 3.2; RFC 4055, 5) and its hash.
type signing struct {
	identifier []byte
	hash       crypto.Hash
}

var signings = map[x509.SignatureAlgorithm]signing{
	x509.ECDSAWithSHA256: {identifier(asn1.ObjectIdentifier{1, 2, 840, 10045, 4, 3, 2}, false), crypto.SHA256},
	x509.ECDSAWithSHA384: {identifier(asn1.ObjectIdentifier{1, 2, 840, 10045, 4, 3, 3}, false), crypto.SHA384},
	x509.ECDSAWithSHA512: {identifier(asn1.ObjectIdentifier{1, 2, 840, 10045, 4, 3, 4}, false), crypto.SHA512},
	x509.SHA384WithRSA:   {identifier(asn1.ObjectIdentifier{1, 2, 840, 113549, 1, 1, 12}, true), crypto.SHA384},
}

func identifier(oid asn1.ObjectIdentifier, null bool) []byte {
	var b cryptobyte.Builder
	b.AddASN1(cbasn1.SEQUENCE, func(b *cryptobyte.Builder) {
		b.AddASN1ObjectIdentifier(oid)
		if null {
			b.AddASN1NULL()
		}
	})
	return b.BytesOrPanic() // constants
}

// toBeSigned encodes a leaf byte for byte as x509.CreateCertificate does (a test compares them), without reflection and its
// garbage, which cost as much as a signature. spki is the public key as the request has it.
func toBeSigned(t, issuer *x509.Certificate, identifier, spki []byte) ([]byte, error) {
	for _, list := range [][]string{t.DNSNames, t.IssuingCertificateURL, t.CRLDistributionPoints} {
		for _, s := range list {
			if slices.ContainsFunc([]byte(s), func(c byte) bool { return c >= 0x80 }) {
				return nil, fault.New(fault.Invalid, "bad-name", "%.80q is not ASCII", s).Do("write it in its ASCII form (xn--)")
			}
		}
	}
	subject, err := asn1.Marshal(t.Subject.ToRDNSequence())
	if err != nil {
		return nil, fault.Wrap(err, fault.Invalid, "bad-subject", "the subject cannot be encoded")
	}
	b := cryptobyte.NewBuilder(make([]byte, 0, 1024))
	b.AddASN1(cbasn1.SEQUENCE, func(b *cryptobyte.Builder) {
		b.AddASN1(cbasn1.Tag(0).ContextSpecific().Constructed(), func(b *cryptobyte.Builder) { b.AddASN1Int64(2) })
		b.AddASN1BigInt(t.SerialNumber)
		b.AddBytes(identifier)
		b.AddBytes(issuer.RawSubject)
		b.AddASN1(cbasn1.SEQUENCE, func(b *cryptobyte.Builder) {
			addTime(b, t.NotBefore)
			addTime(b, t.NotAfter)
		})
		b.AddBytes(subject)
		b.AddBytes(spki)
		b.AddASN1(cbasn1.Tag(3).ContextSpecific().Constructed(), func(b *cryptobyte.Builder) {
			b.AddASN1(cbasn1.SEQUENCE, func(b *cryptobyte.Builder) { addExtensions(b, t, issuer.SubjectKeyId) })
		})
	})
	return b.Bytes()
}

// addTime writes UTCTime until 2049 and GeneralizedTime from then on (RFC 5280, 4.1.2.5).
func addTime(b *cryptobyte.Builder, t time.Time) {
	if t = t.UTC(); t.Year() < 2050 {
		b.AddASN1UTCTime(t)
	} else {
		b.AddASN1GeneralizedTime(t)
	}
}

func addExtensions(b *cryptobyte.Builder, t *x509.Certificate, authorityKeyID []byte) {
	addExtension(b, oidKeyUsage, true, func(b *cryptobyte.Builder) { addKeyUsage(b, t.KeyUsage) })
	addExtension(b, oidExtKeyUsage, false, func(b *cryptobyte.Builder) {
		b.AddASN1(cbasn1.SEQUENCE, func(b *cryptobyte.Builder) {
			for _, u := range t.ExtKeyUsage {
				b.AddASN1ObjectIdentifier(oidUsages[u])
			}
		})
	})
	addExtension(b, oidBasic, true, func(b *cryptobyte.Builder) { b.AddASN1(cbasn1.SEQUENCE, func(*cryptobyte.Builder) {}) })
	addExtension(b, oidSubjectKeyID, false, func(b *cryptobyte.Builder) { b.AddASN1OctetString(t.SubjectKeyId) })
	addExtension(b, oidAuthorityKeyID, false, func(b *cryptobyte.Builder) {
		b.AddASN1(cbasn1.SEQUENCE, func(b *cryptobyte.Builder) { addImplicit(b, 0, authorityKeyID) })
	})
	if len(t.IssuingCertificateURL) > 0 {
		addExtension(b, oidAuthorityInfo, false, func(b *cryptobyte.Builder) {
			b.AddASN1(cbasn1.SEQUENCE, func(b *cryptobyte.Builder) {
				for _, u := range t.IssuingCertificateURL {
					b.AddASN1(cbasn1.SEQUENCE, func(b *cryptobyte.Builder) {
						b.AddASN1ObjectIdentifier(oidCAIssuers)
						addImplicit(b, 6, []byte(u))
					})
				}
			})
		})
	}
	if len(t.DNSNames)+len(t.IPAddresses)+len(t.URIs) > 0 {
		nameless := len(t.Subject.ToRDNSequence()) == 0
		addExtension(b, oidSubjectAltName, nameless, func(b *cryptobyte.Builder) { addNames(b, t) })
	}
	if len(t.CRLDistributionPoints) > 0 {
		addExtension(b, oidCRLPoints, false, func(b *cryptobyte.Builder) { addPoints(b, t.CRLDistributionPoints) })
	}
}

func addExtension(b *cryptobyte.Builder, oid asn1.ObjectIdentifier, critical bool, value cryptobyte.BuilderContinuation) {
	b.AddASN1(cbasn1.SEQUENCE, func(b *cryptobyte.Builder) {
		b.AddASN1ObjectIdentifier(oid)
		if critical {
			b.AddASN1Boolean(true)
		}
		b.AddASN1(cbasn1.OCTET_STRING, value)
	})
}

// addImplicit writes bytes under an implicit tag, as the choices of GeneralName stand (RFC 5280, 4.2.1.6).
func addImplicit(b *cryptobyte.Builder, tag uint8, value []byte) {
	b.AddASN1(cbasn1.Tag(tag).ContextSpecific(), func(b *cryptobyte.Builder) { b.AddBytes(value) })
}

// addKeyUsage writes bit 0 as the highest of the first byte, and no trailing zero bits (X.690, 11.2.2).
func addKeyUsage(b *cryptobyte.Builder, u x509.KeyUsage) {
	value := []byte{bits.Reverse8(uint8(u)), bits.Reverse8(uint8(u >> 8))}
	if value[1] == 0 {
		value = value[:1]
	}
	b.AddASN1(cbasn1.BIT_STRING, func(b *cryptobyte.Builder) {
		b.AddUint8(uint8(bits.TrailingZeros8(value[len(value)-1])))
		b.AddBytes(value)
	})
}

func addNames(b *cryptobyte.Builder, t *x509.Certificate) {
	b.AddASN1(cbasn1.SEQUENCE, func(b *cryptobyte.Builder) {
		for _, n := range t.DNSNames {
			addImplicit(b, 2, []byte(n))
		}
		for _, ip := range t.IPAddresses {
			if four := ip.To4(); four != nil {
				ip = four
			}
			addImplicit(b, 7, ip)
		}
		for _, u := range t.URIs {
			addImplicit(b, 6, []byte(u.String()))
		}
	})
}

// addPoints writes one distribution point for each URL (RFC 5280, 4.2.1.13).
func addPoints(b *cryptobyte.Builder, urls []string) {
	b.AddASN1(cbasn1.SEQUENCE, func(b *cryptobyte.Builder) {
		for _, u := range urls {
			b.AddASN1(cbasn1.SEQUENCE, func(b *cryptobyte.Builder) {
				b.AddASN1(cbasn1.Tag(0).ContextSpecific().Constructed(), func(b *cryptobyte.Builder) {
					b.AddASN1(cbasn1.Tag(0).ContextSpecific().Constructed(), func(b *cryptobyte.Builder) { addImplicit(b, 6, []byte(u)) })
				})
			})
		}
	})
}

// assemble puts a signature under what was signed (RFC 5280, 4.1).
func assemble(tbs, identifier, signature []byte) ([]byte, error) {
	b := cryptobyte.NewBuilder(make([]byte, 0, len(tbs)+len(identifier)+len(signature)+16))
	b.AddASN1(cbasn1.SEQUENCE, func(b *cryptobyte.Builder) {
		b.AddBytes(tbs)
		b.AddBytes(identifier)
		b.AddASN1BitString(signature)
	})
	return b.Bytes()
}
