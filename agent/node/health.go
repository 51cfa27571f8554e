package node

import (
	"cmp"
	"context"
	"time"

	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/cassandra-security-manager/csm/agent/cassandra"
	"github.com/cassandra-security-manager/csm/agent/reload"
	"github.com/cassandra-security-manager/csm/agent/survey"
	agentv1 "github.com/cassandra-security-manager/csm/protocol/agent/v1"
	"github.com/cassandra-security-manager/csm/shared/fault"
)

// How often the node is asked over CQL how it finds its ring and who its clients are.
const (
	healthEvery = time.Hour
	// healthFirst is after the start.
	healthFirst = 10 * time.Second
	// healthPause is the least time between two looks that controllers ask for; they ask a whole ring at once, and each node
	// answers when up to healthEach for each member more has passed, healthSpread at most: hosts that share a machine, and
	// controllers, do not have it all in one moment.
	healthPause  = 5 * time.Second
	healthEach   = time.Second
	healthSpread = 15 * time.Second
	// healthFor bounds one look over CQL: nine reads that are all late, and the rest.
	healthFor = 45 * time.Second
)

// health is what the node's Cassandra last told over CQL. It is read beside the deciding goroutine, which takes it up.
type health struct {
	facts   *agentv1.HealthFacts
	clients *agentv1.ClientFacts
	finding *agentv1.Finding
	// asked is the newest question of the controllers.
	asked uint64
	soon  chan struct{}
	// leaf is what the last look was shown; reloaded when the stores were last read again.
	leaf     []byte
	reloaded time.Time
}

// watchHealth looks again and again until ctx ends: at rest by time, soon after Cassandra came or went, and when asked.
func (n *Node) watchHealth(ctx context.Context) {
	every := cmp.Or(n.o.Instance.CQL.Every, healthEvery)
	wait := time.Duration(float64(healthFirst) * (0.5 + n.o.Jitter()))
	for {
		timer := n.o.Clock.NewTimer(wait)
		select {
		case <-ctx.Done():
			timer.Stop()
			return
		case <-timer.Chan():
		case <-n.health.soon:
			timer.Stop()
			pause := ringSoon
			if n.isAsked() {
				pause = healthPause + n.spread()
			}
			if !n.sleep(ctx, pause) {
				return
			}
		}
		n.lookHealth(ctx)
		wait = time.Duration(float64(n.everyHealth(every)) * (0.9 + 0.2*n.o.Jitter()))
	}
}

func (n *Node) sleep(ctx context.Context, d time.Duration) bool {
	select {
	case <-ctx.Done():
		return false
	case <-n.o.Clock.After(d):
		return true
	}
}

// spread is how much later than others this node answers a question that all were asked.
func (n *Node) spread() time.Duration {
	n.mu.Lock()
	members := len(n.ring.view.GetMembers())
	n.mu.Unlock()
	return time.Duration(jitter() * float64(min(time.Duration(members)*healthEach, healthSpread)))
}

func (n *Node) isAsked() bool {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.health.asked > n.health.facts.GetLook()
}

// askHealth takes a question of the controllers; n.mu is held.
func (n *Node) askHealth(look uint64) {
	if look > n.health.asked {
		n.health.asked = look
		n.healthSoon()
	}
}

func (n *Node) healthSoon() {
	select {
	case n.health.soon <- struct{}{}:
	default:
	}
}

// lookHealth looks once. An asked look lists the ring too: what gossip says is then as new as the rest.
func (n *Node) lookHealth(ctx context.Context) {
	n.mu.Lock()
	inst, up, look := n.ownCert, n.up, n.health.asked
	asked := look > n.health.facts.GetLook()
	n.mu.Unlock()
	if inst == nil {
		return
	}
	if asked {
		n.listRing(ctx)
	}
	h, c, finding := n.survey(ctx, inst, up)
	if ctx.Err() != nil {
		return
	}
	now := timestamppb.New(n.o.Clock.Now())
	h.Time, h.Look, c.Time = now, look, now
	n.mu.Lock()
	if w := inst.Working(n.ring.view); w != nil {
		h.Works = append([]*agentv1.Work{w}, h.Works[:min(len(h.Works), 19)]...)
	}
	n.health.facts, n.health.clients, n.health.finding = h, c, finding
	n.mu.Unlock()
	n.poke()
}

// survey reads what the node tells over CQL, and asks nodetool for what it does not.
func (n *Node) survey(ctx context.Context, inst *cassandra.Instance, up bool) (*agentv1.HealthFacts, *agentv1.ClientFacts, *agentv1.Finding) {
	h, c := &agentv1.HealthFacts{}, &agentv1.ClientFacts{}
	if !up || !inst.NativeTransport {
		h.Reason, h.Unprobed = "down", "Cassandra takes no clients"
		h.WorksUnseen, c.Reason, c.Unseen = h.Unprobed, h.Reason, h.Unprobed
		return h, c, nil
	}
	err := n.surveyCQL(ctx, inst, h, c)
	if err != nil {
		e := fault.From(err)
		why := clip(e.Error(), 1000)
		if h.Reason == "" && len(h.Probes) == 0 {
			h.Reason, h.Unprobed = clip(e.Reason, 64), why
		}
		if c.Reason == "" && len(c.Seen) == 0 && c.Encrypted+c.Plaintext == 0 {
			c.Reason, c.Unseen = clip(e.Reason, 64), why
		}
		n.log.Debug("Cassandra was not read over CQL", "error", err)
	}
	if h.WorksUnseen != "" || h.Source == "" {
		n.askNetstats(ctx, h)
	}
	return h, c, loginFinding(err)
}

// surveyCQL fills in what can be read; the first thing that could not is the error.
func (n *Node) surveyCQL(ctx context.Context, inst *cassandra.Instance, h *agentv1.HealthFacts, c *agentv1.ClientFacts) error {
	ctx, cancel := context.WithTimeout(ctx, healthFor)
	defer cancel()
	conn, err := n.openCQL(ctx, inst)
	if err != nil {
		return err
	}
	defer conn.Close()
	var first error
	if seen, err := survey.Clients(ctx, conn, n.freshClients(inst, conn.Leaf, c)); err == nil {
		c.Encrypted, c.Plaintext, c.PlaintextClients, c.Seen, c.Truncated = seen.Encrypted, seen.Plaintext, seen.PlaintextClients, seen.Seen, seen.Truncated
	} else {
		e := fault.From(err)
		c.Reason, c.Unseen = clip(e.Reason, 64), clip(e.Error(), 1000)
		first = err
	}
	if works, err := survey.Works(ctx, conn); err == nil {
		h.Works, h.Source = works, "cql"
	} else {
		h.WorksUnseen = clip(fault.From(err).Error(), 1000)
	}
	ring, err := survey.Ring(ctx, conn, n.o.Instance.CQL.Table)
	if err != nil {
		e := fault.From(err)
		h.Reason, h.Unprobed = clip(e.Reason, 64), clip(e.Error(), 1000)
		return cmp.Or(first, err)
	}
	h.Probes, h.SingleReplica, h.Reason, h.Unprobed = ring.Probes, ring.SingleReplica, ring.Reason, ring.Unprobed
	if ring.Reason == "cql-not-granted" && first == nil {
		first = fault.New(fault.Refused, ring.Reason, "%s", ring.Unprobed)
	}
	return first
}

// askNetstats asks nodetool what is under way, where virtual tables do not tell it.
func (n *Node) askNetstats(ctx context.Context, h *agentv1.HealthFacts) {
	s, ok := n.o.Reloader.(reload.Streamer)
	if !ok {
		h.WorksUnseen = cmp.Or(h.WorksUnseen, "nodetool cannot be run")
		return
	}
	out, err := s.Netstats(ctx)
	var works []*agentv1.Work
	if err == nil {
		works, err = cassandra.ParseNetstats(out)
	}
	if err != nil {
		h.WorksUnseen = clip(fault.From(err).Error(), 1000)
		return
	}
	h.Works, h.WorksUnseen, h.Source = works, "", "nodetool"
}
