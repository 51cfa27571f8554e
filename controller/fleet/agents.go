package fleet

import (
	"bytes"
	"context"
	"database/sql"
	"fmt"

	"google.golang.org/protobuf/proto"

	agentv1 "github.com/cassandra-security-manager/csm/protocol/agent/v1"
	clusterv1 "github.com/cassandra-security-manager/csm/protocol/cluster/v1"

	"github.com/cassandra-security-manager/csm/controller/state"
	"github.com/cassandra-security-manager/csm/shared/fault"
	"github.com/cassandra-security-manager/csm/shared/resource"
)

// Caller is an agent by its identity, as the state at hand knows it.
type Caller struct {
	UID         string
	Incarnation uint64
	Node        string
	Cluster     string
	State       string
	Reason      string
}

// Allowed refuses an agent that may cause nothing: suspended, revoked or replaced.
func (c Caller) Allowed() error {
	switch c.State {
	case Active:
		return nil
	case Suspended:
		return fault.New(fault.Refused, "agent-suspended", "the agent of %s is suspended: %s", short(c.Node), c.Reason).
			Do("files stay as they are; look into it, then `csm node resume %s`; a host that was replaced joins anew: `csm cluster join-command %s --rejoin`", short(c.Node), short(c.Node))
	}
	return fault.New(fault.Refused, "agent-revoked", "the identity of the agent of %s is revoked: %s", short(c.Node), c.Reason).
		Do("let the host join again: `csm cluster join-command %s --rejoin`", short(c.Node))
}

// Caller finds the agent of an identity. An unknown one is Unauthenticated: it may be of an older or a newer state.
func (f *Fleet) Caller(ctx context.Context, uid string, incarnation uint64) (Caller, error) {
	return view(ctx, f.read, func(ctx context.Context, q state.Querier) (Caller, error) { return caller(ctx, q, uid, incarnation) })
}

func caller(ctx context.Context, q state.Querier, uid string, incarnation uint64) (Caller, error) {
	c := Caller{UID: uid, Incarnation: incarnation}
	ok, err := found(q.QueryRowContext(ctx, `SELECT node, state, reason FROM agents WHERE uid = ? AND incarnation = ?`, uid, incarnation).Scan(&c.Node, &c.State, &c.Reason))
	if err != nil {
		return c, err
	}
	if !ok {
		return c, fault.New(fault.Unauthenticated, "agent-unknown", "no agent %s/%d has joined here", uid, incarnation).Do("join again with a new token")
	}
	c.Cluster = resource.Parent(c.Node)
	return c, nil
}

// Report is what an agent says of itself, its Cassandra and its stores.
type Report struct {
	UID         string
	Incarnation uint64
	Agent       *agentv1.AgentFacts
	Instance    *agentv1.InstanceFacts
	Stores      []*agentv1.StoreFacts
}

// Encode gives the command's form of a report; equal reports have equal bytes, so a caller can keep quiet about
// what has not changed.
func (r Report) Encode() (*clusterv1.AgentReported, error) {
	agent, instance, err := encodeFacts(r.Agent, r.Instance)
	if err != nil {
		return nil, err
	}
	c := &clusterv1.AgentReported{Uid: r.UID, Incarnation: r.Incarnation, Agent: agent, Instance: instance}
	if err := takeRing(c, r.Instance); err != nil {
		return nil, err
	}
	if err := takeHealth(c, r.Instance); err != nil {
		return nil, err
	}
	for _, s := range r.Stores {
		b, err := proto.Marshal(s)
		if err != nil {
			return nil, fault.Wrap(err, fault.Invalid, "bad-facts", "a store's facts cannot be encoded")
		}
		c.Stores = append(c.Stores, b)
	}
	if n := proto.Size(c); n > 120<<10 {
		return nil, fault.New(fault.Invalid, "facts-too-large", "the report has %d bytes, there is room for %d", n, 120<<10)
	}
	return c, nil
}

// Connected records that this controller holds the agent's stream. The fault agent-suspended says that the agent may
// cause nothing, which may have been found out just now (a copied state folder).
func (f *Fleet) Connected(ctx context.Context, report *clusterv1.AgentReported, controller, stream string) error {
	return f.tell(ctx, report, func(c *clusterv1.AgentReported) proto.Message {
		return &clusterv1.AgentConnected{Report: c, Controller: controller, Stream: stream}
	})
}

// Reported records facts that changed.
func (f *Fleet) Reported(ctx context.Context, report *clusterv1.AgentReported) error {
	return f.tell(ctx, report, func(c *clusterv1.AgentReported) proto.Message { return c })
}

// tell proposes a report without the view of the ring if that is known; with it when it turns out not to be.
func (f *Fleet) tell(ctx context.Context, report *clusterv1.AgentReported, command func(*clusterv1.AgentReported) proto.Message) error {
	short, err := f.withoutKnownRing(ctx, report)
	if err != nil {
		return err
	}
	actor := agentActor(report.Uid, report.Incarnation)
	r, err := reply[*clusterv1.AgentReportedReply](f.propose(ctx, "", actor, "", command(short)))
	if err == nil && r.RingWanted {
		r, err = reply[*clusterv1.AgentReportedReply](f.propose(ctx, "", actor, "", command(report)))
	}
	return suspended(r, err)
}

func suspended(r *clusterv1.AgentReportedReply, err error) error {
	if err == nil && r.Suspended {
		return Caller{Node: r.Node, State: Suspended, Reason: r.Reason}.Allowed()
	}
	return err
}

// Disconnected records that a stream ended.
func (f *Fleet) Disconnected(ctx context.Context, uid string, incarnation uint64, stream string) error {
	_, err := f.propose(ctx, "", agentActor(uid, incarnation), "", &clusterv1.AgentDisconnected{Uid: uid, Incarnation: incarnation, Stream: stream})
	return err
}

// Link is a stream that the state believes to be open.
type Link struct {
	Node, UID, Stream string
	Incarnation       uint64
}

// LinksOf are the streams that the state believes a controller to hold.
func (f *Fleet) LinksOf(ctx context.Context, controller string) ([]Link, error) {
	return view(ctx, f.read, func(ctx context.Context, q state.Querier) ([]Link, error) {
		return collect(ctx, q, func(r *sql.Rows) (l Link, err error) { return l, r.Scan(&l.Node, &l.UID, &l.Stream, &l.Incarnation) },
			`SELECT node, uid, stream, incarnation FROM agents WHERE connected = 1 AND controller = ? ORDER BY node`, controller)
	})
}

func agentActor(uid string, incarnation uint64) string {
	return fmt.Sprintf("agent/%s/%d", uid, incarnation)
}

// Suspend stops an agent until Resume; its streams are closed at once.
func (f *Fleet) Suspend(ctx context.Context, node, reason, actor string) error {
	return f.setState(ctx, node, Suspended, reason, actor)
}

// Resume lets a suspended agent act again.
func (f *Fleet) Resume(ctx context.Context, node, reason, actor string) error {
	return f.setState(ctx, node, Active, reason, actor)
}

// ResumeMachine lets a suspended agent act again on one of the machines that came with its identity, named by the beginning
// of its hash in hex; the other is refused from then on.
func (f *Fleet) ResumeMachine(ctx context.Context, node, keep, reason, actor string) error {
	_, err := f.propose(ctx, node, actor, reason, &clusterv1.SetAgentState{Node: node, State: Active, Reason: reason, Keep: keep})
	return err
}

// Revoke ends an agent's identity for good; the host may only join again. The certificates of the node stay valid.
func (f *Fleet) Revoke(ctx context.Context, node, reason, actor string) error {
	return f.setState(ctx, node, Revoked, reason, actor)
}

func (f *Fleet) setState(ctx context.Context, node, to, reason, actor string) error {
	if reason == "" && to != Active {
		return fault.NoReason()
	}
	_, err := f.propose(ctx, node, actor, reason, &clusterv1.SetAgentState{Node: node, State: to, Reason: reason})
	return err
}

func applySetAgentState(a *state.Apply, c *clusterv1.SetAgentState) (*clusterv1.Empty, error) {
	if c.State != Active && c.State != Suspended && c.State != Revoked {
		return nil, fault.New(fault.Invalid, "bad-state", "an agent cannot be %.32q", c.State)
	}
	n, err := readNode(a, c.Node)
	if err != nil {
		return nil, err
	}
	if n.incarnation == 0 {
		return nil, fault.New(fault.NotFound, "no-agent", "no agent has joined for %s", short(c.Node)).Do("revoke its join token instead")
	}
	if n.agent.state == Revoked && c.State != Revoked {
		return nil, fault.New(fault.Refused, "agent-revoked", "the agent of %s is revoked: that is final", short(c.Node)).Do("let the host join again: `csm cluster join-command %s --rejoin`", short(c.Node))
	}
	if n.agent.state == c.State && c.Keep == "" {
		return &clusterv1.Empty{}, nil
	}
	if err := setAgent(a, n, c.State, c.Reason); err != nil || c.State != Active {
		return &clusterv1.Empty{}, err
	}
	if c.Keep != "" {
		return &clusterv1.Empty{}, pin(a, n, c.Keep)
	}
	_, err = a.Exec(`DELETE FROM agent_copies WHERE uid = ? AND incarnation = ?`, n.uid, n.incarnation)
	return &clusterv1.Empty{}, err
}

func setAgent(a *state.Apply, n nodeRow, to, reason string) error {
	if to == Active {
		reason = ""
	}
	// A resumed agent begins with a clean sheet: the copy, if there was one, is noticed again.
	if _, err := a.Exec(`UPDATE agents SET state = ?, reason = ?, connected = 0, machine = CASE WHEN ? THEN NULL ELSE machine END, counter = CASE WHEN ? THEN 0 ELSE counter END
		WHERE uid = ? AND incarnation = ?`, to, reason, to == Active, to == Active, n.uid, n.incarnation); err != nil {
		return err
	}
	if _, err := a.Exec(`UPDATE nodes SET updated_ms = ?, revision = ? WHERE name = ?`, a.Now.UnixMilli(), a.Index, n.name); err != nil {
		return err
	}
	if to == Revoked {
		// Nobody is left to report: the claim ends, and whoever waits for this node waits no longer.
		if _, err := a.Exec(`UPDATE moves SET state = ?, closed_ms = ?, detail = 'the agent was revoked' WHERE node = ? AND state = ?`,
			moveLapsed, a.Now.UnixMilli(), n.name, moveOpen); err != nil {
			return err
		}
	}
	a.Touch(state.Updated, n.name)
	a.Touch(state.Signalled, agentSignal(n.uid))
	signalWave(a, n.cluster)
	if to == Revoked {
		return dropRemoval(a, n.name)
	}
	return nil
}

func applyAgentConnected(a *state.Apply, c *clusterv1.AgentConnected) (*clusterv1.AgentReportedReply, error) {
	r, n, err := report(a, c.GetReport(), true)
	if err != nil || r.Suspended {
		return r, err
	}
	if _, err = a.Exec(`UPDATE agents SET connected = 1, controller = ?, stream = ?, transition_ms = ? WHERE uid = ? AND incarnation = ?`,
		c.Controller, c.Stream, a.Now.UnixMilli(), n.uid, n.incarnation); err != nil || !n.ringMoved {
		return r, err
	}
	return r, proposeRemovals(a, n.cluster, n.name)
}

func applyAgentReported(a *state.Apply, c *clusterv1.AgentReported) (*clusterv1.AgentReportedReply, error) {
	r, n, err := report(a, c, false)
	if err != nil || !n.ringMoved {
		return r, err
	}
	return r, proposeRemovals(a, n.cluster, n.name)
}

func applyAgentDisconnected(a *state.Apply, c *clusterv1.AgentDisconnected) (*clusterv1.Empty, error) {
	var node string
	ok, err := found(a.QueryRow(`SELECT node FROM agents WHERE uid = ? AND incarnation = ? AND stream = ? AND connected = 1`, c.Uid, c.Incarnation, c.Stream).Scan(&node))
	if err != nil || !ok {
		return &clusterv1.Empty{}, err
	}
	if _, err := a.Exec(`UPDATE agents SET connected = 0, transition_ms = ? WHERE uid = ? AND incarnation = ?`, a.Now.UnixMilli(), c.Uid, c.Incarnation); err != nil {
		return nil, err
	}
	a.Touch(state.Updated, node)
	return &clusterv1.Empty{}, nil
}

// report writes down what an agent says, unless it shows that two use one identity. What begins a stream is taken as it is.
func report(a *state.Apply, c *clusterv1.AgentReported, begins bool) (*clusterv1.AgentReportedReply, nodeRow, error) {
	n, err := nodeOfAgent(a, c.GetUid(), c.GetIncarnation())
	if err != nil {
		return nil, n, err
	}
	if n.agent.state == Suspended {
		return &clusterv1.AgentReportedReply{Node: n.name, Suspended: true, Reason: n.agent.reason}, n, nil
	}
	var agent agentv1.AgentFacts
	var instance agentv1.InstanceFacts
	if err := proto.Unmarshal(c.Agent, &agent); err != nil {
		return nil, n, fault.Wrap(err, fault.Invalid, "bad-facts", "the agent's facts cannot be read")
	}
	if err := proto.Unmarshal(c.Instance, &instance); err != nil {
		return nil, n, fault.Wrap(err, fault.Invalid, "bad-facts", "the instance's facts cannot be read")
	}
	if err := theCopy(a, n, &agent); err != nil {
		return nil, n, err
	}
	if why := copied(n.agent, &agent); why != "" {
		if err := noteCopies(a, n, &agent, &instance); err != nil {
			return nil, n, err
		}
		if err := setAgent(a, n, Suspended, why); err != nil {
			return nil, n, err
		}
		return &clusterv1.AgentReportedReply{Node: n.name, Suspended: true, Reason: why}, n, alarm(a, "copied-state", n.name, why)
	}
	if _, err := a.Exec(`UPDATE agents SET mode = ?, hold = ?, machine = ?, counter = ?, facts = ? WHERE uid = ? AND incarnation = ?`,
		int(agent.Mode), agent.Hold, agent.Machine, agent.GenerationCounter, c.Agent, n.uid, n.incarnation); err != nil {
		return nil, n, err
	}
	if _, err := a.Exec(`UPDATE nodes SET instance = ?, running = ?, updated_ms = ?, revision = ? WHERE name = ?`,
		c.Instance, flag(instance.Running), a.Now.UnixMilli(), a.Index, n.name); err != nil {
		return nil, n, err
	}
	if err := reportStores(a, n, c.Stores, begins); err != nil {
		return nil, n, err
	}
	var wanted bool
	wanted, n.ringMoved, err = reportRing(a, n, c, instance.HostId)
	if err != nil {
		return nil, n, err
	}
	if err := reportHealth(a, n, c); err != nil {
		return nil, n, err
	}
	if err := reportClients(a, n, c); err != nil {
		return nil, n, err
	}
	a.Touch(state.Updated, n.name)
	return &clusterv1.AgentReportedReply{Node: n.name, RingWanted: wanted}, n, nil
}

// copied says why two hosts or two processes seem to use one state folder, or nothing.
func copied(known agentRow, says *agentv1.AgentFacts) string {
	switch {
	case len(known.machine) > 0 && len(says.Machine) > 0 && !bytes.Equal(known.machine, says.Machine):
		return "copied-state: the same identity came from another machine"
	case says.GenerationCounter < known.counter:
		return fmt.Sprintf("copied-state: the agent's start counter went back from %d to %d", known.counter, says.GenerationCounter)
	}
	return ""
}

// AgentIdentity is the agent of a node whose identity was not revoked.
type AgentIdentity struct {
	Node, UID   string
	Incarnation uint64
	Connected   bool
}

// Agents lists the agents of all nodes, in the order of their nodes' names: those that may act, and suspended ones.
func Agents(ctx context.Context, q state.Querier) ([]AgentIdentity, error) {
	return collect(ctx, q, func(r *sql.Rows) (x AgentIdentity, err error) {
		return x, r.Scan(&x.Node, &x.UID, &x.Incarnation, &x.Connected)
	}, `SELECT n.name, n.uid, n.incarnation, g.connected FROM nodes n JOIN agents g ON g.uid = n.uid AND g.incarnation = n.incarnation WHERE g.state <> ? ORDER BY n.name`, Revoked)
}
