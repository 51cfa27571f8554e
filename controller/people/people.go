// Package people owns who may do what: today the administrators, each known by a client certificate of the system CA.
//
// Allowed is the one place that decides, for REST, jobs and every other door alike. It refuses whoever it does not know:
// there is no permission that is given by default. It keeps this invariant: a revoked administrator's certificates
// never open again, because a name that was revoked comes back only with the fingerprint of another certificate.
package people

import (
	"cmp"
	"context"
	"crypto/sha256"
	"crypto/x509"
	"database/sql"
	"encoding/hex"
	"errors"
	"regexp"
	"sync"
	"time"

	"github.com/google/uuid"

	clusterv1 "github.com/cassandra-security-manager/csm/protocol/cluster/v1"

	"github.com/cassandra-security-manager/csm/controller/state"
	"github.com/cassandra-security-manager/csm/shared/fault"
	"github.com/cassandra-security-manager/csm/shared/identity"
	"github.com/cassandra-security-manager/csm/shared/resource"
)

// States of an administrator.
const (
	Active  = "active"
	Revoked = "revoked"
)

// Admin is an administrator.
type Admin struct {
	// Name is "system/admins/{name}".
	Name  string `json:"name"`
	UID   string `json:"uid"`
	State string `json:"state" enum:"active,revoked"`
	// Certificate is the SHA-256 of the only certificate let in, in hex; any of the identity when empty.
	Certificate string    `json:"certificateSha256,omitempty"`
	CreateTime  time.Time `json:"createTime"`
	UpdateTime  time.Time `json:"updateTime"`
	Revision    uint64    `json:"revision"`
}

// Reader is a read transaction on the replicated state; *state.Store is one.
type Reader interface {
	View(ctx context.Context, read func(ctx context.Context, q state.Querier) error) error
	Watch(names ...string) *state.Watch
}

// People decides and forms commands.
type People struct {
	read Reader
	log  state.Log

	mu    sync.Mutex
	known map[string]known
}

// known is an administrator as of the last read; the watch tells that the state has another word since.
type known struct {
	admin Admin
	watch *state.Watch
}

// maxKnown bounds who is kept in memory; the names come from verified certificates only.
const maxKnown = 256

// New makes a People.
func New(read Reader, log state.Log) *People {
	return &People{read: read, log: log, known: map[string]known{}}
}

// AddAdmin names an administrator, or gives a known one another certificate. certificateSHA256 is the fingerprint of the only
// certificate to let in; empty lets in any of the identity, which a name that was revoked before does not get.
func (p *People) AddAdmin(ctx context.Context, name string, certificateSHA256 []byte, actor string) (Admin, error) {
	if err := resource.CheckID("administrator", name); err != nil {
		return Admin{}, err
	}
	if _, err := p.log.Propose(ctx, state.Proposal{Actor: actor, Command: &clusterv1.AddAdmin{
		Name: name, Uid: uuid.NewString(), CertificateSha256: certificateSHA256}}); err != nil {
		return Admin{}, err
	}
	return p.Admin(ctx, name)
}

// RevokeAdmin closes the door to an administrator at once, on every controller.
func (p *People) RevokeAdmin(ctx context.Context, name, actor, reason string) error {
	_, err := p.log.Propose(ctx, state.Proposal{Actor: actor, Reason: reason, Command: &clusterv1.RevokeAdmin{Name: name}})
	return err
}

// Admin by short name.
func (p *People) Admin(ctx context.Context, name string) (a Admin, err error) {
	err = p.read.View(ctx, func(ctx context.Context, q state.Querier) error {
		a, err = load(ctx, q, resource.Admin(name))
		return err
	})
	return a, err
}

// current is Admin from memory while nothing changed. The signal of a change is taken and the entry dropped under one lock,
// and the state signals before it acknowledges: whoever asks after a revocation was answered here finds it.
func (p *People) current(ctx context.Context, name string) (Admin, error) {
	p.mu.Lock()
	k, ok := p.known[name]
	if ok {
		select {
		case <-k.watch.C():
			k.watch.Close()
			delete(p.known, name)
			ok = false
		default:
		}
	}
	p.mu.Unlock()
	if ok {
		return k.admin, nil
	}
	k.watch = p.read.Watch(resource.Admin(name)) // before the read: what comes between is signalled
	var err error
	if k.admin, err = p.Admin(ctx, name); err != nil {
		k.watch.Close()
		return Admin{}, err
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	if _, raced := p.known[name]; raced || len(p.known) >= maxKnown {
		k.watch.Close() // whoever was first keeps his entry: his watch began before his read too
		return k.admin, nil
	}
	p.known[name] = k
	return k.admin, nil
}

// Admins in the order of their names.
func (p *People) Admins(ctx context.Context) (out []Admin, err error) {
	err = p.read.View(ctx, func(ctx context.Context, q state.Querier) (err error) {
		out, err = InState(ctx, q)
		return err
	})
	return out, err
}

// InState reads the administrators in a transaction that is open already: for those who decide by them in Apply.
func InState(ctx context.Context, q state.Querier) (out []Admin, err error) {
	rows, err := q.QueryContext(ctx, selectAdmin+` ORDER BY name`)
	if err != nil {
		return nil, err
	}
	defer rows.Close()
	for rows.Next() {
		a, err := scan(rows)
		if err != nil {
			return nil, err
		}
		out = append(out, a)
	}
	return out, rows.Err()
}

// Authenticate says which administrator a verified client certificate belongs to. It is asked at each request, so that a
// revocation holds from the next one on, open connections included.
func (p *People) Authenticate(ctx context.Context, leaf *x509.Certificate, id identity.ID) (Admin, error) {
	if id.Kind != identity.Admin {
		return Admin{}, fault.New(fault.Refused, "wrong-identity", "%s is not an administrator", id).
			Do("use a client certificate made by `csm-controller admin add NAME`")
	}
	a, err := p.current(ctx, id.Path)
	if fault.Is(err, fault.NotFound) {
		return Admin{}, fault.New(fault.Unauthenticated, "unknown-admin", "there is no administrator %q", id.Path).
			Do("`csm-controller admin add %s` on a controller makes one", id.Path)
	}
	if err != nil {
		return Admin{}, err
	}
	if err := a.active(); err != nil {
		return Admin{}, err
	}
	if sum := sha256.Sum256(leaf.Raw); a.Certificate != "" && a.Certificate != hex.EncodeToString(sum[:]) {
		return Admin{}, fault.New(fault.Unauthenticated, "admin-certificate-replaced", "another certificate was given to administrator %q since", id.Path).
			Do("use the newest one")
	}
	return a, nil
}

func (a Admin) active() error {
	if a.State == Active {
		return nil
	}
	return fault.New(fault.Refused, "admin-revoked", "the administrator %q was revoked", resource.Last(a.Name)).
		Do("ask another administrator")
}

var permission = regexp.MustCompile(`^[a-zA-Z]+:[a-zA-Z]+$`)

// Allowed decides whether an actor (the SPIFFE ID of an administrator) may do what permission says ("certificate:revoke")
// to what name says (a resource name, or a collection of them). nil is yes; Refused says why not. Any active administrator
// may do everything; there are no other people yet.
func (p *People) Allowed(ctx context.Context, actor, perm, name string) error {
	if !permission.MatchString(perm) || name == "" {
		return fault.New(fault.Internal, "bad-permission", "%q on %q is no permission", perm, name)
	}
	id, err := identity.Parse(actor)
	if err != nil {
		return err
	}
	no := func(why string) error {
		return fault.New(fault.Refused, "not-allowed", "%s may not %s on %s: %s", actor, perm, name, why).Do("ask an administrator")
	}
	if id.Kind != identity.Admin {
		return no("only administrators may")
	}
	a, err := p.current(ctx, id.Path)
	if fault.Is(err, fault.NotFound) {
		return no("no such administrator")
	}
	if err != nil {
		return err
	}
	return a.active()
}

const selectAdmin = `SELECT name, uid, state, certificate_sha256, create_time, update_time, revision FROM admins`

func load(ctx context.Context, q state.Querier, name string) (Admin, error) {
	a, err := scan(q.QueryRowContext(ctx, selectAdmin+` WHERE name = ?`, name))
	if errors.Is(err, sql.ErrNoRows) {
		return Admin{}, fault.New(fault.NotFound, "no-admin", "there is no administrator %q", resource.Last(name)).
			Do("check the name; `csm-controller admin add NAME` makes one")
	}
	return a, err
}

func scan(row interface{ Scan(...any) error }) (Admin, error) {
	var a Admin
	var sum []byte
	var created, updated int64
	err := row.Scan(&a.Name, &a.UID, &a.State, &sum, &created, &updated, &a.Revision)
	a.Certificate = hex.EncodeToString(sum)
	a.CreateTime, a.UpdateTime = time.UnixMilli(created).UTC(), time.UnixMilli(updated).UTC()
	return a, err
}

// Module is what this package puts into the state machine.
func Module() state.Module {
	return state.Module{
		Name: "people",
		Migrations: []state.Migration{{Number: 600, SQL: `
CREATE TABLE admins (
	name TEXT NOT NULL PRIMARY KEY,
	uid TEXT NOT NULL,
	state TEXT NOT NULL,
	certificate_sha256 BLOB NOT NULL,
	create_time INTEGER NOT NULL,
	update_time INTEGER NOT NULL,
	revision INTEGER NOT NULL
) STRICT, WITHOUT ROWID;
-- Fingerprints that never open again.
CREATE TABLE admin_closed_certificates (
	sha256 BLOB NOT NULL PRIMARY KEY,
	name TEXT NOT NULL,
	revision INTEGER NOT NULL
) STRICT, WITHOUT ROWID;`}},
		Commands: func(r *state.Registry) {
			state.Handle(r, applyAdd)
			state.Handle(r, applyRevoke)
		},
	}
}

func applyAdd(a *state.Apply, c *clusterv1.AddAdmin) (*clusterv1.Empty, error) {
	name := resource.Admin(c.Name)
	sum := append([]byte{}, c.CertificateSha256...)
	if len(sum) != 0 && len(sum) != sha256.Size {
		return nil, fault.New(fault.Invalid, "bad-fingerprint", "a fingerprint has %d bytes, not %d", sha256.Size, len(sum))
	}
	old, err := load(a.Context(), a.Querier(), name)
	verb := state.Updated
	switch {
	case fault.Is(err, fault.NotFound):
		verb = state.Created
	case err != nil:
		return nil, err
	case old.State == Revoked && len(sum) == 0:
		return nil, fault.New(fault.Refused, "fingerprint-needed", "the administrator %q was revoked: old certificates must stay shut", c.Name).
			Do("give the fingerprint of the new certificate, or choose another name")
	}
	if shut, err := closed(a, sum); err != nil || shut {
		return nil, cmp.Or(err, error(fault.New(fault.Refused, "admin-revoked", "this certificate of %q was replaced or revoked before", c.Name).Do("make a new one")))
	}
	if hex.EncodeToString(sum) != old.Certificate {
		if err := closeCertificate(a, old); err != nil {
			return nil, err
		}
	}
	now := a.Now.UnixMilli()
	_, err = a.Exec(`INSERT INTO admins (name, uid, state, certificate_sha256, create_time, update_time, revision) VALUES (?,?,?,?,?,?,?)
		ON CONFLICT (name) DO UPDATE SET state = excluded.state, certificate_sha256 = excluded.certificate_sha256,
		update_time = excluded.update_time, revision = excluded.revision`,
		name, c.Uid, Active, sum, now, now, int64(a.Index))
	if err != nil {
		return nil, err
	}
	a.Touch(verb, name)
	return &clusterv1.Empty{}, nil
}

func closed(a *state.Apply, sum []byte) (bool, error) {
	var n int
	err := a.QueryRow(`SELECT count(*) FROM admin_closed_certificates WHERE sha256 = ?`, sum).Scan(&n)
	return n > 0, err
}

func closeCertificate(a *state.Apply, old Admin) error {
	sum, err := hex.DecodeString(old.Certificate)
	if err != nil || len(sum) == 0 {
		return err
	}
	_, err = a.Exec(`INSERT OR IGNORE INTO admin_closed_certificates (sha256, name, revision) VALUES (?,?,?)`, sum, old.Name, int64(a.Index))
	return err
}

func applyRevoke(a *state.Apply, c *clusterv1.RevokeAdmin) (*clusterv1.Empty, error) {
	name := resource.Admin(c.Name)
	old, err := load(a.Context(), a.Querier(), name)
	if err != nil {
		return nil, err
	}
	if old.State == Revoked {
		return &clusterv1.Empty{}, nil
	}
	if err := closeCertificate(a, old); err != nil {
		return nil, err
	}
	if _, err := a.Exec(`UPDATE admins SET state = ?, update_time = ?, revision = ? WHERE name = ?`,
		Revoked, a.Now.UnixMilli(), int64(a.Index), name); err != nil {
		return nil, err
	}
	a.Touch(state.Updated, name)
	return &clusterv1.Empty{}, nil
}
