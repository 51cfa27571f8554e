//go:build linux

package packages_test

import (
	"os"
	"regexp"
	"strings"
	"testing"
)

// The whole life of the packages on one machine, as docs/packages.md tells it. Each step needs the ones before.
func TestLifeUnderSystemd(t *testing.T) {
	if os.Getenv("CSM_TEST_PACKAGES") == "" {
		t.Skip("boots a machine of its own as root; runs with make test-packages")
	}
	s := newSite(t)
	s.withCassandra()
	for _, step := range []struct {
		name string
		do   func(site)
	}{
		{"installed, nothing runs that has not joined", installed},
		{"joined, the agent runs without any privilege", joined},
		{"the shipped unit reloads a real Cassandra", reloads},
		{"only the agent's user reaches the helpers' sockets", guarded},
		{"the shipped unit ends a connection of the internode port, and no other", cut},
		{"without the reload unit a change is rolled back", unreloaded},
		{"an upgrade keeps the state and the controller's process", upgraded},
		{"an upgrade in the middle of an installation leaves a node as it should be", upgradedMidway},
		{"an older package goes on with the state", downgraded},
		{"an older agent refuses a newer state", refusedState},
		{"removed, state and stores stay, and a reinstallation goes on", removed},
		{"purged, the state is gone and Cassandra's keys are not", purged},
		{"without a package the agent registers itself", registered},
		{"the controller purged, nothing is left behind", controllerPurged},
	} {
		if !t.Run(step.name, func(t *testing.T) { step.do(s.as(t)) }) {
			t.Log(s.do("journalctl -u csm-agent -u csm-controller -u 'csm-agent-reload@*' -o cat --no-pager | tail -60"))
			return
		}
	}
}

func installed(s site) {
	s.do("dpkg -i /packages/*.deb")
	for _, u := range []string{"csm-agent", "csm-controller"} {
		if s.do("systemctl is-enabled "+u) != "enabled" || s.pid(u) != "0" {
			s.t.Errorf("%s: enabled and not running is wanted", u)
		}
		s.do("systemctl start " + u) // a condition that fails is no error
		if s.pid(u) != "0" {
			s.t.Errorf("%s runs and belongs to no system", u)
		}
	}
	for path, want := range map[string]string{"/var/lib/csm": "csm:csm 700", "/var/lib/csm-agent": "cassandra:cassandra 700", "/etc/cassandra/tls": "cassandra:cassandra 750",
		"/etc/csm": "root:root 755", "/etc/csm/agent.yaml": "root:root 644", "/run/csm-agent/reload.sock": "cassandra:cassandra 600", "/run/csm-agent/links.sock": "cassandra:cassandra 600",
		"/var/backups/csm": "csm:csm 700"} {
		if got := s.do("stat -c '%U:%G %a' " + path); got != want {
			s.t.Errorf("%s is %s, not %s", path, got, want)
		}
	}
	if out, err := s.try("csm-controller init --config /etc/csm/controller.yaml"); err == nil || !strings.Contains(out, "do:") {
		s.t.Errorf("init of a configuration without a name: %v %s", err, out)
	}
}

func joined(s site) {
	s.system()
	s.join()
	if out, err := s.try("csm-agent join"); err == nil || !strings.Contains(out, "runuser -u cassandra") {
		s.t.Errorf("root in the agent's folder: %v %s", err, out)
	}
	s.do("systemctl start csm-agent")
	s.until("ls /etc/cassandra/tls", has("keystore.p12"))
	status := s.do("cat /proc/" + s.pid("csm-agent") + "/status")
	for _, want := range []string{`CapEff:\s+0000000000000000`, `CapBnd:\s+0000000000000000`, `NoNewPrivs:\s+1`, `Seccomp:\s+2`} {
		if !regexp.MustCompile(want).MatchString(status) {
			s.t.Errorf("%s is not in\n%s", want, status)
		}
	}
	if p := s.do("systemctl show -P MemoryDenyWriteExecute csm-agent"); p != "yes" {
		s.t.Error("MemoryDenyWriteExecute: ", p)
	}
	s.do("systemctl start cassandra")
	s.until("journalctl -u cassandra -o cat", has("Starting listening for CQL clients"))
}

// renew has the node take a new certificate. A node is reloaded six times an hour at most: the steps before are forgotten.
func (s site) renew() string {
	s.t.Helper()
	s.do("rm -f /var/lib/csm-agent/cassandra/reloads.json")
	s.do("csm node renew n1 --wait --timeout 100s")
	return s.settle()
}

func reloads(s site) {
	before := s.settle()
	after := s.renew()
	if before == after {
		s.t.Error("the node serves the certificate it had")
	}
	s.do("journalctl -u 'csm-agent-reload@*' -o cat | grep '^Started'")
	s.do("journalctl -u cassandra -o cat | grep 'SSL certificates have been updated for client_encryption_options'")
}

const dial = `perl -MIO::Socket::UNIX -e 'exit(IO::Socket::UNIX->new(shift) ? 0 : 1)' /run/csm-agent/`

func guarded(s site) {
	for _, socket := range []string{"reload.sock", "links.sock"} {
		s.do("runuser -u cassandra -- " + dial + socket)
		if _, err := s.try("runuser -u nobody -- " + dial + socket); err == nil {
			s.t.Error("anybody may use ", socket)
		}
	}
}

// cut asks the helper by its own wire to end connections that a client holds open from 127.0.0.5.
func cut(s site) {
	s.write("/etc/cassandra/hold.pl", holdScript, 0o644)
	s.write("/etc/cassandra/ask.pl", askScript, 0o644)
	for port, want := range map[string]string{"7000": `"cut":1`, "9042": "helper-refused"} {
		s.do("systemd-run --quiet --unit hold-" + port + " perl /etc/cassandra/hold.pl " + port)
		s.until("ss -tnH state established src 127.0.0.1:"+port+" dst 127.0.0.5 | wc -l", is("1"))
		link := s.do(`ss -tneH state established src 127.0.0.1:` + port + ` dst 127.0.0.5 | sed -n 's/.*127.0.0.5:\([0-9]*\).* sk:\([0-9a-f]*\).*/\1 \2/p'`)
		if out := s.do("runuser -u cassandra -- perl /etc/cassandra/ask.pl " + port + " " + link); !strings.Contains(out, want) {
			s.t.Errorf("%s: %s", port, out)
		}
		left := map[string]string{"7000": "0", "9042": "1"}[port]
		if n := s.do("ss -tnH state established src 127.0.0.1:" + port + " dst 127.0.0.5 | wc -l"); n != left {
			s.t.Errorf("port %s: %s connections are left", port, n)
		}
		s.try("systemctl stop hold-" + port)
	}
	// The wish travels from the command to the agent and back.
	s.do("csm node cycle-links n1 --dry-run && csm node cycle-links n1 --wait --timeout 100s")
}

func unreloaded(s site) {
	before := s.settle()
	sum := s.do("sha256sum /etc/cassandra/tls/keystore.p12")
	s.do("systemctl stop csm-agent-reload.socket && csm node renew n1")
	s.until("journalctl -u csm-agent -o cat", has("install turns back"))
	s.until("sha256sum /etc/cassandra/tls/keystore.p12", is(sum))
	s.do("systemctl start csm-agent-reload.socket")
	if after := s.renew(); after == before {
		s.t.Error("the node did not recover")
	}
}

func upgraded(s site) {
	identity, conf := s.do("sha256sum /var/lib/csm-agent/cassandra/identity.json"), s.do("sha256sum /etc/csm/agent.yaml")
	agent, controller := s.pid("csm-agent"), s.pid("csm-controller")
	out := s.do("dpkg -i /newer/*.deb 2>&1")
	if !strings.Contains(out, "csm-controller: the old program runs on") {
		s.t.Error(out)
	}
	if s.pid("csm-controller") != controller {
		s.t.Error("the upgrade restarted a controller")
	}
	if p := s.pid("csm-agent"); p == agent || p == "0" {
		s.t.Errorf("agent before %s, after %s", agent, p)
	}
	if s.do("sha256sum /var/lib/csm-agent/cassandra/identity.json") != identity || s.do("sha256sum /etc/csm/agent.yaml") != conf {
		s.t.Error("identity or configuration changed")
	}
	s.do("systemctl restart csm-controller")
	s.until("csm status", has("healthy"))
	s.settle()
}

// midway begins a renewal whose reload takes long, and waits until it is there.
func (s site) midway() {
	s.t.Helper()
	s.do("echo 10 >/etc/cassandra/slow-reload && csm node renew n1")
	s.until("systemctl list-units --no-legend --state=running 'csm-agent-reload@*' | wc -l", is("1"))
	s.do("rm /etc/cassandra/slow-reload")
}

func upgradedMidway(s site) {
	before := s.settle()
	s.midway()
	agent := s.pid("csm-agent")
	s.do("dpkg -i /newer/csm-agent_*.deb 2>&1")
	if p := s.pid("csm-agent"); p == agent || p == "0" {
		s.t.Errorf("agent before %s, after %s", agent, p)
	}
	if leaf := s.settle(); leaf == before {
		s.t.Log("the change was rolled back")
	}
	s.renew()
	if n := s.do("find /etc/cassandra/tls -type f | wc -l"); n != "2" {
		s.t.Errorf("the store folder holds %s", s.do("ls -la /etc/cassandra/tls"))
	}
}

func downgraded(s site) {
	out := s.do("dpkg -i /packages/*.deb 2>&1")
	if !strings.Contains(out, "downgrading") {
		s.t.Error(out)
	}
	s.renew()
}

func refusedState(s site) {
	s.settle()
	sums := s.do("sha256sum /etc/cassandra/tls/*")
	s.do("systemctl stop csm-agent && sed -i.kept 's/\"format\": 1/\"format\": 99/' /var/lib/csm-agent/cassandra/state.json && grep -q 99 /var/lib/csm-agent/cassandra/state.json")
	if _, err := s.try("systemctl start csm-agent"); err == nil {
		s.t.Error("an agent runs on the state of a newer one")
	}
	log := s.do("journalctl -u csm-agent -o cat -n 20")
	if !strings.Contains(log, "newer agent (format 99)") || !strings.Contains(log, "install that version again") {
		s.t.Error(log)
	}
	if s.do("sha256sum /etc/cassandra/tls/*") != sums {
		s.t.Error("stores were changed")
	}
	s.do("systemctl stop csm-agent && cd /var/lib/csm-agent/cassandra && sed -i 's/\"format\": 99/\"format\": 1/' state.json && rm -f state.json.kept && chown cassandra: state.json && systemctl start csm-agent")
	s.settle()
}

func removed(s site) {
	identity := s.do("sha256sum /var/lib/csm-agent/cassandra/identity.json")
	s.do("dpkg -r csm-agent")
	if out := s.do("systemctl list-units --no-legend --state=running 'csm-agent*' | wc -l"); out != "0" {
		s.t.Error("something runs after the removal")
	}
	if s.do("sha256sum /var/lib/csm-agent/cassandra/identity.json") != identity {
		s.t.Error("the removal touched the state")
	}
	s.do("test -e /etc/csm/agent.yaml && test ! -e /usr/bin/csm-agent && systemctl is-active cassandra")
	s.do("dpkg -i /packages/csm-agent_*.deb")
	s.settle()
	if s.pid("csm-agent") == "0" {
		s.t.Error("the agent did not come back")
	}
}

func purged(s site) {
	sums := s.do("sha256sum /etc/cassandra/tls/*")
	out := s.do("dpkg -P csm-agent 2>&1")
	if !strings.Contains(out, "/etc/cassandra/tls") || !strings.Contains(out, "are left as they are") {
		s.t.Error("the purge does not say where the keys are:\n", out)
	}
	s.do("test ! -e /var/lib/csm-agent && test ! -e /etc/csm/agent.yaml && test ! -e /run/csm-agent/reload.sock && getent passwd cassandra && systemctl is-active cassandra")
	if s.do("sha256sum /etc/cassandra/tls/*") != sums {
		s.t.Error("the purge touched Cassandra's stores")
	}
}

func registered(s site) {
	agent := "/opt/csm/csm-agent service "
	s.do("mkdir -p /opt/csm && dpkg-deb --fsys-tarfile /packages/csm-agent_*.deb | tar -xO ./usr/bin/csm-agent >/opt/csm/csm-agent && chmod 755 /opt/csm/csm-agent")
	s.do("install -d -o cassandra -m 0700 /var/lib/csm-agent")
	s.configure("--rejoin")
	s.do(agent + "install")
	if out, err := s.try(agent + "start"); err == nil || !strings.Contains(out, "has not joined") {
		s.t.Errorf("%v %s", err, out)
	}
	s.do("runuser -u cassandra -- /opt/csm/csm-agent join && " + agent + "start && " + agent + "status")
	s.until("csm node get n1 -o json", has(`"connected": true`))
	if user := s.do("ps -o user= -p " + s.pid("csm-agent") + " 2>/dev/null || stat -c %U /proc/" + s.pid("csm-agent")); user != "cassandra" {
		s.t.Error("the service runs as ", user)
	}
	s.do(agent + "stop")
	if _, err := s.try(agent + "status"); err == nil {
		s.t.Error("stopped, and the exit code is 0")
	}
	s.do(agent + "uninstall && test -e /var/lib/csm-agent/cassandra/identity.json && rm -r /var/lib/csm-agent")
}

func controllerPurged(s site) {
	s.do("dpkg -r csm-controller && test -e /var/lib/csm/node.json && dpkg -P csm-controller csm && test ! -e /var/lib/csm")
	if out := s.do("find /etc/systemd /usr/lib/systemd /usr/bin -name 'csm*'"); out != "" {
		s.t.Error("left behind:\n", out)
	}
}
