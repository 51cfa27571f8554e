package node

import (
	"context"
	"fmt"
	"path/filepath"
	"time"

	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/cassandra-security-manager/csm/agent/install"
	"github.com/cassandra-security-manager/csm/agent/links"
	"github.com/cassandra-security-manager/csm/agent/reload"
	agentv1 "github.com/cassandra-security-manager/csm/protocol/agent/v1"
	"github.com/cassandra-security-manager/csm/shared/fault"
)

// LinksFile is the record of connections within the node's state folder.
const LinksFile = "links.json"

// linkWork is what the deciding goroutine knows of connections that live on old certificates.
type linkWork struct {
	book       *links.Book
	table      links.Table
	uncuttable error
	action     links.Action
	busy       links.Reason
	asked      time.Time
	// clients are the connections of applications.
	clients *links.Book
}

func (n *Node) openLinks() {
	t := n.o.Links
	if t == nil {
		t = links.Kernel()
	}
	n.links = linkWork{table: t, book: links.Open(filepath.Join(n.folder.Dir(), LinksFile), t, n.o.Clock), uncuttable: t.Cuttable(),
		clients: links.Open(filepath.Join(n.folder.Dir(), ClientsFile), t, n.o.Clock)}
}

// noting is a Reloader that notes the connections which a reload does not reach.
type noting struct {
	reload.Reloader
	n *Node
}

// Reload notes before, so that a kill leaves no gap, and after, for a connection that was opened meanwhile may be of either kind.
func (r noting) Reload(ctx context.Context) (reload.Output, error) {
	r.n.noteLinks()
	defer r.n.noteLinks()
	return r.Reloader.Reload(ctx)
}

func (n *Node) noteLinks() {
	n.noteClients()
	p, ok := n.internode()
	if !ok {
		return
	}
	if err := n.links.book.Record(p); err != nil {
		n.log.Warn("connections on certificates of before the reload could not be noted", "error", err)
	}
}

// internode is the port whose connections count: one that speaks TLS.
func (n *Node) internode() (links.Port, bool) {
	if n.inst == nil || !n.inst.Internode.Active() {
		return links.Port{}, false
	}
	return links.PortOf(n.inst), true
}

// cycle goes on with a wish to end old connections, and returns when to come again.
func (n *Node) cycle(ctx context.Context) time.Time {
	for ctx.Err() == nil {
		v := n.linkView()
		a := links.Decide(v)
		if a.Reason != n.links.action.Reason && a.Code != "" {
			n.log.Info("links", "do", a.Do, "reason", a.Code, "why", a.Message)
		}
		n.links.action = a
		var err error
		switch a.Do {
		case links.End:
			err = n.endLinks(ctx, v, a)
		case links.Return:
			err = n.links.book.Back()
		case links.Finish:
			err = n.links.book.Finish(v.Wish, a.Code, a.Message)
		default:
			return a.Again
		}
		if err != nil {
			n.log.Error("links are not cycled", "error", err)
			return n.o.Clock.Now().Add(firstTick)
		}
		n.prepareHello()
	}
	return time.Time{}
}

func (n *Node) linkView() links.View {
	v := links.View{Now: n.o.Clock.Now(), Uncuttable: n.links.uncuttable, Busy: n.links.busy, Asked: n.links.asked}
	n.mu.Lock()
	if n.target != nil {
		v.Wish = n.target.Cycle
		if n.target.CycleUntil != nil {
			v.Until = n.target.CycleUntil.AsTime()
		}
	}
	n.mu.Unlock()
	p, ok := n.internode()
	if ok {
		m := n.links.book.Memory()
		v.Present, v.Unread = n.links.book.Look(p, m.Cut != nil)
	}
	v.Memory = n.links.book.Memory()
	v.Closed = n.linksClosed()
	return v
}

// linksClosed asks the gates that every effect is asked for, without a claim.
func (n *Node) linksClosed() links.Reason {
	v := View{Now: n.o.Clock.Now(), Mode: n.mode(), Copied: n.folder.Copied(), Store: StoreView{Manageable: true}}
	if why, held := install.Held(n.o.Config.HoldFile); held {
		v.Hold = why
	}
	n.mu.Lock()
	v.Suspended, v.Frozen, v.Released, v.Connected = n.suspended, inForce(n.frozenBy, v.Now), n.released, n.online.Connected
	n.mu.Unlock()
	for _, g := range gates {
		if reason, message, _, closed := g(v, Action{Do: "cycle"}); closed {
			return links.Reason{Code: reason, Message: message}
		}
	}
	switch {
	case v.Released != "":
		return links.Reason{Code: "released", Message: "the cluster was " + v.Released}
	case !v.Connected:
		return links.Reason{Code: "offline", Message: "no controller can be reached: a freeze would not be heard"}
	case !n.presence.Normal():
		return links.Reason{Code: "node-not-normal", Message: "not all of Cassandra's ports listen"}
	}
	for _, f := range n.stores {
		if f.State == agentv1.InstallState_INSTALL_STATE_MOVING {
			return links.Reason{Code: "moving", Message: "an interrupted install of store " + f.Store + " has to end first"}
		}
	}
	return links.Reason{}
}

// endLinks asks Cassandra whether it streams, and has the connections of one peer ended.
func (n *Node) endLinks(ctx context.Context, v links.View, a links.Action) error {
	n.links.asked = v.Now
	if n.links.busy = n.streaming(ctx); n.links.busy.Code != "" {
		return nil
	}
	if closed := n.linksClosed(); closed.Code != "" {
		return nil // since the decision; it is made again
	}
	if n.o.Cutter == nil {
		return n.links.book.Finish(v.Wish, "no-helper", "this agent was started without a helper that may end connections")
	}
	if err := n.links.book.Begin(links.Cut{Wish: v.Wish, Peer: a.Peer, Links: a.Links, At: n.o.Clock.Now().UTC()}); err != nil {
		return err
	}
	cut, err := n.o.Cutter.End(ctx, n.o.Instance.Config, a.Peer, a.Links)
	if err != nil {
		f := fault.From(err)
		return n.links.book.Finish(v.Wish, f.Reason, clip(f.Error()+": "+f.Remedy, 500))
	}
	n.log.Info("links cut", "peer", a.Peer, "cut", cut, "named", len(a.Links))
	return nil
}

// streaming asks Cassandra; what it does not say keeps its connections as they are.
func (n *Node) streaming(ctx context.Context) links.Reason {
	s, ok := n.o.Reloader.(reload.Streamer)
	if !ok {
		return links.Reason{Code: "streams-unknown", Message: "this agent has no way to ask whether Cassandra streams"}
	}
	out, err := s.Netstats(ctx)
	var busy links.Reason
	if err == nil {
		busy, err = links.Streaming(out)
	}
	if err != nil {
		f := fault.From(err)
		return links.Reason{Code: f.Reason, Message: clip(f.Error(), 400)}
	}
	return busy
}

// linkFacts are for the controllers.
func (n *Node) linkFacts() *agentv1.LinkFacts {
	if n.links.book == nil {
		return nil
	}
	m := n.links.book.Memory()
	f := &agentv1.LinkFacts{Unseen: clip(m.Unseen, 500), Old: uint32(len(m.Old)), Cycled: m.Done, Result: m.Result, Detail: clip(m.Detail, 500)}
	for _, p := range links.Peers(m.Old) {
		if len(f.Peers) < 1000 {
			f.Peers = append(f.Peers, p.AsSlice())
		}
	}
	for _, o := range m.Old {
		if f.Since == nil || o.Since.Before(f.Since.AsTime()) {
			f.Since = timestamppb.New(o.Since)
		}
	}
	if !m.Recorded.IsZero() {
		f.Recorded = timestamppb.New(m.Recorded)
	}
	if n.links.uncuttable != nil {
		f.Uncuttable = clip(fault.From(n.links.uncuttable).Error(), 500)
	}
	if a := n.links.action; a.Do == links.Wait {
		f.Waits, f.WaitsFor = a.Code, clip(a.Message, 500)
	}
	return f
}

// LinkStatus is what `csm-agent status` tells of old connections.
type LinkStatus struct {
	Old      int       `json:"old"`
	Peers    []string  `json:"peers,omitempty"`
	Since    time.Time `json:"since,omitzero"`
	Recorded time.Time `json:"recorded,omitzero"`
	Unseen   string    `json:"unseen,omitempty"`
	Wish     uint64    `json:"wish,omitempty"`
	Cycled   uint64    `json:"cycled,omitempty"`
	Result   string    `json:"result,omitempty"`
	Detail   string    `json:"detail,omitempty"`
	WaitsFor string    `json:"waitsFor,omitempty"`
}

func (n *Node) linkStatus() *LinkStatus {
	f := n.linkFacts()
	if f == nil {
		return nil
	}
	s := &LinkStatus{Old: int(f.Old), Unseen: f.Unseen, Cycled: f.Cycled, Result: f.Result, Detail: f.Detail, WaitsFor: f.WaitsFor}
	for _, p := range links.Peers(n.links.book.Memory().Old) {
		s.Peers = append(s.Peers, p.String())
	}
	if f.Since != nil {
		s.Since = f.Since.AsTime()
	}
	if f.Recorded != nil {
		s.Recorded = f.Recorded.AsTime()
	}
	n.mu.Lock()
	s.Wish = n.target.GetCycle()
	n.mu.Unlock()
	return s
}

func linkHealth(s *LinkStatus, add func(Level, string, string, ...any)) {
	if s == nil {
		return
	}
	switch {
	case s.Wish > s.Cycled:
		add(Green, "", "internode connections of before the last reload are cycled, %d are left: %s", s.Old, orElse(s.WaitsFor, "it goes on"))
	case s.Result != "" && s.Result != links.ResultDone:
		add(Yellow, fmt.Sprintf("put it right, then `csm node cycle-links` again: %s", s.Result), "internode connections were not cycled to the end: %s", s.Detail)
	case s.Old > 0:
		add(Green, "", "%d internode connections with %d peers live on certificates of before %s; only a rotation has to end them", s.Old, len(s.Peers), s.Since.UTC().Format(time.RFC3339))
	}
}
