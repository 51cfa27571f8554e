package config_test

import (
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/cassandra-security-manager/csm/agent/config"
	agentv1 "github.com/cassandra-security-manager/csm/protocol/agent/v1"
)

func TestTheModeOfTheFileIsReadAgainWhenTheFileChanges(t *testing.T) {
	const observe, stage, manage, none = agentv1.Mode_MODE_OBSERVE, agentv1.Mode_MODE_STAGE, agentv1.Mode_MODE_MANAGE, agentv1.Mode_MODE_UNSPECIFIED
	path := filepath.Join(t.TempDir(), "agent.yaml")
	mode := config.Ceiling(path, manage)
	if mode() != manage {
		t.Error("without a file it is that of the start")
	}
	written := time.Now().Add(-time.Hour)
	for _, c := range []struct {
		text string
		want agentv1.Mode
	}{
		{"mode: manage\ncluster: prod\n", manage},
		{"cluster: prod\nmode: stage\n", stage},
		{"", stage},                    // an editor empties a file before it writes it
		{"mode: [observe", stage},      // half written
		{"mode: 'observe'\n", observe}, // an operator's word
		{"cluster: prod\n", observe},   // the default
		{"mode: mange\n", none},        // a typing error lets nothing be done
		{"mode: manage\n", manage},
	} {
		if err := os.WriteFile(path, []byte(c.text), 0o600); err != nil {
			t.Fatal(err)
		}
		written = written.Add(time.Second)
		if err := os.Chtimes(path, written, written); err != nil {
			t.Fatal(err)
		}
		if got := mode(); got != c.want {
			t.Errorf("%q: %v, want %v", c.text, got, c.want)
		}
	}
	if err := os.Remove(path); err != nil {
		t.Fatal(err)
	}
	if mode() != manage {
		t.Error("a file that is gone changes something")
	}
}
