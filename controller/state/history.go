package state

import (
	"context"
	"strconv"
	"strings"
	"time"

	"github.com/cassandra-security-manager/csm/shared/fault"
)

// Changes lists what changed after revision since, below a prefix ending in "/" (or one name), oldest first, limit or a few
// more: the changes of one revision stay together. The list is whole if since >= oldest; else it is not given so far back and
// the caller must list anew.
func (s *Store) Changes(ctx context.Context, prefix string, since uint64, limit int) (changes []Change, oldest uint64, err error) {
	everything := prefix == Everything || prefix == ""
	below := strings.HasSuffix(prefix, "/")
	err = s.View(ctx, func(ctx context.Context, q Querier) error {
		if err := q.QueryRowContext(ctx, "SELECT changes_after FROM meta WHERE id = 1").Scan(&oldest); err != nil {
			return err
		}
		filter := AuditFilter{Resource: prefix}.resource()
		if everything {
			filter = ""
		}
		rows, err := q.QueryContext(ctx, `SELECT idx, touched FROM audit
			WHERE idx > ? AND touched <> '' AND instr(touched || char(10), ?) > 0 ORDER BY idx`, max(since, oldest), filter)
		if err != nil {
			return err
		}
		defer rows.Close()
		for len(changes) < limit && rows.Next() {
			var index uint64
			var touched string
			if err := rows.Scan(&index, &touched); err != nil {
				return err
			}
			for _, c := range parseTouched(touched, index) {
				if everything || c.Resource == prefix || (below && strings.HasPrefix(c.Resource, prefix)) {
					changes = append(changes, c)
				}
			}
		}
		return rows.Err()
	})
	return changes, oldest, err
}

// parseTouched reads lines of "VERB name".
func parseTouched(touched string, index uint64) (out []Change) {
	for line := range strings.SplitSeq(touched, "\n") {
		if verb, resource, ok := strings.Cut(line, " "); ok {
			out = append(out, Change{Resource: resource, Verb: Verb(verb), Revision: index})
		}
	}
	return out
}

// AuditFilter selects audit entries; zero fields select all.
type AuditFilter struct {
	Actor, Tenant, Kind string
	// Resource: entries that touched it, or anything below it when it ends in "/".
	Resource string
	// From and To bound the state clock: From <= time < To.
	From, To time.Time
	// Refused selects only commands that were refused.
	Refused bool
}

// resource is what the lines "VERB name" of an entry hold: a name ends at the line's end, a prefix anywhere.
func (f AuditFilter) resource() string {
	if strings.HasSuffix(f.Resource, "/") {
		return " " + f.Resource
	}
	return " " + f.Resource + "\n"
}

// AuditPage asks for a page, newest first. Token is empty for the first.
type AuditPage struct {
	Size  int
	Token string
}

// AuditEntry is one command as it was decided.
type AuditEntry struct {
	Index                   uint64
	Time                    time.Time
	Actor, Tenant, Kind, ID string
	CorrelationID, Reason   string
	CommandSHA256           []byte
	Touched                 []Change
	// Fault is nil for a command that took effect.
	Fault *fault.Error
}

const maxAuditPage = 1000

// Audit reads a page of the audit log and the token of the next one, empty at the end.
func (s *Store) Audit(ctx context.Context, f AuditFilter, p AuditPage) (entries []AuditEntry, next string, err error) {
	size := p.Size
	if size <= 0 || size > maxAuditPage {
		size = maxAuditPage
	}
	query, args, err := auditQuery(f, p.Token)
	if err != nil {
		return nil, "", err
	}
	err = s.View(ctx, func(ctx context.Context, q Querier) error {
		rows, err := q.QueryContext(ctx, query, append(args, size+1)...)
		if err != nil {
			return err
		}
		defer rows.Close()
		for rows.Next() {
			var e AuditEntry
			var at int64
			var touched, code, reason, message string
			if err := rows.Scan(&e.Index, &at, &e.Actor, &e.Tenant, &e.Kind, &e.ID, &e.CorrelationID, &e.Reason,
				&e.CommandSHA256, &touched, &code, &reason, &message); err != nil {
				return err
			}
			e.Time = time.UnixMilli(at).UTC()
			if code != "" {
				e.Fault = fault.New(fault.ParseCode(code), reason, "%s", message)
			}
			e.Touched = parseTouched(touched, e.Index)
			entries = append(entries, e)
		}
		return rows.Err()
	})
	if err == nil && len(entries) > size {
		entries = entries[:size]
		next = strconv.FormatUint(entries[size-1].Index, 10)
	}
	return entries, next, err
}

func auditQuery(f AuditFilter, token string) (string, []any, error) {
	where, args := []string{"1"}, []any{}
	add := func(condition string, values ...any) {
		where = append(where, condition)
		args = append(args, values...)
	}
	if token != "" {
		before, err := strconv.ParseInt(token, 10, 64)
		if err != nil {
			return "", nil, fault.New(fault.Invalid, "bad-token", "%.40q is no page token", token).Do("take the token of the page before")
		}
		add("idx < ?", before)
	}
	if f.Actor != "" {
		add("actor = ?", f.Actor)
	}
	if f.Tenant != "" {
		add("tenant = ?", f.Tenant)
	}
	if f.Kind != "" {
		add("kind = ?", f.Kind)
	}
	if f.Refused {
		add("fault_code <> ''")
	}
	if !f.From.IsZero() {
		add("time >= ?", f.From.UnixMilli())
	}
	if !f.To.IsZero() {
		add("time < ?", f.To.UnixMilli())
	}
	if f.Resource != "" {
		add("instr(touched || char(10), ?) > 0", f.resource())
	}
	return `SELECT idx, time, actor, tenant, kind, id, correlation_id, reason, command_sha256, touched, fault_code, fault_reason,
		fault_message FROM audit WHERE ` + strings.Join(where, " AND ") + " ORDER BY idx DESC LIMIT ?", args, nil
}
