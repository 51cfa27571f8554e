package cassandra

import (
	"bytes"
	"encoding/hex"
	"net/netip"
	"slices"
	"strings"

	agentv1 "github.com/cassandra-security-manager/csm/protocol/agent/v1"
	"github.com/cassandra-security-manager/csm/shared/fault"
)

// MaxMembers is how many members of a ring are told, the wire's bound.
const MaxMembers = 1000

var ringStates = map[byte]agentv1.RingState{'N': agentv1.RingState_RING_STATE_NORMAL, 'J': agentv1.RingState_RING_STATE_JOINING,
	'L': agentv1.RingState_RING_STATE_LEAVING, 'M': agentv1.RingState_RING_STATE_MOVING}

// ParseRing reads what `nodetool status` printed: a line for each member, which begins with U (up), D (down) or ? and its
// state, names its address and, in a column that differs between versions, its host id. Members come sorted by host id. An
// output without any member is an error: a ring has at least the node that was asked.
func ParseRing(out string) (*agentv1.RingView, error) {
	v := &agentv1.RingView{Source: "nodetool"}
	for line := range strings.Lines(out) {
		if m := parseMember(strings.Fields(line)); m != nil {
			v.Members = append(v.Members, m)
		}
	}
	if len(v.Members) == 0 {
		return nil, fault.New(fault.Unavailable, "ring-unknown", "nodetool status lists no member: %.200q", out).Do("run nodetool status by hand as the agent's user")
	}
	slices.SortFunc(v.Members, func(a, b *agentv1.RingMember) int { return bytes.Compare(a.HostId, b.HostId) })
	if len(v.Members) > MaxMembers {
		v.Members, v.Truncated = v.Members[:MaxMembers], true
	}
	return v, nil
}

func parseMember(f []string) *agentv1.RingMember {
	if len(f) < 3 || len(f[0]) != 2 || !strings.ContainsRune("UD?", rune(f[0][0])) {
		return nil
	}
	state, known := ringStates[f[0][1]]
	address := parseAddress(f[1])
	if !known || !address.IsValid() {
		return nil
	}
	for _, x := range f[2:] {
		if id := ParseHostID(x); id != nil {
			return &agentv1.RingMember{HostId: id, Address: address.AsSlice(), Up: f[0][0] == 'U', State: state}
		}
	}
	return nil
}

// parseAddress takes an address with or without a port, as nodetool prints it with -pp.
func parseAddress(s string) netip.Addr {
	if a, err := netip.ParseAddr(s); err == nil {
		return a.Unmap().WithZone("")
	}
	if ap, err := netip.ParseAddrPort(s); err == nil {
		return ap.Addr().Unmap().WithZone("")
	}
	return netip.Addr{}
}

// ParseHostID gives the 16 bytes of a UUID in text, nil when it is none.
func ParseHostID(s string) []byte {
	if len(s) != 36 || s[8] != '-' || s[13] != '-' || s[18] != '-' || s[23] != '-' {
		return nil
	}
	b, err := hex.DecodeString(strings.ReplaceAll(s, "-", ""))
	if err != nil || len(b) != 16 {
		return nil
	}
	return b
}

// HostID finds this instance among the members of a view, by its address, and gives its host id as text; empty when it is
// not among them.
func (i *Instance) HostID(v *agentv1.RingView) string {
	for _, m := range v.GetMembers() {
		if a, ok := netip.AddrFromSlice(m.Address); ok && (a == i.Broadcast.Unmap() || !i.Broadcast.IsValid() && a == i.Listen.Unmap()) {
			return FormatHostID(m.HostId)
		}
	}
	return ""
}

// FormatHostID is the text of a host id; empty when it is none.
func FormatHostID(b []byte) string {
	if len(b) != 16 {
		return ""
	}
	h := hex.EncodeToString(b)
	return h[:8] + "-" + h[8:12] + "-" + h[12:16] + "-" + h[16:20] + "-" + h[20:]
}
