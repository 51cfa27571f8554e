package workload

import (
	"context"
	"net"
	"testing"

	gocql "github.com/apache/cassandra-gocql-driver/v2"
)

// A node that takes no connection is a failure; a dial that ended because we closed its session is none.
func TestADialThatWeGaveUpIsNobodysFailure(t *testing.T) {
	free, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	nobody := free.Addr().(*net.TCPAddr)
	if err := free.Close(); err != nil {
		t.Fatal(err)
	}
	host, err := gocql.NewHostInfoFromAddrPort(nobody.IP, nobody.Port)
	if err != nil {
		t.Fatal(err)
	}
	closed, end := context.WithCancel(t.Context())
	end()
	for _, tt := range []struct {
		ctx  context.Context
		want uint64
	}{{t.Context(), 1}, {closed, 0}} {
		l := &Load{run: t.Context()}
		l.now.errors = map[string]uint64{}
		if _, err := (dialer{l}).DialHost(tt.ctx, host); err == nil {
			t.Fatal("somebody listens")
		}
		if l.now.failed != tt.want {
			t.Errorf("%d failures, want %d: %v", l.now.failed, tt.want, l.now.errors)
		}
	}
}
