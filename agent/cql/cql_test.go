package cql_test

import (
	"context"
	"errors"
	"fmt"
	"testing"
	"time"

	"github.com/cassandra-security-manager/csm/agent/cql"
	"github.com/cassandra-security-manager/csm/agent/cql/cqltest"
	"github.com/cassandra-security-manager/csm/shared/fault"
)

const password = "org.apache.cassandra.auth.PasswordAuthenticator"

func open(t *testing.T, s *cqltest.Server, user, pass string) (*cql.Conn, error) {
	t.Helper()
	if s.Answer == nil {
		s.Answer = func(string, uint16) cqltest.Answer { return cqltest.Answer{} }
	}
	s.Start(t)
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	t.Cleanup(cancel)
	c, err := cql.Open(ctx, cql.Options{Address: s.Address(), Username: user, Password: []byte(pass)})
	if err == nil {
		t.Cleanup(c.Close)
	}
	return c, err
}

func TestTheLoginIsSaidOnceAndOnlyToWhoAsks(t *testing.T) {
	s := &cqltest.Server{Authenticator: password, User: "csm", Password: "right"}
	c, err := open(t, s, "csm", "right")
	if err != nil || c.Authenticator != password || s.Logins() != 1 || s.Startup()["DRIVER_NAME"] != cql.DriverName {
		t.Errorf("%v %v", err, s.Startup())
	}
	s = &cqltest.Server{Authenticator: password, User: "csm", Password: "right"}
	if _, err := open(t, s, "csm", "wrong"); !fault.HasReason(err, "cql-login-refused") || s.Logins() != 1 {
		t.Errorf("a wrong password: %v after %d logins", err, s.Logins())
	}
	s = &cqltest.Server{Authenticator: password}
	if _, err := open(t, s, "", ""); !fault.HasReason(err, "cql-no-login") || s.Logins() != 0 {
		t.Errorf("no user: %v, %d logins", err, s.Logins())
	}
	s = &cqltest.Server{}
	if _, err := open(t, s, "csm", "right"); err != nil || s.Logins() != 0 {
		t.Errorf("a node that asks nobody: %v, %d logins", err, s.Logins())
	}
}

var oneColumn = []cqltest.Column{{Name: "n", Type: cqltest.Int}}

func numbers(n int) (rows [][][]byte) {
	for i := range n {
		rows = append(rows, [][]byte{cqltest.Number(i)})
	}
	return rows
}

func TestPagesAreReadUpToTheLimit(t *testing.T) {
	s := &cqltest.Server{PageSize: 3, Answer: func(string, uint16) cqltest.Answer { return cqltest.Answer{Columns: oneColumn, Rows: numbers(10)} }}
	c, err := open(t, s, "", "")
	if err != nil {
		t.Fatal(err)
	}
	rows, more, err := c.Query(t.Context(), "SELECT", cql.One, 100)
	if err != nil || more || len(rows) != 10 || rows[9].Int("n") != 9 {
		t.Errorf("%d rows, more %v, %v", len(rows), more, err)
	}
	rows, more, err = c.Query(t.Context(), "SELECT", cql.One, 4)
	if err != nil || !more || len(rows) != 4 {
		t.Errorf("%d rows of a limit of 4, more %v, %v", len(rows), more, err)
	}
}

func TestValuesOfEachType(t *testing.T) {
	uuid := []byte("0123456789abcdef")
	udt := append([]byte{0, 0x30, 0, 1, 'k', 0, 1, 'u', 0, 1, 0, 1, 'f'}, cqltest.TextMap...)
	tuple := []byte{0, 0x31, 0, 2, 0, 9, 0, 0x20, 0, 9}
	s := &cqltest.Server{Answer: func(string, uint16) cqltest.Answer {
		return cqltest.Answer{Columns: []cqltest.Column{{Name: "udt", Type: udt}, {Name: "tuple", Type: tuple}, {Name: "custom", Type: []byte{0, 0, 0, 1, 'x'}}, {Name: "t", Type: cqltest.Varchar}, {Name: "b", Type: cqltest.Boolean}, {Name: "i", Type: cqltest.Int},
			{Name: "a", Type: cqltest.Inet}, {Name: "u", Type: cqltest.UUID}, {Name: "s", Type: cqltest.TextSet}, {Name: "m", Type: cqltest.TextMap}, {Name: "null", Type: cqltest.Varchar}},
			Rows: [][][]byte{{{1}, {2}, {3}, []byte("text"), {1}, cqltest.Number(-7), {10, 0, 0, 1}, uuid, cqltest.Texts("a", "b"), cqltest.Pairs("k", "v"), nil}}}
	}}
	c, err := open(t, s, "", "")
	if err != nil {
		t.Fatal(err)
	}
	rows, _, err := c.Query(t.Context(), "SELECT", cql.One, 10)
	if err != nil || len(rows) != 1 {
		t.Fatal(rows, err)
	}
	r := rows[0]
	if r.Text("t") != "text" || !r.Bool("b") || r.Int("i") != -7 || r.Address("a").String() != "10.0.0.1" || string(r.UUID("u")) != string(uuid) ||
		fmt.Sprint(r.Texts("s")) != "[a b]" || r.Map("m")["k"] != "v" || r.Text("null") != "" || r.Address("null").IsValid() || r.UUID("t") != nil {
		t.Errorf("%v", r)
	}
}

func TestAnErrorOfCassandraLeavesTheConnectionGood(t *testing.T) {
	s := &cqltest.Server{Answer: func(q string, level uint16) cqltest.Answer {
		switch q {
		case "unavailable":
			return cqltest.Answer{Code: 0x1000, Message: "Cannot achieve consistency level QUORUM"}
		case "late":
			return cqltest.Answer{Late: 300 * time.Millisecond, Columns: oneColumn, Rows: numbers(1)}
		case "denied":
			return cqltest.Answer{Code: 0x2100, Message: "User has no SELECT permission"}
		}
		return cqltest.Answer{Columns: oneColumn, Rows: numbers(2)}
	}}
	c, err := open(t, s, "", "")
	if err != nil {
		t.Fatal(err)
	}
	if _, _, err := c.Query(t.Context(), "unavailable", cql.Quorum, 1); !cql.Answered(err) || err.Error() != "unavailable: Cannot achieve consistency level QUORUM" {
		t.Errorf("%v", err)
	}
	if _, _, err := c.Query(t.Context(), "denied", cql.Quorum, 1); !cql.NotGranted(err) {
		t.Errorf("%v", err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	if _, _, err := c.Query(ctx, "late", cql.Quorum, 1); !errors.Is(err, cql.ErrLate) {
		t.Errorf("a late answer: %v", err)
	}
	rows, _, err := c.Query(t.Context(), "SELECT", cql.Quorum, 5)
	if err != nil || len(rows) != 2 {
		t.Errorf("after all that: %d rows, %v", len(rows), err)
	}
}

func TestNonsenseIsRefusedAndNeverWaitedForWithoutEnd(t *testing.T) {
	huge := []byte{0x84, 0, 0, 2, 0x08, 0x7f, 0xff, 0xff, 0xff}
	for name, raw := range map[string][]byte{
		"a huge answer":          huge,
		"a request":              {0x04, 0, 0, 2, 0x08, 0, 0, 0, 0},
		"compressed":             {0x84, 1, 0, 2, 0x08, 0, 0, 0, 0},
		"cut":                    {0x84, 0, 0, 2, 0x08, 0, 0, 0, 9, 0},
		"no rows":                {0x84, 0, 0, 2, 0x08, 0, 0, 0, 4, 0, 0, 0, 1},
		"rows without end":       {0x84, 0, 0, 2, 0x08, 0, 0, 0, 20, 0, 0, 0, 2, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0x7f, 0xff, 0xff, 0xff},
		"columns without end":    {0x84, 0, 0, 2, 0x08, 0, 0, 0, 12, 0, 0, 0, 2, 0, 0, 0, 1, 0x7f, 0xff, 0xff, 0xff},
		"an error that ends":     {0x84, 0, 0, 2, 0x00, 0, 0, 0, 2, 0, 0},
		"closed without a word":  {},
		"something else at once": []byte("HTTP/1.1 400 Bad Request\r\n\r\n"),
	} {
		t.Run(name, func(t *testing.T) {
			s := &cqltest.Server{Answer: func(string, uint16) cqltest.Answer { return cqltest.Answer{Raw: raw} }}
			c, err := open(t, s, "", "")
			if err != nil {
				t.Fatal(err)
			}
			if rows, _, err := c.Query(t.Context(), "SELECT", cql.One, 10); err == nil && len(rows) > 0 {
				t.Errorf("%d rows of it", len(rows))
			}
		})
	}
}

func FuzzRows(f *testing.F) {
	f.Add([]byte{0, 0, 0, 2, 0, 0, 0, 1, 0, 0, 0, 1, 0, 1, 'k', 0, 1, 't', 0, 1, 'n', 0, 9, 0, 0, 0, 1, 0, 0, 0, 4, 0, 0, 0, 7})
	f.Fuzz(func(t *testing.T, b []byte) { cql.ParseRows(b) })
}
