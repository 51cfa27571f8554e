package authority

import (
	"context"
	"crypto/sha256"
	"database/sql"
	"encoding/json"
	"errors"
	"fmt"
	"time"

	"github.com/cassandra-security-manager/csm/controller/ledger"
	"github.com/cassandra-security-manager/csm/controller/state"
	clusterv1 "github.com/cassandra-security-manager/csm/protocol/cluster/v1"
	"github.com/cassandra-security-manager/csm/shared/algorithm"
	"github.com/cassandra-security-manager/csm/shared/certificate"
	"github.com/cassandra-security-manager/csm/shared/fault"
	"github.com/cassandra-security-manager/csm/shared/resource"
)

// Module registers the tables and commands.
func Module() state.Module {
	return state.Module{
		Name:       "authority",
		Migrations: []state.Migration{{Number: 300, SQL: schema}},
		Commands: func(r *state.Registry) {
			state.Handle(r, createAuthority)
			state.Handle(r, createIssuer)
			state.Handle(r, setIssuerState)
		},
	}
}

const schema = `
CREATE TABLE authorities (
  name TEXT PRIMARY KEY,
  tenant TEXT NOT NULL,
  zone TEXT NOT NULL,
  display_name TEXT NOT NULL,
  algorithm TEXT NOT NULL,
  trust_domain TEXT NOT NULL,
  state TEXT NOT NULL,
  create_time INTEGER NOT NULL,
  revision INTEGER NOT NULL
) WITHOUT ROWID;
CREATE INDEX authorities_tenant ON authorities (tenant, name);
CREATE TABLE issuers (
  name TEXT PRIMARY KEY,
  authority TEXT NOT NULL,
  public_id TEXT NOT NULL UNIQUE,
  kind TEXT NOT NULL,
  region TEXT NOT NULL,
  zone TEXT NOT NULL,
  key TEXT NOT NULL UNIQUE,
  parent TEXT NOT NULL,
  state TEXT NOT NULL,
  crl_shards INTEGER NOT NULL,
  base_urls TEXT NOT NULL,
  not_before INTEGER NOT NULL,
  not_after INTEGER NOT NULL,
  create_time INTEGER NOT NULL,
  revision INTEGER NOT NULL,
  sha256 BLOB NOT NULL,
  certificate BLOB NOT NULL
) WITHOUT ROWID;
CREATE INDEX issuers_authority ON issuers (authority, name);
`

func createAuthority(a *state.Apply, c *clusterv1.CreateAuthority) (*clusterv1.Empty, error) {
	now := a.Now.UnixMilli()
	res, err := a.Exec(`INSERT INTO authorities (name, tenant, zone, display_name, algorithm, trust_domain, state, create_time, revision)
		VALUES (?,?,?,?,?,?,'active',?,?) ON CONFLICT DO NOTHING`, c.Name, c.Tenant, c.Zone, c.DisplayName, c.Algorithm, c.TrustDomain, now, int64(a.Index))
	if err != nil {
		return nil, err
	}
	if n, err := res.RowsAffected(); err != nil {
		return nil, err
	} else if n == 0 {
		return nil, exists(c.Name)
	}
	a.Touch(state.Created, c.Name)
	return &clusterv1.Empty{}, insertIssuer(a, c.Name, c.Tenant, c.Algorithm, c.Root, Active)
}

func createIssuer(a *state.Apply, c *clusterv1.CreateIssuer) (*clusterv1.Empty, error) {
	if c.Authority == SystemName {
		return nil, byRotation()
	}
	var tenant, alg, st string
	err := a.QueryRow(`SELECT tenant, algorithm, state FROM authorities WHERE name = ?`, c.Authority).Scan(&tenant, &alg, &st)
	if errors.Is(err, sql.ErrNoRows) {
		return nil, noAuthority(c.Authority)
	}
	if err != nil {
		return nil, err
	}
	var parent string
	err = a.QueryRow(`SELECT state FROM issuers WHERE name = ? AND authority = ?`, c.GetIssuer().GetParent(), c.Authority).Scan(&parent)
	if err != nil && !errors.Is(err, sql.ErrNoRows) {
		return nil, err
	}
	if State(parent) != Active || State(st) != Active {
		return nil, fault.New(fault.Refused, "issuer-not-active", "the root that signed is not active")
	}
	a.Touch(state.Updated, c.Authority)
	return &clusterv1.Empty{}, insertIssuer(a, c.Authority, tenant, alg, c.Issuer, Active)
}

// insertIssuer writes the issuer, and its certificate into the ledger.
func insertIssuer(a *state.Apply, authority, tenant, alg string, i *clusterv1.IssuerRecord, st State) error {
	if i == nil || i.CrlShards == 0 || i.CrlShards&(i.CrlShards-1) != 0 {
		return fault.New(fault.Invalid, "bad-issuer", "an issuer needs a certificate and a number of list shards that is a power of two")
	}
	urls, err := json.Marshal(i.BaseUrls)
	if err != nil {
		return fmt.Errorf("authority: encode URLs: %w", err)
	}
	cert, err := certificate.Parse(i.Certificate)
	if err != nil {
		return err
	}
	now := a.Now.UnixMilli()
	sum := certificate.Fingerprint(i.Certificate)
	res, err := a.Exec(`INSERT INTO issuers (name, authority, public_id, kind, region, zone, key, parent, state, crl_shards, base_urls,
		not_before, not_after, create_time, revision, sha256, certificate) VALUES (?,?,?,?,?,?,?,?,?,?,?,?,?,?,?,?,?) ON CONFLICT DO NOTHING`,
		i.Name, authority, i.PublicId, i.Kind, i.Region, i.Zone, i.Key, i.Parent, string(st), i.CrlShards, string(urls),
		i.NotBeforeMs, i.NotAfterMs, now, int64(a.Index), sum[:], i.Certificate)
	if err != nil {
		return err
	}
	if n, err := res.RowsAffected(); err != nil {
		return err
	} else if n == 0 {
		return fault.New(fault.Conflict, "issuer-exists", "there is an issuer %s, or one with this key", i.Name).Do("try again")
	}
	template := "issuer"
	if Kind(i.Kind) == Root {
		template = "root"
	}
	spki := sha256.Sum256(cert.RawSubjectPublicKeyInfo)
	if _, err := ledger.Insert(a, &clusterv1.RecordCertificate{Scope: i.Name, Tenant: tenant, Zone: i.Zone, Der: i.Certificate,
		Serial: cert.SerialNumber.Bytes(), Subject: cert.Subject.String(), Issuer: i.Parent, Template: template, Algorithm: alg,
		Names:     []*clusterv1.CertificateName{{Kind: "cn", Value: cert.Subject.CommonName}},
		KeySha256: spki[:], NotBeforeMs: i.NotBeforeMs, NotAfterMs: i.NotAfterMs}); err != nil {
		return err
	}
	a.Touch(state.Created, i.Name)
	return nil
}

func setIssuerState(a *state.Apply, c *clusterv1.SetIssuerState) (*clusterv1.Empty, error) {
	if s := State(c.State); s != Active && s != Retired {
		return nil, fault.New(fault.Invalid, "bad-state", "%.40q is not a state of issuers", c.State).Do("use active or retired")
	}
	if resource.Parent(c.Issuer) == SystemName {
		return nil, byRotation()
	}
	return &clusterv1.Empty{}, setState(a, c.Issuer, State(c.State))
}

// setState moves an issuer.
func setState(a *state.Apply, issuer string, to State) error {
	res, err := a.Exec(`UPDATE issuers SET state = ?, revision = ? WHERE name = ?`, string(to), int64(a.Index), issuer)
	if err != nil {
		return err
	}
	if n, err := res.RowsAffected(); err != nil {
		return err
	} else if n == 0 {
		return fault.New(fault.NotFound, "no-issuer", "there is no issuer %.200q", issuer)
	}
	a.Touch(state.Updated, issuer)
	return nil
}

// Issuers is what the ledger asks in Apply about the issuer of a certificate: ledger.Module(authority.Issuers{}, …).
type Issuers struct{}

var _ ledger.Issuers = Issuers{}

// CheckIssuer refuses a certificate whose issuer is not active, or has another certificate than the one that the signer used.
func (Issuers) CheckIssuer(a *state.Apply, c *clusterv1.RecordCertificate) error {
	st, err := state.Recall(a, "issuer "+c.Issuer+" "+string(c.IssuerSha256), func() (State, error) {
		var st State
		err := a.QueryRow(`SELECT state FROM issuers WHERE name = ? AND sha256 = ?`, c.Issuer, bytesOf(c.IssuerSha256)).Scan(&st)
		if errors.Is(err, sql.ErrNoRows) {
			return "", nil
		}
		return st, err
	})
	if err != nil {
		return err
	}
	if st != Active {
		return fault.New(fault.Refused, "issuer-not-active", "the issuer %s is not active", c.Issuer).Do("ask again: another issuer will sign")
	}
	return nil
}

func bytesOf(b []byte) []byte {
	if b == nil {
		return []byte{}
	}
	return b
}

const issuerColumns = `name, authority, public_id, kind, region, zone, key, parent, state, crl_shards, base_urls, create_time, revision, certificate`

func readIssuers(ctx context.Context, q state.Querier, where string, args ...any) ([]Issuer, error) {
	rows, err := q.QueryContext(ctx, `SELECT `+issuerColumns+` FROM issuers WHERE `+where+` ORDER BY kind DESC, name`, args...)
	if err != nil {
		return nil, err
	}
	defer rows.Close()
	var out []Issuer
	for rows.Next() {
		var (
			i       Issuer
			urls    string
			created int64
			der     []byte
		)
		if err := rows.Scan(&i.Name, &i.Authority, &i.PublicID, &i.Kind, &i.Region, &i.Zone, &i.Key, &i.Parent, &i.State, &i.Shards, &urls,
			&created, &i.Revision, &der); err != nil {
			return nil, err
		}
		if err := json.Unmarshal([]byte(urls), &i.BaseURLs); err != nil {
			return nil, fmt.Errorf("authority: URLs of %s: %w", i.Name, err)
		}
		if i.Certificate, err = certificate.Parse(der); err != nil {
			return nil, err
		}
		i.CreateTime = time.UnixMilli(created).UTC()
		out = append(out, i)
	}
	return out, rows.Err()
}

func read(ctx context.Context, q state.Querier, where string, args ...any) ([]Authority, error) {
	rows, err := q.QueryContext(ctx, `SELECT name, tenant, zone, display_name, algorithm, trust_domain, state, create_time, revision
		FROM authorities a WHERE `+where+` ORDER BY name`, args...)
	if err != nil {
		return nil, err
	}
	defer rows.Close()
	var out []Authority
	for rows.Next() {
		var (
			a       Authority
			alg     string
			created int64
		)
		if err := rows.Scan(&a.Name, &a.Tenant, &a.Zone, &a.DisplayName, &alg, &a.TrustDomain, &a.State, &created, &a.Revision); err != nil {
			return nil, err
		}
		a.Algorithm, a.CreateTime = algorithm.Key(alg), time.UnixMilli(created).UTC()
		out = append(out, a)
	}
	if err := rows.Err(); err != nil {
		return nil, err
	}
	for k := range out {
		if out[k].Issuers, err = readIssuers(ctx, q, `authority = ?`, out[k].Name); err != nil {
			return nil, err
		}
	}
	return out, nil
}
