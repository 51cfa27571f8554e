package ledger

import (
	"context"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"strconv"
	"strings"

	"github.com/cassandra-security-manager/csm/controller/state"
)

// Found lists what agents saw, in the order node, path, entry, fingerprint.
func (l *Replicated) Found(ctx context.Context, f FoundFilter, p Page) ([]Found, string, error) {
	size, err := p.size()
	if err != nil {
		return nil, "", err
	}
	w := f.where()
	id := queryID(w.String(), w.args, "found")
	if p.Token != "" {
		at, err := openFoundToken(p.Token, id)
		if err != nil {
			return nil, "", err
		}
		w.add("(f.node, f.path, f.entry, f.sha256) > (?, ?, ?, ?)", at.Node, at.Path, at.Entry, at.Sum)
	}
	var out []Found
	next := ""
	err = l.store.View(ctx, func(ctx context.Context, q state.Querier) error {
		rows, err := q.QueryContext(ctx, `SELECT f.node, f.path, f.entry, f.sha256, f.format, f.subject, f.issuer_subject, f.serial, f.algorithm,
			f.not_after, f.has_private_key, f.mode, f.owner, f.seen_time, c.tenant, b.der
			FROM found_certificates f LEFT JOIN certificates c ON c.sha256 = f.sha256 JOIN found_bodies b ON b.sha256 = f.sha256`+
			w.String()+` ORDER BY f.node, f.path, f.entry, f.sha256 LIMIT `+strconv.Itoa(size+1), w.args...)
		if err != nil {
			return err
		}
		defer rows.Close()
		var last foundToken
		for rows.Next() {
			var (
				x              Found
				sum, serial    []byte
				notAfter, seen int64
				tenant         *string
			)
			if err := rows.Scan(&x.Node, &x.Path, &x.Entry, &sum, &x.Format, &x.Subject, &x.Issuer, &serial, &x.Algorithm, &notAfter,
				&x.HasPrivateKey, &x.Mode, &x.Owner, &seen, &tenant, &x.DER); err != nil {
				return err
			}
			if len(out) == size {
				next = last.seal(id)
				break
			}
			x.SHA256, x.Serial = hex.EncodeToString(sum), hex.EncodeToString(serial)
			x.NotAfter, x.SeenTime = fromMilli(notAfter), fromMilli(seen)
			if tenant != nil {
				x.Known = Name(*tenant, sum)
			}
			last = foundToken{Node: x.Node, Path: x.Path, Entry: x.Entry, Sum: sum}
			out = append(out, x)
		}
		return rows.Err()
	})
	return out, next, err
}

func (f FoundFilter) where() *where {
	w := &where{}
	w.equal("f.tenant", f.Tenant)
	w.equal("f.cluster", f.Cluster)
	w.equal("f.node", f.Node)
	if f.Unknown {
		w.add("c.seq IS NULL")
	}
	if f.Known {
		w.add("c.seq IS NOT NULL")
	}
	if !f.ExpiresBefore.IsZero() {
		w.add("f.not_after < ?", f.ExpiresBefore.UnixMilli())
	}
	if f.Text != "" {
		t := strings.ToLower(f.Text)
		w.add("(instr(lower(f.path), ?) > 0 OR instr(lower(f.subject), ?) > 0 OR instr(lower(hex(f.sha256)), ?) = 1)", t, t, strings.ReplaceAll(t, ":", ""))
	}
	return w
}

type foundToken struct {
	Node, Path, Entry string
	Sum               []byte
	ID                string
}

func (t foundToken) seal(id string) string {
	t.ID = id
	b, err := json.Marshal(t)
	if err != nil {
		return ""
	}
	return base64.RawURLEncoding.EncodeToString(b)
}

func openFoundToken(s, id string) (t foundToken, err error) {
	b, err := base64.RawURLEncoding.DecodeString(s)
	if err != nil || len(b) > 8192 || json.Unmarshal(b, &t) != nil || t.ID != id {
		return t, badToken()
	}
	return t, nil
}
