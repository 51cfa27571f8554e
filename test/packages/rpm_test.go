//go:build linux

package packages_test

import (
	"os"
	"strings"
	"testing"
)

// rpm itself runs the scriptlets under a real systemd. The machine is a Debian, so dependencies are not looked at.
func TestRpmUnderSystemd(t *testing.T) {
	if os.Getenv("CSM_TEST_PACKAGES") == "" {
		t.Skip("boots a machine of its own as root; runs with make test-packages")
	}
	s := site{boot(t, twoVersions(t)...), t}
	s.do("rpm -i --nodeps /packages/*.rpm")
	for _, u := range []string{"csm-agent", "csm-controller"} {
		if s.do("systemctl is-enabled "+u) != "enabled" || s.pid(u) != "0" {
			t.Errorf("%s: enabled as presets say, and not running, is wanted", u)
		}
	}
	if got := s.do("stat -c '%U %a' /var/lib/csm-agent /var/lib/csm /run/csm-agent/reload.sock | tr '\\n' ' '"); got != "cassandra 700 csm 700 cassandra 600" {
		t.Error(got)
	}
	s.system()
	s.write("/etc/csm/agent.yaml", "mode: stage\n", 0o644)
	s.do("install -d -o cassandra -m 0700 /var/lib/csm-agent/cassandra && echo kept >/var/lib/csm-agent/cassandra/note")

	controller := s.pid("csm-controller")
	if out := s.do("rpm -U --nodeps /newer/*.rpm 2>&1"); !strings.Contains(out, "csm-controller: the old program runs on") {
		t.Error(out)
	}
	if s.pid("csm-controller") != controller {
		t.Error("the upgrade restarted a controller")
	}
	s.do("grep -q 'mode: stage' /etc/csm/agent.yaml && grep -q kept /var/lib/csm-agent/cassandra/note && systemctl is-enabled csm-agent && systemctl is-active csm-agent-reload.socket")
	s.do("rpm -U --nodeps --oldpackage /packages/*.rpm && systemctl is-enabled csm-agent && systemctl is-active csm-controller")

	out := s.do("rpm -e csm-agent csm-controller csm 2>&1")
	if !strings.Contains(out, "stay in /var/lib/csm-agent") || !strings.Contains(out, "stay in /var/lib/csm.") {
		t.Error(out)
	}
	s.do("grep -q kept /var/lib/csm-agent/cassandra/note && test -e /var/lib/csm/node.json && test -d /etc/cassandra/tls && grep -q stage /etc/csm/agent.yaml.rpmsave")
	if left := s.do("find /etc/systemd /usr/lib/systemd /usr/bin -name 'csm*'; systemctl list-units --no-legend 'csm*'"); left != "" {
		t.Error("left behind:\n", left)
	}
}
