package cassandra

import (
	"os"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
)

// Process is a running Cassandra as the process table shows it.
type Process struct {
	PID int
	// WorkDir against which it resolves relative paths; empty when this user may not see it.
	WorkDir string
	// Version by the name of its jar; empty when that does not tell.
	Version string
}

const daemon = "org.apache.cassandra.service.CassandraDaemon"

var jar = regexp.MustCompile(`(?:apache-cassandra|cassandra-all)-(\d[0-9A-Za-z.\-]*)\.jar`)

// findProcess looks for the Cassandra that was started with this configuration. Two that fit are none: never guess.
func findProcess(proc, config string) Process {
	lines, _ := filepath.Glob(filepath.Join(proc, "[0-9]*", "cmdline"))
	var found []Process
	for _, path := range lines {
		data, err := os.ReadFile(path)
		if err != nil || !strings.Contains(string(data), daemon) {
			continue
		}
		args := strings.Split(strings.TrimRight(string(data), "\x00"), "\x00")
		if !startedWith(args, config) {
			continue
		}
		dir := filepath.Dir(path)
		p := Process{}
		p.PID, _ = strconv.Atoi(filepath.Base(dir))
		p.WorkDir, _ = os.Readlink(filepath.Join(dir, "cwd"))
		if m := jar.FindStringSubmatch(string(data)); m != nil {
			p.Version = m[1]
		}
		found = append(found, p)
	}
	if len(found) != 1 {
		return Process{}
	}
	return found[0]
}

func startedWith(args []string, config string) bool {
	main, explicit := false, ""
	var classpath string
	for n, a := range args {
		switch {
		case a == daemon:
			main = true
		case strings.HasPrefix(a, "-Dcassandra.config="):
			explicit = strings.TrimPrefix(strings.TrimPrefix(a, "-Dcassandra.config="), "file:")
		case (a == "-cp" || a == "-classpath" || a == "--class-path") && n+1 < len(args):
			classpath = args[n+1]
		}
	}
	if !main {
		return false
	}
	if strings.HasPrefix(explicit, "/") {
		return filepath.Clean("/"+strings.TrimLeft(explicit, "/")) == config
	}
	for _, e := range filepath.SplitList(classpath) {
		if filepath.IsAbs(e) && filepath.Clean(e) == filepath.Dir(config) {
			return explicit == "" || explicit == filepath.Base(config)
		}
	}
	return false
}
