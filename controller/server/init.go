package server

import (
	"context"
	"crypto/rand"
	"crypto/x509"
	"encoding/hex"
	"encoding/pem"
	"log/slog"
	"net"
	"path/filepath"

	"github.com/google/uuid"

	"github.com/cassandra-security-manager/csm/controller/authority"
	"github.com/cassandra-security-manager/csm/controller/consensus"
	"github.com/cassandra-security-manager/csm/controller/keyring"
	"github.com/cassandra-security-manager/csm/shared/algorithm"
	"github.com/cassandra-security-manager/csm/shared/atomicfile"
	"github.com/cassandra-security-manager/csm/shared/certificate"
	"github.com/cassandra-security-manager/csm/shared/fault"
	"github.com/cassandra-security-manager/csm/shared/identity"
	"github.com/cassandra-security-manager/csm/shared/resource"
)

// InitOptions are the choices of a first start.
type InitOptions struct {
	// Admin is the name of the first administrator; his key and certificate go to AdminOut (a PEM file, mode 0600).
	Admin    string
	AdminOut string
	// RecoveryOut takes the recovery share: it opens every key of the system when all controllers are lost. Carry it away.
	RecoveryOut string
	// Root is "lab" (a root and an issuer for this region, keys sealed in the state), "subordinate" (a key for this region's issuer,
	// whose request goes to CSROut and is signed by a CA elsewhere), "offline" or "none" (neither; see Authorities.Request).
	Root   string
	CSROut string
}

// InitResult says what was made.
type InitResult struct {
	SystemID   string `json:"systemId"`
	Pin        string `json:"pin"`
	Controller string `json:"controller"`
	Admin      string `json:"admin"`
	AdminFile  string `json:"adminFile"`
	Recovery   string `json:"recoveryFile"`
	Root       string `json:"root,omitempty"`
	Issuer     string `json:"issuer,omitempty"`
	// Request is the file of the request for this region's issuer.
	Request     string `json:"requestFile,omitempty"`
	APIAddress  string `json:"apiAddress"`
	Fingerprint string `json:"fingerprint"`
}

// genesis is the actor of the commands that make a system.
const genesis = "genesis"

// Init makes a new system with this controller as its only member. It ends with a complete installation or with none.
func Init(ctx context.Context, cfg Config, opt InitOptions, log *slog.Logger) (InitResult, error) {
	var res InitResult
	if err := resource.CheckID("admin", opt.Admin); err != nil {
		return res, err
	}
	files := []string{opt.AdminOut, opt.RecoveryOut}
	switch opt.Root {
	case "lab", "offline", "none":
	case "subordinate":
		files = append(files, opt.CSROut)
	default:
		return res, fault.New(fault.Invalid, "bad-root", "--root %.40q is unknown", opt.Root).Do("use lab, subordinate, offline or none")
	}
	for _, f := range files {
		if err := refuseExisting(f); err != nil {
			return res, err
		}
	}
	d := dataDir(cfg.DataDir)
	if err := d.claim(); err != nil {
		return res, err
	}
	in, err := newInstallation(cfg.Name)
	if err != nil {
		return res, err
	}
	id, kek, err := newController(d, cfg)
	if err != nil {
		return res, err
	}
	b := &birth{cfg: cfg, opt: opt, dir: d, in: in, id: id, kek: kek, log: log}
	if res, err = b.run(ctx); err != nil {
		return res, err
	}
	return res, d.finish(in)
}

func newInstallation(name string) (installation, error) {
	b := make([]byte, 8)
	if _, err := rand.Read(b); err != nil {
		return installation{}, err
	}
	return installation{SystemID: hex.EncodeToString(b), NodeID: uuid.NewString(), Name: name}, nil
}

// newController makes what is born on a controller and never leaves it: its key and its key-encryption key.
func newController(d dataDir, cfg Config) (*identityHolder, *keyring.KEK, error) {
	sealer, err := cfg.sealer()
	if err != nil {
		return nil, nil, err
	}
	kek, err := keyring.CreateKEK(d.path("kek"), sealer)
	if err != nil {
		return nil, nil, err
	}
	key, err := algorithm.Generate(algorithm.P384, rand.Reader)
	if err != nil {
		return nil, nil, err
	}
	return &identityHolder{dir: d, key: key}, kek, d.writeKey(key)
}

func (c *Config) sealer() (keyring.Sealer, error) {
	return keyring.NewSealer(keyring.SealConfig{Type: c.Seal.Type, Path: c.Seal.Path, Name: c.Seal.Name})
}

// birth is the making of a system.
type birth struct {
	cfg Config
	opt InitOptions
	dir dataDir
	in  installation
	id  *identityHolder
	kek *keyring.KEK
	log *slog.Logger
}

func (b *birth) run(ctx context.Context) (res InitResult, err error) {
	fatal := func(err error) { b.log.Error("cannot go on", "error", err); panic(err) }
	ccfg, err := consensusConfig(b.cfg, b.in, b.id, b.kek, fatal, b.log)
	if err != nil {
		return res, err
	}
	// Nobody may connect before the system CA exists: the quorum of one listens on a port that is told to nobody.
	if ccfg.Listener, err = net.Listen("tcp", "127.0.0.1:0"); err != nil {
		return res, err
	}
	store, err := openStore(ctx, b.cfg, b.in, fatal, b.log)
	if err != nil {
		return res, err
	}
	defer store.Close()
	node, err := consensus.BootstrapSingle(ctx, ccfg, store)
	if err != nil {
		return res, err
	}
	defer node.Close()
	dom := assemble(b.cfg, b.in, b.kek, store, node)
	if err := b.keys(ctx, dom); err != nil {
		return res, err
	}
	res = InitResult{SystemID: b.in.SystemID, Controller: b.in.Name, Admin: b.opt.Admin, AdminFile: b.opt.AdminOut,
		Recovery: b.opt.RecoveryOut, APIAddress: net.JoinHostPort(b.cfg.Advertise, port(b.cfg.Listen.API))}
	fingerprint, err := keyHash(b.id.key.Public())
	if err != nil {
		return res, err
	}
	res.Fingerprint = hex.EncodeToString(fingerprint[:])
	if res.Pin, err = b.identities(ctx, dom); err != nil {
		return res, err
	}
	switch b.opt.Root {
	case "lab":
		res.Root, res.Issuer, err = b.root(ctx, dom)
	case "subordinate":
		res.Request, err = b.opt.CSROut, b.request(ctx, dom)
	}
	return res, err
}

// keys makes the data encryption key and the recovery share, then the system CA.
func (b *birth) keys(ctx context.Context, dom *domain) error {
	public, share, err := keyring.NewRecovery()
	if err != nil {
		return err
	}
	defer share.Zero()
	if err := atomicfile.Replace(b.opt.RecoveryOut, append(share.Reveal(), '\n'), 0o600); err != nil {
		return fault.Wrap(err, fault.Invalid, "recovery-file", "cannot write %s", b.opt.RecoveryOut).Do("choose another place with --recovery-out")
	}
	if err := dom.keyring.Initialise(ctx, genesis, public); err != nil {
		return err
	}
	_, err = dom.authorities.Genesis(ctx, b.in.SystemID, genesis)
	return err
}

// identities issues this controller's certificate and the first administrator's.
func (b *birth) identities(ctx context.Context, dom *domain) (pin string, err error) {
	csr, err := certificate.NewRequest(b.id.key, certificate.Names{})
	if err != nil {
		return "", err
	}
	chain, bundle, err := dom.issuance.IssueIdentity(ctx, identity.ControllerID(b.in.trustDomain(), b.in.Name), csr, genesis, "genesis-controller")
	if err != nil {
		return "", err
	}
	if err := b.dir.writeChain(chain, bundle); err != nil {
		return "", err
	}
	admin, chain, bundle, err := newAdmin(func(csr []byte) ([][]byte, [][]byte, error) {
		return addAdmin(ctx, dom, b.in.trustDomain(), b.opt.Admin, csr, genesis)
	})
	if err != nil {
		return "", err
	}
	roots, err := parseAll(bundle)
	if err != nil {
		return "", err
	}
	return identity.Pin(roots[0]), writeAdmin(b.opt.AdminOut, admin, chain, roots)
}

// root makes the lab root and the issuer of this region.
func (b *birth) root(ctx context.Context, dom *domain) (root, issuer string, err error) {
	a, err := dom.authorities.CreateRoot(ctx, resource.DefaultTenant, "root", authority.CreateOptions{Actor: genesis})
	if err != nil {
		return "", "", err
	}
	i, err := dom.authorities.CreateIssuer(ctx, a.Name, b.cfg.Region, genesis)
	if err != nil {
		return "", "", err
	}
	return a.Name, i.Name, nil
}

// request makes the key of this region's issuer and writes the request that a CA elsewhere is to sign.
func (b *birth) request(ctx context.Context, dom *domain) error {
	der, err := dom.authorities.Request(ctx, resource.Authority(resource.DefaultTenant, "root"), b.cfg.Region, "", genesis)
	if err != nil {
		return err
	}
	if err := atomicfile.Replace(b.opt.CSROut, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE REQUEST", Bytes: der}), 0o644); err != nil {
		return fault.Wrap(err, fault.Invalid, "csr-file", "cannot write %s", b.opt.CSROut).Do("choose another place with --csr-out")
	}
	return nil
}

// writeAdmin writes key, chain and system CA into one file for `csm context set`.
func writeAdmin(path string, key []byte, chain [][]byte, roots []*x509.Certificate) error {
	out := append(key, encodePEM(chain)...)
	out = append(out, encodePEM(raw(roots))...)
	if err := atomicfile.Replace(path, out, 0o600); err != nil {
		return fault.Wrap(err, fault.Invalid, "admin-file", "cannot write %s", path).Do("choose another place; the folder must exist: %s", filepath.Dir(path))
	}
	return nil
}
