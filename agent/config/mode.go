package config

import (
	"io"
	"os"
	"sync"
	"time"

	"gopkg.in/yaml.v3"

	agentv1 "github.com/cassandra-security-manager/csm/protocol/agent/v1"
	"github.com/cassandra-security-manager/csm/shared/config"
)

// Ceiling gives the mode that an agent.yaml names now; the file is read again when it has changed, so it may be asked before
// each effect. A file that cannot be read or understood, which an editor leaves for a moment, changes nothing; a word that is no
// mode is none, and lets nothing be done.
func Ceiling(path string, start agentv1.Mode) func() agentv1.Mode {
	var mu sync.Mutex
	var seen time.Time
	var size int64
	mode := start
	return func() agentv1.Mode {
		mu.Lock()
		defer mu.Unlock()
		i, err := os.Stat(path)
		if err != nil || i.ModTime().Equal(seen) && i.Size() == size {
			return mode
		}
		if m, ok := readMode(path); ok {
			mode, seen, size = m, i.ModTime(), i.Size()
		}
		return mode
	}
}

func readMode(path string) (agentv1.Mode, bool) {
	f, err := os.Open(path)
	if err != nil {
		return 0, false
	}
	defer f.Close()
	data, err := io.ReadAll(io.LimitReader(f, config.MaxFile))
	if err != nil || len(data) == 0 {
		return 0, false
	}
	c := Config{Mode: DefaultMode}
	doc := struct {
		Mode *string `yaml:"mode"`
	}{&c.Mode}
	if yaml.Unmarshal(data, &doc) != nil {
		return 0, false
	}
	if doc.Mode != nil {
		c.Mode = *doc.Mode
	}
	return c.AgentMode(), true
}
