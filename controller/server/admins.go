package server

import (
	"context"
	"crypto/rand"
	"crypto/x509"
	"encoding/hex"
	"encoding/pem"
	"errors"
	"io/fs"
	"os"

	"github.com/cassandra-security-manager/csm/shared/algorithm"
	"github.com/cassandra-security-manager/csm/shared/certificate"
	"github.com/cassandra-security-manager/csm/shared/fault"
	"github.com/cassandra-security-manager/csm/shared/identity"
)

// addAdmin records an administrator and signs his request.
func addAdmin(ctx context.Context, dom *domain, trustDomain, name string, csr []byte, actor string) (chain, bundle [][]byte, err error) {
	req, err := certificate.ParseRequest(csr)
	if err != nil {
		return nil, nil, err
	}
	key, err := keyHash(req.PublicKey)
	if err != nil {
		return nil, nil, err
	}
	id := identity.AdminID(trustDomain, name)
	chain, bundle, err = dom.issuance.IssueIdentity(ctx, id, csr, actor, "admin-"+name+"-"+hex.EncodeToString(key[:8]))
	if err != nil {
		return nil, nil, err
	}
	leaf := certificate.Fingerprint(chain[0])
	if _, err := dom.people.AddAdmin(ctx, name, leaf[:], actor); err != nil {
		return nil, nil, err
	}
	return chain, bundle, nil
}

// newAdmin makes a key and has its request signed; the key never leaves the caller.
func newAdmin(sign func(csr []byte) (chain, bundle [][]byte, err error)) (key []byte, chain, bundle [][]byte, err error) {
	signer, err := algorithm.Generate(algorithm.P384, rand.Reader)
	if err != nil {
		return nil, nil, nil, err
	}
	csr, err := certificate.NewRequest(signer, certificate.Names{})
	if err != nil {
		return nil, nil, nil, err
	}
	der, err := x509.MarshalPKCS8PrivateKey(signer)
	if err != nil {
		return nil, nil, nil, err
	}
	chain, bundle, err = sign(csr)
	return pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: der}), chain, bundle, err
}

// refuseExisting keeps files that hold keys from being overwritten.
func refuseExisting(path string) error {
	if path == "" {
		return fault.New(fault.Invalid, "no-file", "a file to write to is missing").Do("see --help")
	}
	if _, err := os.Lstat(path); !errors.Is(err, fs.ErrNotExist) {
		return fault.New(fault.Conflict, "file-exists", "%s exists already; a file that may hold a key is not overwritten", path).Do("move it away or name another")
	}
	return nil
}
