package links

import (
	"fmt"
	"net/netip"
	"slices"
	"time"
)

const (
	// BackFor is how long a peer has to come back in each direction that was cut. A ring without load opens a connection when gossip
	// chooses the peer: with a hundred nodes that takes a minute.
	BackFor = 3 * time.Minute
	// lookBack is how often it is looked for, busyFor how long a streaming Cassandra is left alone before it is asked again.
	lookBack = time.Second
	busyFor  = 30 * time.Second
)

// Results of a wish.
const (
	ResultDone    = "done"
	ResultLapsed  = "lapsed"
	ResultNotBack = "not-back"
	ResultNotCut  = "not-cut"
)

// View is everything that the next step of a cycle depends on.
type View struct {
	Now time.Time
	// Wish is the newest wish to cycle, 0 where there is none, and Until when it lapses.
	Wish  uint64
	Until time.Time
	// Closed is why nothing may be done now, as the node says it: mode, HOLD, freeze, suspension, a node that is not normal.
	Closed Reason
	// Busy is why Cassandra could not be disturbed when it was asked last, and Asked when that was.
	Busy  Reason
	Asked time.Time
	// Uncuttable is why this kernel cannot do it, Unread why the table cannot be read.
	Uncuttable, Unread error
	Memory             Memory
	Present            []Link
}

// Reason is a stable word and a sentence; the zero value is none.
type Reason struct {
	Code    string `json:"code,omitempty"`
	Message string `json:"message,omitempty"`
}

// Do is what comes next.
type Do string

// The things to do.
const (
	Rest   Do = "rest"
	Wait   Do = "wait"
	End    Do = "cut"    // end the connections of one peer, after Cassandra was asked whether it streams
	Return Do = "back"   // the peer has come back
	Finish Do = "finish" // the wish has come to its end
)

// Action is the decision with its words.
type Action struct {
	Do Do
	Reason
	// Peer and Links are what End is about.
	Peer  netip.Addr
	Links []Link
	Again time.Time
}

// Decide says what comes next. It is pure.
func Decide(v View) Action {
	m := v.Memory
	if v.Wish == 0 || v.Wish <= m.Done {
		return Action{Do: Rest}
	}
	finish := func(result, format string, args ...any) Action {
		return Action{Do: Finish, Reason: Reason{result, fmt.Sprintf(format, args...)}}
	}
	wait := func(r Reason, again time.Time) Action { return Action{Do: Wait, Reason: r, Again: again} }
	if v.Unread != nil {
		return finish("links-unread", "%s", v.Unread)
	}
	if m.Cut != nil {
		return comeBack(v, *m.Cut)
	}
	if len(m.Old) == 0 {
		return finish(ResultDone, "no connection from before the last reload is left")
	}
	if v.Uncuttable != nil {
		return finish("kernel-cannot-cut", "%s", v.Uncuttable)
	}
	busy := v.Busy.Code != "" && v.Now.Before(v.Asked.Add(busyFor))
	if !v.Until.IsZero() && !v.Now.Before(v.Until) {
		why := "there was not enough time"
		if r := first(v.Closed, v.Busy); r.Code != "" {
			why = r.Message
		}
		return finish(ResultLapsed, "the wish lapsed with %d connections to %d peers left: %s", len(m.Old), len(Peers(m.Old)), why)
	}
	if v.Closed.Code != "" {
		return wait(v.Closed, v.Until)
	}
	if busy {
		return wait(v.Busy, v.Asked.Add(busyFor))
	}
	peer := Peers(m.Old)[0]
	a := Action{Do: End, Peer: peer, Reason: Reason{"cycle", fmt.Sprintf("the connections with %s from before the last reload are ended", peer)}}
	for _, o := range m.Old {
		if o.Peer() == peer && len(a.Links) < MaxCut {
			a.Links = append(a.Links, o.Link)
		}
	}
	return a
}

// comeBack demands a new connection in each direction in which one was ended, before the next peer's turn.
func comeBack(v View, c Cut) Action {
	var missing, left []string
	for _, outbound := range []bool{true, false} {
		was := slices.ContainsFunc(c.Links, func(l Link) bool { return l.Outbound == outbound })
		is := slices.ContainsFunc(v.Present, func(l Link) bool {
			return l.Peer() == c.Peer && l.Outbound == outbound && !v.old(l) && !slices.ContainsFunc(c.Links, l.same)
		})
		if was && !is {
			missing = append(missing, map[bool]string{true: "to it", false: "from it"}[outbound])
		}
	}
	for _, l := range c.Links {
		if slices.ContainsFunc(v.Present, l.same) {
			left = append(left, l.String())
		}
	}
	switch {
	case len(missing) == 0 && len(left) == 0:
		return Action{Do: Return, Peer: c.Peer, Reason: Reason{"back", fmt.Sprintf("%s has come back", c.Peer)}}
	case v.Now.Before(c.At.Add(BackFor)):
		return Action{Do: Wait, Reason: Reason{"coming-back", fmt.Sprintf("%s has to come back before the next peer's turn", c.Peer)}, Again: v.Now.Add(lookBack)}
	case len(left) > 0:
		return Action{Do: Finish, Reason: Reason{ResultNotCut, fmt.Sprintf("%d connections with %s are still there after they were ended: %s", len(left), c.Peer, left[0])}}
	}
	return Action{Do: Finish, Reason: Reason{ResultNotBack, fmt.Sprintf("%s did not come back within %s: no connection %s", c.Peer, BackFor, missing[0])}}
}

func (v View) old(l Link) bool {
	return slices.ContainsFunc(v.Memory.Old, func(o Old) bool { return o.same(l) })
}

func first(all ...Reason) Reason {
	for _, r := range all {
		if r.Code != "" {
			return r
		}
	}
	return Reason{}
}

// Peers are the addresses at the other end, sorted, each once.
func Peers(old []Old) (out []netip.Addr) {
	for _, o := range old {
		out = append(out, o.Peer())
	}
	slices.SortFunc(out, netip.Addr.Compare)
	return slices.Compact(out)
}
