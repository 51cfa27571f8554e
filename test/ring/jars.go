//go:build linux

package ring

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"text/template"
)

const manifest = "complete.json"

// Distribution is a fetched Cassandra: jars without a tarball, because none is published for 5.0.
type Distribution struct {
	Tools
	// Release is what was fetched.
	Release Release
	// Dir is the cache folder.
	Dir string
	// java runs Cassandra; nodetool runs with the machine's own.
	java string
	jars []string
}

// Fetch makes sure that all jars of Cassandra are in dir/lib, by Maven if they are not. Two programs may call it at
// once. The folder appears by one rename together with a list of names and sizes, which each later call compares, so
// half a download or a lost file is noticed and fetched again.
func Fetch(ctx context.Context, tools Tools, dir string, say func(string)) (*Distribution, error) {
	return Release{Version: Version}.fetch(ctx, tools, dir, say)
}

func (rel Release) fetch(ctx context.Context, tools Tools, dir string, say func(string)) (*Distribution, error) {
	dir, err := filepath.Abs(dir)
	if err != nil {
		return nil, err
	}
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return nil, err
	}
	unlock, err := lock(filepath.Join(dir, "lock"))
	if err != nil {
		return nil, err
	}
	defer unlock()
	d := &Distribution{Tools: tools, Release: rel, Dir: dir, java: tools.Java}
	if rel.jre != "" {
		if d.java, err = rel.runtime(ctx, dir, say); err != nil {
			return nil, err
		}
	}
	if d.jars, err = d.complete(); err == nil {
		return d, d.settings()
	}
	say("fetching Cassandra " + rel.Version + " through Maven (67 MB, once)")
	if err := d.download(ctx); err != nil {
		return nil, err
	}
	if d.jars, err = d.complete(); err != nil {
		return nil, fmt.Errorf("the download ended well, but %w", err)
	}
	return d, d.settings()
}

func (d *Distribution) lib() string { return filepath.Join(d.Dir, "lib") }

func (d *Distribution) download(ctx context.Context) error {
	tmp, err := os.MkdirTemp(d.Dir, "fetch-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(tmp)
	pom, lib := filepath.Join(tmp, "pom.xml"), filepath.Join(tmp, "lib")
	if err := render("pom.xml.tmpl", pom, d.Release.Version); err != nil {
		return err
	}
	c := exec.CommandContext(ctx, d.Maven, "-B", "-q", "-f", pom,
		"org.apache.maven.plugins:maven-dependency-plugin:3.6.1:copy-dependencies", "-DincludeScope=runtime", "-DoutputDirectory="+lib)
	c.Env = append(os.Environ(), "JAVA_HOME="+filepath.Dir(filepath.Dir(d.Java)))
	if out, err := c.CombinedOutput(); err != nil {
		return fmt.Errorf("fetch Cassandra %s through Maven (is the network, or a mirror in ~/.m2/settings.xml, there?): %w\n%s", d.Release.Version, err, tail(string(out), 10))
	}
	if err := seal(lib); err != nil {
		return err
	}
	if err := os.RemoveAll(d.lib()); err != nil {
		return err
	}
	return os.Rename(lib, d.lib())
}

// seal writes the list of what a download brought.
func seal(lib string) error {
	sizes := map[string]int64{}
	entries, err := os.ReadDir(lib)
	if err != nil {
		return err
	}
	for _, e := range entries {
		i, err := e.Info()
		if err != nil {
			return err
		}
		sizes[e.Name()] = i.Size()
	}
	b, err := json.MarshalIndent(sizes, "", " ")
	if err != nil {
		return err
	}
	return os.WriteFile(filepath.Join(lib, manifest), b, 0o644)
}

// complete returns the jars in a fixed order, or says what is missing.
func (d *Distribution) complete() ([]string, error) {
	lib, want := d.lib(), "cassandra-all-"+d.Release.Version+".jar"
	b, err := os.ReadFile(filepath.Join(lib, manifest))
	if err != nil {
		return nil, err
	}
	var sizes map[string]int64
	if err := json.Unmarshal(b, &sizes); err != nil {
		return nil, err
	}
	var jars []string
	for name, size := range sizes {
		i, err := os.Stat(filepath.Join(lib, name))
		if err != nil || i.Size() != size {
			return nil, fmt.Errorf("%s is not whole in %s", name, lib)
		}
		if strings.HasSuffix(name, ".jar") {
			jars = append(jars, filepath.Join(lib, name))
		}
	}
	slices.Sort(jars)
	if !slices.ContainsFunc(jars, func(j string) bool { return filepath.Base(j) == want }) {
		return nil, fmt.Errorf("%s is not in %s", want, lib)
	}
	return jars, nil
}

// jamm is the agent that Cassandra measures its objects with.
func (d *Distribution) jamm() (string, error) {
	for _, j := range d.jars {
		if strings.HasPrefix(filepath.Base(j), "jamm-") {
			return j, nil
		}
	}
	return "", errors.New("no jamm jar among Cassandra's")
}

func (d *Distribution) classpath() string { return strings.Join(d.jars, ":") }

// settings writes the files that all rings share.
func (d *Distribution) settings() error {
	for _, name := range []string{"jvm17.args", d.Release.arguments(), "logback.xml", "logback-tools.xml"} {
		want, err := files.ReadFile("files/" + name)
		if err != nil {
			return err
		}
		path := filepath.Join(d.Dir, name)
		if have, err := os.ReadFile(path); err == nil && bytes.Equal(have, want) {
			continue
		} else if err != nil && !errors.Is(err, fs.ErrNotExist) {
			return err
		}
		if err := os.WriteFile(path, want, 0o644); err != nil {
			return err
		}
	}
	return nil
}

func render(name, path string, data any) error {
	t, err := template.ParseFS(files, "files/"+name)
	if err != nil {
		return err
	}
	var b bytes.Buffer
	if err := t.Execute(&b, data); err != nil {
		return err
	}
	return os.WriteFile(path, b.Bytes(), 0o600)
}

func lock(path string) (unlock func(), err error) {
	f, err := os.OpenFile(path, os.O_CREATE|os.O_RDWR, 0o644)
	if err != nil {
		return nil, err
	}
	if err := syscall.Flock(int(f.Fd()), syscall.LOCK_EX); err != nil {
		f.Close()
		return nil, err
	}
	return func() { f.Close() }, nil
}

func tail(s string, lines int) string {
	all := strings.Split(strings.TrimRight(s, "\n"), "\n")
	return strings.Join(all[max(0, len(all)-lines):], "\n")
}
