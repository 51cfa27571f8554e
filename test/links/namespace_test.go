//go:build linux

package links_test

import (
	"errors"
	"fmt"
	"net/netip"
	"os"
	"os/exec"
	"strings"
	"syscall"
	"testing"
)

const inNamespace = "CSM_LINKS_NAMESPACE"

// The tests run in a network of their own that nobody else sees, where they may make interfaces and end connections.
func TestMain(m *testing.M) {
	if os.Getenv("CSM_TEST_FULL") == "" {
		os.Exit(m.Run())
	}
	if os.Getenv(inNamespace) != "" {
		if err := enter(); err != nil {
			panic(err)
		}
		os.Exit(m.Run())
	}
	c := exec.Command(os.Args[0], os.Args[1:]...)
	c.Env = append(os.Environ(), inNamespace+"=1")
	c.Stdout, c.Stderr = os.Stdout, os.Stderr
	c.SysProcAttr = &syscall.SysProcAttr{Cloneflags: syscall.CLONE_NEWNET | syscall.CLONE_NEWNS, Pdeathsig: syscall.SIGKILL}
	if os.Geteuid() != 0 {
		c.SysProcAttr.Cloneflags |= syscall.CLONE_NEWUSER
		c.SysProcAttr.UidMappings = []syscall.SysProcIDMap{{ContainerID: 0, HostID: os.Getuid(), Size: 1}}
		c.SysProcAttr.GidMappings = []syscall.SysProcIDMap{{ContainerID: 0, HostID: os.Getgid(), Size: 1}}
	}
	err := c.Run()
	var exit *exec.ExitError
	switch {
	case errors.As(err, &exit):
		os.Exit(max(exit.ExitCode(), 1))
	case err != nil:
		panic(err)
	}
}

// enter makes the bridge, and a place for the names of namespaces that is ours alone.
func enter() error {
	if err := syscall.Mount("", "/", "", syscall.MS_REC|syscall.MS_PRIVATE, ""); err != nil {
		return err
	}
	if err := syscall.Mount("tmpfs", "/run", "tmpfs", 0, "mode=755"); err != nil {
		return err
	}
	return ip("link set lo up", "link add br0 type bridge", "addr add 10.77.0.254/24 dev br0", "link set br0 up")
}

// host makes a network namespace with one address on the bridge.
func host(name string, a netip.Addr) error {
	return ip("netns add "+name, fmt.Sprintf("link add v%s type veth peer name eth0 netns %s", name, name), "link set v"+name+" master br0 up",
		fmt.Sprintf("-n %s addr add %s/24 dev eth0", name, a), "-n "+name+" link set eth0 up", "-n "+name+" link set lo up")
}

func ip(commands ...string) error {
	for _, c := range commands {
		if out, err := exec.Command("ip", strings.Fields(c)...).CombinedOutput(); err != nil {
			return fmt.Errorf("ip %s: %w: %s", c, err, out)
		}
	}
	return nil
}
