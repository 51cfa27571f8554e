//go:build linux

package packages_test

import (
	"fmt"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
)

// want is what each package must hold besides pages and completions.
var want = map[string][]string{
	"csm": {"/usr/bin/csm"},
	"csm-agent": {"/usr/bin/csm-agent", "/etc/csm/agent.yaml", "/usr/lib/systemd/system/csm-agent.service", "/usr/lib/systemd/system/csm-agent-reload.socket", "/usr/lib/systemd/system/csm-agent-reload@.service",
		"/usr/lib/systemd/system/csm-agent-links.socket", "/usr/lib/systemd/system/csm-agent-links@.service", "/usr/lib/sysusers.d/csm-agent.conf"},
	"csm-controller": {"/usr/bin/csm-controller", "/etc/csm/controller.yaml", "/usr/lib/systemd/system/csm-controller.service",
		"/usr/lib/sysusers.d/csm-controller.conf"},
}

func holds(t *testing.T, name, zsh string, files []string) {
	t.Helper()
	all := append([]string{"/usr/share/man/man1/" + name + ".1.gz", "/usr/share/man/man1/" + name + "-version.1.gz",
		"/usr/share/bash-completion/completions/" + name, "/usr/share/fish/vendor_completions.d/" + name + ".fish", zsh + "/_" + name,
		"/usr/share/doc/" + name + "/copyright", "/usr/share/doc/" + name + "/packages.md"}, want[name]...)
	for _, f := range all {
		if !slices.Contains(files, f) {
			t.Errorf("%s does not hold %s", name, f)
		}
	}
}

// A line of dpkg-deb --contents: mode owner size date time path.
var content = regexp.MustCompile(`^([d-])(\S{9}) (\S+) +(\d+) \S+ \S+ \.(\S*)`)

func TestEachDebHoldsItsFilesWithOwnersAndModes(t *testing.T) {
	for _, name := range programs {
		var files []string
		for line := range strings.Lines(run(t, "dpkg-deb", "--contents", build(t, name, "deb"))) {
			m := content.FindStringSubmatch(line)
			if m == nil {
				t.Fatalf("not understood: %q", line)
			}
			kind, mode, owner, size, path := m[1], m[2], m[3], m[4], m[5]
			if owner != "root/root" {
				t.Errorf("%s belongs to %s", path, owner)
			}
			switch expected := map[bool]string{true: "rwxr-xr-x", false: "rw-r--r--"}[kind == "d" || strings.HasPrefix(path, "/usr/bin/")]; {
			case mode != expected:
				t.Errorf("%s has mode %s", path, mode)
			case kind == "-" && size == "0":
				t.Errorf("%s is empty", path)
			}
			files = append(files, path)
		}
		holds(t, name, "/usr/share/zsh/vendor-completions", files)
	}
}

func TestTheOperatorsConfigurationIsNeverOverwritten(t *testing.T) {
	for name, conf := range map[string]string{"csm-agent": "/etc/csm/agent.yaml", "csm-controller": "/etc/csm/controller.yaml"} {
		if out := run(t, "dpkg-deb", "--info", build(t, name, "deb"), "conffiles"); strings.TrimSpace(out) != conf {
			t.Errorf("conffiles of the deb: %q", out)
		}
		flags := run(t, "rpm", "-qp", "--qf", "[%{FILEFLAGS:fflags} %{FILENAMES}\n]", build(t, name, "rpm"))
		if !strings.Contains(flags, "cn "+conf+"\n") {
			t.Errorf("%s is not config(noreplace):\n%s", conf, flags)
		}
	}
}

func TestEachRpmHoldsItsFilesAndScripts(t *testing.T) {
	for _, name := range programs {
		p := build(t, name, "rpm")
		holds(t, name, "/usr/share/zsh/site-functions", strings.Fields(run(t, "rpm", "-qpl", p)))
		for line := range strings.Lines(run(t, "rpm", "-qp", "--qf", "[%{FILEUSERNAME}/%{FILEGROUPNAME} %{FILEMODES:perms} %{FILENAMES}\n]", p)) {
			if !strings.HasPrefix(line, "root/root ") || !strings.Contains(line, "r-x ") && !strings.Contains(line, "-rw-r--r-- ") {
				t.Errorf("owner or mode: %s", line)
			}
		}
		scripts := run(t, "rpm", "-qp", "--scripts", p)
		for _, s := range []string{"postinstall", "preuninstall", "postuninstall"} {
			if has := strings.Contains(scripts, s+" scriptlet"); has != (name != "csm") {
				t.Errorf("%s: %s %v", name, s, has)
			}
		}
	}
}

func TestTheScriptsAreShell(t *testing.T) {
	scripts, _ := filepath.Glob(filepath.Join(source(t), "packaging/scripts/*/*.sh"))
	if len(scripts) != 6 {
		t.Fatal(scripts)
	}
	for _, s := range scripts {
		run(t, "sh", "-n", s)
	}
}

// exposure is the most that `systemd-analyze security` may find, in tenths: 0 is closed, 100 open.
var exposure = map[string]int{"csm-agent.service": 18, "csm-agent-reload@.service": 18, "csm-agent-links@.service": 15, "csm-controller.service": 14}

func TestUnitsAreSoundAndClosed(t *testing.T) {
	units := filepath.Join(unpacked(t), "usr/lib/systemd/system")
	root := strings.TrimSuffix(units, "/usr/lib/systemd/system")
	for _, u := range []string{"csm-agent.service", "csm-agent-reload.socket", "csm-agent-reload@.service", "csm-agent-links.socket", "csm-agent-links@.service", "csm-controller.service"} {
		run(t, "systemd-analyze", "verify", "--root="+root, "--man=no", filepath.Join(units, u))
		if most, is := exposure[u]; is {
			run(t, "systemd-analyze", "security", "--offline=yes", fmt.Sprintf("--threshold=%d", most), filepath.Join(units, u))
		}
	}
}

func TestAnUnsoundUnitIsFound(t *testing.T) {
	root := unpacked(t)
	unit := filepath.Join(root, "usr/lib/systemd/system/csm-agent.service")
	run(t, "sed", "-i", "s#ExecStart=/usr/bin/csm-agent run#ExecStart=/usr/bin/nothing run#; /^CapabilityBoundingSet/d", unit)
	if err := exec.Command("systemd-analyze", "verify", "--root="+root, "--man=no", unit).Run(); err == nil {
		t.Error("a unit whose program is missing passed")
	}
	if err := exec.Command("systemd-analyze", "security", "--offline=yes", fmt.Sprintf("--threshold=%d", exposure["csm-agent.service"]), unit).Run(); err == nil {
		t.Error("a unit with every capability passed")
	}
}
