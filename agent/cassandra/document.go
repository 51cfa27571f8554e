package cassandra

import (
	"bytes"
	"errors"
	"io"

	"gopkg.in/yaml.v3"

	"github.com/cassandra-security-manager/csm/shared/fault"
)

// mapping is a YAML mapping with the lines of its keys.
type mapping struct {
	line       int
	values     map[string]*yaml.Node
	lines      map[string]int
	order      []string
	duplicates []keyLine
}

type keyLine struct {
	key  string
	line int
}

func parseDocument(path string, data []byte) (*mapping, error) {
	bad := func(format string, args ...any) error {
		return fault.New(fault.Invalid, "bad-yaml", format, args...).Do("correct %s: Cassandra itself would not start with it", path)
	}
	dec := yaml.NewDecoder(bytes.NewReader(data))
	var doc, more yaml.Node
	if err := dec.Decode(&doc); err != nil {
		if errors.Is(err, io.EOF) {
			return nil, bad("%s is empty", path)
		}
		return nil, bad("%s: %v", path, err)
	}
	if err := dec.Decode(&more); !errors.Is(err, io.EOF) {
		return nil, bad("%s holds more than one document", path)
	}
	if len(doc.Content) != 1 {
		return nil, bad("%s is empty", path)
	}
	m := asMapping(doc.Content[0])
	if m == nil {
		return nil, bad("%s is not a mapping of options", path)
	}
	return m, nil
}

// asMapping reads a mapping node; nil when n is something else or uses merge keys, which are not followed.
func asMapping(n *yaml.Node) *mapping {
	n = deref(n)
	if n == nil || n.Kind != yaml.MappingNode {
		return nil
	}
	m := &mapping{line: n.Line, values: map[string]*yaml.Node{}, lines: map[string]int{}}
	for i := 0; i+1 < len(n.Content); i += 2 {
		k := n.Content[i]
		if k.Kind != yaml.ScalarNode || k.Tag == "!!merge" {
			return nil
		}
		if _, twice := m.values[k.Value]; twice {
			m.duplicates = append(m.duplicates, keyLine{k.Value, k.Line})
		} else {
			m.order = append(m.order, k.Value)
		}
		m.values[k.Value], m.lines[k.Value] = n.Content[i+1], k.Line
	}
	return m
}

func deref(n *yaml.Node) *yaml.Node {
	for n != nil && n.Kind == yaml.AliasNode {
		n = n.Alias
	}
	return n
}

// get returns the value of a key; nil when it is absent or null, as Cassandra treats both alike.
func (m *mapping) get(key string) *yaml.Node {
	if m == nil {
		return nil
	}
	n := deref(m.values[key])
	if n == nil || n.Kind == yaml.ScalarNode && n.Tag == "!!null" {
		return nil
	}
	return n
}

func (m *mapping) has(key string) bool { return m.get(key) != nil }

func (m *mapping) at(key string) int {
	if m == nil {
		return 0
	}
	if l := m.lines[key]; l != 0 {
		return l
	}
	return m.line
}

// scalar returns the text of a key, and whether it is a scalar. Numbers are text as written.
func (m *mapping) scalar(key string) (string, bool) {
	n := m.get(key)
	if n == nil || n.Kind != yaml.ScalarNode {
		return "", false
	}
	return n.Value, true
}

func (m *mapping) text(key, absent string) string {
	if s, ok := m.scalar(key); ok {
		return s
	}
	return absent
}

// boolean takes YAML 1.1's words, as Cassandra's reader does. ok is false when the value is something else.
func (m *mapping) boolean(key string, absent bool) (value, ok bool) {
	n := m.get(key)
	if n == nil {
		return absent, true
	}
	var b bool
	if n.Kind != yaml.ScalarNode || n.Decode(&b) != nil {
		return absent, false
	}
	return b, true
}

// list reads a sequence of scalars; a single scalar is not one.
func (m *mapping) list(key string) (out []string, ok bool) {
	n := m.get(key)
	if n == nil {
		return nil, true
	}
	if n.Kind != yaml.SequenceNode {
		return nil, false
	}
	for _, c := range n.Content {
		if c = deref(c); c.Kind != yaml.ScalarNode {
			return nil, false
		}
		out = append(out, c.Value)
	}
	return out, true
}
