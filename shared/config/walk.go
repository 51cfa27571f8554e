package config

import (
	"encoding"
	"fmt"
	"reflect"
	"regexp"
	"strconv"
	"strings"
	"time"

	"gopkg.in/yaml.v3"
)

const (
	tag      = "yaml"
	maxDepth = 16
)

// Key is one key that a configuration may set.
type Key struct {
	// Path is "listen.api".
	Path string
	Type reflect.Type
}

// Env is the environment variable that sets the key: "CSM_LISTEN_API".
func (k Key) Env() string {
	return EnvPrefix + strings.ToUpper(strings.ReplaceAll(k.Path, ".", "_"))
}

// Keys lists the keys of a struct type that a scalar or a list of strings can set, in order.
func Keys(t reflect.Type) []Key { return keysUnder(t, "", 0) }

func keysUnder(t reflect.Type, prefix string, depth int) []Key {
	var out []Key
	if depth > maxDepth {
		return nil
	}
	for _, f := range fieldsOf(t) {
		ft := indirect(f.Type)
		path := join(prefix, f.Name)
		switch {
		case isScalar(ft), ft.Kind() == reflect.Slice && isScalar(indirect(ft.Elem())):
			out = append(out, Key{path, ft})
		case ft.Kind() == reflect.Struct:
			out = append(out, keysUnder(ft, path, depth+1)...)
		}
	}
	return out
}

type field struct {
	Name string
	Type reflect.Type
}

// fieldsOf gives the keys of a struct; embedded structs with the tag ",inline" or ",squash" add theirs.
func fieldsOf(t reflect.Type) []field {
	var out []field
	for i := range t.NumField() {
		f := t.Field(i)
		name, opts, _ := strings.Cut(f.Tag.Get(tag), ",")
		if strings.Contains(opts, "inline") || strings.Contains(opts, "squash") {
			out = append(out, fieldsOf(indirect(f.Type))...)
			continue
		}
		if !f.IsExported() || name == "-" {
			continue
		}
		if name == "" {
			name = strings.ToLower(f.Name)
		}
		out = append(out, field{name, f.Type})
	}
	return out
}

func join(prefix, key string) string {
	if prefix == "" {
		return key
	}
	return prefix + "." + key
}

func indirect(t reflect.Type) reflect.Type {
	for t.Kind() == reflect.Pointer {
		t = t.Elem()
	}
	return t
}

var (
	textUnmarshaler = reflect.TypeFor[encoding.TextUnmarshaler]()
	duration        = reflect.TypeFor[time.Duration]()
	reference       = reflect.TypeFor[Reference]()
)

func isScalar(t reflect.Type) bool {
	if t == duration || reflect.PointerTo(t).Implements(textUnmarshaler) {
		return true
	}
	switch t.Kind() {
	case reflect.Bool, reflect.String, reflect.Int, reflect.Int8, reflect.Int16, reflect.Int32, reflect.Int64,
		reflect.Uint, reflect.Uint8, reflect.Uint16, reflect.Uint32, reflect.Uint64, reflect.Float32, reflect.Float64:
		return true
	}
	return false
}

// walk compares a node with the type it will be decoded into and remembers the line of each key.
func walk(n *yaml.Node, t reflect.Type, path string, p *Problems, depth int) {
	t = indirect(t)
	for n.Kind == yaml.AliasNode {
		n = n.Alias
	}
	if depth > maxDepth {
		p.addLine(n.Line, path, "nested too deep", "write it flatter")
		return
	}
	null := n.Kind == yaml.ScalarNode && n.Tag == "!!null"
	switch {
	case t.Kind() == reflect.Interface, null:
	case isScalar(t):
		if n.Kind != yaml.ScalarNode {
			p.addLine(n.Line, path, "one value is wanted here, not a list or a group of keys", "write '"+lastKey(path)+": value'")
		} else if why := checkScalar(n.Value, t); why != "" {
			p.addLine(n.Line, path, why, remedyFor(t))
		}
	case t.Kind() == reflect.Slice:
		if n.Kind != yaml.SequenceNode {
			p.addLine(n.Line, path, "a list is wanted here", "write '"+lastKey(path)+": [a, b]'")
			return
		}
		for i, c := range n.Content {
			item := fmt.Sprintf("%s[%d]", path, i)
			p.lines[item] = c.Line
			walk(c, t.Elem(), item, p, depth+1)
		}
	case t.Kind() == reflect.Struct, t.Kind() == reflect.Map:
		if n.Kind != yaml.MappingNode {
			p.addLine(n.Line, path, "a group of keys is wanted here", "write the keys below '"+lastKey(path)+":', indented, or in braces")
			return
		}
		walkMapping(n, t, path, p, depth)
	}
}

func walkMapping(n *yaml.Node, t reflect.Type, path string, p *Problems, depth int) {
	known := map[string]reflect.Type{}
	if t.Kind() == reflect.Struct {
		for _, f := range fieldsOf(t) {
			known[f.Name] = f.Type
		}
	}
	seen := map[string]int{}
	for i := 0; i+1 < len(n.Content); i += 2 {
		k, v := n.Content[i], n.Content[i+1]
		full := join(path, k.Value)
		if first, double := seen[k.Value]; double {
			p.addLine(k.Line, full, fmt.Sprintf("this key stands in line %d already", first), "keep one of the two")
			continue
		}
		seen[k.Value] = k.Line
		p.lines[full] = k.Line
		if t.Kind() == reflect.Map {
			walk(v, t.Elem(), full, p, depth+1)
			continue
		}
		ft, ok := known[k.Value]
		if !ok {
			p.addLine(k.Line, full, "unknown key", suggest(k.Value, known))
			continue
		}
		walk(v, ft, full, p, depth+1)
	}
}

func lastKey(path string) string { return path[strings.LastIndexByte(path, '.')+1:] }

// checkScalar says what is wrong with a value; "" when nothing is.
func checkScalar(v string, t reflect.Type) string {
	switch {
	case t == duration:
		if _, err := time.ParseDuration(v); err != nil {
			return fmt.Sprintf("%.60q is not a time span (like 30s, 5m, 6h)", v)
		}
		return ""
	case t == reference:
		// The value is not repeated: it may be the secret itself.
		if _, err := ParseReference(v); err != nil {
			return err.Message
		}
		return ""
	case reflect.PointerTo(t).Implements(textUnmarshaler):
		if err := reflect.New(t).Interface().(encoding.TextUnmarshaler).UnmarshalText([]byte(v)); err != nil {
			return err.Error()
		}
		return ""
	}
	var err error
	switch t.Kind() {
	case reflect.Bool:
		if v != "true" && v != "false" {
			return fmt.Sprintf("%.60q is neither true nor false", v)
		}
	case reflect.Int, reflect.Int8, reflect.Int16, reflect.Int32, reflect.Int64:
		_, err = strconv.ParseInt(v, 10, t.Bits())
	case reflect.Uint, reflect.Uint8, reflect.Uint16, reflect.Uint32, reflect.Uint64:
		_, err = strconv.ParseUint(v, 10, t.Bits())
	case reflect.Float32, reflect.Float64:
		_, err = strconv.ParseFloat(v, t.Bits())
	}
	if err != nil {
		return fmt.Sprintf("%.60q is not a number that fits", v)
	}
	return ""
}

func remedyFor(t reflect.Type) string {
	if t == reference {
		return "write file:/path, env:NAME or credential:NAME"
	}
	return "correct the value"
}

var lineOf = regexp.MustCompile(`line (\d+)`)

func yamlLine(err error) int {
	m := lineOf.FindStringSubmatch(err.Error())
	if m == nil {
		return 0
	}
	n, _ := strconv.Atoi(m[1])
	return n
}
