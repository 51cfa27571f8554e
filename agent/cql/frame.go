package cql

import (
	"encoding/binary"
	"errors"
	"fmt"
)

// native_protocol_v4.spec, sections 2 to 4 and 9.
const (
	version = 4

	opError        = 0x00
	opStartup      = 0x01
	opReady        = 0x02
	opAuthenticate = 0x03
	opOptions      = 0x05
	opSupported    = 0x06
	opQuery        = 0x07
	opResult       = 0x08
	opAuthResponse = 0x0F
	opAuthSuccess  = 0x10

	// maxAnswer bounds one answer, in bytes; a page of rows is far below.
	maxAnswer = 2 << 20
)

// Codes of errors, section 9.
const (
	codeBadCredentials = 0x0100
	codeUnavailable    = 0x1000
	codeReadTimeout    = 0x1200
	codeReadFailure    = 0x1300
	codeUnauthorized   = 0x2100
	codeInvalid        = 0x2200
)

// Error is what Cassandra answered instead.
type Error struct {
	Code    uint32
	Message string
}

func (e *Error) Error() string {
	name := map[uint32]string{codeBadCredentials: "bad credentials", codeUnavailable: "unavailable", codeReadTimeout: "read timeout",
		codeReadFailure: "read failure", codeUnauthorized: "unauthorized", codeInvalid: "invalid"}[e.Code]
	if name == "" {
		name = fmt.Sprintf("error %#04x", e.Code)
	}
	return fmt.Sprintf("%s: %.400s", name, e.Message)
}

// NotGranted says whether a role lacks a permission.
func NotGranted(err error) bool {
	var e *Error
	return errors.As(err, &e) && e.Code == codeUnauthorized
}

// NotThere says whether a statement names what this release does not have.
func NotThere(err error) bool {
	var e *Error
	return errors.As(err, &e) && e.Code == codeInvalid
}

// Answered says whether Cassandra gave this error, so that the connection is still good.
func Answered(err error) bool {
	var e *Error
	return errors.As(err, &e)
}

func parseError(b []byte) error {
	r := &reader{b: b}
	e := &Error{Code: uint32(r.int()), Message: r.text()}
	if r.err != nil {
		return r.err
	}
	return e
}

// body builds a request.
type body []byte

func (b *body) short(n int) { *b = binary.BigEndian.AppendUint16(*b, uint16(n)) }
func (b *body) int(n int)   { *b = binary.BigEndian.AppendUint32(*b, uint32(n)) }
func (b *body) text(s string) {
	b.short(len(s))
	*b = append(*b, s...)
}
func (b *body) long(s string) {
	b.int(len(s))
	*b = append(*b, s...)
}
func (b *body) bytes(p []byte) {
	b.int(len(p))
	*b = append(*b, p...)
}
func (b *body) texts(pairs ...[2]string) {
	b.short(len(pairs))
	for _, p := range pairs {
		b.text(p[0])
		b.text(p[1])
	}
}

// reader reads an answer; the first error stays, and everything after it is zero.
type reader struct {
	b   []byte
	err error
}

var errShort = errors.New("an answer that ends too early")

func (r *reader) take(n int) []byte {
	if r.err != nil || n < 0 || n > len(r.b) {
		if r.err == nil {
			r.err = errShort
		}
		return nil
	}
	out := r.b[:n]
	r.b = r.b[n:]
	return out
}

func (r *reader) short() int {
	if b := r.take(2); b != nil {
		return int(binary.BigEndian.Uint16(b))
	}
	return 0
}

func (r *reader) int() int32 {
	if b := r.take(4); b != nil {
		return int32(binary.BigEndian.Uint32(b))
	}
	return 0
}

func (r *reader) text() string { return string(r.take(r.short())) }

// bytes is a value; nil when it is null.
func (r *reader) bytes() []byte {
	n := r.int()
	if n < 0 {
		return nil
	}
	return r.take(int(n))
}
