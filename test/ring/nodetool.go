//go:build linux

package ring

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
)

// writeNodetool writes the script by which people and agents reach a node, as bin/nodetool of a distribution is.
func (d *Distribution) writeNodetool(n *Node) error {
	home := filepath.Join(n.Dir, "tool")
	if err := os.MkdirAll(home, 0o750); err != nil {
		return err
	}
	// The machine's JDK runs that of each release; the runtimes of PyPI have no JMX client (jdk.naming.rmi).
	script := fmt.Sprintf(`#!/bin/sh
# The real nodetool of Cassandra %[1]s for %[2]s (%[3]s).
archive=%[4]s
share=
[ -f "$archive" ] && share="-XX:SharedArchiveFile=$archive -Xshare:auto"
home="-Duser.home=%[7]s"
case "$JAVA_TOOL_OPTIONS" in *-Duser.home=*) home= ;; esac # the caller has said it
exec %[5]s -XX:TieredStopAtLevel=1 -XX:+UseSerialGC -XX:+PerfDisableSharedMem $share @%[6]s -Xmx128m $home \
  -Dcassandra.storagedir=%[7]s -Dcassandra.logdir=%[7]s -Dlogback.configurationFile=file:%[8]s \
  -cp %[9]s org.apache.cassandra.tools.NodeTool -h 127.0.0.1 -p %[10]d "$@"
`, d.Release.Version, n.Name, n.Address, d.toolArchive(), d.Java, filepath.Join(d.Dir, "jvm17.args"), home, filepath.Join(d.Dir, "logback-tools.xml"), d.classpath(), n.JMX)
	return os.WriteFile(n.Nodetool, []byte(script), 0o755)
}

// RunNodetool runs the node's nodetool and returns what it printed. A non-zero exit is an error; a zero exit proves
// nothing about a reload.
func (n *Node) RunNodetool(ctx context.Context, args ...string) (string, error) {
	words := append(append(append([]string{}, n.Enter...), n.Nodetool), args...)
	c := exec.CommandContext(ctx, words[0], words[1:]...)
	out, err := c.CombinedOutput()
	if err != nil {
		return string(out), fmt.Errorf("nodetool %s on %s: %w: %s", strings.Join(args, " "), n.Name, err, tail(string(out), 5))
	}
	return string(out), nil
}

var upNormal = regexp.MustCompile(`(?m)^UN `)

// countUp counts the nodes that `nodetool status` shows as up and normal.
func countUp(status string) int { return len(upNormal.FindAllString(status, -1)) }
