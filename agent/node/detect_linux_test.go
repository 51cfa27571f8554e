package node

import (
	"context"
	"net"
	"net/netip"
	"testing"

	"github.com/cassandra-security-manager/csm/agent/cassandra"
)

func TestAListeningPortIsSeenWithoutAConnection(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.7:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	any, err := net.Listen("tcp", "0.0.0.0:0")
	if err != nil {
		t.Fatal(err)
	}
	defer any.Close()
	p := func(l net.Listener) uint16 { return uint16(l.Addr().(*net.TCPAddr).Port) }
	i := &cassandra.Instance{Listen: netip.MustParseAddr("127.0.0.7"), RPC: netip.MustParseAddr("127.0.0.7"), StoragePort: p(l), NativePort: p(any), NativeTransport: true}
	if got := Detect(context.Background(), i); !got.Normal() {
		t.Errorf("both listen: %+v", got)
	}
	// Another address of the same port is another listener.
	i.Listen = netip.MustParseAddr("127.0.0.8")
	if got := Detect(context.Background(), i); got.Internode || !got.CQL {
		t.Errorf("127.0.0.8 does not listen: %+v", got)
	}
	l.Close()
	i.Listen = netip.MustParseAddr("127.0.0.7")
	if got := Detect(context.Background(), i); got.Internode {
		t.Errorf("closed: %+v", got)
	}
}

func TestSocketsAreReadInBothFamilies(t *testing.T) {
	for in, want := range map[string]string{"0100007F:1B58": "127.0.0.1:7000", "00000000:2352": "0.0.0.0:9042",
		"00000000000000000000000001000000:1B58": "[::1]:7000", "0000000000000000FFFF00000100007F:1B58": "127.0.0.1:7000"} {
		if got, ok := parseSocket(in); !ok || got.String() != want {
			t.Errorf("%s = %s, %v; want %s", in, got, ok, want)
		}
	}
	for _, in := range []string{"", "x", "0100007F", "01:1B58", "0100007F:99999"} {
		if got, ok := parseSocket(in); ok {
			t.Errorf("%q = %s", in, got)
		}
	}
}
