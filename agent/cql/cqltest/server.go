// Package cqltest is a node's CQL port for unit tests: real sockets, frames of the native protocol, canned rows. It is
// rude on request: it falls silent, answers in pieces, late, too much, or something else. The real ring proves what this one claims.
package cqltest

import (
	"crypto/tls"
	"encoding/binary"
	"io"
	"net"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/cassandra-security-manager/csm/test/port"
)

// Column of canned rows: its name, and its type as the wire's option ([short] id and what follows).
type Column struct {
	Name string
	Type []byte
}

// Answer is what a statement gets.
type Answer struct {
	Columns []Column
	Rows    [][][]byte
	// Code and Message make an error instead.
	Code    uint32
	Message string
	// Late is how long the answer takes.
	Late time.Duration
	// Raw is sent as it is instead of any frame, and the connection closed.
	Raw []byte
}

// Server is one CQL port.
type Server struct {
	// Authenticator asks for a login; empty asks none. User and Password are the only good ones.
	Authenticator, User, Password string
	// PageSize splits rows; 0 does not.
	PageSize int
	// Answer gives what a statement gets at a consistency level.
	Answer func(statement string, consistency uint16) Answer
	// TLS, if set, is spoken.
	TLS *tls.Config

	listener net.Listener
	mu       sync.Mutex
	logins   int
	startup  map[string]string
	asked    []string
}

// Start listens on loopback until the test ends.
func (s *Server) Start(t testing.TB) {
	t.Helper()
	l, err := port.Listen()
	if err != nil {
		t.Fatal(err)
	}
	if s.TLS != nil {
		l = tls.NewListener(l, s.TLS)
	}
	s.listener = l
	var wg sync.WaitGroup
	conns := sync.Map{}
	wg.Go(func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			conns.Store(c, true)
			wg.Go(func() { defer c.Close(); s.serve(c) })
		}
	})
	t.Cleanup(func() {
		l.Close()
		conns.Range(func(c, _ any) bool { c.(net.Conn).Close(); return true })
		wg.Wait()
	})
}

// Address is host:port.
func (s *Server) Address() string { return s.listener.Addr().String() }

// Logins counts passwords that were said.
func (s *Server) Logins() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.logins
}

// Asked are the statements so far.
func (s *Server) Asked() []string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return append([]string{}, s.asked...)
}

// Startup is the options of the newest STARTUP.
func (s *Server) Startup() map[string]string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.startup
}

func (s *Server) serve(c net.Conn) {
	for {
		h := make([]byte, 9)
		if _, err := io.ReadFull(c, h); err != nil {
			return
		}
		b := make([]byte, binary.BigEndian.Uint32(h[5:]))
		if _, err := io.ReadFull(c, b); err != nil {
			return
		}
		stream := h[2:4]
		switch h[4] {
		case 0x01:
			s.mu.Lock()
			s.startup = stringMap(b)
			s.mu.Unlock()
			if s.Authenticator == "" {
				reply(c, stream, 0x02, nil)
			} else {
				reply(c, stream, 0x03, text(s.Authenticator))
			}
		case 0x05:
			reply(c, stream, 0x06, []byte{0, 0})
		case 0x0F:
			s.mu.Lock()
			s.logins++
			good := string(b[4:]) == "\x00"+s.User+"\x00"+s.Password
			s.mu.Unlock()
			if good {
				reply(c, stream, 0x10, []byte{0xff, 0xff, 0xff, 0xff})
			} else {
				reply(c, stream, 0x00, failure(0x0100, "Provided username and/or password are incorrect"))
			}
		case 0x07:
			if !s.query(c, stream, b) {
				return
			}
		default:
			reply(c, stream, 0x00, failure(0x000A, "unknown"))
		}
	}
}

func (s *Server) query(c net.Conn, stream, b []byte) bool {
	n := binary.BigEndian.Uint32(b)
	statement, rest := string(b[4:4+n]), b[4+n:]
	level, flags := binary.BigEndian.Uint16(rest), rest[2]
	skip := 0
	if flags&0x08 != 0 {
		skip = int(binary.BigEndian.Uint32(rest[11:]))
	}
	s.mu.Lock()
	s.asked = append(s.asked, statement)
	s.mu.Unlock()
	a := s.Answer(statement, level)
	time.Sleep(a.Late) // a late answer is what is asked for here
	switch {
	case a.Raw != nil:
		_, _ = c.Write(a.Raw)
		return false
	case a.Code != 0:
		reply(c, stream, 0x00, failure(a.Code, a.Message))
	default:
		reply(c, stream, 0x08, a.rows(skip, s.PageSize))
	}
	return true
}

// rows is a page: the paging state is the number of rows before it.
func (a Answer) rows(skip, size int) []byte {
	rest := a.Rows[min(skip, len(a.Rows)):]
	flags := uint32(1)
	if size > 0 && len(rest) > size {
		rest, flags = rest[:size], 3
	}
	b := binary.BigEndian.AppendUint32(nil, 2)
	b = binary.BigEndian.AppendUint32(b, flags)
	b = binary.BigEndian.AppendUint32(b, uint32(len(a.Columns)))
	if flags&2 != 0 {
		b = binary.BigEndian.AppendUint32(b, 4)
		b = binary.BigEndian.AppendUint32(b, uint32(skip+size))
	}
	b = append(b, text("ks")...)
	b = append(b, text("table")...)
	for _, col := range a.Columns {
		b = append(b, text(col.Name)...)
		b = append(b, col.Type...)
	}
	b = binary.BigEndian.AppendUint32(b, uint32(len(rest)))
	for _, row := range rest {
		for _, v := range row {
			if v == nil {
				b = append(b, 0xff, 0xff, 0xff, 0xff)
				continue
			}
			b = binary.BigEndian.AppendUint32(b, uint32(len(v)))
			b = append(b, v...)
		}
	}
	return b
}

func reply(c net.Conn, stream []byte, op byte, b []byte) {
	f := []byte{0x84, 0, stream[0], stream[1], op}
	f = binary.BigEndian.AppendUint32(f, uint32(len(b)))
	_, _ = c.Write(append(f, b...))
}

func text(s string) []byte { return append(binary.BigEndian.AppendUint16(nil, uint16(len(s))), s...) }

func failure(code uint32, message string) []byte {
	return append(binary.BigEndian.AppendUint32(nil, code), text(message)...)
}

func stringMap(b []byte) map[string]string {
	out := map[string]string{}
	n := binary.BigEndian.Uint16(b)
	b = b[2:]
	next := func() string {
		l := binary.BigEndian.Uint16(b)
		s := string(b[2 : 2+l])
		b = b[2+l:]
		return s
	}
	for ; n > 0; n-- {
		k := next()
		out[k] = next()
	}
	return out
}

// Types of columns.
var (
	Varchar = []byte{0, 0x0D}
	Int     = []byte{0, 0x09}
	Boolean = []byte{0, 0x04}
	Inet    = []byte{0, 0x10}
	UUID    = []byte{0, 0x0C}
	TextSet = []byte{0, 0x22, 0, 0x0D}
	TextMap = []byte{0, 0x21, 0, 0x0D, 0, 0x0D}
)

// Number is an int.
func Number(n int) []byte { return binary.BigEndian.AppendUint32(nil, uint32(n)) }

// Texts is a set of text; Pairs, k and v in turn, a map.
func Texts(s ...string) []byte { return list(len(s), s) }

// Pairs is a map of text to text.
func Pairs(s ...string) []byte { return list(len(s)/2, s) }

func list(n int, s []string) []byte {
	b := Number(n)
	for _, x := range s {
		b = append(append(b, Number(len(x))...), x...)
	}
	return b
}

// Has says whether a statement that was asked holds a text.
func (s *Server) Has(part string) bool {
	return strings.Contains(strings.Join(s.Asked(), "\n"), part)
}
