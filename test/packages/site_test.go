//go:build linux

package packages_test

import (
	_ "embed"
	"encoding/json"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"testing"

	"github.com/cassandra-security-manager/csm/test/ring"
)

//go:embed files/cassandra.yaml
var cassandraYAML string

//go:embed files/cassandra.service
var cassandraService string

//go:embed files/nodetool
var nodetool string

//go:embed files/hold.pl
var holdScript string

//go:embed files/ask.pl
var askScript string

// site is a machine with a controller, an agent and a real Cassandra, installed from packages as docs/packages.md says.
type site struct {
	*machine
	t *testing.T
}

// twoVersions are binds of the packages of this commit, and of the same programs under a later version.
func twoVersions(t *testing.T) []string {
	t.Helper()
	build(t, "csm", "deb")
	newer := t.TempDir()
	programs := "build/bin/" + runtime.GOARCH
	c := exec.Command("packaging/build.sh")
	c.Dir = source(t)
	c.Env = append(os.Environ(), "BINARIES="+programs, "HOST_BINARIES="+programs, "NFPM=build/tools/nfpm", "PACKAGE_ARCH="+runtime.GOARCH,
		"PACKAGE_VERSION=99.0.0", "PACKAGE_OUT="+newer)
	if out, err := c.CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	return []string{filepath.Join(source(t), "build/packages") + ":/packages", newer + ":/newer"}
}

// newSite boots a machine with Java, Cassandra's jars and the packages.
func newSite(t *testing.T) site {
	t.Helper()
	tools, err := ring.Setup(t.Context(), false, func(string) {})
	if err != nil {
		t.Fatal(err)
	}
	d, err := ring.Fetch(t.Context(), tools, filepath.Join(source(t), "build/cassandra", ring.Version), func(string) {})
	if err != nil {
		t.Fatal(err)
	}
	java, err := filepath.EvalSymlinks(tools.Java)
	if err != nil {
		t.Fatal(err)
	}
	binds := append(twoVersions(t), d.Dir+":/opt/cassandra", filepath.Dir(filepath.Dir(java))+":/opt/jdk")
	if _, err := os.Stat("/etc/java-17-openjdk"); err == nil { // where Debian's JDK keeps its settings
		binds = append(binds, "/etc/java-17-openjdk:/etc/java-17-openjdk")
	}
	return site{boot(t, binds...), t}
}

// withCassandra puts Cassandra where its own package would, but for the program.
func (s site) withCassandra() {
	s.t.Helper()
	s.do("install -d -m 0755 /etc/cassandra && echo 127.0.0.1 localhost $(hostname) >/etc/hosts")
	s.write("/etc/cassandra/cassandra.yaml", cassandraYAML, 0o644)
	s.write("/etc/systemd/system/cassandra.service", cassandraService, 0o644)
	s.write("/usr/bin/nodetool", nodetool, 0o755)
	s.do("systemctl daemon-reload")
}

// system makes a system of one controller, and a cluster.
func (s site) system() {
	s.t.Helper()
	s.write("/etc/csm/controller.yaml", "name: csm1\nregion: eu-west\nadvertise: 127.0.0.1\ndata_dir: /var/lib/csm\n", 0o644)
	pin := s.do(`cd /var/lib/csm && runuser -u csm -- csm-controller init --admin alice --admin-out alice.pem --recovery-out recovery.key -o json 2>/dev/null | sed -n 's/.*"\(sha256:[0-9a-f]*\)".*/\1/p'`)
	s.do("mv /var/lib/csm/alice.pem /root/ && systemctl start csm-controller")
	s.do("csm context set prod --server https://127.0.0.1:9640 --ca-pin " + pin + " --cert /root/alice.pem --key /root/alice.pem --cluster prod-eu && csm context use prod")
	s.until("csm status", has("healthy"))
	s.do("csm cluster create prod-eu --ca root --cassandra-name 'Prod EU' --region eu-west")
}

// join writes what `csm cluster join-command` prints, and joins.
func (s site) join() {
	s.t.Helper()
	s.configure("")
	s.do("runuser -u cassandra -- csm-agent join")
}

func (s site) configure(flags string) {
	s.t.Helper()
	lines := s.do("csm cluster join-command n1 --ip 127.0.0.1 --dns n1.example.net --mode manage " + flags + " 2>/dev/null")
	_, yaml, _ := strings.Cut(lines, "agent.yaml <<'EOF'\n")
	yaml, rest, _ := strings.Cut(yaml, "EOF\n")
	token := rest[strings.Index(rest, "csmt_"):]
	token = token[:strings.IndexAny(token, "'\n")]
	s.write("/etc/csm/agent.yaml", yaml, 0o644)
	s.write("/etc/csm/join.token", token+"\n", 0o600)
	s.do("chown cassandra /etc/csm/join.token")
}

// store is what the controllers know of the one store of n1.
type store struct {
	State  string `json:"state"`
	Leaf   string `json:"leafSha256"`
	Proven string `json:"provenSha256"`
}

func (s site) store() store {
	s.t.Helper()
	var n struct{ Stores []store }
	if err := json.Unmarshal([]byte(s.do("csm node get n1 -o json")), &n); err != nil {
		s.t.Fatal(err)
	}
	if len(n.Stores) != 1 {
		return store{}
	}
	return n.Stores[0]
}

// settle waits until the node's store is proven, and gives its leaf.
func (s site) settle() string {
	s.t.Helper()
	s.until("csm node get n1 -o json", has(`"why": "as it should be"`))
	st := s.store()
	if st.State != "proven" || st.Leaf == "" || st.Leaf != st.Proven {
		s.t.Fatalf("%+v", st)
	}
	return st.Leaf
}

// pid of a unit's main process; "0" when it does not run.
func (s site) pid(unit string) string {
	s.t.Helper()
	return s.do("systemctl show -P MainPID " + unit)
}
