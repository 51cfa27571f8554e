package keyring

import (
	"fmt"
	"log/slog"
)

const redacted = "[redacted]"

// Secret is bytes that must not be printed, logged or marshalled. Copies share the bytes, so Zero clears all of them.
// The zero value is empty.
type Secret struct{ p *[]byte }

// NewSecret takes ownership of b.
func NewSecret(b []byte) Secret { return Secret{&b} }

func (s Secret) b() []byte {
	if s.p == nil {
		return nil
	}
	return *s.p
}

// Reveal is the one way out: for the hand that writes the recovery share down, and for a file that must hold it.
func (s Secret) Reveal() []byte { return s.b() }

// Len is the number of bytes.
func (s Secret) Len() int { return len(s.b()) }

// Zero overwrites the bytes. The garbage collector may have moved copies before; this shortens the exposure, no more.
func (s Secret) Zero() {
	if s.p != nil {
		clear(*s.p)
		*s.p = nil
	}
}

// Format prints [redacted] for every verb.
func (s Secret) Format(f fmt.State, _ rune) { _, _ = f.Write([]byte(redacted)) }

// String as Format.
func (s Secret) String() string { return redacted }

// MarshalText keeps it out of JSON, YAML and the like.
func (s Secret) MarshalText() ([]byte, error) { return []byte(redacted), nil }

// LogValue keeps it out of logs.
func (s Secret) LogValue() slog.Value { return slog.StringValue(redacted) }
