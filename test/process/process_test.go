//go:build linux

package process

import (
	"context"
	"fmt"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"
)

func start(t *testing.T, script string) *Process {
	t.Helper()
	p, err := Start(Spec{Name: "script", Path: "/bin/sh", Args: []string{"-c", script}, Log: filepath.Join(t.TempDir(), "log")})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(p.Kill)
	return p
}

func TestKillEndsTheChildrenToo(t *testing.T) {
	p := start(t, "sleep 1000 & echo ready; wait")
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
	defer cancel()
	if err := p.Settle(ctx, 10*time.Millisecond, func() bool { return strings.Contains(p.Tail(1), "ready") }); err != nil {
		t.Fatal(err)
	}
	if len(p.Group()) != 2 {
		t.Fatalf("the group is %v, not a shell and its child", p.Group())
	}
	p.Kill()
	gone := func() bool { return len(p.Group()) == 0 }
	for !gone() && ctx.Err() == nil {
		time.Sleep(5 * time.Millisecond)
	}
	if !gone() {
		t.Errorf("left behind: %v", p.Group())
	}
}

func TestWhoDoesNotStopWhenAskedIsKilled(t *testing.T) {
	p := start(t, "trap '' TERM; echo ready; while :; do sleep 0.1; done")
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
	defer cancel()
	if err := p.Settle(ctx, 10*time.Millisecond, func() bool { return strings.Contains(p.Tail(1), "ready") }); err != nil {
		t.Fatal(err)
	}
	now, cancel := context.WithTimeout(t.Context(), time.Millisecond)
	defer cancel()
	if err := p.Stop(now); err == nil || p.Running() {
		t.Errorf("running %t, %v", p.Running(), err)
	}
}

func TestAProgramThatEndsIsNotWaitedFor(t *testing.T) {
	p := start(t, "echo no luck; exit 3")
	err := p.Settle(t.Context(), time.Hour, func() bool { return false })
	if err == nil || !strings.Contains(err.Error(), "no luck") || p.Err() == nil {
		t.Errorf("%v, %v", err, p.Err())
	}
}

func TestListenersOfAProcessAreSeen(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	want := l.Addr().(*net.TCPAddr).AddrPort()
	file, err := l.(*net.TCPListener).File()
	if err != nil {
		t.Fatal(err)
	}
	inode, err := os.Readlink(fmt.Sprintf("/proc/self/fd/%d", file.Fd()))
	if err != nil {
		t.Fatal(err)
	}
	defer file.Close()
	open, err := listeners("/proc/net/tcp", map[string]bool{strings.TrimSuffix(strings.TrimPrefix(inode, "socket:["), "]"): true})
	if err != nil || !slices.Contains(open, netip.AddrPortFrom(want.Addr().Unmap(), want.Port())) {
		t.Errorf("%v does not hold %v: %v", open, want, err)
	}
	if open, err = start(t, "sleep 10").Listening(); err != nil || len(open) != 0 {
		t.Errorf("a shell listens on %v: %v", open, err)
	}
}

func TestTwoClaimsNeverShareAddresses(t *testing.T) {
	a, err := Claim(230, 1, 7000)
	if err != nil {
		t.Fatal(err)
	}
	defer a.Release()
	b, err := Claim(230, 1, 7000)
	if err != nil {
		t.Fatal(err)
	}
	defer b.Release()
	if a.Host(1) == b.Host(1) {
		t.Errorf("both got %v", a.Host(1))
	}
}
