package reload

import (
	"bytes"
	"os"
	"path/filepath"
	"syscall"
)

// running are the Javas that run a Cassandra as our own user. Another user's process could call itself a Cassandra to have its program run.
func running() (out []string) {
	lines, _ := filepath.Glob("/proc/[0-9]*/cmdline")
	for _, path := range lines {
		st, err := os.Stat(path)
		if err != nil {
			continue
		}
		if s, ok := st.Sys().(*syscall.Stat_t); !ok || int(s.Uid) != os.Getuid() {
			continue
		}
		if data, err := os.ReadFile(path); err != nil || !bytes.Contains(data, []byte("\x00org.apache.cassandra.service.CassandraDaemon\x00")) {
			continue
		}
		if program, err := os.Readlink(filepath.Join(filepath.Dir(path), "exe")); err == nil && filepath.Base(program) == "java" {
			out = append(out, program)
		}
	}
	return out
}
