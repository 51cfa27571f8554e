package cli

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"

	"gopkg.in/yaml.v3"

	"github.com/cassandra-security-manager/csm/shared/fault"
)

// View is one answer in each format. Only what a command can show needs to be set.
type View struct {
	// Object is printed by json and yaml: a json.RawMessage (the REST resource, byte for byte but for indentation) or
	// anything encoding/json takes.
	Object any
	// Items of a list, for jsonl and name; a single Object when nil.
	Items []any
	// Name gives the name of an item, for -o name.
	Name func(item any) string
	// Table or Pairs or Text is for people; the first that is set.
	Table *Table
	Pairs Pairs
	Text  string
	// Note goes to stderr below a table.
	Note string
}

// Print writes an answer in the chosen format.
func (g *Global) Print(v View) error {
	items := v.Items
	if items == nil && v.Object != nil {
		items = []any{v.Object}
	}
	switch g.Format() {
	case "json":
		return writeJSON(g.Out, v.Object, "  ")
	case "yaml":
		return writeYAML(g.Out, v.Object)
	case "jsonl":
		for _, it := range items {
			if err := writeJSON(g.Out, it, ""); err != nil {
				return err
			}
		}
		return nil
	case "name":
		for _, it := range items {
			name := nameOf(it)
			if v.Name != nil {
				name = v.Name(it)
			}
			if _, err := fmt.Fprintln(g.Out, name); err != nil {
				return err
			}
		}
		return nil
	}
	return g.printText(v)
}

func (g *Global) printText(v View) (err error) {
	switch {
	case v.Table != nil && len(v.Table.Rows) > 0:
		err = v.Table.write(g.Out, g.Format() == "wide", g.Color(g.Out))
	case v.Table != nil && v.Note == "":
		g.Say("none")
	case v.Pairs != nil:
		err = v.Pairs.write(g.Out)
	case v.Text != "":
		_, err = io.WriteString(g.Out, cleanText(v.Text))
	}
	if v.Note != "" {
		g.Say("%s", v.Note)
	}
	return err
}

// WriteLine prints one JSON document on a line of its own.
func WriteLine(w io.Writer, raw json.RawMessage) error { return writeJSON(w, raw, "") }

func writeJSON(w io.Writer, v any, indent string) error {
	raw, ok := v.(json.RawMessage)
	if !ok {
		b, err := json.Marshal(v)
		if err != nil {
			return fault.Wrap(err, fault.Internal, "output", "encode the answer")
		}
		raw = b
	}
	var b bytes.Buffer
	var err error
	if indent == "" {
		err = json.Compact(&b, raw)
	} else {
		err = json.Indent(&b, raw, "", indent)
	}
	if err != nil {
		return fault.Wrap(err, fault.Internal, "output", "the answer is not JSON")
	}
	b.WriteByte('\n')
	_, err = w.Write(b.Bytes())
	return err
}

// writeYAML keeps the order of the keys: JSON is YAML, so the document is parsed as such and printed in block style.
func writeYAML(w io.Writer, v any) error {
	var b bytes.Buffer
	if err := writeJSON(&b, v, ""); err != nil {
		return err
	}
	var doc yaml.Node
	if err := yaml.Unmarshal(b.Bytes(), &doc); err != nil {
		return fault.Wrap(err, fault.Internal, "output", "encode the answer")
	}
	block(&doc)
	enc := yaml.NewEncoder(w)
	enc.SetIndent(2)
	if err := enc.Encode(&doc); err != nil {
		return fault.Wrap(err, fault.Internal, "output", "encode the answer")
	}
	return enc.Close()
}

// block takes the braces and quotes of JSON away; the encoder puts back what is needed.
func block(n *yaml.Node) {
	n.Style = 0
	for _, c := range n.Content {
		block(c)
	}
}

func nameOf(v any) string {
	raw, ok := v.(json.RawMessage)
	if !ok {
		raw, _ = json.Marshal(v)
	}
	var named struct {
		Name string `json:"name"`
	}
	_ = json.Unmarshal(raw, &named)
	return named.Name
}
