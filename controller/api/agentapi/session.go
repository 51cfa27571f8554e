package agentapi

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"sync/atomic"
	"time"

	"github.com/cassandra-security-manager/csm/controller/fleet"
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
	// away is closed when the agent should go to another controller.
	away chan struct{}
	// wave is poked when the node was refused because the wave was busy; planned says that it claimed by an open wave of a plan.
	wave    chan struct{}
	planned atomic.Bool
	// system is poked when the agent is to be told about the system CA; trusts are the roots that it uses, as it said last.
	system chan struct{}
	trusts atomic.Pointer[[][]byte]
	told   told
	// checked names the roots under which the identity was found good last; under the server's lock.
	checked string
	// noted is what was last told the state of it; under the server's lock.
	noted note
	// retired is closed when the root of its identity is trusted no more.
	retired chan struct{}
}

// open registers a stream of an agent that says which roots of the system CA it trusts.
func (s *Server) open(c caller, trusts [][]byte) (*session, error) {
	var id [12]byte
	if _, err := rand.Read(id[:]); err != nil {
		return nil, fault.Wrap(err, fault.Internal, "no-randomness", "cannot read random bytes")
	}
	x := &session{caller: c, stream: hex.EncodeToString(id[:]), ended: make(chan struct{}), away: make(chan struct{}), wave: make(chan struct{}, 1), system: make(chan struct{}, 1), retired: make(chan struct{})}
	x.lastSeen.Store(s.Clock.Now().UnixMilli())
	x.trusts.Store(&trusts)
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

var errAway = fault.New(fault.Unavailable, "no-quorum", "this controller has heard of no leader for a while").Do("connect to another")

// SendAway ends the open streams and says how many there were. A controller without a quorum has nothing to tell, and who
// comes back gets in only when it can write.
func (s *Server) SendAway() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	n := len(s.sessions)
	for node, x := range s.sessions {
		close(x.away)
		delete(s.sessions, node)
	}
	return n
}

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
		s.lost(fleet.Link{Node: x.Node, UID: x.UID, Incarnation: x.Incarnation, Stream: x.stream})
	})
}

// lost tells the state that a stream is gone, unless the node has another one here.
func (s *Server) lost(l fleet.Link) {
	if _, back := s.LastSeen(l.Node); back {
		return
	}
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	if err := s.Fleet.Disconnected(ctx, l.UID, l.Incarnation, l.Stream); err != nil {
		s.Logger.Info("a lost stream could not be recorded", "node", l.Node, "error", err)
	}
}

// afterlife is how long after the start of a controller the agents of its former life have to come back.
const afterlife = time.Minute

// forgetFormerLife tells the state about streams that this controller held when it ended and that came back to nobody.
func (s *Server) forgetFormerLife() {
	t := s.Clock.NewTimer(afterlife)
	defer t.Stop()
	select {
	case <-t.Chan():
	case <-s.stop:
		return
	}
	links, err := s.Fleet.LinksOf(context.Background(), s.Controller)
	if err != nil {
		s.Logger.Info("streams of a former life could not be read", "error", err)
		return
	}
	for _, l := range links {
		s.lost(l)
	}
}

// waits remembers that a node was refused because the wave was busy, and whether it claimed by a plan.
func (s *Server) waits(node string, planned bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if x, ok := s.sessions[node]; ok {
		x.planned.Store(planned)
		poke(x.wave)
	}
}

func poke(c chan struct{}) {
	select {
	case c <- struct{}{}:
	default:
	}
}
