package keystore

import (
	"bytes"
	"crypto"
	"crypto/x509"
	"encoding/binary"
	"strings"
	"time"

	jks "github.com/pavlo-v-chernykh/keystore-go/v4"

	"github.com/cassandra-security-manager/csm/shared/certificate"
	"github.com/cassandra-security-manager/csm/shared/fault"
)

var (
	jksMagic   = []byte{0xfe, 0xed, 0xfe, 0xed}
	jceksMagic = []byte{0xce, 0xce, 0xce, 0xce}
)

// stamp is the creation time of entries. It is fixed so that the same anchors give the same truststore on each node and
// at each writing; a JVM only shows it.
var stamp = time.UnixMilli(0)

func encodeKeyJKS(key crypto.Signer, chain []*x509.Certificate, password []byte) ([]byte, error) {
	der, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		return nil, fault.Wrap(err, fault.Invalid, "bad-key", "the private key cannot be written")
	}
	defer clear(der)
	e := jks.PrivateKeyEntry{CreationTime: stamp, PrivateKey: der}
	for _, c := range chain {
		e.CertificateChain = append(e.CertificateChain, jks.Certificate{Type: "X509", Content: c.Raw})
	}
	s := jks.New(jks.WithOrderedAliases())
	if err := s.SetPrivateKeyEntry(Alias, e, bytes.Clone(password)); err != nil {
		return nil, fault.Wrap(err, fault.Internal, "keystore-encode", "the JKS keystore could not be made")
	}
	return storeJKS(s, password)
}

func encodeTrustJKS(anchors []*x509.Certificate, password []byte) ([]byte, error) {
	s := jks.New(jks.WithOrderedAliases())
	for _, c := range anchors {
		e := jks.TrustedCertificateEntry{CreationTime: stamp, Certificate: jks.Certificate{Type: "X509", Content: c.Raw}}
		if err := s.SetTrustedCertificateEntry(anchorAlias(c), e); err != nil {
			return nil, fault.Wrap(err, fault.Internal, "keystore-encode", "the JKS truststore could not be made")
		}
	}
	return storeJKS(s, password)
}

func storeJKS(s jks.KeyStore, password []byte) ([]byte, error) {
	var b bytes.Buffer
	if err := s.Store(&b, bytes.Clone(password)); err != nil {
		return nil, fault.Wrap(err, fault.Internal, "keystore-encode", "the JKS store could not be made")
	}
	return b.Bytes(), nil
}

func loadJKS(data, password []byte) (s jks.KeyStore, err error) {
	s = jks.New(jks.WithOrderedAliases(), jks.WithCaseExactAliases())
	if bytes.HasPrefix(data, jceksMagic) {
		return s, fault.New(fault.Invalid, "wrong-format", "the store is JCEKS").Do("convert it with `keytool -importkeystore -deststoretype PKCS12`")
	}
	if !walkJKS(data) {
		return s, fault.New(fault.Invalid, "bad-keystore", "the JKS store is broken or cut off")
	}
	if err := s.Load(bytes.NewReader(data), bytes.Clone(password)); err != nil {
		if strings.Contains(err.Error(), "invalid digest") {
			return s, fault.New(fault.Invalid, "wrong-password", "the password does not open the JKS store, or the store was changed").
				Do("compare it with keystore_password or truststore_password in cassandra.yaml")
		}
		return s, fault.Wrap(err, fault.Invalid, "bad-keystore", "the JKS store cannot be read")
	}
	return s, nil
}

func decodeKeyJKS(data, password []byte) (ks *KeyStore, err error) {
	defer guard("JKS", &err)
	s, err := loadJKS(data, password)
	if err != nil {
		return nil, err
	}
	out := &KeyStore{}
	for _, a := range s.Aliases() {
		if s.IsTrustedCertificateEntry(a) {
			e, err := s.GetTrustedCertificateEntry(a)
			if err != nil {
				continue
			}
			if c, err := certificate.Parse(e.Certificate.Content); err == nil {
				out.Others = append(out.Others, c)
			}
			continue
		}
		if out.Key != nil {
			return nil, fault.New(fault.Invalid, "several-keys", "the JKS keystore holds more than one private key").
				Do("keep exactly one: a JVM takes the first that matches, whichever that is")
		}
		e, err := s.GetPrivateKeyEntry(a, bytes.Clone(password))
		if err != nil {
			return nil, fault.New(fault.Invalid, "wrong-password", "the private key in the JKS keystore does not open with the store's password").
				Do("use one password for store and key (`keytool -keypasswd`): Cassandra passes only one")
		}
		if out.Key, err = certificate.ParseKey(e.PrivateKey); err != nil {
			return nil, err
		}
		out.Alias = a
		for _, c := range e.CertificateChain {
			p, err := certificate.Parse(c.Content)
			if err != nil {
				return nil, err
			}
			out.Chain = append(out.Chain, p)
		}
	}
	if out.Key == nil || len(out.Chain) == 0 {
		return nil, fault.New(fault.Invalid, "no-key", "the JKS keystore holds no private key with a certificate")
	}
	return out, nil
}

func decodeTrustJKS(data, password []byte) (cs []*x509.Certificate, err error) {
	defer guard("JKS", &err)
	s, err := loadJKS(data, password)
	if err != nil {
		return nil, err
	}
	for _, a := range s.Aliases() {
		if !s.IsTrustedCertificateEntry(a) {
			continue
		}
		e, err := s.GetTrustedCertificateEntry(a)
		if err != nil {
			return nil, fault.Wrap(err, fault.Invalid, "bad-keystore", "entry %.60q cannot be read", a)
		}
		c, err := certificate.Parse(e.Certificate.Content)
		if err != nil {
			return nil, err
		}
		cs = append(cs, c)
	}
	return cs, nil
}

// walkJKS goes through the lengths of a JKS file before the library does, which would allocate whatever a length says
// (up to 4 GiB). Layout: magic, version, count, entries {tag, alias, date, key or certificate}, 20 bytes of SHA-1.
func walkJKS(data []byte) bool {
	w := walker{data: data, ok: true}
	if !bytes.Equal(w.take(4), jksMagic) {
		return false
	}
	version, n := w.u32(), w.u32()
	if version != 1 && version != 2 || n > MaxEntries {
		return false
	}
	for range n {
		tag := w.u32()
		w.take(int(w.u16()))
		w.take(8)
		switch tag {
		case 1:
			w.take(int(w.u32()))
			c := w.u32()
			if c > 100 {
				return false
			}
			for range c {
				w.certificate(version)
			}
		case 2:
			w.certificate(version)
		default:
			return false
		}
		if !w.ok {
			return false
		}
	}
	return len(w.take(20)) == 20 && len(w.data) == 0
}

type walker struct {
	data []byte
	ok   bool
}

func (w *walker) take(n int) []byte {
	if !w.ok || n < 0 || n > len(w.data) {
		w.ok = false
		return nil
	}
	b := w.data[:n]
	w.data = w.data[n:]
	return b
}

func (w *walker) u32() uint32 {
	if b := w.take(4); b != nil {
		return binary.BigEndian.Uint32(b)
	}
	return 0
}

func (w *walker) u16() uint16 {
	if b := w.take(2); b != nil {
		return binary.BigEndian.Uint16(b)
	}
	return 0
}

func (w *walker) certificate(version uint32) {
	if version == 2 {
		w.take(int(w.u16()))
	}
	w.take(int(w.u32()))
}
