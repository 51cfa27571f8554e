package rest

import (
	"strconv"
	"strings"
	"time"

	"github.com/cassandra-security-manager/csm/shared/fault"
)

// Term is one condition of a filter: a part of AIP-160.
type Term struct {
	Field, Op, Value string
}

// maxTerms bounds a filter.
const maxTerms = 16

// ParseFilter reads "state=active AND notAfter<2027-01-01 AND dns:eu". Operators are = != < > and : (contains, or begins with);
// AND may be left out. A word without an operator is a search in names: its Field is empty.
func ParseFilter(s string) ([]Term, error) {
	p := &filterParser{rest: s}
	var out []Term
	for {
		p.space()
		if p.rest == "" {
			return out, nil
		}
		t, err := p.term()
		if err != nil {
			return nil, err
		}
		if t.Op == "" && strings.EqualFold(t.Value, "AND") && len(out) > 0 {
			continue
		}
		if t.Op == "" && (strings.EqualFold(t.Value, "OR") || strings.EqualFold(t.Value, "NOT")) {
			return nil, badFilter("%s is not supported", t.Value)
		}
		if out = append(out, t); len(out) > maxTerms {
			return nil, badFilter("more than %d conditions", maxTerms)
		}
	}
}

func badFilter(format string, args ...any) error {
	return fault.New(fault.Invalid, "bad-filter", "the filter cannot be read: "+format, args...).
		Do(`write conditions like: state=active AND notAfter<2027-01-01 AND dns:eu; quote values with spaces`)
}

type filterParser struct{ rest string }

func (p *filterParser) space() { p.rest = strings.TrimLeft(p.rest, " \t\r\n") }

func (p *filterParser) term() (Term, error) {
	if p.rest[0] == '"' {
		v, err := p.quoted()
		return Term{Value: v}, err
	}
	n := strings.IndexAny(p.rest, " \t\r\n=!<>:\"")
	if n < 0 {
		n = len(p.rest)
	}
	word := p.rest[:n]
	p.rest = p.rest[n:]
	op := p.operator()
	if op == "" {
		if word == "" {
			return Term{}, badFilter("a condition begins with %.10q", p.rest)
		}
		if p.rest != "" && p.rest[0] == '"' {
			return Term{}, badFilter("no operator between %.40q and a quoted value", word)
		}
		return Term{Value: word}, nil
	}
	if word == "" {
		return Term{}, badFilter("%s has no field before it", op)
	}
	if p.rest == "" {
		return Term{}, badFilter("%s%s has no value", word, op)
	}
	if p.rest[0] == '"' {
		v, err := p.quoted()
		return Term{word, op, v}, err
	}
	n = strings.IndexAny(p.rest, " \t\r\n\"")
	if n < 0 {
		n = len(p.rest)
	}
	v := p.rest[:n]
	p.rest = p.rest[n:]
	if v == "" {
		return Term{}, badFilter("%s%s has no value", word, op)
	}
	return Term{word, op, v}, nil
}

func (p *filterParser) operator() string {
	for _, op := range []string{"!=", "=", "<", ">", ":"} {
		if rest, ok := strings.CutPrefix(p.rest, op); ok {
			p.rest = rest
			return op
		}
	}
	return ""
}

func (p *filterParser) quoted() (string, error) {
	q, err := strconv.QuotedPrefix(p.rest)
	if err != nil {
		return "", badFilter("a quoted value does not end")
	}
	v, err := strconv.Unquote(q)
	if err != nil {
		return "", badFilter("a quoted value cannot be read")
	}
	p.rest = p.rest[len(q):]
	return v, nil
}

// condition takes one term; ok is false when the field or the operator is not known there.
type condition func(t Term) (ok bool, err error)

// applyFilter gives each term to take; fields names what there is, for the refusal.
func applyFilter(filter, fields string, take condition) error {
	terms, err := ParseFilter(filter)
	if err != nil {
		return err
	}
	for _, t := range terms {
		ok, err := take(t)
		if err != nil {
			return err
		}
		if !ok {
			return fault.New(fault.Invalid, "bad-filter", "the filter cannot do %.60q", t.Field+t.Op+t.Value).Do("filter by: %s", fields)
		}
	}
	return nil
}

// timeOf reads a time of a filter: RFC 3339, a day, or a span from now ("30d", "-2h").
func timeOf(now time.Time, s string) (time.Time, error) {
	for _, layout := range []string{time.RFC3339, time.DateOnly} {
		if t, err := time.Parse(layout, s); err == nil {
			return t, nil
		}
	}
	if days, ok := strings.CutSuffix(s, "d"); ok {
		if n, err := strconv.Atoi(days); err == nil && n > -36500 && n < 36500 {
			return now.AddDate(0, 0, n), nil
		}
	}
	if d, err := time.ParseDuration(s); err == nil {
		return now.Add(d), nil
	}
	return time.Time{}, fault.New(fault.Invalid, "bad-filter", "%.40q is not a time", s).Do("write 2027-01-31, 2027-01-31T12:00:00Z, or a span from now like 30d or -2h")
}
