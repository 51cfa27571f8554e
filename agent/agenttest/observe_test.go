package agenttest

import (
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"

	"github.com/cassandra-security-manager/csm/agent/cassandra/cassandratest"
	"github.com/cassandra-security-manager/csm/agent/config"
	"github.com/cassandra-security-manager/csm/agent/cql/cqltest"
	"github.com/cassandra-security-manager/csm/controller/fleet"
	"github.com/cassandra-security-manager/csm/controller/ledger"
	shared "github.com/cassandra-security-manager/csm/shared/config"
	"github.com/cassandra-security-manager/csm/shared/keystore"
)

// traced are the calls by which a process changes something outside of itself.
const traced = "open,openat,openat2,creat,rename,renameat,renameat2,unlink,unlinkat,link,linkat,symlink,symlinkat,mkdir,mkdirat,rmdir,mknod,mknodat," +
	"chmod,fchmod,fchmodat,chown,fchown,lchown,fchownat,truncate,ftruncate,fallocate,utimensat,setxattr,lsetxattr,fsetxattr,removexattr,mount,kill,tkill,tgkill,pidfd_send_signal"

var (
	call     = regexp.MustCompile(`^(\d+)\s+(\w+)\((.*)\)\s+= (-?\d+|\?)`)
	quoted   = regexp.MustCompile(`"((?:[^"\\]|\\.)*)"`)
	ofHandle = regexp.MustCompile(`\d+<([^>]*)>`)
)

// violations are the calls of a trace that succeeded in changing something outside of dir.
func violations(trace, dir string) (bad []string, changes int) {
	within := func(p string) bool {
		return p == dir || strings.HasPrefix(p, dir+"/") || p == "/dev/null" || strings.HasPrefix(p, "/proc/self/")
	}
	for line := range strings.Lines(joined(trace)) {
		m := call.FindStringSubmatch(strings.TrimSpace(line))
		if m == nil || strings.HasPrefix(m[4], "-") { // a call that failed changed nothing
			continue
		}
		name, args := m[2], m[3]
		switch {
		case strings.HasPrefix(name, "open") || name == "creat":
			if name != "creat" && !strings.Contains(args, "O_WRONLY") && !strings.Contains(args, "O_RDWR") && !strings.Contains(args, "O_CREAT") && !strings.Contains(args, "O_TRUNC") {
				continue
			}
		case strings.HasSuffix(name, "kill") || name == "pidfd_send_signal":
			// Go's scheduler wakes its own threads by SIGURG; signal 0 only asks whether somebody is there.
			if strings.Contains(args, "SIGURG") || strings.Contains(args, ", 0, NULL, 0") {
				continue
			}
			bad = append(bad, line)
			continue
		}
		var paths []string
		for _, q := range quoted.FindAllStringSubmatch(args, -1) {
			p := q[1]
			if !filepath.IsAbs(p) {
				if h := ofHandle.FindStringSubmatch(args); h != nil {
					p = filepath.Join(h[1], p)
				}
			}
			paths = append(paths, p)
		}
		if len(paths) == 0 {
			for _, h := range ofHandle.FindAllStringSubmatch(args, -1) {
				paths = append(paths, h[1])
			}
		}
		changes++
		if len(paths) == 0 || slices.ContainsFunc(paths, func(p string) bool { return !within(p) }) {
			bad = append(bad, line)
		}
	}
	return bad, changes
}

// joined puts the two halves of each call together that another thread's call has interrupted.
func joined(trace string) string {
	var out strings.Builder
	begun := map[string]string{}
	for line := range strings.Lines(trace) {
		pid, rest, _ := strings.Cut(line, " ")
		if head, ok := strings.CutSuffix(strings.TrimSpace(line), "<unfinished ...>"); ok {
			begun[pid] = head
			continue
		}
		if _, end, ok := strings.Cut(rest, " resumed>"); ok && strings.HasPrefix(strings.TrimSpace(rest), "<... ") {
			line = begun[pid] + end
			delete(begun, pid)
		}
		out.WriteString(line)
	}
	return out.String()
}

func TestTheTraceIsReadRightly(t *testing.T) {
	for line, want := range map[string]int{
		`12 openat(AT_FDCWD, "/etc/cassandra/tls/ks.p12", O_RDONLY|O_CLOEXEC) = 7`:                    0,
		`12 openat(AT_FDCWD, "/etc/cassandra/tls/ks.p12", O_WRONLY|O_CREAT, 0600) = 7</etc/x>`:        1,
		`12 openat(AT_FDCWD, "/state/a", O_RDWR|O_CREAT|O_EXCL, 0600) = 7`:                            0,
		`12 renameat(AT_FDCWD, "/state/a", AT_FDCWD, "/etc/cassandra/tls/ks.p12") = 0`:                1,
		`12 renameat(AT_FDCWD, "/state/a", AT_FDCWD, "/state/b") = 0`:                                 0,
		`12 fchmod(7</etc/cassandra/tls/ks.p12>, 0600) = 0`:                                           1,
		`12 fchmod(7</state/x>, 0600) = 0`:                                                            0,
		`12 openat(AT_FDCWD</x>, "/proc/self/coredump_filter", O_RDWR) = 4</proc/12/coredump_filter>`: 0,
		`12 openat(AT_FDCWD</x>, "/proc/1/coredump_filter", O_RDWR) = 4</proc/1/coredump_filter>`:     1,
		"12 openat(AT_FDCWD, \"/etc/x\", O_WRONLY|O_CREAT, 0600 <unfinished ...>\n13 openat(AT_FDCWD, \"/etc/y\", O_RDONLY <unfinished ...>\n12 <... openat resumed>) = 7</etc/x>\n13 <... openat resumed>) = 8": 1,
		`12 unlinkat(5</etc/cassandra>, "x", 0) = 0`:                                                             1,
		`12 unlinkat(AT_FDCWD, "/etc/passwd", 0) = -1 EACCES (Permission denied)`:                                0,
		`12 tgkill(12, 13, SIGURG) = 0`:                                                                          0,
		`12 pidfd_send_signal(12<anon_inode:[pidfd]>, 0, NULL, 0) = 0`:                                           0,
		`12 pidfd_send_signal(12<anon_inode:[pidfd]>, SIGKILL, NULL, 0) = 0`:                                     1,
		`12 kill(99, SIGTERM) = 0`:                                                                               1,
		`12 setxattr("/etc/cassandra/tls/ks.p12", "security.selinux", "x", 1, 0) = 0`:                            1,
		`12 utimensat(AT_FDCWD, "/statement", [{tv_sec=0, tv_nsec=0} /* 1970 */, {tv_sec=0, tv_nsec=0}], 0) = 0`: 1,
	} {
		if bad, _ := violations(line+"\n", "/state"); len(bad) != want {
			t.Errorf("%d violations in %s", len(bad), line)
		}
	}
}

// shadow is the agent's program in mode observe under strace.
type shadow struct {
	h     *host
	trace string
	cmd   *exec.Cmd
}

func shadowed(h *host) *shadow {
	t := h.t
	t.Helper()
	strace, err := exec.LookPath("strace")
	if err != nil {
		t.Fatal("strace is missing: `make setup` installs it")
	}
	h.conf.Mode = "observe"
	s := &shadow{h: h, trace: filepath.Join(t.TempDir(), "trace")}
	s.cmd = exec.Command(strace, "-f", "-qq", "-y", "-s", "4096", "-e", "trace="+traced, "-o", s.trace, program(t), "run", "--config", h.file())
	s.cmd.Env = append(os.Environ(), "HOME="+h.conf.StateDir)
	must(t, s.cmd.Start())
	t.Cleanup(func() { _ = s.cmd.Process.Kill(); _, _ = s.cmd.Process.Wait() })
	return s
}

// changedNothing ends the program and reads the trace.
func (s *shadow) changedNothing() {
	t := s.h.t
	t.Helper()
	children, err := os.ReadFile(fmt.Sprintf("/proc/%d/task/%d/children", s.cmd.Process.Pid, s.cmd.Process.Pid))
	must(t, err)
	pid, err := strconv.Atoi(strings.Fields(string(children))[0])
	must(t, err)
	must(t, syscall.Kill(pid, syscall.SIGTERM))
	_ = s.cmd.Wait()

	data, err := os.ReadFile(s.trace)
	must(t, err)
	bad, changes := violations(string(data), s.h.conf.StateDir)
	if len(bad) > 0 {
		t.Errorf("an agent in observe changed something outside of %s:\n%s", s.h.conf.StateDir, strings.Join(bad, ""))
	}
	if changes == 0 {
		t.Error("the trace shows no change at all, so it shows nothing")
	}
	t.Logf("%d changes inside of the state folder, none outside", changes)
}

func TestAnAgentInObserveChangesNothingOutsideOfItsStateFolder(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	h := newHost(w, "n1", keystore.PKCS12)
	s := shadowed(h)

	h.await("no store is there", func(s fleet.Store) bool { return s.State == "absent" })
	generation, err := w.fleet.RequestRenewal(t.Context(), cluster+"/nodes/n1", "", "a controller that wants something", ann)
	must(t, err)
	w.await("the agent was told and says that it does nothing", func() bool {
		s := h.status()
		return len(s.Stores) == 1 && s.Stores[0].Wanted == generation && s.Stores[0].Next.Wants == "install" && s.Stores[0].Next.Reason == "observe"
	})
	foreign := cassandratest.NewCA(t, "corporate")
	cassandratest.Write(t, h.cass.Store, foreign.Leaf(), foreign.Root)
	h.await("the store of another CA is seen", func(s fleet.Store) bool { return s.State == "foreign" && s.Leaf != "" })
	inventory := ledger.NewReplicated(w.log.Store, w.log.Clock)
	w.await("its certificates are in the inventory", func() bool {
		found, _, err := inventory.Found(t.Context(), ledger.FoundFilter{Node: cluster + "/nodes/n1"}, ledger.Page{})
		return err == nil && len(found) >= 2
	})
	generation, err = w.fleet.RequestRenewal(t.Context(), cluster+"/nodes/n1", "", "once more", ann)
	must(t, err)
	w.await("and told once more", func() bool { s := h.status(); return len(s.Stores) == 1 && s.Stores[0].Wanted == generation })
	h.cass.Restart(t)
	w.await("Cassandra is seen to run", func() bool { return h.view().Instance.Running })
	s.changedNothing()
}

// TestAnAgentInObserveWithALoginReadsOfCassandraAndChangesNothing: with a role of Cassandra's it asks for the members of the ring, reads of
// their ranges, and lists the connected clients.
func TestAnAgentInObserveWithALoginReadsOfCassandraAndChangesNothing(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	h := newHost(w, "n1", keystore.PKCS12)
	cassandra := &cqltest.Server{Authenticator: "org.apache.cassandra.auth.PasswordAuthenticator", User: "csm_agent", Password: "right",
		Answer: func(q string, _ uint16) cqltest.Answer {
			if strings.Contains(q, "FROM system.local") {
				return cqltest.Answer{Columns: []cqltest.Column{{Name: "partitioner", Type: cqltest.Varchar}}, Rows: [][][]byte{{[]byte("x.RandomPartitioner")}}}
			}
			return cqltest.Answer{Columns: []cqltest.Column{{Name: "x", Type: cqltest.Int}}}
		}}
	cassandra.Start(t)
	h.login(cassandra)
	foreign := cassandratest.NewCA(t, "corporate")
	cassandratest.Write(t, h.cass.Store, foreign.Leaf(), foreign.Root)
	h.cass.Restart(t)
	s := shadowed(h)
	h.await("the store of another CA is seen", func(s fleet.Store) bool { return s.State == "foreign" && s.Leaf != "" })
	w.await("Cassandra is seen to run", func() bool { return h.view().Instance.Running })
	look, err := w.fleet.AskHealth(t.Context(), cluster, ann)
	must(t, err)
	w.await("what it read is told", func() bool {
		health, err := w.fleet.Health(t.Context(), cluster)
		return err == nil && len(health.Members) == 1 && health.Members[0].Look >= look
	})
	if cassandra.Logins() == 0 || !slices.ContainsFunc(cassandra.Asked(), func(q string) bool { return strings.Contains(q, "system_views.clients") }) {
		t.Errorf("%d logins, asked %v", cassandra.Logins(), cassandra.Asked())
	}
	for _, q := range cassandra.Asked() {
		if !strings.HasPrefix(q, "SELECT ") {
			t.Errorf("it sent %q", q)
		}
	}
	s.changedNothing()
}

// login puts a server in the place of the host's CQL port, with a role for the agent.
func (h *host) login(s *cqltest.Server) {
	h.t.Helper()
	in := &h.conf.Cassandra[0]
	yaml, err := os.ReadFile(in.Config)
	must(h.t, err)
	_, number, err := net.SplitHostPort(s.Address())
	must(h.t, err)
	text := regexp.MustCompile(`(?m)^native_transport_port: .*$`).ReplaceAllString(string(yaml), "native_transport_port: "+number)
	text = regexp.MustCompile(`(?m)^client_encryption_options: .*$`).ReplaceAllString(text, "client_encryption_options: {enabled: false}\nauthenticator: PasswordAuthenticator")
	must(h.t, os.WriteFile(in.Config, []byte(text), 0o600))
	password := filepath.Join(filepath.Dir(in.Config), "cql.password")
	must(h.t, os.WriteFile(password, []byte(s.Password+"\n"), 0o600))
	in.CQL = config.CQL{Username: s.User, Password: shared.Reference("file:" + password)}
}
