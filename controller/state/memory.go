package state

// memory is what handlers read that stays as it is while commands of one kind follow each other, as they do where there are
// many. Any other command clears it, and so does whatever sets the state back.
type memory struct {
	kind   string
	values map[string]any
}

// maxRemembered bounds it.
const maxRemembered = 1024

func (m *memory) begin(kind string) {
	if m.kind != kind || len(m.values) > maxRemembered {
		m.forget()
		m.kind = kind
	}
}

func (m *memory) forget() {
	m.kind = ""
	clear(m.values)
}

// Recall gives what read gave for the same key in this command or in those of the same kind right before it. Only for what
// commands of this kind never change, and for small values: they are kept.
func Recall[V any](a *Apply, key string, read func() (V, error)) (V, error) {
	if v, ok := a.memory.values[key].(V); ok {
		return v, nil
	}
	v, err := read()
	if err != nil {
		return v, err
	}
	if a.memory.values == nil {
		a.memory.values = map[string]any{}
	}
	a.memory.values[key] = v
	return v, nil
}
