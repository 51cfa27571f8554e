//go:build linux

package links_test

import (
	"errors"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/cassandra-security-manager/csm/agent/links"
)

const inNamespace = "CSM_LINKS_NAMESPACE"

// The tests run in a network namespace of their own, where they may end connections and can hit nobody else's.
func TestMain(m *testing.M) {
	if os.Getenv(inNamespace) != "" {
		if err := loopbackUp(); err != nil {
			panic(err)
		}
		os.Exit(m.Run())
	}
	c := exec.Command(os.Args[0], os.Args[1:]...)
	c.Env = append(os.Environ(), inNamespace+"=1")
	c.Stdout, c.Stderr = os.Stdout, os.Stderr
	c.SysProcAttr = &syscall.SysProcAttr{Cloneflags: syscall.CLONE_NEWNET}
	if os.Geteuid() != 0 {
		id := func(host int) []syscall.SysProcIDMap {
			return []syscall.SysProcIDMap{{ContainerID: 0, HostID: host, Size: 1}}
		}
		c.SysProcAttr.Cloneflags |= syscall.CLONE_NEWUSER
		c.SysProcAttr.UidMappings, c.SysProcAttr.GidMappings = id(os.Getuid()), id(os.Getgid())
	}
	err := c.Run()
	var exit *exec.ExitError
	switch {
	case errors.As(err, &exit):
		os.Exit(exit.ExitCode())
	case err != nil:
		panic(err)
	}
}

func loopbackUp() error {
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	r, err := unix.NewIfreq("lo")
	if err != nil {
		return err
	}
	r.SetUint16(unix.IFF_UP | unix.IFF_RUNNING)
	return unix.IoctlIfreq(fd, unix.SIOCSIFFLAGS, r)
}

// pair is a connection between two addresses of this process.
type pair struct{ client, server net.Conn }

func connect(t *testing.T, from string, l net.Listener) pair {
	t.Helper()
	d := net.Dialer{LocalAddr: &net.TCPAddr{IP: net.ParseIP(from)}}
	c, err := d.DialContext(t.Context(), "tcp", l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	s, err := l.Accept()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close(); s.Close() })
	return pair{c, s}
}

// lives says whether a byte still goes through.
func (p pair) lives() bool {
	if _, err := p.client.Write([]byte{1}); err != nil {
		return false
	}
	_, err := p.server.Read(make([]byte, 1))
	return err == nil
}

func listen(t *testing.T, at string) net.Listener {
	t.Helper()
	l, err := net.Listen("tcp", at)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	return l
}

func find(t *testing.T, p links.Port) []links.Link {
	t.Helper()
	all, err := links.Kernel().Links(p)
	if err != nil {
		t.Fatal(err)
	}
	return all
}

func TestTheKernelTellsTheLinksOfOnePortInBothDirections(t *testing.T) {
	ours, theirs, other := listen(t, "127.0.0.1:7000"), listen(t, "127.0.0.3:7000"), listen(t, "127.0.0.1:9042")
	in, out := connect(t, "127.0.0.2", ours), connect(t, "127.0.0.1", theirs)
	connect(t, "127.0.0.2", other)
	connect(t, "127.0.0.1", ours) // our own probe
	want := map[string]bool{in.client.LocalAddr().String(): false, theirs.Addr().String(): true}
	for _, p := range []links.Port{{Number: 7000, Address: netip.MustParseAddr("127.0.0.1"), PID: os.Getpid()}, {Number: 7000, Address: netip.MustParseAddr("127.0.0.1")}} {
		got := find(t, p)
		if len(got) != 2 {
			t.Fatalf("%v: %v", p, got)
		}
		for _, l := range got {
			if outbound, is := want[l.Remote.String()]; !is || outbound != l.Outbound || l.Cookie == 0 {
				t.Errorf("%+v", l)
			}
		}
	}
	// Another Cassandra of the same user on this host: what goes out is told apart by the process.
	sleep := exec.CommandContext(t.Context(), "sleep", "60")
	sleep.ExtraFiles = []*os.File{fileOf(t, ours)}
	if err := sleep.Start(); err != nil {
		t.Fatal(err)
	}
	defer func() { sleep.Process.Kill(); sleep.Wait() }()
	got := find(t, links.Port{Number: 7000, Address: netip.MustParseAddr("127.0.0.1"), PID: sleep.Process.Pid})
	if len(got) != 1 || got[0].Outbound {
		t.Errorf("a connection of another process counts: %v", got)
	}
	if !out.lives() {
		t.Error("looking ended a connection")
	}
}

func fileOf(t *testing.T, l net.Listener) *os.File {
	t.Helper()
	f, err := l.(*net.TCPListener).File()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { f.Close() })
	return f
}

func TestExactlyTheNamedConnectionIsEnded(t *testing.T) {
	if err := links.Kernel().Cuttable(); err != nil {
		t.Fatalf("this kernel cannot end connections: %v", err)
	}
	for _, at := range []struct{ listen, from string }{{"127.0.0.1:7000", "127.0.0.2"}, {"[::1]:7000", "::1"}} {
		l := listen(t, at.listen)
		named, other := connect(t, at.from, l), connect(t, at.from, l)
		all := find(t, links.Port{Number: 7000})
		var cut links.Link
		for _, x := range all {
			if x.Local.String() == named.server.LocalAddr().String() && x.Remote.String() == named.client.LocalAddr().String() {
				cut = x
			}
		}
		if cut.Cookie == 0 {
			t.Fatalf("%s: not found among %v", at.listen, all)
		}
		stranger := cut
		stranger.Cookie++
		if err := links.Kernel().Cut(stranger); err != nil || !named.lives() {
			t.Errorf("a connection was ended by its addresses alone: %v", err)
		}
		if err := links.Kernel().Cut(cut); err != nil {
			t.Fatal(err)
		}
		if _, err := named.server.Read(make([]byte, 1)); err == nil {
			t.Error("the server's end lives")
		}
		if _, err := named.client.Read(make([]byte, 1)); err == nil {
			t.Error("the client's end lives")
		}
		if !other.lives() {
			t.Error("another connection was ended")
		}
		if err := links.Kernel().Cut(cut); err != nil {
			t.Error("one that has gone: ", err)
		}
	}
}
