package agenttest

import (
	"net"
	"sync"
	"testing"

	"github.com/cassandra-security-manager/csm/test/port"
)

// link is the network between one agent and the controllers: a TCP proxy that can be cut and restored.
type link struct {
	t       *testing.T
	to      string
	address string
	l       net.Listener
	wg      sync.WaitGroup

	mu    sync.Mutex
	heals *sync.Cond
	down  bool // connections are reset, none is let in
	mute  bool // what is sent is on its way until the network is back, as after lost packets
	over  bool
	conns map[net.Conn]bool
	// refused tells that a connection was tried while the network was cut.
	refused chan struct{}
}

func newLink(t *testing.T, to string) *link {
	t.Helper()
	l, err := port.Listen()
	must(t, err)
	k := &link{t: t, to: to, address: l.Addr().String(), l: l, conns: map[net.Conn]bool{}, refused: make(chan struct{}, 1)}
	k.heals = sync.NewCond(&k.mu)
	k.wg.Go(k.accept)
	t.Cleanup(func() {
		k.mu.Lock()
		k.over = true
		k.mu.Unlock()
		k.cut()
		l.Close()
		k.heals.Broadcast()
		k.wg.Wait()
	})
	return k
}

// cut resets all connections and refuses new ones.
func (k *link) cut() {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.down = true
	for c := range k.conns {
		c.Close()
	}
}

// silence lets nothing through, and tells nobody.
func (k *link) silence() {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.mute = true
}

// heal ends a cut or a silence: what was held back goes on.
func (k *link) heal() {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.down, k.mute = false, false
	k.heals.Broadcast()
}

func (k *link) accept() {
	for {
		in, err := k.l.Accept()
		if err != nil {
			return
		}
		out, err := net.Dial("tcp", k.to)
		if err != nil || !k.keep(in, out) {
			in.Close()
			if out != nil {
				out.Close()
			}
			continue
		}
		k.wg.Go(func() { k.carry(out, in) })
		k.wg.Go(func() { k.carry(in, out) })
	}
}

func (k *link) keep(both ...net.Conn) bool {
	k.mu.Lock()
	defer k.mu.Unlock()
	if k.down {
		select {
		case k.refused <- struct{}{}:
		default:
		}
		return false
	}
	for _, c := range both {
		k.conns[c] = true
	}
	return true
}

// carry copies one direction until either end closes.
func (k *link) carry(to, from net.Conn) {
	defer func() {
		k.mu.Lock()
		defer k.mu.Unlock()
		for _, c := range []net.Conn{to, from} {
			c.Close()
			delete(k.conns, c)
		}
	}()
	buf := make([]byte, 16<<10)
	for {
		n, err := from.Read(buf)
		k.mu.Lock()
		for k.mute && !k.over {
			k.heals.Wait()
		}
		k.mu.Unlock()
		if n > 0 {
			if _, err := to.Write(buf[:n]); err != nil {
				return
			}
		}
		if err != nil {
			return
		}
	}
}
