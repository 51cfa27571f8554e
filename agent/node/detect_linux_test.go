package node

import (
	"context"
	"net"
	"net/netip"
	"testing"

	"github.com/cassandra-security-manager/csm/agent/cassandra"
)

func listen(t *testing.T, network, address string) (net.Listener, uint16) {
	t.Helper()
	l, err := net.Listen(network, address)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	return l, uint16(l.Addr().(*net.TCPAddr).Port)
}

func TestAListeningPortIsSeenWithoutAConnection(t *testing.T) {
	l, storage := listen(t, "tcp", "127.0.0.7:0")
	_, native := listen(t, "tcp4", "0.0.0.0:0")
	i := &cassandra.Instance{Listen: netip.MustParseAddr("127.0.0.7"), RPC: netip.MustParseAddr("127.0.0.7"), StoragePort: storage, NativePort: native, NativeTransport: true}
	if got := Detect(t.Context(), i); !got.Normal() {
		t.Errorf("both listen: %+v", got)
	}
	// Another address of the same port is another listener.
	i.Listen = netip.MustParseAddr("127.0.0.8")
	if got := Detect(t.Context(), i); got.Internode || !got.CQL {
		t.Errorf("127.0.0.8 does not listen: %+v", got)
	}
	// A connection to it is none either.
	c, err := net.Dial("tcp", l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	l.Close()
	i.Listen = netip.MustParseAddr("127.0.0.7")
	if got := Detect(t.Context(), i); got.Internode {
		t.Errorf("closed: %+v", got)
	}
}

func TestPortsAreSeenInBothFamilies(t *testing.T) {
	for _, c := range []struct{ network, listen, asked string }{
		{"tcp6", "[::1]:0", "::1"}, {"tcp6", "[::]:0", "::1"}, {"tcp", "[::]:0", "127.0.0.1"}, {"tcp4", "127.0.0.1:0", "::ffff:127.0.0.1"},
	} {
		_, port := listen(t, c.network, c.listen)
		i := &cassandra.Instance{Listen: netip.MustParseAddr(c.asked), StoragePort: port}
		if !Detect(t.Context(), i).Internode {
			t.Errorf("%s listens, %s is asked for: not seen", c.listen, c.asked)
		}
	}
}

func TestWhoListensIsSeenWhileOthersComeAndGo(t *testing.T) {
	var storage, native uint16
	for range 60 { // a table that the kernel hands out in pieces
		_, storage = listen(t, "tcp", "127.0.0.7:0")
		_, native = listen(t, "tcp", "127.0.0.7:0")
	}
	i := &cassandra.Instance{Listen: netip.MustParseAddr("127.0.0.7"), StoragePort: storage, NativePort: native, NativeTransport: true}
	ctx, stop := context.WithCancel(t.Context())
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		for ctx.Err() == nil {
			var all []net.Listener
			for range 40 {
				if l, err := net.Listen("tcp", "127.0.0.8:0"); err == nil {
					all = append(all, l)
				}
			}
			for _, l := range all {
				l.Close()
			}
		}
	}()
	for n := range 200 {
		if got := Detect(t.Context(), i); !got.Normal() {
			t.Fatalf("look %d: %+v", n, got)
		}
	}
	stop()
	<-ended
}
