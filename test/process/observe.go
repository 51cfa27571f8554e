//go:build linux

package process

import (
	"bufio"
	"bytes"
	"encoding/binary"
	"encoding/hex"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"
)

// Usage is what a process takes from the machine.
type Usage struct {
	// Resident memory now and at its highest, in bytes.
	Resident, Peak int64
	// CPU is user and system time since the start.
	CPU time.Duration
}

// userHertz is the unit of /proc/PID/stat times; fixed at 100 on every Linux architecture that Go knows.
const userHertz = 100

// Usage of the process itself, without its children.
func (p *Process) Usage() (Usage, error) { return UsageOf(p.Pid()) }

// UsageOf reads /proc.
func UsageOf(pid int) (Usage, error) {
	var u Usage
	status, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	if err != nil {
		return u, err
	}
	for line := range strings.SplitSeq(string(status), "\n") {
		f := strings.Fields(line)
		if len(f) < 2 {
			continue
		}
		kb, _ := strconv.ParseInt(f[1], 10, 64)
		switch f[0] {
		case "VmRSS:":
			u.Resident = kb << 10
		case "VmHWM:":
			u.Peak = kb << 10
		}
	}
	stat, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return u, err
	}
	// The name in parentheses may hold spaces: count fields after it (proc(5): utime is 14, stime 15).
	f := strings.Fields(string(stat[bytes.LastIndexByte(stat, ')')+1:]))
	if len(f) < 13 {
		return u, fmt.Errorf("unexpected /proc/%d/stat", pid)
	}
	user, _ := strconv.ParseInt(f[11], 10, 64)
	sys, _ := strconv.ParseInt(f[12], 10, 64)
	u.CPU = time.Duration(user+sys) * time.Second / userHertz
	return u, nil
}

// Group returns the ids of all processes in the process's group, itself included.
func (p *Process) Group() []int {
	var out []int
	dirs, _ := filepath.Glob("/proc/[0-9]*/stat")
	for _, d := range dirs {
		stat, err := os.ReadFile(d)
		if err != nil {
			continue
		}
		f := strings.Fields(string(stat[bytes.LastIndexByte(stat, ')')+1:]))
		if len(f) > 3 && f[2] == strconv.Itoa(p.Pid()) {
			pid, _ := strconv.Atoi(filepath.Base(filepath.Dir(d)))
			out = append(out, pid)
		}
	}
	return out
}

// Listening returns the TCP sockets on which the process or its children accept connections.
func (p *Process) Listening() ([]netip.AddrPort, error) {
	inodes := map[string]bool{}
	for _, pid := range p.Group() {
		fds, _ := filepath.Glob(fmt.Sprintf("/proc/%d/fd/*", pid))
		for _, fd := range fds {
			if target, err := os.Readlink(fd); err == nil {
				if n, ok := strings.CutPrefix(target, "socket:["); ok {
					inodes[strings.TrimSuffix(n, "]")] = true
				}
			}
		}
	}
	var out []netip.AddrPort
	for _, table := range []string{"/proc/net/tcp", "/proc/net/tcp6"} {
		found, err := listeners(table, inodes)
		if err != nil && !os.IsNotExist(err) {
			return nil, err
		}
		out = append(out, found...)
	}
	return out, nil
}

// listeners reads one table of the kernel: fields are sl, local, remote, state (0A is LISTEN), ..., inode at 9.
func listeners(table string, inodes map[string]bool) ([]netip.AddrPort, error) {
	f, err := os.Open(table)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	var out []netip.AddrPort
	for s := bufio.NewScanner(f); s.Scan(); {
		c := strings.Fields(s.Text())
		if len(c) < 10 || c[3] != "0A" || !inodes[c[9]] {
			continue
		}
		host, port, _ := strings.Cut(c[1], ":")
		raw, err := hex.DecodeString(host)
		if err != nil {
			return nil, err
		}
		// The address is printed as 32-bit words in the byte order of the machine.
		for i := 0; i+4 <= len(raw); i += 4 {
			binary.NativeEndian.PutUint32(raw[i:], binary.BigEndian.Uint32(raw[i:]))
		}
		addr, _ := netip.AddrFromSlice(raw)
		n, _ := strconv.ParseUint(port, 16, 16)
		out = append(out, netip.AddrPortFrom(addr, uint16(n)))
	}
	return out, nil
}

// Tail returns the last lines of a file.
func Tail(path string, lines int) string {
	b, err := os.ReadFile(path)
	if err != nil {
		return err.Error()
	}
	all := strings.Split(strings.TrimRight(string(b), "\n"), "\n")
	return strings.Join(all[max(0, len(all)-lines):], "\n")
}
