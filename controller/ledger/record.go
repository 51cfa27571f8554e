package ledger

import (
	"bytes"
	"crypto/sha256"
	"database/sql"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"slices"
	"strings"
	"time"

	"github.com/cassandra-security-manager/csm/controller/state"
	clusterv1 "github.com/cassandra-security-manager/csm/protocol/cluster/v1"
	"github.com/cassandra-security-manager/csm/shared/fault"
	"github.com/cassandra-security-manager/csm/shared/resource"
)

// recorder handles RecordCertificate: repeat, guards, cap, serial, in this order. Whatever it refuses leaves no trace but
// the audit entry.
func recorder(guards []Guard) func(*state.Apply, *clusterv1.RecordCertificate) (*clusterv1.RecordedCertificate, error) {
	return func(a *state.Apply, c *clusterv1.RecordCertificate) (*clusterv1.RecordedCertificate, error) {
		before, err := recorded(a, c)
		if err != nil || before != nil {
			return before, err
		}
		if err := checkClock(a, c); err != nil {
			return nil, err
		}
		for _, g := range guards {
			if err := g(a, c); err != nil {
				return nil, err
			}
		}
		if err := count(a, c); err != nil {
			return nil, err
		}
		name, err := Insert(a, c)
		if err != nil {
			return nil, err
		}
		// Without the DER: who proposed the command has it, and the reply is kept beside the row for as long as a repeat may come.
		return &clusterv1.RecordedCertificate{Name: name, Issuer: c.Issuer, RenewAtMs: c.RenewAtMs}, nil
	}
}

// requestKey is what makes a request id unique: it belongs to its scope, so nobody can take another's.
func requestKey(scope, id string) []byte {
	if id == "" {
		return nil
	}
	sum := sha256.Sum256([]byte(scope + "\x00" + id))
	return sum[:16]
}

func recorded(a *state.Apply, c *clusterv1.RecordCertificate) (*clusterv1.RecordedCertificate, error) {
	key := requestKey(c.Scope, c.RequestId)
	if key == nil {
		return nil, nil
	}
	var der, sum, keySum []byte
	r := &clusterv1.RecordedCertificate{Repeated: true}
	var tenant string
	err := a.QueryRow(`SELECT sha256, tenant, key_sha256, issuer, renew_at, der FROM certificates WHERE request = ?`, key).
		Scan(&sum, &tenant, &keySum, &r.Issuer, &r.RenewAtMs, &der)
	if errors.Is(err, sql.ErrNoRows) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	if !bytes.Equal(keySum, c.KeySha256) {
		return nil, fault.New(fault.Conflict, "request-id-used", "the request id %.64q was used before with another key", c.RequestId).
			Do("ask again with a new request id")
	}
	r.Name, r.Der = Name(tenant, sum), der
	return r, nil
}

// maxSkew is how far the clock of the controller that signs may be from the leader's.
const maxSkew = 10 * time.Minute

func checkClock(a *state.Apply, c *clusterv1.RecordCertificate) error {
	if c.SignedAtMs == 0 {
		return nil
	}
	skew := a.Now.Sub(time.UnixMilli(c.SignedAtMs))
	if skew.Abs() < maxSkew {
		return nil
	}
	return fault.New(fault.Unavailable, "clock-skew", "the clock of the controller that signed is %s away from the leader's", skew.Abs().Round(time.Second)).
		Do("set the clocks right (chrony, ntpd); `csm status` shows the offset of each controller")
}

const hourMs = 3600 * 1000

// count is the cap per scope and hour of the state clock.
func count(a *state.Apply, c *clusterv1.RecordCertificate) error {
	if c.HourlyCap == 0 {
		return nil
	}
	var n uint32
	err := a.QueryRow(`INSERT INTO issue_counts (scope, hour, count) VALUES (?1, ?2, 1)
		ON CONFLICT (scope) DO UPDATE SET count = CASE WHEN hour = excluded.hour THEN count + 1 ELSE 1 END, hour = excluded.hour
		RETURNING count`, c.Scope, a.Now.UnixMilli()/hourMs).Scan(&n)
	if err != nil {
		return err
	}
	if n > c.HourlyCap {
		return fault.New(fault.Exhausted, "hourly-cap", "%s was issued %d certificates within this hour, which is the cap", c.Scope, c.HourlyCap).
			Do("find out why it asks so often; the cap opens again at the next full hour")
	}
	return nil
}

// Recorded is what stands in the ledger once Apply took a command at an index and time. Names are left to who made the DER.
func Recorded(c *clusterv1.RecordCertificate, actor string, index uint64, at time.Time) *Certificate {
	sum := sha256.Sum256(c.Der)
	return &Certificate{Name: Name(c.Tenant, sum[:]), Tenant: c.Tenant, Zone: c.Zone, Serial: hex.EncodeToString(c.Serial), Subject: c.Subject,
		Issuer: c.Issuer, Node: c.Node, Cluster: clusterOf(c.Node), Store: c.Store, Incarnation: c.Incarnation, Identity: c.Identity, Template: c.Template,
		Algorithm: c.Algorithm, KeySHA256: hex.EncodeToString(c.KeySha256), RequestID: c.RequestId, Actor: actor, NotBefore: fromMilli(c.NotBeforeMs),
		NotAfter: fromMilli(c.NotAfterMs), RenewAt: fromMilli(c.RenewAtMs), CreateTime: fromMilli(at.UnixMilli()), State: Active, Revision: index, DER: c.Der}
}

func clusterOf(node string) string {
	if node == "" {
		return ""
	}
	return resource.Parent(node)
}

// Insert writes the row of a certificate and its names, and touches its name. Package authority uses it inside its own
// commands for the certificates of CAs; everybody else proposes RecordCertificate.
func Insert(a *state.Apply, c *clusterv1.RecordCertificate) (string, error) {
	sum := sha256.Sum256(c.Der)
	now := a.Now.UnixMilli()
	res, err := a.Exec(`INSERT INTO certificates (seq, sha256, serial, request, tenant, zone, issuer, cluster, node, store, incarnation,
		identity, template, template_version, algorithm, key_sha256, subject, actor, not_before, not_after, renew_at, create_time,
		state, revoke_time, reason, revision, request_id, der)
		VALUES (?,?,?,?,?,?,?,?,?,?,?,?,?,?,?,?,?,?,?,?,?,?,'active',0,0,?,?,?) ON CONFLICT DO NOTHING`,
		int64(a.Index), sum[:], c.Serial, requestKey(c.Scope, c.RequestId), c.Tenant, c.Zone, c.Issuer, clusterOf(c.Node), c.Node, c.Store,
		int64(c.Incarnation), c.Identity, c.Template, c.TemplateVersion, c.Algorithm, bytesOf(c.KeySha256), c.Subject,
		a.Envelope.GetActor(), c.NotBeforeMs, c.NotAfterMs, c.RenewAtMs, now, int64(a.Index), c.RequestId, c.Der)
	if err != nil {
		return "", err
	}
	if n, err := res.RowsAffected(); err != nil {
		return "", err
	} else if n == 0 {
		return "", fault.New(fault.Conflict, "serial-used", "a certificate with this serial number is recorded already").Do("ask again: a new serial is drawn")
	}
	if err := insertNames(a, c.Names); err != nil {
		return "", err
	}
	name := Name(c.Tenant, sum[:])
	a.Touch(state.Created, name)
	return name, nil
}

func bytesOf(b []byte) []byte {
	if b == nil {
		return []byte{}
	}
	return b
}

// insertNames costs one statement for a value whose names were there before, as in every renewal; the common name mostly is
// the value of a DNS name too.
func insertNames(a *state.Apply, names []*clusterv1.CertificateName) error {
	kinds := map[string][]string{}
	var values []string
	for _, n := range names {
		value := strings.ToLower(n.Value)
		if kinds[value] == nil {
			values = append(values, value)
		}
		if !slices.Contains(kinds[value], n.Kind) {
			kinds[value] = append(kinds[value], n.Kind)
		}
	}
	for _, value := range values {
		if err := insertValue(a, value, kinds[value]); err != nil {
			return err
		}
	}
	return nil
}

// insertValue says that this certificate carries a value as each of some kinds.
func insertValue(a *state.Apply, value string, kinds []string) error {
	if len(kinds) <= 2 {
		n, err := useName(a, value, kinds[0], kinds[len(kinds)-1])
		if err != nil || n == len(kinds) {
			return err
		}
	}
	for _, kind := range kinds {
		if _, err := a.Exec(`INSERT INTO certificate_names (kind, value) VALUES (?, ?) ON CONFLICT DO NOTHING`, kind, value); err != nil {
			return err
		}
		if _, err := useName(a, value, kind, kind); err != nil {
			return err
		}
	}
	return nil
}

// useName says that this certificate carries a value as one kind or as two, and how many of them were known and not said
// already. The plus signs keep the planner from building a table of the two kinds: a value has few. OR IGNORE, because a statement
// that may fail half way (ON CONFLICT looks at no NOT NULL) keeps a journal of its own.
func useName(a *state.Apply, value, kind, other string) (int, error) {
	res, err := a.Exec(`INSERT OR IGNORE INTO certificate_name_uses (name, seq) SELECT id, ? FROM certificate_names WHERE value = ? AND (+kind = ? OR +kind = ?)`,
		int64(a.Index), value, kind, other)
	if err != nil {
		return 0, err
	}
	n, err := res.RowsAffected()
	return int(n), err
}

// revoke handles RevokeCertificate. A second revocation changes nothing and says when the first one was.
func revoke(a *state.Apply, c *clusterv1.RevokeCertificate) (*clusterv1.RevokedCertificate, error) {
	if err := Reason(c.Reason).Check(); err != nil {
		return nil, err
	}
	sum, err := fingerprint(c.Name)
	if err != nil {
		return nil, err
	}
	var (
		tenant, issuer, st string
		serial             []byte
		notAfter, at       int64
		reason             uint32
		seq                int64
	)
	err = a.QueryRow(`SELECT seq, tenant, issuer, serial, not_after, state, revoke_time, reason FROM certificates WHERE sha256 = ?`, sum).
		Scan(&seq, &tenant, &issuer, &serial, &notAfter, &st, &at, &reason)
	if errors.Is(err, sql.ErrNoRows) || (err == nil && Name(tenant, sum) != c.Name) {
		return nil, notFound(c.Name)
	}
	if err != nil {
		return nil, err
	}
	if State(st) == Revoked {
		return &clusterv1.RevokedCertificate{Name: c.Name, RevokedMs: at, Already: true, Reason: reason}, nil
	}
	now := a.Now.UnixMilli()
	if _, err := a.Exec(`UPDATE certificates SET state = 'revoked', revoke_time = ?, reason = ?, revision = ? WHERE seq = ?`,
		now, c.Reason, int64(a.Index), seq); err != nil {
		return nil, err
	}
	if _, err := a.Exec(`INSERT INTO revocations (issuer, serial, serial_low, revoke_time, reason, not_after, revision) VALUES (?,?,?,?,?,?,?)`,
		issuer, serial, int64(serialLow(serial)), now, c.Reason, notAfter, int64(a.Index)); err != nil {
		return nil, err
	}
	a.Touch(state.Updated, c.Name)
	a.Touch(state.Signalled, issuer+"/crls")
	return &clusterv1.RevokedCertificate{Name: c.Name, RevokedMs: now, Reason: c.Reason}, nil
}

// serialLow is the low 32 bits of a serial: serial mod shards for every number of shards that is a power of two.
func serialLow(serial []byte) uint32 {
	var b [4]byte
	if len(serial) >= 4 {
		copy(b[:], serial[len(serial)-4:])
	} else {
		copy(b[4-len(serial):], serial)
	}
	return binary.BigEndian.Uint32(b[:])
}
