// Package bounds refuses messages that are larger than their definition allows, field by field, before any handler
// sees them.
//
// A field's bound is its (csm.options.v1.bound) option; without one a string has at most 4096 bytes, a bytes value
// 65536, and a repeated or map field 256 entries. Fields that this program does not know may have 4096 bytes in all.
package bounds

import (
	"sync"

	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"

	optionsv1 "github.com/cassandra-security-manager/csm/protocol/options/v1"
	"github.com/cassandra-security-manager/csm/shared/fault"
)

// Defaults where a field has no bound of its own.
const (
	DefaultString = 4096
	DefaultBytes  = 65536
	DefaultItems  = 256
	MaxUnknown    = 4096
)

type limit struct{ bytes, items int }

var limits sync.Map // protoreflect.FullName of a field -> limit

func limitOf(fd protoreflect.FieldDescriptor) limit {
	if l, ok := limits.Load(fd.FullName()); ok {
		return l.(limit)
	}
	l := limit{bytes: DefaultString, items: DefaultItems}
	if fd.Kind() == protoreflect.BytesKind {
		l.bytes = DefaultBytes
	}
	if b, ok := proto.GetExtension(fd.Options(), optionsv1.E_Bound).(*optionsv1.Bound); ok && b != nil {
		if b.MaxBytes > 0 {
			l.bytes = int(b.MaxBytes)
		}
		if b.MaxItems > 0 {
			l.items = int(b.MaxItems)
		}
	}
	limits.Store(fd.FullName(), l)
	return l
}

// HasOwn says whether a field's definition carries its bound: a list needs one for its entries, a text for its bytes.
func HasOwn(fd protoreflect.FieldDescriptor) bool {
	b, ok := proto.GetExtension(fd.Options(), optionsv1.E_Bound).(*optionsv1.Bound)
	if !ok || b == nil {
		return false
	}
	sized := fd.Kind() == protoreflect.StringKind || fd.Kind() == protoreflect.BytesKind
	return (!fd.IsList() || b.MaxItems > 0) && (!sized || b.MaxBytes > 0)
}

// Check returns an Invalid fault (reason out-of-bounds) that names the first field that is too large.
func Check(m proto.Message) error {
	if m == nil {
		return nil
	}
	return message(m.ProtoReflect())
}

func message(m protoreflect.Message) (err error) {
	if n := len(m.GetUnknown()); n > MaxUnknown {
		return tooLarge(m.Descriptor().FullName(), "unknown fields", n, MaxUnknown, "bytes")
	}
	m.Range(func(fd protoreflect.FieldDescriptor, v protoreflect.Value) bool {
		l := limitOf(fd)
		switch {
		case fd.IsMap():
			if n := v.Map().Len(); n > l.items {
				err = tooLarge(fd.FullName(), "map", n, l.items, "entries")
				return false
			}
			v.Map().Range(func(k protoreflect.MapKey, v protoreflect.Value) bool {
				if err = value(fd.MapKey(), k.Value(), l); err == nil {
					err = value(fd.MapValue(), v, l)
				}
				return err == nil
			})
		case fd.IsList():
			list := v.List()
			if n := list.Len(); n > l.items {
				err = tooLarge(fd.FullName(), "list", n, l.items, "entries")
				return false
			}
			for i := 0; i < list.Len() && err == nil; i++ {
				err = value(fd, list.Get(i), l)
			}
		default:
			err = value(fd, v, l)
		}
		return err == nil
	})
	return err
}

func value(fd protoreflect.FieldDescriptor, v protoreflect.Value, l limit) error {
	switch fd.Kind() {
	case protoreflect.MessageKind, protoreflect.GroupKind:
		return message(v.Message())
	case protoreflect.StringKind:
		if n := len(v.String()); n > l.bytes {
			return tooLarge(fd.FullName(), "text", n, l.bytes, "bytes")
		}
	case protoreflect.BytesKind:
		if n := len(v.Bytes()); n > l.bytes {
			return tooLarge(fd.FullName(), "value", n, l.bytes, "bytes")
		}
	}
	return nil
}

func tooLarge(field protoreflect.FullName, what string, have, most int, unit string) error {
	return fault.New(fault.Invalid, "out-of-bounds", "%s: %s of %d %s, at most %d are allowed", field, what, have, unit, most)
}
