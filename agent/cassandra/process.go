package cassandra

import (
	"net/netip"
	"os"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"

	agentv1 "github.com/cassandra-security-manager/csm/protocol/agent/v1"
)

// Process is a running Cassandra as the process table shows it.
type Process struct {
	PID int
	// WorkDir against which it resolves relative paths; empty when this user may not see it.
	WorkDir string
	// Version by the name of its jar; empty when that does not tell.
	Version string
	JMX     JMX
}

// JMX is what the command line says of the management port (cassandra-env.sh, JMXServerUtils).
type JMX struct {
	// Port is 0 where none is opened. Remote says that it is not bound to loopback.
	Port                           uint16
	Remote, TLS, ClientAuth, Login bool
	seen                           bool
}

func (j JMX) proto() *agentv1.JMXFacts {
	return &agentv1.JMXFacts{Seen: j.seen, Remote: j.Remote, Port: uint32(j.Port), Tls: j.TLS, ClientAuth: j.ClientAuth, Authenticated: j.Login}
}

// jvm begins the properties of the JVM's own management agent. Cassandra's server reads some of them too.
const jvm = "com.sun.management.jmxremote."

// readJMX follows CassandraDaemon.maybeInitJmx and JMXServerUtils of 5.0.8. Where com.sun.management.jmxremote.port is
// set, the JVM's own agent listens and Cassandra's server does not; its TLS and login are on unless turned off. Otherwise
// Cassandra listens on cassandra.jmx.remote.port, or on cassandra.jmx.local.port, with TLS and login only where they are
// turned on: a password file or login.config without authenticate=true asks nobody for a password.
func readJMX(args []string) JMX {
	set := map[string]string{}
	for _, a := range args {
		if k, v, ok := strings.Cut(strings.TrimPrefix(a, "-D"), "="); ok && strings.HasPrefix(a, "-D") {
			set[k] = v // the last one counts, as in the JVM
		}
	}
	on := func(key string, unsaid bool) bool {
		v, said := set[jvm+key]
		return strings.EqualFold(v, "true") || !said && unsaid
	}
	j := JMX{seen: true, ClientAuth: on("ssl.need.client.auth", false)}
	if n := jmxPort(set[jvm+"port"]); n != 0 {
		j.Port, j.Remote, j.TLS, j.Login = n, true, on("ssl", true), on("authenticate", true)
		if b, err := netip.ParseAddr(set[jvm+"host"]); err == nil && b.IsLoopback() {
			j.Remote = false
		}
		return j
	}
	j.TLS, j.Login = on("ssl", false), on("authenticate", false)
	if n := jmxPort(set["cassandra.jmx.remote.port"]); n != 0 {
		j.Port, j.Remote = n, true
		return j
	}
	// The socket factory of TLS takes no address (SslRMIServerSocketFactory): with TLS the local port is open to all.
	j.Port = jmxPort(set["cassandra.jmx.local.port"])
	j.Remote = j.Port != 0 && j.TLS
	return j
}

func jmxPort(s string) uint16 {
	n, _ := strconv.ParseUint(s, 10, 16)
	return uint16(n)
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
		p.JMX = readJMX(args)
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
