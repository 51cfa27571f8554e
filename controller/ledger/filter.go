package ledger

import (
	"encoding/hex"
	"strings"

	"github.com/cassandra-security-manager/csm/shared/fault"
)

// where is a growing condition; values only ever go in as arguments.
type where struct {
	parts []string
	args  []any
}

func (w *where) add(cond string, args ...any) {
	w.parts = append(w.parts, cond)
	w.args = append(w.args, args...)
}

func (w *where) equal(column, value string) {
	if value != "" {
		w.add(column+" = ?", value)
	}
}

// indexed adds what lets SQLite use a partial index.
func (w *where) indexed(column, value string) {
	if value != "" {
		w.add(column+" = ? AND "+column+" <> ''", value)
	}
}

func (w *where) String() string {
	if len(w.parts) == 0 {
		return ""
	}
	return " WHERE " + strings.Join(w.parts, " AND ")
}

func (l *Replicated) where(f Filter) (*where, error) {
	w := &where{}
	w.equal("c.tenant", f.Tenant)
	if f.System {
		w.add("c.tenant = ''")
	}
	w.indexed("c.cluster", f.Cluster)
	w.indexed("c.node", f.Node)
	w.indexed("c.identity", f.Identity)
	w.equal("c.issuer", f.Issuer)
	if f.Authority != "" {
		w.add("c.issuer >= ? AND c.issuer < ?", f.Authority+"/issuers/", f.Authority+"/issuers0")
	}
	w.equal("c.store", f.Store)
	w.equal("c.template", f.Template)
	if f.Serial != "" {
		serial, err := hex.DecodeString(evenHex(f.Serial))
		if err != nil {
			return nil, fault.New(fault.Invalid, "bad-serial", "%.80q is not a serial number in hex", f.Serial)
		}
		w.add("c.serial = ?", serial)
	}
	if err := l.whereState(w, f.State); err != nil {
		return nil, err
	}
	if !f.ExpiresBefore.IsZero() {
		w.add("c.not_after < ?", f.ExpiresBefore.UnixMilli())
	}
	if !f.ExpiresAfter.IsZero() {
		w.add("c.not_after > ?", f.ExpiresAfter.UnixMilli())
	}
	if f.NamePrefix != "" {
		p := strings.ToLower(f.NamePrefix)
		w.add(usesOf("n.value >= ? AND n.value < ?"), p, p+"\U0010FFFF")
	}
	if f.NameContains != "" {
		w.add(usesOf("instr(n.value, ?) > 0"), strings.ToLower(f.NameContains))
	}
	if f.Text != "" {
		w.text(f.Text)
	}
	return w, nil
}

func (l *Replicated) whereState(w *where, s State) error {
	now := l.clock.Now().UnixMilli()
	switch s {
	case "":
	case Active:
		w.add("c.state = 'active' AND c.not_after >= ?", now)
	case Expired:
		w.add("c.state = 'active' AND c.not_after < ?", now)
	case Revoked:
		w.add("c.state = 'revoked' AND c.state <> 'active'")
	default:
		return fault.New(fault.Invalid, "bad-state", "%.40q is not a state of certificates", string(s)).Do("use active, revoked or expired")
	}
	return nil
}

// usesOf finds certificates by their distinct names.
func usesOf(cond string) string {
	return "c.seq IN (SELECT u.seq FROM certificate_name_uses u WHERE u.name IN (SELECT n.id FROM certificate_names n WHERE " + cond + "))"
}

// text looks for part of a name, or the beginning of a fingerprint or serial (8 or more hex digits; a serial may be written
// without its leading zero).
func (w *where) text(t string) {
	cond, args := usesOf("instr(n.value, ?) > 0"), []any{strings.ToLower(t)}
	h := strings.ToLower(strings.ReplaceAll(t, ":", ""))
	for _, x := range []struct{ column, prefix string }{{"c.sha256", h}, {"c.serial", h}, {"c.serial", "0" + h}} {
		if from, to, ok := hexRange(x.prefix); ok {
			cond += " OR (" + x.column + " >= ? AND " + x.column + " < ?)"
			args = append(args, from, to)
		}
	}
	w.add("("+cond+")", args...)
}

// hexRange gives the bytes that begin with a hex text, as an interval.
func hexRange(h string) (from, to []byte, ok bool) {
	if len(h) < 8 || len(h) > 64 {
		return nil, nil, false
	}
	odd := len(h)%2 == 1
	if odd {
		h += "0"
	}
	from, err := hex.DecodeString(h)
	if err != nil {
		return nil, nil, false
	}
	to = append([]byte{}, from...)
	if odd {
		to[len(to)-1] |= 0x0f
	}
	return from, append(to, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff), true
}

// evenHex brings a serial as people write it to bytes as they are stored: no colons, no leading zero byte.
func evenHex(s string) string {
	s = strings.TrimLeft(strings.ToLower(strings.ReplaceAll(s, ":", "")), "0")
	if len(s)%2 == 1 {
		s = "0" + s
	}
	return s
}
