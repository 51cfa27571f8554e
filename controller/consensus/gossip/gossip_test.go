package gossip

import (
	"context"
	"encoding/json"
	"io"
	"log/slog"
	"net"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/hashicorp/memberlist"
)

// hall is where members find each other by name.
type hall struct {
	mu sync.Mutex
	at map[string]string
}

func (h *hall) dial(ctx context.Context, name string) (net.Conn, error) {
	h.mu.Lock()
	addr := h.at[name]
	h.mu.Unlock()
	if addr == "" {
		return nil, errNoName
	}
	var d net.Dialer
	return d.DialContext(ctx, "tcp", addr)
}

func (h *hall) enter(t *testing.T, name string) (*Gossip, string) {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	h.mu.Lock()
	h.at[name] = l.Addr().String()
	h.mu.Unlock()
	g, err := Start(Config{Name: name, ID: "id of " + name, Advertise: l.Addr().String(), Epoch: 7, Logger: slog.New(slog.DiscardHandler), Listener: l, Dial: h.dial})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close(); g.Close() })
	return g, l.Addr().String()
}

func TestMembersHearOfEachOther(t *testing.T) {
	h := &hall{at: map[string]string{}}
	a, _ := h.enter(t, "csm1")
	b, _ := h.enter(t, "csm2")
	a.Peers(map[string]string{"csm2": h.at["csm2"]})
	deadline, stop := context.WithTimeout(t.Context(), 30*time.Second)
	defer stop()
	for _, g := range []*Gossip{a, b} {
		for len(g.Heard()) < 2 && deadline.Err() == nil {
			select {
			case <-g.Changed():
			case <-deadline.Done():
			}
		}
		heard := g.Heard()
		if m := heard["csm1"]; m.ID != "id of csm1" || m.Epoch != 7 {
			t.Errorf("heard of csm1: %+v", m)
		}
		if m := heard["csm2"]; m.ID != "id of csm2" || m.Epoch != 7 {
			t.Errorf("heard of csm2: %+v", m)
		}
	}
}

func TestWhatAControllerSaysOfItselfIsBounded(t *testing.T) {
	for _, c := range []struct {
		id    int
		limit int
		says  bool
	}{{36, 512, true}, {400, 512, true}, {512, 512, false}, {512, 4096, false}, {36, 20, false}} {
		g := &Gossip{meta: Meta{ID: strings.Repeat("x", c.id), Epoch: 1 << 60}}
		b := g.NodeMeta(c.limit)
		if len(b) > MaxMeta || len(b) > c.limit || (b != nil) != c.says {
			t.Errorf("id of %d bytes, limit %d: %d bytes", c.id, c.limit, len(b))
		}
		var m Meta
		if b != nil && (json.Unmarshal(b, &m) != nil || m != g.meta) {
			t.Errorf("%s", b)
		}
	}
}

func TestAConnectionThatIsNoGossipIsClosed(t *testing.T) {
	h := &hall{at: map[string]string{}}
	g, addr := h.enter(t, "csm1")
	for what, sent := range map[string]string{"another kind": "X", "a packet beyond the bound": "P\x00\x01\x00\x01", "the largest length": "P\xff\xff\xff\xff"} {
		c, err := net.Dial("tcp", addr)
		if err != nil {
			t.Fatal(err)
		}
		c.SetDeadline(time.Now().Add(10 * time.Second))
		if _, err := c.Write([]byte(sent)); err != nil {
			t.Fatal(err)
		}
		if _, err := io.Copy(io.Discard, c); err != nil {
			if n, ok := err.(net.Error); ok && n.Timeout() {
				t.Errorf("%s: the connection stays open", what)
			}
		}
		c.Close()
	}
	if heard := g.Heard(); len(heard) != 1 {
		t.Errorf("heard of %v", heard)
	}
}

func TestAPeerThatTakesNothingHoldsNobodyUp(t *testing.T) {
	h := &hall{at: map[string]string{}}
	g, _ := h.enter(t, "csm1")
	h.mu.Lock()
	h.at["csm2"] = "127.0.0.1:1" // refuses
	h.mu.Unlock()
	done := make(chan struct{})
	go func() {
		defer close(done)
		for range 10 * queued {
			if _, err := g.trans.WriteToAddress(make([]byte, 1000), memberlist.Address{Name: "csm2"}); err != nil {
				t.Error(err)
			}
		}
		if _, err := g.trans.WriteToAddress(make([]byte, maxPacket+1), memberlist.Address{Name: "csm2"}); err != nil {
			t.Error(err)
		}
	}()
	select {
	case <-done:
	case <-time.After(30 * time.Second):
		t.Error("packets to a peer that is away are waited for")
	}
}
