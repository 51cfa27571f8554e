package install

import (
	"crypto"
	"crypto/rand"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"

	"github.com/cassandra-security-manager/csm/shared/algorithm"
	"github.com/cassandra-security-manager/csm/shared/certificate"
	"github.com/cassandra-security-manager/csm/shared/fault"
)

// PendingKey is the private key made for one generation of a store: the same one however often it is asked for, so that a
// request whose answer was lost is repeated with the same key. It leaves the state folder only in the keystore, and is
// removed when the store of its generation, or a later one, is proved.
func (i *Installer) PendingKey(site Site, generation uint64, k algorithm.Key) (crypto.Signer, error) {
	if err := i.held(); err != nil {
		return nil, err
	}
	f := i.folder(site)
	path := f.pending(generation)
	data, err := os.ReadFile(path)
	if err == nil {
		key, err := certificate.DecodeKeyPEM(data)
		if have, e := algorithm.OfPublic(publicOf(key)); err == nil && e == nil && have == k {
			return key, nil
		}
	} else if !errors.Is(err, fs.ErrNotExist) {
		return nil, fault.Wrap(err, fault.Internal, "state-unreadable", "%s", path).Do("let the agent's user read its state folder")
	}
	key, err := algorithm.Generate(k, rand.Reader)
	if err != nil {
		return nil, err
	}
	if data, err = certificate.EncodeKeyPEM(key); err != nil {
		return nil, err
	}
	if err := f.d.replace(path, data); err != nil {
		return nil, unwritable(err, path)
	}
	return key, nil
}

func publicOf(key crypto.Signer) crypto.PublicKey {
	if key == nil {
		return nil
	}
	return key.Public()
}

func (f folder) pending(generation uint64) string {
	return f.path(fmt.Sprintf("pending-%020d.pem", generation))
}

// dropPending removes the keys whose store is proved.
func (f folder) dropPending(r *record, proved bool) {
	files, _ := filepath.Glob(f.path("pending-*.pem"))
	for _, p := range files {
		if proved && p <= f.pending(r.Generation) {
			f.d.remove(p)
		}
	}
}
