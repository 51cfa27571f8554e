package reload

import (
	_ "embed"
	"errors"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"

	"github.com/cassandra-security-manager/csm/shared/fault"
)

// Way is how Cassandra is made to read its stores again.
type Way string

// The ways. Polling is never chosen by itself: a nodetool that is away for a moment must not turn seconds into minutes.
const (
	// Auto is nodetool, and our own client where no nodetool is found.
	Auto Way = "auto"
	// Nodetool is nodetool alone, JMX our own client alone.
	Nodetool Way = "nodetool"
	JMX      Way = "jmx"
	// Poll is nothing: Cassandra is left to look at its files by itself, each ten minutes. What is asked without changing
	// anything is asked as by Auto.
	Poll Way = "poll"
)

// class is client/Client.java for each Java since 8, by `make java`.
//
//go:embed client/Client.class
var class []byte

// light are options of a JVM that lives for a second.
var light = []string{"-XX:TieredStopAtLevel=1", "-XX:+UseSerialGC", "-XX:-UsePerfData", "-Xmx96m"}

// Program is what would be run now in the place of c.Path: c.Path itself or, where own is set, the Java that runs our client.
func (c Command) Program() (path string, own bool, err error) {
	if c.Way != JMX {
		path, err = exec.LookPath(c.Path)
		if c.Way != Auto && c.Way != Poll || !errors.Is(err, exec.ErrNotFound) && !errors.Is(err, fs.ErrNotExist) {
			return path, false, err
		}
	}
	if path, err = c.java(); err != nil {
		return "", true, err
	}
	return path, true, nil
}

// ready gives the command as it is run now, and what to do when it has ended.
func (c Command) ready() (Command, func(), error) {
	path, own, err := c.Program()
	if !own {
		return c, func() {}, nil // a program that cannot be found is told where it is run
	}
	if err != nil {
		return c, nil, err
	}
	dir, err := c.place()
	if err != nil {
		return c, nil, fault.Wrap(err, fault.Unavailable, "reload-not-run", "there is no place for the program that speaks JMX").Do("free space in %s", os.TempDir())
	}
	c.Path, c.Args, c.Home = path, slices.Concat(light, []string{"-cp", dir, "Client"}, c.Args), ""
	return c, func() { os.RemoveAll(dir) }, nil
}

// place puts our client into a new folder in Home or, where that cannot be written, as under systemd's read-only view, in the
// folder for temporary files. It is written for each run: nobody else's file is ever run in its place.
func (c Command) place() (dir string, err error) {
	err = fs.ErrNotExist
	if c.Home != "" && os.MkdirAll(c.Home, 0o700) == nil {
		dir, err = os.MkdirTemp(c.Home, "client-")
	}
	if err != nil {
		dir, err = os.MkdirTemp("", "csm-nodetool-")
	}
	if err == nil {
		if err = os.WriteFile(filepath.Join(dir, "Client.class"), class, 0o600); err != nil {
			os.RemoveAll(dir)
		}
	}
	return dir, err
}

// java finds the Java that runs our client: the configured one alone; else that of JAVA_HOME, the one on the path, that of a
// Cassandra that runs as our own user, or one where packages put it.
func (c Command) java() (string, error) {
	if c.Java != "" {
		path, err := exec.LookPath(c.Java)
		if err != nil {
			return "", fault.Wrap(err, fault.Unavailable, "no-java", "%s cannot be run", c.Java).Do("set reload.java in agent.yaml to a Java 8 or newer")
		}
		return path, nil
	}
	places := []string{}
	for _, e := range append(keep("JAVA_HOME"), c.Env...) {
		if home, is := strings.CutPrefix(e, "JAVA_HOME="); is && filepath.IsAbs(home) {
			places = append([]string{filepath.Join(home, "bin", "java")}, places...)
		}
	}
	places = append(append(places, "java"), running()...)
	for _, pattern := range []string{"/usr/lib/jvm/*/bin/java", "/opt/java/openjdk/bin/java", "/opt/java/*/bin/java", "/usr/java/*/bin/java"} {
		found, _ := filepath.Glob(pattern)
		places = append(places, found...)
	}
	for _, p := range places {
		if path, err := exec.LookPath(p); err == nil {
			return path, nil
		}
	}
	return "", fault.New(fault.Unavailable, "no-nodetool", "neither nodetool nor a Java is found, so Cassandra cannot be told to read its stores again").
		Do("set reload.command or reload.java in agent.yaml to the full path of nodetool or of a Java; or let the agent wait for Cassandra's own look at its files: reload: {way: poll}")
}
