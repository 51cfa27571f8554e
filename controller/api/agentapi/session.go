package agentapi

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"sync/atomic"
	"time"

	"github.com/cassandra-security-manager/csm/shared/fault"
)

// farewellDelay is how long a node may be without a stream here before that is worth a command: a reconnect is not a
// transition.
const farewellDelay = 5 * time.Second

// session is one open stream.
type session struct {
	caller
	stream   string
	lastSeen atomic.Int64 // unix milliseconds
	// ended is closed when a newer stream of the same node takes over.
	ended chan struct{}
	// wave is poked when the node was refused because the wave was busy.
	wave chan struct{}
}

func (s *Server) open(c caller) (*session, error) {
	var id [12]byte
	if _, err := rand.Read(id[:]); err != nil {
		return nil, fault.Wrap(err, fault.Internal, "no-randomness", "cannot read random bytes")
	}
	x := &session{caller: c, stream: hex.EncodeToString(id[:]), ended: make(chan struct{}), wave: make(chan struct{}, 1)}
	x.lastSeen.Store(s.Clock.Now().UnixMilli())
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed {
		return nil, errClosing
	}
	if old, ok := s.sessions[c.Node]; ok {
		close(old.ended)
	}
	s.sessions[c.Node] = x
	return x, nil
}

var errClosing = fault.New(fault.Unavailable, "closing", "this controller is going down").Do("connect to another")

// closeSession takes the stream off the list. When no other follows within a while, the state is told.
func (s *Server) closeSession(x *session, connected bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.sessions[x.Node] == x {
		delete(s.sessions, x.Node)
	}
	if !connected || s.closed {
		return
	}
	s.farewell.Go(func() {
		t := s.Clock.NewTimer(farewellDelay)
		defer t.Stop()
		select {
		case <-t.Chan():
		case <-s.stop:
			return
		}
		if _, back := s.LastSeen(x.Node); back {
			return
		}
		ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
		defer cancel()
		if err := s.Fleet.Disconnected(ctx, x.UID, x.Incarnation, x.stream); err != nil {
			s.Logger.Info("a lost stream could not be recorded", "node", x.Node, "error", err)
		}
	})
}

// waits remembers that a node was refused because the wave was busy.
func (s *Server) waits(node string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if x, ok := s.sessions[node]; ok {
		poke(x.wave)
	}
}

func poke(c chan struct{}) {
	select {
	case c <- struct{}{}:
	default:
	}
}
