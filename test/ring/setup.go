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

// Tools are the programs of the machine that a ring needs.
type Tools struct {
	// Java is the absolute path of a JDK 17's java.
	Java string
	// Maven is the absolute path of mvn; it is only needed until the jars are there.
	Maven string
	// Limits is put in front of a JVM's command line: without the right to lock memory JNA does not pin the heap,
	// which saves 300 MB a node.
	Limits []string
}

// packages are what a Debian-like machine calls the tools.
const packages = "openjdk-17-jdk-headless maven"

// Setup finds the tools. What is missing is installed by apt-get when install is true and this runs as root; otherwise
// the error names the command that does it.
func Setup(ctx context.Context, install bool, say func(string)) (Tools, error) {
	t, err := find()
	if err == nil || !install || os.Getuid() != 0 {
		return t, err
	}
	for _, args := range [][]string{{"update", "-qq"}, append([]string{"install", "-y", "--no-install-recommends"}, strings.Fields(packages)...)} {
		say("apt-get " + strings.Join(args, " "))
		c := exec.CommandContext(ctx, "apt-get", args...)
		c.Env = append(os.Environ(), "DEBIAN_FRONTEND=noninteractive")
		if out, e := c.CombinedOutput(); e != nil {
			return t, fmt.Errorf("apt-get %s: %w\n%s", args[0], e, out)
		}
	}
	return find()
}

func find() (Tools, error) {
	var t Tools
	var missing []string
	if t.Java = java17(); t.Java == "" {
		missing = append(missing, "a JDK 17")
	}
	if t.Maven, _ = exec.LookPath("mvn"); t.Maven == "" {
		missing = append(missing, "Maven")
	}
	if missing != nil {
		return t, fmt.Errorf("%s not found: install with\n  sudo apt-get update && sudo apt-get install -y %s", strings.Join(missing, " and "), packages)
	}
	t.Limits = limits()
	return t, nil
}

var version17 = regexp.MustCompile(`version "17[."]`)

// java17 looks where JAVA_HOME says, where Debian and Red Hat put a JDK, and in PATH.
func java17() string {
	places, _ := filepath.Glob("/usr/lib/jvm/*17*/bin/java")
	if home := os.Getenv("JAVA_HOME"); home != "" {
		places = append([]string{filepath.Join(home, "bin/java")}, places...)
	}
	if p, err := exec.LookPath("java"); err == nil {
		places = append(places, p)
	}
	for _, p := range places {
		if out, err := exec.Command(p, "-version").CombinedOutput(); err == nil && version17.Match(out) {
			return p
		}
	}
	return ""
}

// limits takes the first way that works here: containers may lack prlimit, setpriv or the right to use it.
func limits() []string {
	ways := [][]string{{"prlimit", "--memlock=65536"}}
	if os.Getuid() == 0 {
		ways = append([][]string{{"prlimit", "--memlock=65536", "setpriv", "--bounding-set=-ipc_lock"}}, ways...)
	}
	for _, w := range ways {
		if path, err := exec.LookPath(w[0]); err == nil && exec.Command(path, append(w[1:len(w):len(w)], "true")...).Run() == nil {
			return append([]string{path}, w[1:]...)
		}
	}
	return nil
}
