//go:build linux

package ring

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"github.com/cassandra-security-manager/csm/test/process"
)

// Node is one Cassandra. The fields are fixed by New.
type Node struct {
	Name       string
	Dir        string
	Address    netip.Addr
	JMX        int
	Datacenter string
	Rack       string
	// Format is "PKCS12", "JKS" or "PEM"; Password opens the stores of the first two.
	Format   string
	Password string
	// Config is cassandra.yaml, Stores the folder of the two stores.
	Config     string
	Stores     string
	Keystore   string
	Truststore string
	// Log is what Cassandra prints; each start appends.
	Log string
	// Nodetool is a script for this node: it runs the real nodetool.
	Nodetool string
	// Enter is a command that the next start and each nodetool are given to, for example to enter a network namespace.
	Enter []string
	// JVM are further arguments of the next start.
	JVM []string

	dist    *Distribution
	process *process.Process
	ready   int64
}

func (n *Node) rackdc() string {
	return filepath.Join(filepath.Dir(n.Config), "cassandra-rackdc.properties")
}

// Start starts the JVM and returns at once.
func (n *Node) Start() error {
	if n.process != nil && n.process.Running() {
		return fmt.Errorf("%s runs already", n.Name)
	}
	for _, f := range []string{n.Keystore, n.Truststore} {
		if _, err := os.Stat(f); err != nil {
			return fmt.Errorf("%s has no stores yet: %w", n.Name, err)
		}
	}
	n.ready = int64(n.Mark())
	args, err := n.dist.daemonArgs(n, false)
	if err != nil {
		return err
	}
	args = append(append([]string{}, n.Enter...), args...)
	n.process, err = process.Start(process.Spec{Name: "Cassandra " + n.Name, Path: args[0], Args: args[1:], Dir: n.Dir, Log: n.Log})
	return err
}

// daemonArgs is the whole command line; record makes the class archive instead of using it. Class data sharing needs the same class path each time, so the path never
// depends on the node, and the rack file is named by a property.
func (d *Distribution) daemonArgs(n *Node, record bool) ([]string, error) {
	jamm, err := d.jamm()
	if err != nil {
		return nil, err
	}
	args := append(append([]string{}, d.Limits...), d.java,
		"-Xms256m", "-Xmx256m", "-Xss384k", "-XX:+UseSerialGC", "-XX:TieredStopAtLevel=1", "-XX:MaxDirectMemorySize=128m",
		"-XX:+ExitOnOutOfMemoryError", "-XX:+PerfDisableSharedMem", "@"+filepath.Join(d.Dir, d.Release.arguments()))
	if record {
		// The JVM archives no classes while an agent may change them, so jamm stays out.
		args = append(args, "-XX:ArchiveClassesAtExit="+d.archive()+".new")
	} else {
		args = append(args, "-javaagent:"+jamm)
		if _, err := os.Stat(d.archive()); err == nil {
			args = append(args, "-XX:SharedArchiveFile="+d.archive(), "-Xshare:auto")
		}
	}
	args = append(args,
		"-Dcassandra-foreground=yes", "-Dcassandra.config=file://"+n.Config, "-Dcassandra-rackdc.properties=file://"+n.rackdc(),
		"-Dcassandra.storagedir="+filepath.Join(n.Dir, "data"), "-Dcassandra.logdir="+filepath.Join(n.Dir, "logs"), "-Djava.io.tmpdir="+n.Dir, // a killed JVM leaves its native libraries there
		"-Dlogback.configurationFile=file:"+filepath.Join(d.Dir, "logback.xml"), fmt.Sprintf("-Dcassandra.jmx.local.port=%d", n.JMX),
		"-Dcassandra.ring_delay_ms=20000", "-Dcassandra.skip_wait_for_gossip_to_settle=0", "-Dcassandra.memtable.row_overhead_size=180")
	return append(append(args, n.JVM...), "-cp", d.classpath(), "org.apache.cassandra.service.CassandraDaemon"), nil
}

// WaitReady waits until the node started last takes clients.
func (n *Node) WaitReady(ctx context.Context) error {
	if n.process == nil {
		return fmt.Errorf("%s was never started", n.Name)
	}
	return n.process.Settle(ctx, 100*time.Millisecond, func() bool {
		return len(n.Lines(Mark(n.ready), "Starting listening for CQL clients")) > 0
	})
}

// Running reports whether the JVM lives.
func (n *Node) Running() bool { return n.process != nil && n.process.Running() }

// Process is the JVM; nil before the first start.
func (n *Node) Process() *process.Process { return n.process }

// Kill ends the JVM with SIGKILL.
func (n *Node) Kill() {
	if n.process != nil {
		n.process.Kill()
	}
}

// Stop ends the JVM with SIGTERM, as an operator does.
func (n *Node) Stop(ctx context.Context) error {
	if n.process == nil {
		return nil
	}
	return n.process.Stop(ctx)
}

// Stall stops the JVM in its tracks: it keeps its sockets and answers nothing, as in a long collection pause.
func (n *Node) Stall() error { return n.process.SignalGroup(syscall.SIGSTOP) }

// Resume ends a stall.
func (n *Node) Resume() error { return n.process.SignalGroup(syscall.SIGCONT) }

// Mark is a place in a node's log.
type Mark int64

// Mark is the end of the log now.
func (n *Node) Mark() Mark {
	i, err := os.Stat(n.Log)
	if err != nil {
		return 0
	}
	return Mark(i.Size())
}

// Lines returns the log's lines since a mark that contain text.
func (n *Node) Lines(since Mark, text string) []string {
	return n.grep(since, func(line string) bool { return strings.Contains(line, text) })
}

// Errors returns the log's ERROR lines since a mark.
func (n *Node) Errors(since Mark) []string {
	return n.grep(since, func(line string) bool { return strings.HasPrefix(line, "ERROR") })
}

func (n *Node) grep(since Mark, match func(string) bool) []string {
	f, err := os.Open(n.Log)
	if err != nil {
		return nil
	}
	defer f.Close()
	if _, err := f.Seek(int64(since), io.SeekStart); err != nil {
		return nil
	}
	b, err := io.ReadAll(f)
	if err != nil && !errors.Is(err, io.EOF) {
		return nil
	}
	var out []string
	for line := range bytes.Lines(b) {
		if s := strings.TrimRight(string(line), "\n"); match(s) {
			out = append(out, s)
		}
	}
	return out
}
