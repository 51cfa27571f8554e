package ledger

import (
	"context"
	"database/sql"
	"encoding/base64"
	"encoding/hex"
	"errors"
	"fmt"
	"hash/fnv"
	"strconv"
	"strings"

	"github.com/jonboulle/clockwork"

	"github.com/cassandra-security-manager/csm/controller/state"
	"github.com/cassandra-security-manager/csm/shared/certificate"
	"github.com/cassandra-security-manager/csm/shared/fault"
)

// Replicated is the kind that keeps everything in the state machine.
type Replicated struct {
	store Reader
	clock clockwork.Clock
}

var _ Ledger = (*Replicated)(nil)

// NewReplicated reads from store; clock tells which certificates have expired.
func NewReplicated(store Reader, clock clockwork.Clock) *Replicated {
	return &Replicated{store: store, clock: clock}
}

func notFound(name string) error {
	return fault.New(fault.NotFound, "no-certificate", "there is no certificate %.200q", name).Do("list what there is with `csm certificate list`")
}

// fingerprint is the SHA-256 at the end of a certificate's name.
func fingerprint(name string) ([]byte, error) {
	sum, err := hex.DecodeString(name[strings.LastIndexByte(name, '/')+1:])
	if err != nil || len(sum) != 32 {
		return nil, notFound(name)
	}
	return sum, nil
}

const columns = `c.seq, c.sha256, c.serial, c.tenant, c.zone, c.issuer, c.cluster, c.node, c.store, c.incarnation, c.identity, c.template,
	c.algorithm, c.key_sha256, c.subject, c.actor, c.not_before, c.not_after, c.renew_at, c.create_time, c.state, c.revoke_time,
	c.reason, c.revision, c.request_id, c.der`

// Get returns one certificate.
func (l *Replicated) Get(ctx context.Context, name string) (*Certificate, error) {
	sum, err := fingerprint(name)
	if err != nil {
		return nil, err
	}
	var out *Certificate
	err = l.store.View(ctx, func(ctx context.Context, q state.Querier) error {
		c, _, err := l.scan(q.QueryRowContext(ctx, `SELECT `+columns+` FROM certificates c WHERE c.sha256 = ?`, sum))
		out = c
		return err
	})
	if errors.Is(err, sql.ErrNoRows) || (err == nil && out.Name != name) {
		return nil, notFound(name)
	}
	return out, err
}

type row interface{ Scan(...any) error }

func (l *Replicated) scan(r row) (*Certificate, int64, error) {
	var (
		c                                    Certificate
		seq, nb, na, ra, ct, rt, incarnation int64
		sum, serial, key                     []byte
	)
	err := r.Scan(&seq, &sum, &serial, &c.Tenant, &c.Zone, &c.Issuer, &c.Cluster, &c.Node, &c.Store, &incarnation, &c.Identity, &c.Template,
		&c.Algorithm, &key, &c.Subject, &c.Actor, &nb, &na, &ra, &ct, &c.State, &rt, &c.Reason, &c.Revision, &c.RequestID, &c.DER)
	if err != nil {
		return nil, 0, err
	}
	c.Name, c.Serial, c.KeySHA256 = Name(c.Tenant, sum), hex.EncodeToString(serial), hex.EncodeToString(key)
	c.Incarnation = uint64(incarnation)
	c.NotBefore, c.NotAfter, c.RenewAt = fromMilli(nb), fromMilli(na), fromMilli(ra)
	c.CreateTime, c.RevokeTime = fromMilli(ct), fromMilli(rt)
	if c.State == Active && l.clock.Now().After(c.NotAfter) {
		c.State = Expired
	}
	if p, err := c.Parsed(); err == nil {
		c.Names = certificate.OfCertificate(p)
	}
	return &c, seq, nil
}

// List returns one page.
func (l *Replicated) List(ctx context.Context, f Filter, p Page) ([]Certificate, string, error) {
	size, err := p.size()
	if err != nil {
		return nil, "", err
	}
	w, err := l.where(f)
	if err != nil {
		return nil, "", err
	}
	order, err := f.Order.sql()
	if err != nil {
		return nil, "", err
	}
	id := queryID(w.String(), w.args, order.by)
	if p.Token != "" {
		key, seq, err := openToken(p.Token, id)
		if err != nil {
			return nil, "", err
		}
		if order.key == "" {
			w.add(order.after, seq)
		} else {
			w.add(order.after, key, seq)
		}
	}
	var out []Certificate
	next := ""
	err = l.store.View(ctx, func(ctx context.Context, q state.Querier) error {
		rows, err := q.QueryContext(ctx, `SELECT `+columns+` FROM certificates c`+w.String()+` ORDER BY `+order.by+` LIMIT `+strconv.Itoa(size+1), w.args...)
		if err != nil {
			return err
		}
		defer rows.Close()
		var lastKey, lastSeq int64
		for rows.Next() {
			c, seq, err := l.scan(rows)
			if err != nil {
				return err
			}
			if len(out) == size {
				next = makeToken(lastKey, lastSeq, id)
				break
			}
			lastKey, lastSeq = c.NotAfter.UnixMilli(), seq
			out = append(out, *c)
		}
		return rows.Err()
	})
	return out, next, err
}

// Count says how many certificates a filter takes.
func (l *Replicated) Count(ctx context.Context, f Filter) (int64, error) {
	w, err := l.where(f)
	if err != nil {
		return 0, err
	}
	var n int64
	err = l.store.View(ctx, func(ctx context.Context, q state.Querier) error {
		return q.QueryRowContext(ctx, `SELECT count(*) FROM certificates c`+w.String(), w.args...).Scan(&n)
	})
	return n, err
}

type ordering struct{ key, by, after string }

func (o Order) sql() (ordering, error) {
	switch o {
	case "", ByNewest:
		return ordering{by: "c.seq DESC", after: "c.seq < ?"}, nil
	case ByOldest:
		return ordering{by: "c.seq", after: "c.seq > ?"}, nil
	case ByExpiry:
		return ordering{key: "not_after", by: "c.not_after, c.seq", after: "(c.not_after, c.seq) > (?, ?)"}, nil
	case ByExpiryLast:
		return ordering{key: "not_after", by: "c.not_after DESC, c.seq DESC", after: "(c.not_after, c.seq) < (?, ?)"}, nil
	}
	return ordering{}, fault.New(fault.Invalid, "bad-order", "certificates cannot be ordered by %.40q", string(o)).
		Do("order by one of newest, oldest, expiry, expiry-last")
}

func (p Page) size() (int, error) {
	switch {
	case p.Size == 0:
		return 100, nil
	case p.Size < 0 || p.Size > 1000:
		return 0, fault.New(fault.Invalid, "bad-page-size", "a page of %d is not given", p.Size).Do("ask for 1 to 1000")
	}
	return p.Size, nil
}

// A token holds where the page ended and the id of its query: another filter or order with it is a mistake, not a page.
func makeToken(key, seq int64, id string) string {
	return base64.RawURLEncoding.EncodeToString([]byte(fmt.Sprintf("%d.%d.%s", key, seq, id)))
}

func badToken() error {
	return fault.New(fault.Invalid, "bad-page-token", "the page token does not belong to this list").Do("begin again without a page token")
}

func openToken(token, id string) (key, seq int64, err error) {
	if len(token) > 200 {
		return 0, 0, badToken()
	}
	b, err := base64.RawURLEncoding.DecodeString(token)
	parts := strings.Split(string(b), ".")
	if err != nil || len(parts) != 3 || parts[2] != id {
		return 0, 0, badToken()
	}
	key, err = strconv.ParseInt(parts[0], 10, 64)
	if err != nil {
		return 0, 0, badToken()
	}
	if seq, err = strconv.ParseInt(parts[1], 10, 64); err != nil {
		return 0, 0, badToken()
	}
	return key, seq, nil
}

func queryID(where string, args []any, order string) string {
	h := fnv.New64a()
	fmt.Fprintf(h, "%s\x00%v\x00%s", where, args, order)
	return strconv.FormatUint(h.Sum64(), 36)
}
