// Package reload makes a running Cassandra read its TLS stores again, by a command fixed in the local configuration.
//
// It owns the helper: a small process, `csm-agent helper`, which alone may execute something, so that the agent's own
// process runs under a policy that forbids exec and writable code pages. systemd starts it for each reload behind a socket
// (systemd); without systemd the agent starts it once as a child. It refuses every command
// that is not in the helper's own configuration: a request names an instance, never a program, so nothing that came
// over a network can be run. The exit code is carried and never believed: since 4.1.4 nodetool exits 0 when the new
// stores could not be loaded. One command runs at a time; package install proves the outcome by handshakes.
//
// Where a host has no nodetool the node's Java runs client/Client.java in its place: the same words and options over plain JMX. It is
// embedded as a class for Java 8, because a runtime has no compiler; a test holds the class to its source.
package reload

import (
	"context"
	"strconv"
	"time"
)

// DefaultTimeout bounds one command. A JVM that starts cold on a busy machine needs some seconds.
const DefaultTimeout = 30 * time.Second

// askTimeout is shorter: a reload may wait behind it.
const askTimeout = 25 * time.Second

// Reloader makes one Cassandra instance reload its stores. An error means that the command could not be run to its end;
// a nil error says nothing about whether the stores were loaded.
type Reloader interface {
	Reload(ctx context.Context) (Output, error)
}

// Output is what the command left, for people and logs.
type Output struct {
	ExitCode int    `json:"exit_code"`
	Stdout   string `json:"stdout,omitempty"`
	Stderr   string `json:"stderr,omitempty"`
	// Took is how long the command ran.
	Took time.Duration `json:"took"`
}

// Command is a fixed command of the local configuration.
type Command struct {
	// Path is absolute, or a name that the helper looks up.
	Path string   `json:"path"`
	Args []string `json:"args,omitempty"`
	// Way says what may take the place of Path, which is nodetool then, and Java what runs it; an empty Java is looked for. An empty
	// Way lets nothing take its place.
	Way  Way    `json:"way,omitempty"`
	Java string `json:"java,omitempty"`
	// Dir and Env of the process; an empty Env leaves PATH, HOME and JAVA_HOME of the helper only.
	Dir string   `json:"dir,omitempty"`
	Env []string `json:"env,omitempty"`
	// Home is the folder in which the command's JVM keeps its own files (.cassandra/nodetool.history) instead of the home of its
	// user; empty leaves it to the JVM. It is told by JAVA_TOOL_OPTIONS, because a JVM does not read HOME. HOME stays: there
	// nodetool's script finds nodetool-ssl.properties. Where it cannot be made, a temporary folder takes its place.
	Home string `json:"home,omitempty"`
	// Timeout after which the command and its children are killed; 0 is DefaultTimeout.
	Timeout time.Duration `json:"timeout,omitempty"`
	// Ring is a whole command that prints the ring as `nodetool status` does. Empty: where the last argument is reloadssl,
	// the same command with status in its place; otherwise the ring cannot be listed.
	Ring []string `json:"ring,omitempty"`
	// Netstats is a whole command that prints what `nodetool netstats` does, found in the same way.
	Netstats []string `json:"netstats,omitempty"`
}

// ByNodetool is the default command: `nodetool -h HOST -p PORT [LOGIN...] reloadssl`. JMX of a default Cassandra listens on
// 127.0.0.1:7199. login are further options, which name files of passwords and never passwords.
func ByNodetool(host string, port uint16, login ...string) Command {
	args := append([]string{"-h", host, "-p", strconv.Itoa(int(port))}, login...)
	return Command{Path: "nodetool", Args: append(args, "reloadssl")}
}
