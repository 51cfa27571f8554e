package cassandra

import (
	"context"
	"io"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/cassandra-security-manager/csm/shared/fault"
)

// DefaultRoot is the store folder that an agent may write without being told so.
const DefaultRoot = "/etc/cassandra/tls"

// MaxConfig bounds cassandra.yaml and each file it names, in bytes.
const MaxConfig = 1 << 20

// Options of reading. The zero value is what an agent uses without configuration.
type Options struct {
	// Roots are the only folders in which a store is manageable; empty is DefaultRoot.
	Roots []string
	// WorkDir is the working directory of the Cassandra process, against which it resolves relative paths. Empty: taken
	// from the running process where it can be seen, else a relative path is a finding.
	WorkDir string
	// Resolve turns a host name into addresses; nil asks the system. Hostname is this host's name; nil asks the system.
	Resolve  func(ctx context.Context, host string) ([]netip.Addr, error)
	Hostname func() (string, error)
	// Interface gives the addresses of a network interface; nil asks the system.
	Interface func(name string) ([]net.Addr, error)
	// Proc is the process table's folder; empty is /proc.
	Proc string
}

// Read reads cassandra.yaml with the zero Options. The error is a fault and means that nothing at all was understood;
// everything less is a finding, and the findings are also in the Instance.
func Read(configPath string) (*Instance, []Finding, error) { return Options{}.Read(configPath) }

// Read reads cassandra.yaml and the files beside it.
func (o Options) Read(configPath string) (*Instance, []Finding, error) {
	path, err := filepath.Abs(configPath)
	if err != nil {
		return nil, nil, fault.Wrap(err, fault.Invalid, "bad-path", "%s", configPath)
	}
	data, err := readBounded(path)
	if err != nil {
		return nil, nil, fault.Wrap(err, fault.NotFound, "no-cassandra-yaml", "cannot read %s", path).
			Do("name Cassandra's configuration in agent.yaml, under cassandra: [{config: ...}], and let the agent's user read it")
	}
	return o.parse(path, data)
}

func (o Options) fill() Options {
	if len(o.Roots) == 0 {
		o.Roots = []string{DefaultRoot}
	}
	if o.Resolve == nil {
		o.Resolve = func(ctx context.Context, host string) ([]netip.Addr, error) {
			return net.DefaultResolver.LookupNetIP(ctx, "ip", host)
		}
	}
	if o.Hostname == nil {
		o.Hostname = os.Hostname
	}
	if o.Interface == nil {
		o.Interface = func(name string) ([]net.Addr, error) {
			i, err := net.InterfaceByName(name)
			if err != nil {
				return nil, err
			}
			return i.Addrs()
		}
	}
	if o.Proc == "" {
		o.Proc = "/proc"
	}
	return o
}

// reader carries one reading.
type reader struct {
	o    Options
	inst *Instance
	dir  string // of cassandra.yaml
}

func (o Options) parse(path string, data []byte) (*Instance, []Finding, error) {
	top, err := parseDocument(path, data)
	if err != nil {
		return nil, nil, err
	}
	r := &reader{o: o.fill(), inst: &Instance{ConfigPath: path}, dir: filepath.Dir(path)}
	r.inst.Process = findProcess(r.o.Proc, path)
	if r.o.WorkDir == "" {
		r.o.WorkDir = r.inst.Process.WorkDir
	}
	for _, d := range top.duplicates {
		r.add(Finding{Code: "duplicate-key", Severity: Error, Line: d.line, Blocks: true,
			Message: "the key " + d.key + " stands twice", Remedy: "remove one: which of them counts depends on the release"})
	}
	r.inst.ClusterName, r.inst.Authenticator = top.text("cluster_name", ""), authenticator(top)
	r.addresses(top)
	r.snitch(top)
	r.section(top, true)
	r.section(top, false)
	r.stores()
	r.weak(top)
	r.finish()
	return r.inst, r.inst.Findings, nil
}

// authenticator is a class name, or since 5.0 a mapping with one.
func authenticator(top *mapping) string {
	class, ok := top.scalar("authenticator")
	if !ok {
		class = asMapping(top.get("authenticator")).text("class_name", "")
	}
	return strings.TrimPrefix(class, "org.apache.cassandra.auth.")
}

func (r *reader) add(f Finding) { r.inst.Findings = append(r.inst.Findings, f) }

// finish decides what is manageable and puts the findings in order.
func (r *reader) finish() {
	for _, s := range r.inst.Stores {
		s.Manageable = !slices.ContainsFunc(r.inst.Findings, func(f Finding) bool {
			return f.Blocks && (f.Store == "" || f.Store == s.Name)
		})
	}
	rank := map[Severity]int{Error: 0, Warning: 1, Info: 2}
	slices.SortStableFunc(r.inst.Findings, func(a, b Finding) int { return rank[a.Severity] - rank[b.Severity] })
}

// absolute resolves a path as Cassandra does, against its working directory; empty when that is not known.
func (r *reader) absolute(p string) string {
	switch {
	case filepath.IsAbs(p):
		return filepath.Clean(p)
	case r.o.WorkDir != "":
		return filepath.Join(r.o.WorkDir, p)
	}
	return ""
}

func readBounded(path string) ([]byte, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	if st, err := f.Stat(); err == nil && !st.Mode().IsRegular() {
		return nil, fault.New(fault.Invalid, "not-a-file", "%s is not a regular file", path)
	}
	b, err := io.ReadAll(io.LimitReader(f, MaxConfig+1))
	if err == nil && len(b) > MaxConfig {
		err = fault.New(fault.Invalid, "too-large", "%s has more than %d bytes", path, MaxConfig)
	}
	return b, err
}

func within(path string, roots []string) bool {
	for _, root := range roots {
		if real, err := filepath.EvalSymlinks(root); err == nil {
			root = real
		}
		rel, err := filepath.Rel(root, path)
		if err == nil && rel != ".." && !strings.HasPrefix(rel, ".."+string(filepath.Separator)) {
			return true
		}
	}
	return false
}
