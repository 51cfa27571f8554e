package links

import (
	"encoding/binary"
	"errors"
	"net/netip"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"github.com/mdlayher/netlink"
	"golang.org/x/sys/unix"

	"github.com/cassandra-security-manager/csm/shared/fault"
)

// Of linux/sock_diag.h and linux/inet_diag.h.
const (
	sockDiagByFamily = 20
	sockDestroy      = 21
	requestSize      = 56
	messageSize      = 72
	bytecode         = 1 // INET_DIAG_REQ_BYTECODE
	noCookie         = 1<<64 - 1

	established = 1
	synSent     = 2
	synReceived = 3
	listening   = 10
)

// answerFor bounds one question to the kernel.
const answerFor = 5 * time.Second

// Kernel is the table of the network namespace that this process is in.
func Kernel() Table { return kernel{} }

// KernelOf is the table of another network namespace, by an open file of it (/run/netns/NAME).
func KernelOf(namespace *os.File) Table { return kernel{int(namespace.Fd())} }

type kernel struct{ namespace int }

func (k kernel) dial() (*netlink.Conn, error) {
	c, err := netlink.Dial(unix.NETLINK_SOCK_DIAG, &netlink.Config{NetNS: k.namespace})
	if err != nil {
		return nil, err
	}
	if err := c.SetDeadline(time.Now().Add(answerFor)); err != nil {
		c.Close()
		return nil, err
	}
	return c, nil
}

// Links is of Table.
func (k kernel) Links(p Port) ([]Link, error) {
	c, err := k.dial()
	if err != nil {
		return nil, unread(err)
	}
	defer c.Close()
	var all []socket
	for _, family := range []byte{unix.AF_INET, unix.AF_INET6} {
		data := question{family: family, states: 1<<established | 1<<synSent | 1<<synReceived | 1<<listening}.encode()
		program := onPort(p.Number)
		data = binary.NativeEndian.AppendUint16(data, uint16(4+len(program)))
		data = append(binary.NativeEndian.AppendUint16(data, bytecode), program...)
		answers, err := c.Execute(netlink.Message{Header: netlink.Header{Type: sockDiagByFamily, Flags: netlink.Request | netlink.Dump}, Data: data})
		if errors.Is(err, unix.ENOENT) && family == unix.AF_INET6 {
			continue // a kernel without IPv6
		}
		if err != nil {
			return nil, unread(err)
		}
		for _, m := range answers {
			if s, ok := parse(m.Data); ok {
				all = append(all, s)
			}
		}
	}
	return pick(all, p, owned("/proc", p.PID))
}

// Listens says whether something takes connections to an address of this host. The kernel looks it up as it does for a connection that
// comes in, wildcard and dual-stack sockets too. To read its whole table would not do: it is handed out piece by piece, and who listens
// is left out of it while others begin and end to listen (/proc/net/tcp more than a dump).
func Listens(address netip.Addr, port uint16) (bool, error) {
	c, err := kernel{}.dial()
	if err != nil {
		return false, unread(err)
	}
	defer c.Close()
	address = address.Unmap()
	q := question{family: unix.AF_INET, states: 1 << listening, link: Link{Local: netip.AddrPortFrom(address, port), Cookie: noCookie}}
	if address.Is6() {
		q.family = unix.AF_INET6
	}
	answers, err := c.Execute(netlink.Message{Header: netlink.Header{Type: sockDiagByFamily, Flags: netlink.Request}, Data: q.encode()})
	if errors.Is(err, unix.ENOENT) {
		return false, nil
	}
	if err != nil || len(answers) != 1 {
		return false, unread(err)
	}
	s, ok := parse(answers[0].Data)
	return ok && s.listening, nil
}

// Cuttable asks the kernel to end a connection that cannot be: one that knows how looks for it, another says that it does not know how.
func (k kernel) Cuttable() error {
	nowhere := netip.AddrPortFrom(netip.AddrFrom4([4]byte{}), 0)
	err := k.destroy(Link{Local: nowhere, Remote: nowhere, Cookie: ^uint64(0) - 1})
	switch {
	case err == nil, errors.Is(err, unix.ENOENT):
		return nil
	case errors.Is(err, unix.EOPNOTSUPP), errors.Is(err, unix.EINVAL):
		return ErrUncuttable("CONFIG_INET_DIAG_DESTROY is not set")
	}
	return fault.Wrap(err, fault.Unavailable, "links-unread", "the kernel does not say whether it can end connections").Do("look into the agent's unit: it needs AF_NETLINK")
}

// Cut is of Table.
func (k kernel) Cut(l Link) error {
	err := k.destroy(l)
	switch {
	case err == nil, errors.Is(err, unix.ENOENT), errors.Is(err, unix.ESTALE):
		return nil // it has gone, or another one has its place
	case errors.Is(err, unix.EOPNOTSUPP):
		return ErrUncuttable("CONFIG_INET_DIAG_DESTROY is not set")
	case errors.Is(err, unix.EPERM):
		return fault.Wrap(err, fault.Refused, "no-net-admin", "connections may only be ended with CAP_NET_ADMIN").
			Do("enable csm-agent-links.socket, whose unit has this one capability; `systemctl enable --now csm-agent-links.socket`")
	}
	return fault.Wrap(err, fault.Unavailable, "link-not-cut", "%s was not ended", l)
}

func (k kernel) destroy(l Link) error {
	c, err := k.dial()
	if err != nil {
		return err
	}
	defer c.Close()
	family := byte(unix.AF_INET)
	if l.Local.Addr().Is6() {
		family = unix.AF_INET6
	}
	data := question{family: family, states: 1<<established | 1<<synSent | 1<<synReceived, link: l}.encode()
	_, err = c.Execute(netlink.Message{Header: netlink.Header{Type: sockDestroy, Flags: netlink.Request | netlink.Acknowledge}, Data: data})
	return err
}

// question is struct inet_diag_req_v2.
type question struct {
	family byte
	states uint32
	link   Link
}

func (r question) encode() []byte {
	b := make([]byte, 0, requestSize)
	b = append(b, r.family, unix.IPPROTO_TCP, 0, 0)
	b = binary.NativeEndian.AppendUint32(b, r.states)
	b = binary.BigEndian.AppendUint16(b, r.link.Local.Port())
	b = binary.BigEndian.AppendUint16(b, r.link.Remote.Port())
	for _, a := range []netip.Addr{r.link.Local.Addr(), r.link.Remote.Addr()} {
		var field [16]byte
		copy(field[:], a.AsSlice())
		b = append(b, field[:]...)
	}
	b = binary.NativeEndian.AppendUint32(b, r.link.Device)
	b = binary.NativeEndian.AppendUint32(b, uint32(r.link.Cookie))
	return binary.NativeEndian.AppendUint32(b, uint32(r.link.Cookie>>32))
}

// parse reads struct inet_diag_msg.
func parse(b []byte) (s socket, ok bool) {
	if len(b) < messageSize {
		return s, false
	}
	address := func(at int) netip.Addr {
		if b[0] == unix.AF_INET {
			return netip.AddrFrom4([4]byte(b[at : at+4]))
		}
		return netip.AddrFrom16([16]byte(b[at : at+16])).Unmap()
	}
	s.listening = b[1] == listening
	s.Local = netip.AddrPortFrom(address(8), binary.BigEndian.Uint16(b[4:]))
	s.Remote = netip.AddrPortFrom(address(24), binary.BigEndian.Uint16(b[6:]))
	s.Device = binary.NativeEndian.Uint32(b[40:])
	s.Cookie = uint64(binary.NativeEndian.Uint32(b[44:])) | uint64(binary.NativeEndian.Uint32(b[48:]))<<32
	s.uid, s.inode = binary.NativeEndian.Uint32(b[64:]), binary.NativeEndian.Uint32(b[68:])
	return s, true
}

// onPort is the kernel's filter program (struct inet_diag_bc_op): the local or the remote port is n. So a host with a hundred thousand
// connections of clients costs no more than one without.
func onPort(n uint16) (b []byte) {
	const (
		jump = 1 + iota
		localAtLeast
		localAtMost
		remoteAtLeast
		remoteAtMost
	)
	const size, refuse = 36, 4 // a jump of 4 beyond the end refuses, one to the end accepts
	op := func(code, yes byte, no int) {
		b = append(b, code, yes)
		b = binary.NativeEndian.AppendUint16(b, uint16(no))
	}
	compare := func(code byte, otherwise int) {
		op(code, 8, otherwise-len(b))
		op(0, 0, int(n))
	}
	compare(localAtLeast, 20)
	compare(localAtMost, 20)
	op(jump, 4, size-len(b))
	compare(remoteAtLeast, size+refuse)
	compare(remoteAtMost, size+refuse)
	return b
}

// owned are the inodes of the sockets of a process; nil where this user may not see them, or there is none of that number.
func owned(proc string, pid int) map[uint32]bool {
	if pid == 0 {
		return nil
	}
	dir := filepath.Join(proc, strconv.Itoa(pid), "fd")
	names, err := os.ReadDir(dir)
	if err != nil {
		return nil
	}
	out := map[uint32]bool{}
	for _, n := range names {
		to, err := os.Readlink(filepath.Join(dir, n.Name()))
		if err != nil || !strings.HasPrefix(to, "socket:[") {
			continue
		}
		if inode, err := strconv.ParseUint(strings.TrimSuffix(strings.TrimPrefix(to, "socket:["), "]"), 10, 32); err == nil {
			out[uint32(inode)] = true
		}
	}
	if len(out) == 0 {
		return nil
	}
	return out
}
