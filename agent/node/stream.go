package node

import (
	"crypto/sha256"
	"encoding/hex"
	"strconv"
	"strings"

	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/timestamppb"

	agentv1 "github.com/cassandra-security-manager/csm/protocol/agent/v1"
)

func fingerprint(der []byte) []byte {
	s := sha256.Sum256(der)
	return s[:]
}

func itoa(n int64) string { return strconv.FormatInt(n, 10) }

// storeChanged says whether the installer found other files than it left.
func storeChanged(f *agentv1.StoreFacts) bool {
	return f.State == agentv1.InstallState_INSTALL_STATE_FAILED && strings.HasPrefix(f.Detail, "store-changed")
}

// The methods below are sync.Handler: they only keep what came and wake the deciding goroutine.

// Hello is what the stream begins with.
func (n *Node) Hello() *agentv1.Hello {
	n.mu.Lock()
	defer n.mu.Unlock()
	// The clock is that of now: a snapshot may be as old as the step that is being done.
	a := proto.CloneOf(n.snapshot.Agent)
	a.Clock = timestamppb.New(n.o.Clock.Now())
	return &agentv1.Hello{Agent: a, Instance: n.snapshot.Instance, Stores: n.snapshot.Stores, HighestGeneration: n.folder.Highest(), Trusts: n.trusts()}
}

// Target takes a wish that is not older than the newest one ever taken.
func (n *Node) Target(t *agentv1.Target) {
	if err := n.folder.Raise(t.Generation); err != nil {
		n.log.Warn("target refused", "generation", t.Generation, "error", err)
		return
	}
	if err := n.folder.KeepStop(t.Frozen, t.Released); err != nil {
		n.log.Error("the freeze could not be kept: a restart without controllers would not know it", "error", err)
	}
	n.mu.Lock()
	n.target, n.roots, n.wanted, n.frozenBy, n.released = t, t.Anchors, nil, t.Frozen, t.Released
	for _, a := range t.Anchors {
		n.wanted = append(n.wanted, hex.EncodeToString(fingerprint(a)))
	}
	n.online.LastContact = n.o.Clock.Now()
	n.askHealth(t.Look)
	n.mu.Unlock()
	n.log.Info("target", "generation", t.Generation, "stores", len(t.Stores), "frozen", t.Frozen.GetActive())
	n.poke()
}

// ProofTask queues a probe of a neighbour. A full queue drops it: the controller asks another node when its time is over.
func (n *Node) ProofTask(t *agentv1.ProofTask) {
	n.mu.Lock()
	known := n.doing[t.Task]
	n.doing[t.Task] = true
	n.mu.Unlock()
	if known {
		return
	}
	select {
	case n.tasks <- t:
	default:
		n.log.Warn("too many proofs asked at once", "task", t.Task)
		n.doneTask(t.Task)
	}
}

func (n *Node) doneTask(task string) {
	n.mu.Lock()
	defer n.mu.Unlock()
	delete(n.doing, task)
}

// ProofResult hands a neighbour's proof to the install that waits for it. One that comes before its task is known waits.
func (n *Node) ProofResult(r *agentv1.ProofResult) {
	n.mu.Lock()
	defer n.mu.Unlock()
	if c := n.waiting[r.Task]; c != nil {
		delete(n.waiting, r.Task)
		c <- r.Proof // buffered by one
		return
	}
	if len(n.early) >= 64 {
		clear(n.early)
	}
	n.early[r.Task] = r.Proof
}

// expect gives the channel on which the proof of a task comes.
func (n *Node) expect(task string) <-chan *agentv1.Proof {
	n.mu.Lock()
	defer n.mu.Unlock()
	c := make(chan *agentv1.Proof, 1)
	if p := n.early[task]; p != nil {
		delete(n.early, task)
		c <- p
		return c
	}
	n.waiting[task] = c
	return c
}

func (n *Node) forget(tasks []string) {
	n.mu.Lock()
	defer n.mu.Unlock()
	for _, t := range tasks {
		delete(n.waiting, t)
	}
}

// Control takes suspension, the clock, and hints.
func (n *Node) Control(c *agentv1.Control) {
	now := n.o.Clock.Now()
	n.mu.Lock()
	n.suspended = ""
	if c.Suspended {
		n.suspended = c.Reason
		if n.suspended == "" {
			n.suspended = "no reason given"
		}
	}
	far := false
	if c.ServerTime != nil {
		n.skew = n.skew.measure(read(n.o.Clock), c.ServerTime.AsTime())
		far = n.skew.by.Abs() > MaxSkew
	}
	if len(c.Bundle) > 0 {
		n.succession.roots = c.Bundle
	}
	n.askRenewal(c.RenewWithinMs)
	n.reopen = n.reopen || c.ClaimsOpen
	n.wantScan = n.wantScan || c.SendInventory
	n.online.LastContact = now
	n.mu.Unlock()
	if far && n.client != nil {
		// It let this agent in a while ago by the same time, so either clock was set since: the next controller judges.
		n.log.Warn("the controller's time is far from this host's; another one is asked", "says", c.ServerTime.AsTime())
		n.client.Reconnect()
	}
	if c.Suspended {
		n.log.Error("this agent is suspended", "reason", c.Reason)
	}
	n.poke()
}

// Connected is told that a stream lives.
func (n *Node) Connected(controller string) {
	now := n.o.Clock.Now()
	n.mu.Lock()
	// What a controller holds against this identity stays until its first word, which is a Control.
	n.online = Link{Connected: true, Controller: controller, Since: now, LastContact: now}
	n.reopen = true // this controller does not know what another one refused
	n.mu.Unlock()
	n.poke()
}

// Disconnected is told that none does.
func (n *Node) Disconnected(why error) {
	now := n.o.Clock.Now()
	n.mu.Lock()
	if n.online.Connected || n.online.Since.IsZero() {
		n.online.Since = now
	}
	n.online.Connected, n.online.Controller, n.skew = false, "", skew{}
	if why != nil {
		n.online.Error = why.Error()
	}
	n.mu.Unlock()
	n.poke()
}
