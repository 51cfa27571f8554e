package node

import (
	"bufio"
	"context"
	"encoding/binary"
	"encoding/hex"
	"net/netip"
	"os"
	"strconv"
	"strings"

	"github.com/cassandra-security-manager/csm/agent/cassandra"
)

// Detect says which ports of the instance listen, by the kernel's table (proc(5), /proc/net/tcp): unlike a connection it
// costs Cassandra nothing and leaves no line in its log. Without the table it connects.
func Detect(ctx context.Context, i *cassandra.Instance) cassandra.Presence {
	listening, err := listeners("/proc/net/tcp", "/proc/net/tcp6")
	if err != nil {
		return i.Detect(ctx)
	}
	p := cassandra.Presence{CQLExpected: i.NativeTransport}
	p.Internode = covers(listening, i.InternodePort())
	p.CQL = covers(listening, i.CQLPort())
	return p
}

func covers(l map[netip.AddrPort]bool, p cassandra.Port) bool {
	a := p.Address.Unmap()
	return l[netip.AddrPortFrom(a, p.Port)] || l[netip.AddrPortFrom(netip.IPv6Unspecified(), p.Port)] ||
		a.Is4() && l[netip.AddrPortFrom(netip.IPv4Unspecified(), p.Port)]
}

// listening is the state of a socket that takes connections (include/net/tcp_states.h).
const listening = "0A"

func listeners(paths ...string) (map[netip.AddrPort]bool, error) {
	out := map[netip.AddrPort]bool{}
	for n, path := range paths {
		f, err := os.Open(path)
		if err != nil {
			if n > 0 {
				continue // no IPv6 here
			}
			return nil, err
		}
		s := bufio.NewScanner(f)
		for s.Scan() {
			// "  0: 0100007F:1B58 00000000:0000 0A ..."
			line := s.Text()
			if !strings.Contains(line, " "+listening+" ") {
				continue
			}
			if f := strings.Fields(line); len(f) > 3 && f[3] == listening {
				if a, ok := parseSocket(f[1]); ok {
					out[a] = true
				}
			}
		}
		err = s.Err()
		f.Close()
		if err != nil {
			return nil, err
		}
	}
	return out, nil
}

// parseSocket reads "0100007F:1B58": 32-bit words in the host's byte order (little-endian on all that we build for), then
// the port in plain hex.
func parseSocket(s string) (netip.AddrPort, bool) {
	host, port, ok := strings.Cut(s, ":")
	b, err := hex.DecodeString(host)
	if !ok || err != nil || len(b)%4 != 0 {
		return netip.AddrPort{}, false
	}
	for i := 0; i < len(b); i += 4 {
		binary.NativeEndian.PutUint32(b[i:], binary.BigEndian.Uint32(b[i:]))
	}
	a, ok := netip.AddrFromSlice(b)
	n, err := strconv.ParseUint(port, 16, 16)
	if !ok || err != nil {
		return netip.AddrPort{}, false
	}
	return netip.AddrPortFrom(a.Unmap(), uint16(n)), true
}
