package cassandra_test

import (
	"fmt"
	"net/netip"
	"strings"
	"testing"

	"github.com/cassandra-security-manager/csm/agent/cassandra"
	agentv1 "github.com/cassandra-security-manager/csm/protocol/agent/v1"
)

const (
	vnodes = `Datacenter: dc1
===============
Status=Up/Down
|/ State=Normal/Leaving/Joining/Moving
--  Address     Load        Tokens  Owns (effective)  Host ID                               Rack
UN  127.0.1.2   104.37 KiB  16      100.0%            e6a1c0de-0000-4000-8000-000000000002  rack1
DN  127.0.1.1   ?           16      100.0%            0b1e6a7e-0000-4000-8000-000000000001  rack 1

Datacenter: dc2
===============
--  Address     Load        Tokens  Owns (effective)  Host ID                               Rack
UJ  2001:db8::7 88 KiB      16      ?                 77777777-0000-4000-8000-000000000007  rack2
?L  10.0.0.9:7000 1.2 GiB   16      ?                 99999999-0000-4000-8000-000000000009  rack2

Note: Non-system keyspaces don't have the same replication settings, effective ownership information is meaningless
`
	oneToken = `--  Address    Load       Owns    Host ID                               Token                Rack
UM  10.0.0.1   105 KiB    100.0%  0b1e6a7e-0000-4000-8000-000000000001  -9223372036854775808 rack1
`
)

func TestTheRingIsReadFromNodetoolStatus(t *testing.T) {
	v, err := cassandra.ParseRing(vnodes)
	if err != nil || len(v.Members) != 4 {
		t.Fatalf("%v, %v", v, err)
	}
	for i, want := range []string{"0b1e6a7e-0000-4000-8000-000000000001 127.0.1.1 false NORMAL", "77777777-0000-4000-8000-000000000007 2001:db8::7 true JOINING",
		"99999999-0000-4000-8000-000000000009 10.0.0.9 false LEAVING", "e6a1c0de-0000-4000-8000-000000000002 127.0.1.2 true NORMAL"} {
		m := v.Members[i]
		a, _ := netip.AddrFromSlice(m.Address)
		if got := fmt.Sprint(cassandra.FormatHostID(m.HostId), " ", a, " ", m.Up, " ", strings.TrimPrefix(m.State.String(), "RING_STATE_")); got != want {
			t.Errorf("member %d: %s, want %s", i, got, want)
		}
	}
	in := &cassandra.Instance{Listen: netip.MustParseAddr("127.0.1.2"), Broadcast: netip.MustParseAddr("127.0.1.2")}
	if id := in.HostID(v); id != "e6a1c0de-0000-4000-8000-000000000002" {
		t.Errorf("own host id %q", id)
	}
	if v, err := cassandra.ParseRing(oneToken); err != nil || len(v.Members) != 1 || v.Members[0].State != agentv1.RingState_RING_STATE_MOVING {
		t.Errorf("a ring without vnodes: %v, %v", v, err)
	}
}

func TestARingWithoutMembersIsNoRing(t *testing.T) {
	for _, out := range []string{"", "nodetool: Failed to connect to '127.0.0.1:7199' - ConnectException", "UN  not-an-address 1 e6a1c0de-0000-4000-8000-000000000002", "UN 10.0.0.1 no host id"} {
		if v, err := cassandra.ParseRing(out); err == nil {
			t.Errorf("%q gives %v", out, v)
		}
	}
}

func TestALargeRingIsCutOffAndSaysSo(t *testing.T) {
	var out strings.Builder
	for n := range cassandra.MaxMembers + 1 {
		fmt.Fprintf(&out, "UN  10.0.%d.%d  1 KiB  16  1%%  %08x-0000-4000-8000-000000000001  r\n", n/250, n%250+1, n)
	}
	v, err := cassandra.ParseRing(out.String())
	if err != nil || len(v.Members) != cassandra.MaxMembers || !v.Truncated {
		t.Errorf("%d members, truncated %v, %v", len(v.GetMembers()), v.GetTruncated(), err)
	}
}

func FuzzParseRing(f *testing.F) {
	f.Add(vnodes)
	f.Add(oneToken)
	f.Fuzz(func(t *testing.T, out string) {
		v, err := cassandra.ParseRing(out)
		if err == nil && (len(v.Members) == 0 || len(v.Members) > cassandra.MaxMembers) {
			t.Fatalf("%d members", len(v.Members))
		}
	})
}
