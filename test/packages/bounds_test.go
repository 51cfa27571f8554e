//go:build linux

package packages_test

import (
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
)

// TestUnitsUnderSystemd asks a running systemd of the units as they are installed, and measures what the agent's limits do.
func TestUnitsUnderSystemd(t *testing.T) {
	if os.Getenv("CSM_TEST_PACKAGES") == "" {
		t.Skip("boots a machine of its own as root; runs with make test-packages")
	}
	build(t, "csm-agent", "deb")
	s := site{boot(t, filepath.Join(source(t), "build/packages")+":/packages"), t}
	s.limit()
	s.do("dpkg -i /packages/csm-agent_*.deb /packages/csm-controller_*.deb")
	t.Run("closed", func(t *testing.T) { closed(s.as(t)) })
	t.Run("bounded", func(t *testing.T) { bounded(s.as(t)) })
}

func (s site) as(t *testing.T) site { return site{&machine{t: t, root: s.root, leader: s.leader}, t} }

func closed(s site) {
	for unit, most := range exposure {
		analysis := fmt.Sprintf("systemd-analyze security --no-pager --threshold=%d %s", most, strings.Replace(unit, "@", "@1", 1))
		s.t.Log(s.do(analysis + " >/tmp/analysis && tail -n 1 /tmp/analysis"))
	}
}

// hog takes as much of a core as it gets, or so many megabytes.
const hog = `my ($what, $n) = @ARGV;
if ($what eq 'cpu') { 1 while 1 }
vec(my $x, $n << 20, 8) = 1; # touches every page
sleep 1000;
`

const dropIn = "/run/systemd/system/csm-agent.service.d"

// hogs lets the agent's unit start the hog in the place of the agent, and changes nothing else of it.
func (s site) hogs(args string) {
	s.t.Helper()
	s.write("/etc/cassandra/hog.pl", hog, 0o644)
	s.do("mkdir -p " + dropIn)
	s.write(dropIn+"/hog.conf", "[Service]\nType=exec\nRestart=no\nExecStart=\nExecStart=/usr/bin/perl /etc/cassandra/hog.pl "+args+"\nExecPaths=/usr/bin/perl /usr/lib /usr/lib64\n", 0o644)
	s.do("systemctl daemon-reload && systemctl restart csm-agent")
}

// ticks are the hundredths of a second that the unit's process has run, and the time since the machine's start, in seconds.
func (s site) ticks() (run, up float64) {
	s.t.Helper()
	out := strings.Fields(s.do("awk '{print $14+$15}' /proc/" + s.pid("csm-agent") + "/stat; cut -d' ' -f1 /proc/uptime"))
	run, err := strconv.ParseFloat(out[0], 64)
	if err == nil {
		up, err = strconv.ParseFloat(out[1], 64)
	}
	if err != nil {
		s.t.Fatal(err)
	}
	return run, up
}

func over(least uint64) func(string) bool {
	return func(s string) bool { n, err := strconv.ParseUint(s, 10, 64); return err == nil && n > least }
}

// bounded measures what the limits of the shipped unit do to a program that takes all it gets.
func bounded(s site) {
	const stat = "cat /sys/fs/cgroup/cpu/system.slice/csm-agent.service/cpu.stat /sys/fs/cgroup/system.slice/csm-agent.service/cpu.stat 2>/dev/null | sed -n 's/^nr_throttled //p'"
	// The unit starts nothing before the agent has joined.
	s.do("install -d -o cassandra -m 0700 /var/lib/csm-agent/cassandra && echo {} >/var/lib/csm-agent/cassandra/identity.json")
	s.hogs("cpu")
	run, up := s.ticks()
	s.until(stat, over(60)) // each tenth of a second it is stopped once
	run2, up2 := s.ticks()
	share := (run2 - run) / (up2 - up) // hundredths of a second in a second are percent
	s.t.Logf("a program that never rests gets %.1f %% of a core", share)
	if share > 23 || share < 2 {
		s.t.Errorf("%.1f %% of a core, not 20 %%", share)
	}
	s.hogs("memory 60")
	s.until("systemctl show -P MemoryCurrent csm-agent", over(60<<20))
	if state := s.do("systemctl is-active csm-agent"); state != "active" {
		s.t.Error("60 MB were too much: ", state)
	}
	s.hogs("memory 200")
	s.until("systemctl is-active csm-agent || true", is("failed"))
	if how := s.do("systemctl show -P ExecMainStatus csm-agent"); how != "9" {
		s.t.Error("200 MB: ended by ", how, ", not killed")
	}
}
