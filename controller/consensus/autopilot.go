package consensus

import (
	"bytes"
	"context"
	"strconv"
	"sync"
	"time"

	"github.com/hashicorp/raft"
	autopilot "github.com/hashicorp/raft-autopilot"

	"github.com/cassandra-security-manager/csm/controller/consensus/members"
)

// newAutopilot gives votes; it runs on the leader only. Nothing is ever taken away because it looks dead.
func (n *Node) newAutopilot() *autopilot.Autopilot {
	return autopilot.New(n.raft, pilot{n}, autopilot.WithPromoter(promoter{n}), autopilot.WithLogger(hclogger(n.cfg.Logger, "raft")),
		autopilot.WithUpdateInterval(time.Second), autopilot.WithReconcileInterval(time.Second))
}

func (n *Node) lastTerm() uint64 {
	t, _ := strconv.ParseUint(n.raft.Stats()["last_log_term"], 10, 64)
	return t
}

// pilot is what autopilot asks us.
type pilot struct{ n *Node }

func (p pilot) AutopilotConfig() *autopilot.Config {
	return &autopilot.Config{CleanupDeadServers: false, MinQuorum: 3, LastContactThreshold: 2 * time.Second, MaxTrailingLogs: 2000,
		ServerStabilizationTime: p.n.cfg.Stabilization}
}

func (pilot) NotifyState(*autopilot.State) {}

// RemoveFailedServer is never called while CleanupDeadServers is off.
func (pilot) RemoveFailedServer(*autopilot.Server) {}

// KnownServers is the members table, never gossip: autopilot takes who is missing here for gone.
func (p pilot) KnownServers() map[raft.ServerID]*autopilot.Server {
	out := map[raft.ServerID]*autopilot.Server{}
	for _, m := range p.n.dir.trusted() {
		s := &autopilot.Server{ID: raft.ServerID(m.ID), Name: m.Name, Address: raft.ServerAddress(m.Address), NodeStatus: autopilot.NodeFailed,
			Version: m.Version, RaftVersion: 3, IsLeader: m.ID == p.n.cfg.NodeID && p.n.IsLeader()}
		if m.ID == p.n.cfg.NodeID || p.n.contacts.fresh(m.ID) {
			s.NodeStatus = autopilot.NodeAlive
		}
		out[s.ID] = s
	}
	return out
}

// FetchServerStats asks each server where its log ends.
func (p pilot) FetchServerStats(ctx context.Context, servers map[raft.ServerID]*autopilot.Server) map[raft.ServerID]*autopilot.ServerStats {
	out := map[raft.ServerID]*autopilot.ServerStats{}
	var mu sync.Mutex
	var wg sync.WaitGroup
	for id := range servers {
		m, ok := p.n.dir.find(func(m Member) bool { return m.ID == string(id) })
		if !ok {
			continue
		}
		wg.Add(1)
		go func() {
			defer wg.Done()
			a := p.n.self()
			if m.ID != p.n.cfg.NodeID {
				p.n.ping(ctx, m)
				if a = p.n.contacts.get(m.ID).answer; a == nil || !p.n.contacts.fresh(m.ID) {
					return
				}
			}
			mu.Lock()
			defer mu.Unlock()
			out[id] = &autopilot.ServerStats{LastContact: time.Duration(a.GetLastContactMs()) * time.Millisecond, LastTerm: a.GetLastLogTerm(), LastIndex: a.GetLastLogIndex()}
		}()
	}
	wg.Wait()
	return out
}

// promoter gives a vote to who is wanted as a voter, decrypted the canary, has caught up, and holds the same state.
type promoter struct{ n *Node }

func (promoter) GetServerExt(*autopilot.Config, *autopilot.ServerState) any { return nil }
func (promoter) GetStateExt(*autopilot.Config, *autopilot.State) any        { return nil }
func (promoter) IsPotentialVoter(t autopilot.NodeType) bool                 { return t == autopilot.NodeVoter }
func (promoter) GetNodeTypes(_ *autopilot.Config, s *autopilot.State) map[raft.ServerID]autopilot.NodeType {
	out := map[raft.ServerID]autopilot.NodeType{}
	for id := range s.Servers {
		out[id] = autopilot.NodeVoter
	}
	return out
}

// FilterFailedServerRemovals lets nobody be removed: removal is an administrator's command.
func (promoter) FilterFailedServerRemovals(*autopilot.Config, *autopilot.State, *autopilot.FailedServers) *autopilot.FailedServers {
	return &autopilot.FailedServers{}
}

func (p promoter) CalculatePromotionsAndDemotions(c *autopilot.Config, s *autopilot.State) (changes autopilot.RaftChanges) {
	now := time.Now()
	for id, srv := range s.Servers {
		m, ok := p.n.dir.find(func(m Member) bool { return m.ID == string(id) })
		if !ok || srv.State != autopilot.RaftNonVoter {
			continue
		}
		if !mayVote(m, srv.Health.IsStable(now, s.ServerStabilizationTime(c)), p.n.contacts.get(m.ID).offset) {
			continue
		}
		if p.n.matched.same(m.ID) {
			changes.Promotions = append(changes.Promotions, id)
		} else {
			p.n.compare(m)
		}
	}
	return changes
}

// mayVote is the part of the decision that needs no question to anybody.
func mayVote(m Member, caughtUp bool, offset time.Duration) bool {
	return m.State == members.Unsealed && m.Voter && caughtUp && offset.Abs() <= MaxClockOffset
}

// matched remembers whose checksum was equal to ours.
type matched struct {
	mu      sync.Mutex
	equal   map[string]bool
	running map[string]bool
}

func (e *matched) same(id string) bool {
	e.mu.Lock()
	defer e.mu.Unlock()
	return e.equal[id]
}

func (e *matched) begin(id string) bool {
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.running[id] {
		return false
	}
	if e.running == nil {
		e.running, e.equal = map[string]bool{}, map[string]bool{}
	}
	e.running[id] = true
	return true
}

func (e *matched) end(id string, equal bool) {
	e.mu.Lock()
	defer e.mu.Unlock()
	delete(e.running, id)
	e.equal[id] = equal
}

// compare takes one checksum of us and of a candidate, beside autopilot's rounds.
func (n *Node) compare(m Member) {
	if !n.matched.begin(m.ID) {
		return
	}
	n.wg.Add(1)
	go func() {
		defer n.wg.Done()
		ctx, cancel := context.WithTimeout(n.ctx, 30*time.Second)
		defer cancel()
		sums, err := n.checksums(ctx, "system", func(o Member) bool { return o.ID == m.ID || o.ID == n.cfg.NodeID })
		equal := err == nil && len(sums) == 2 && sums[0].Err == nil && sums[1].Err == nil && bytes.Equal(sums[0].Sum[:], sums[1].Sum[:])
		if err == nil && !equal && len(sums) == 2 && sums[0].Err == nil && sums[1].Err == nil {
			n.cfg.Logger.Error("a controller holds another state than the leader and gets no vote", "controller", m.Name)
		}
		n.matched.end(m.ID, equal)
	}()
}
