package ledger

import (
	"context"
	"crypto/sha256"
	"database/sql"
	"encoding/binary"
	"errors"
	"sort"
	"strings"
	"time"

	"google.golang.org/protobuf/proto"

	"github.com/cassandra-security-manager/csm/controller/state"
	clusterv1 "github.com/cassandra-security-manager/csm/protocol/cluster/v1"
	"github.com/cassandra-security-manager/csm/shared/algorithm"
	"github.com/cassandra-security-manager/csm/shared/certificate"
	"github.com/cassandra-security-manager/csm/shared/resource"
)

// Seen is one certificate as an agent reports it.
type Seen struct {
	DER                        []byte
	Path, Entry, Format, Owner string
	HasPrivateKey              bool
	Mode                       uint32
}

// maxFound bounds one scan and maxPart the bytes of one command (an envelope holds 128 KiB).
const (
	maxFound = 2000
	maxPart  = 96 << 10
)

// ReportFound replaces what the scan of a node found. A scan that equals the recorded one writes nothing. What is no
// certificate is left out: an agent finds all sorts of files. It returns how many certificates were taken.
func ReportFound(ctx context.Context, r Reader, l state.Log, node, actor string, seen []Seen) (int, error) {
	records := foundRecords(seen)
	scan := scanHash(records)
	same := false
	err := r.View(ctx, func(ctx context.Context, q state.Querier) error {
		var old []byte
		err := q.QueryRowContext(ctx, `SELECT scan FROM found_scans WHERE node = ?`, node).Scan(&old)
		same = err == nil && string(old) == string(scan)
		if errors.Is(err, sql.ErrNoRows) {
			return nil
		}
		return err
	})
	if err != nil || same {
		return len(records), err
	}
	for part := range parts(records) {
		_, err := l.Propose(ctx, state.Proposal{Actor: actor, Tenant: resource.Segment(node, "tenants"), Command: &clusterv1.UpsertFound{
			Node: node, Tenant: resource.Segment(node, "tenants"), Scan: scan, Found: part.records, Last: part.last}})
		if err != nil {
			return 0, err
		}
	}
	return len(records), nil
}

func foundRecords(seen []Seen) []*clusterv1.FoundRecord {
	var out []*clusterv1.FoundRecord
	for _, s := range seen {
		c, err := certificate.Parse(s.DER)
		s.Path, s.Entry = strings.ToValidUTF8(s.Path, "\uFFFD"), strings.ToValidUTF8(s.Entry, "\uFFFD")
		if err != nil || len(s.DER) > maxPart/2 || len(s.Path) > 1024 || len(s.Entry) > 256 {
			continue
		}
		out = append(out, &clusterv1.FoundRecord{Der: s.DER, Path: s.Path, Entry: s.Entry, Format: clip(s.Format, 16), Owner: clip(s.Owner, 128),
			HasPrivateKey: s.HasPrivateKey, Mode: s.Mode, Subject: clip(c.Subject.String(), 1024), IssuerSubject: clip(c.Issuer.String(), 1024),
			Serial: clipBytes(c.SerialNumber.Bytes(), 64), NotAfterMs: c.NotAfter.UnixMilli(), Algorithm: clip(algorithm.Name(c.PublicKey), 32)})
	}
	sort.SliceStable(out, func(i, j int) bool {
		if out[i].Path != out[j].Path {
			return out[i].Path < out[j].Path
		}
		return out[i].Entry < out[j].Entry
	})
	return out[:min(len(out), maxFound)]
}

// clip makes a string fit for the log: valid UTF-8, cut at a rune boundary.
func clip(s string, n int) string {
	s = strings.ToValidUTF8(s, "\uFFFD")
	if len(s) <= n {
		return s
	}
	for n > 0 && s[n]&0xC0 == 0x80 {
		n--
	}
	return s[:n]
}

func clipBytes(b []byte, n int) []byte { return b[:min(len(b), n)] }

func scanHash(records []*clusterv1.FoundRecord) []byte {
	h := sha256.New()
	for _, r := range records {
		b, err := proto.MarshalOptions{Deterministic: true}.Marshal(r)
		if err != nil { // a text that is no UTF-8 in a certificate: the record still counts by its bytes
			b = r.Der
		}
		var n [8]byte
		binary.BigEndian.PutUint64(n[:], uint64(len(b)))
		h.Write(n[:])
		h.Write(b)
	}
	return h.Sum(nil)
}

type part struct {
	records []*clusterv1.FoundRecord
	last    bool
}

// parts cuts a scan into commands that fit; an empty scan is one empty part.
func parts(records []*clusterv1.FoundRecord) func(func(part) bool) {
	return func(yield func(part) bool) {
		for {
			n, size := 0, 0
			for n < len(records) {
				if size += proto.Size(records[n]) + 8; n > 0 && size > maxPart {
					break
				}
				n++
			}
			p := part{records: records[:n], last: n == len(records)}
			records = records[n:]
			if !yield(p) || p.last {
				return
			}
		}
	}
}

// upsertFound handles UpsertFound.
func upsertFound(a *state.Apply, c *clusterv1.UpsertFound) (*clusterv1.Empty, error) {
	now := a.Now.UnixMilli()
	for _, f := range c.Found {
		sum := sha256.Sum256(f.Der)
		if _, err := a.Exec(`INSERT INTO found_bodies (sha256, der) VALUES (?, ?) ON CONFLICT DO NOTHING`, sum[:], f.Der); err != nil {
			return nil, err
		}
		if _, err := a.Exec(`INSERT OR REPLACE INTO found_certificates (node, path, entry, sha256, tenant, cluster, format, subject,
			issuer_subject, serial, algorithm, not_after, has_private_key, mode, owner, scan, seen_time, revision)
			VALUES (?,?,?,?,?,?,?,?,?,?,?,?,?,?,?,?,?,?)`, c.Node, f.Path, f.Entry, sum[:], c.Tenant, resource.Parent(c.Node), f.Format,
			f.Subject, f.IssuerSubject, bytesOf(f.Serial), f.Algorithm, f.NotAfterMs, f.HasPrivateKey, f.Mode, f.Owner, c.Scan, now, int64(a.Index)); err != nil {
			return nil, err
		}
	}
	if !c.Last {
		return &clusterv1.Empty{}, nil
	}
	if err := dropOtherScans(a, c.Node, c.Scan); err != nil {
		return nil, err
	}
	if _, err := a.Exec(`INSERT INTO found_scans (node, scan, seen_time) VALUES (?,?,?)
		ON CONFLICT (node) DO UPDATE SET scan = excluded.scan, seen_time = excluded.seen_time`, c.Node, c.Scan, now); err != nil {
		return nil, err
	}
	a.Touch(state.Updated, c.Node+"/inventory")
	return &clusterv1.Empty{}, nil
}

// dropOtherScans takes away what the newest scan of a node no longer names, and bodies that nobody refers to any more.
func dropOtherScans(a *state.Apply, node string, scan []byte) error {
	rows, err := a.Query(`SELECT DISTINCT sha256 FROM found_certificates WHERE node = ? AND scan <> ? ORDER BY sha256`, node, scan)
	if err != nil {
		return err
	}
	defer rows.Close()
	var gone [][]byte
	for rows.Next() {
		var s []byte
		if err := rows.Scan(&s); err != nil {
			return err
		}
		gone = append(gone, s)
	}
	if err := rows.Err(); err != nil {
		return err
	}
	if _, err := a.Exec(`DELETE FROM found_certificates WHERE node = ? AND scan <> ?`, node, scan); err != nil {
		return err
	}
	for _, s := range gone {
		if _, err := a.Exec(`DELETE FROM found_bodies WHERE sha256 = ?1
			AND NOT EXISTS (SELECT 1 FROM found_certificates WHERE sha256 = ?1)`, s); err != nil {
			return err
		}
	}
	return nil
}

func fromMilli(ms int64) time.Time {
	if ms == 0 {
		return time.Time{}
	}
	return time.UnixMilli(ms).UTC()
}
