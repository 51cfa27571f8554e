package keystore

import (
	"crypto"
	"crypto/x509"

	"github.com/cassandra-security-manager/csm/shared/certificate"
)

// encodeKeyPEM writes what Cassandra's PEMReader expects: the PKCS#8 key first, then the leaf, then its issuers.
func encodeKeyPEM(key crypto.Signer, chain []*x509.Certificate) ([]byte, error) {
	data, err := certificate.EncodeKeyPEM(key)
	if err != nil {
		return nil, err
	}
	return append(data, certificate.EncodePEM(chain...)...), nil
}

func decodeKeyPEM(data []byte) (*KeyStore, error) {
	key, err := certificate.DecodeKeyPEM(data)
	if err != nil {
		return nil, err
	}
	chain, err := certificate.DecodePEM(data)
	if err != nil {
		return nil, err
	}
	return &KeyStore{Key: key, Chain: chain}, nil
}
