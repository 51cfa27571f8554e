// Package fault is the one catalogue of errors that cross a boundary: REST, gRPC, the command line and the
// replicated state machine all speak it. An error that leaves a program says what went wrong and what to do next.
//
// A fault is data: it survives the raft log and the wire unchanged, so a refusal decided by Apply reads the
// same on every controller and in the terminal of whoever asked.
package fault

import (
	"context"
	"errors"
	"fmt"
	"time"
)

// Code classifies a fault. The set is closed; its numbers are part of the wire format.
type Code uint32

// The catalogue. Comments give the HTTP status and the exit code of the three programs.
const (
	Internal        Code = 0  // 500, exit 1: a defect or a broken machine
	Invalid         Code = 1  // 400, exit 2: the request can never succeed as it stands
	Unauthenticated Code = 2  // 401, exit 7: login or certificate needed
	Refused         Code = 3  // 403, exit 3: a gate, policy or permission said no; nothing changed
	NotFound        Code = 4  // 404, exit 4
	Unavailable     Code = 5  // 503, exit 5: safe to retry later, nothing was done or the same id answers
	Stale           Code = 6  // 412, exit 6: plan hash, etag or generation no longer current
	Conflict        Code = 7  // 409, exit 3: exists already, or another actor holds it
	Exhausted       Code = 8  // 429, exit 3: a cap or quota
	Unknown         Code = 9  // 504, exit 5: outcome not known; retry with the same id only
	Partial         Code = 10 // 207, exit 8: partly done, the list says what
	Running         Code = 11 // 202, exit 9: still running
	Differs         Code = 12 // 200, exit 10: differences or findings were printed
)

var names = [...]string{"internal", "invalid", "unauthenticated", "refused", "not-found", "unavailable", "stale",
	"conflict", "exhausted", "unknown-outcome", "partial", "running", "differs"}

// String is the stable lower-case name used in JSON and logs.
func (c Code) String() string {
	if int(c) < len(names) {
		return names[c]
	}
	return "internal"
}

// ParseCode is the inverse of String; unknown names are Internal.
func ParseCode(s string) Code {
	for i, n := range names {
		if n == s {
			return Code(i)
		}
	}
	return Internal
}

// Error is a fault. Reason is a stable kebab-case word for machines ("token-used"), Message says what happened,
// Remedy says what to do next. Neither ever holds a secret.
type Error struct {
	Code    Code
	Reason  string
	Message string
	Remedy  string
	// RetryAfter is when it is worth asking again; zero: nothing is known of that.
	RetryAfter time.Duration
	cause      error
}

// New builds a fault; reason is a stable kebab-case word.
func New(code Code, reason, format string, args ...any) *Error {
	return &Error{Code: code, Reason: reason, Message: fmt.Sprintf(format, args...)}
}

// NoReason refuses what a person does without words for the audit log.
func NoReason() *Error {
	return New(Invalid, "no-reason", "say why").Do("add --reason 'words for the audit log'")
}

// Wrap builds a fault around a cause that stays inside (errors.Is and As see it; the message names it).
func Wrap(cause error, code Code, reason, format string, args ...any) *Error {
	e := New(code, reason, format, args...)
	e.Message += ": " + cause.Error()
	e.cause = cause
	return e
}

// Do adds what the reader should do next and returns the same fault.
func (e *Error) Do(format string, args ...any) *Error {
	e.Remedy = fmt.Sprintf(format, args...)
	return e
}

// After says when it is worth asking again and returns the same fault.
func (e *Error) After(d time.Duration) *Error {
	e.RetryAfter = d
	return e
}

func (e *Error) Error() string {
	if e.Remedy == "" {
		return e.Message
	}
	return e.Message + "; " + e.Remedy
}

// Unwrap gives errors.Is and errors.As the cause.
func (e *Error) Unwrap() error { return e.cause }

// From finds the fault in an error chain. Deadlines and cancellations become Unavailable, everything else Internal.
// It returns nil for nil.
func From(err error) *Error {
	if err == nil {
		return nil
	}
	var e *Error
	if errors.As(err, &e) {
		return e
	}
	if errors.Is(err, context.DeadlineExceeded) || errors.Is(err, context.Canceled) {
		return Wrap(err, Unavailable, "timeout", "gave up waiting").Do("try again")
	}
	return Wrap(err, Internal, "internal", "internal error")
}

// Is reports whether the error chain holds a fault of this code.
func Is(err error, code Code) bool {
	var e *Error
	return errors.As(err, &e) && e.Code == code
}

// HasReason reports whether the error chain holds a fault with this reason.
func HasReason(err error, reason string) bool {
	var e *Error
	return errors.As(err, &e) && e.Reason == reason
}
