package server

import (
	"crypto"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"encoding/pem"
	"errors"
	"io/fs"
	"os"
	"path/filepath"

	"github.com/cassandra-security-manager/csm/shared/atomicfile"
	"github.com/cassandra-security-manager/csm/shared/fault"
	"github.com/cassandra-security-manager/csm/shared/owner"
)

// dataDir is the folder of one controller:
//
//	node.json    which system and which installation this is; written last by init and join, so its presence means complete
//	kek/         the key-encryption key, sealed
//	identity/    the controller's key and certificate, the system bundle, and what leads between its roots while there are two
//	raft/ snapshots/ state/   see controller/consensus and controller/state
//	admin.sock   commands of the local administrator (csm-controller admin …)
type dataDir string

// installation is node.json.
type installation struct {
	SystemID string `json:"system_id"`
	NodeID   string `json:"node_id"`
	Name     string `json:"name"`
}

func (i installation) trustDomain() string { return i.SystemID + ".csm" }

func (d dataDir) path(parts ...string) string {
	return filepath.Join(append([]string{string(d)}, parts...)...)
}

func (d dataDir) socket() string { return d.path("admin.sock") }

// claim makes the folder for a new installation and refuses one that is in use.
func (d dataDir) claim() error {
	if err := d.free(); err != nil {
		return err
	}
	return d.furnish("", "identity", "kek")
}

// free refuses a folder that is in use, or that an installation has begun to fill.
func (d dataDir) free() error {
	if err := owner.Check(string(d)); err != nil {
		return err
	}
	if _, err := os.Stat(d.path("node.json")); err == nil {
		return fault.New(fault.Conflict, "already-initialised", "%s already holds a controller", d).
			Do("start it with `csm-controller run`, or choose another data_dir")
	}
	entries, err := os.ReadDir(string(d))
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fault.Wrap(err, fault.Invalid, "data-dir", "cannot read %s", d).Do("check its owner and mode")
	}
	for _, e := range entries {
		if e.Name() == "identity" || e.Name() == "raft" || e.Name() == "state" {
			return fault.New(fault.Conflict, "half-initialised", "%s holds %s of an installation that was not finished", d, e.Name()).
				Do("remove the contents of %s and run the command again", d)
		}
	}
	return nil
}

// furnish makes folders; "" is the folder itself.
func (d dataDir) furnish(subs ...string) error {
	for _, sub := range subs {
		if err := os.MkdirAll(d.path(sub), 0o700); err != nil {
			return fault.Wrap(err, fault.Invalid, "data-dir", "cannot make %s", d.path(sub)).Do("check the owner of the folder above")
		}
	}
	return nil
}

func (d dataDir) installation() (installation, error) {
	var in installation
	b, err := os.ReadFile(d.path("node.json"))
	if errors.Is(err, fs.ErrNotExist) {
		return in, fault.New(fault.NotFound, "not-initialised", "%s holds no controller", d).
			Do("run `csm-controller init` on the first controller, `csm-controller join` on the others")
	}
	if err == nil {
		err = json.Unmarshal(b, &in)
	}
	if err != nil || in.SystemID == "" || in.NodeID == "" || in.Name == "" {
		return in, fault.New(fault.Internal, "broken-installation", "%s cannot be read: %v", d.path("node.json"), err).
			Do("restore it from a backup of the folder, or remove this controller from the system and join it anew")
	}
	return in, nil
}

func (d dataDir) finish(in installation) error {
	b, err := json.MarshalIndent(in, "", "  ")
	if err != nil {
		return err
	}
	return atomicfile.Replace(d.path("node.json"), append(b, '\n'), 0o600)
}

// credentials are the controller's key, chain (leaf first) and the system bundle.
type credentials struct {
	cert   *tls.Certificate
	bundle []*x509.Certificate
	// cross leads from each root to the other while there are two.
	cross []*x509.Certificate
}

// keyHash is the SHA-256 of the public key (SPKI) by which the members table knows a controller.
func keyHash(pub crypto.PublicKey) ([32]byte, error) {
	spki, err := x509.MarshalPKIXPublicKey(pub)
	if err != nil {
		return [32]byte{}, err
	}
	return sha256.Sum256(spki), nil
}

func (d dataDir) writeKey(key crypto.Signer) error {
	der, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		return err
	}
	return atomicfile.Replace(d.path("identity", "key.pem"), pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: der}), 0o600)
}

func (d dataDir) writeChain(chain, bundle [][]byte) error {
	return errors.Join(
		atomicfile.Replace(d.path("identity", "bundle.pem"), encodePEM(bundle), 0o644),
		atomicfile.Replace(d.path("identity", "chain.pem"), encodePEM(chain), 0o644))
}

// writeCross keeps what leads between two roots; none: there is one root.
func (d dataDir) writeCross(ders [][]byte) error {
	if len(ders) > 0 {
		return atomicfile.Replace(d.path("identity", "cross.pem"), encodePEM(ders), 0o644)
	}
	if err := os.Remove(d.path("identity", "cross.pem")); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return nil
}

func (d dataDir) readCross() ([]*x509.Certificate, error) {
	certs, err := readCertificates(d.path("identity", "cross.pem"))
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	return certs, err
}

func encodePEM(ders [][]byte) []byte {
	var out []byte
	for _, der := range ders {
		out = append(out, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})...)
	}
	return out
}

func (d dataDir) readKey() (crypto.Signer, error) {
	b, err := os.ReadFile(d.path("identity", "key.pem"))
	if err != nil {
		return nil, err
	}
	block, _ := pem.Decode(b)
	if block == nil {
		return nil, fault.New(fault.Internal, "broken-installation", "%s holds no key", d.path("identity", "key.pem"))
	}
	key, err := x509.ParsePKCS8PrivateKey(block.Bytes)
	if err != nil {
		return nil, err
	}
	signer, ok := key.(crypto.Signer)
	if !ok {
		return nil, fault.New(fault.Internal, "broken-installation", "%s holds a key that cannot sign", d.path("identity", "key.pem"))
	}
	return signer, nil
}

// readChain gives the chain and the bundle as they are on disk.
func (d dataDir) readChain() (chain, bundle []*x509.Certificate, err error) {
	if chain, err = readCertificates(d.path("identity", "chain.pem")); err != nil {
		return nil, nil, err
	}
	bundle, err = readCertificates(d.path("identity", "bundle.pem"))
	return chain, bundle, err
}

func readCertificates(path string) ([]*x509.Certificate, error) {
	b, err := os.ReadFile(path)
	if err != nil {
		return nil, err
	}
	var certs []*x509.Certificate
	for {
		var block *pem.Block
		if block, b = pem.Decode(b); block == nil {
			break
		}
		c, err := x509.ParseCertificate(block.Bytes)
		if err != nil {
			return nil, fault.Wrap(err, fault.Internal, "broken-installation", "%s", path)
		}
		certs = append(certs, c)
	}
	if len(certs) == 0 {
		return nil, fault.New(fault.Internal, "broken-installation", "%s holds no certificate", path)
	}
	return certs, nil
}
