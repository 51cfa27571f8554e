package fleet

import (
	"context"
	"database/sql"
	"strconv"

	"google.golang.org/protobuf/proto"

	agentv1 "github.com/cassandra-security-manager/csm/protocol/agent/v1"

	"github.com/cassandra-security-manager/csm/controller/state"
	"github.com/cassandra-security-manager/csm/shared/fault"
	"github.com/cassandra-security-manager/csm/shared/resource"
)

// GetCluster reads one cluster.
func (f *Fleet) GetCluster(ctx context.Context, name string) (Cluster, error) {
	return view(ctx, f.read, func(ctx context.Context, q state.Querier) (Cluster, error) {
		cs, err := f.clusters(ctx, q, `c.name = ?`, 1, name)
		if err != nil {
			return Cluster{}, err
		}
		if len(cs) == 0 {
			return Cluster{}, noCluster(name)
		}
		return cs[0], nil
	})
}

// ListClusters reads the clusters of a tenant ("-" for all), by name. next is empty at the end.
func (f *Fleet) ListClusters(ctx context.Context, tenant string, p Page) (list []Cluster, next string, err error) {
	list, err = view(ctx, f.read, func(ctx context.Context, q state.Querier) ([]Cluster, error) {
		return f.clusters(ctx, q, `c.name > ? AND (? = '-' OR substr(c.name, 1, length(?)) = ?)`, p.size()+1, p.Token, tenant, resource.Tenant(tenant)+"/", resource.Tenant(tenant)+"/")
	})
	if len(list) > p.size() {
		list = list[:p.size()]
		next = list[len(list)-1].Name
	}
	return list, next, err
}

func (f *Fleet) clusters(ctx context.Context, q state.Querier, where string, limit int, args ...any) ([]Cluster, error) {
	list, err := collect(ctx, q, func(r *sql.Rows) (c Cluster, err error) {
		var created, updated int64
		err = r.Scan(&c.Name, &c.UID, &c.CassandraName, &c.Authority, &c.Region, &c.TrustDomain, &c.BundleVersion, &created, &updated, &c.Revision, &c.Nodes)
		c.CreateTime, c.UpdateTime = at(created), at(updated)
		return c, err
	}, `SELECT c.name, c.uid, c.cassandra_name, c.authority, c.region, c.trust_domain, c.bundle_version, c.created_ms, c.updated_ms, c.revision,
		(SELECT count(*) FROM nodes n WHERE n.cluster = c.name)
		FROM clusters c WHERE `+where+` ORDER BY c.name LIMIT ?`, append(args, limit)...)
	now := f.clock.Now().UnixMilli()
	for i := range list {
		c := &list[i]
		if err != nil {
			break
		}
		if c.Connected, err = f.connected(ctx, q, c.Name); err != nil {
			break
		}
		if c.Frozen, err = frozen(ctx, q, c.Name, now); err != nil {
			break
		}
		if err = c.live(ctx, q); err != nil {
			break
		}
		if c.Conditions, err = conditions(ctx, q, c.Name, c.Frozen, f.clock.Now()); err != nil {
			break
		}
		if c.Moving, err = collect(ctx, q, scanString, `SELECT DISTINCT node FROM moves WHERE cluster = ? AND state = 'open' AND expires_ms > ? ORDER BY node`, c.Name, now); err != nil {
			break
		}
		c.Anchors, err = collect(ctx, q, scanString, `SELECT lower(hex(sha256)) FROM trust_anchors WHERE trust_domain = ? ORDER BY sha256`, c.TrustDomain)
	}
	return list, err
}

// connected counts the nodes of a cluster whose stream is held by a controller that answers.
func (f *Fleet) connected(ctx context.Context, q state.Querier, cluster string) (int, error) {
	type held struct {
		controller string
		streams    int
	}
	all, err := collect(ctx, q, func(r *sql.Rows) (h held, err error) {
		err = r.Scan(&h.controller, &h.streams)
		return h, err
	}, `SELECT g.controller, count(*) FROM nodes n JOIN agents g ON g.uid = n.uid AND g.incarnation = n.incarnation
		WHERE n.cluster = ? AND g.connected = 1 GROUP BY g.controller`, cluster)
	sum := 0
	for _, h := range all {
		if f.holds(h.controller) {
			sum += h.streams
		}
	}
	return sum, err
}

// GetNode reads one node with its stores, its open claim and why it is as it is.
func (f *Fleet) GetNode(ctx context.Context, name string) (Node, error) {
	return view(ctx, f.read, func(ctx context.Context, q state.Querier) (Node, error) {
		ns, err := f.nodes(ctx, q, `n.name = ?`, 1, name)
		if err != nil {
			return Node{}, err
		}
		if len(ns) == 0 {
			return Node{}, noNode(name)
		}
		return ns[0], nil
	})
}

// ListNodes reads the nodes of a cluster, by name; of all clusters of a tenant when cluster ends in "/-" as AIP-159 has it.
func (f *Fleet) ListNodes(ctx context.Context, cluster string, p Page) (list []Node, next string, err error) {
	where, arg := `n.cluster = ?`, cluster
	if resource.Last(cluster) == "-" {
		arg = resource.Parent(cluster) + "/"
		where = `substr(n.name, 1, length(?1)) = ?1`
		if resource.Segment(cluster, "tenants") == "-" {
			arg = "tenants/"
		}
	}
	list, err = view(ctx, f.read, func(ctx context.Context, q state.Querier) ([]Node, error) {
		return f.nodes(ctx, q, where+` AND n.name > ?2`, p.size()+1, arg, p.Token)
	})
	if len(list) > p.size() {
		list = list[:p.size()]
		next = list[len(list)-1].Name
	}
	return list, next, err
}

func (f *Fleet) nodes(ctx context.Context, q state.Querier, where string, limit int, args ...any) ([]Node, error) {
	list, err := collect(ctx, q, scanNodeView, `SELECT n.name, n.cluster, n.uid, n.incarnation, n.names, n.instance, n.created_ms, n.updated_ms, n.revision,
		coalesce(g.state, 'pending'), coalesce(g.reason, ''), g.facts, coalesce(g.connected, 0), coalesce(g.controller, ''), coalesce(g.transition_ms, 0), coalesce(g.joined_ms, 0)
		FROM nodes n LEFT JOIN agents g ON g.uid = n.uid AND g.incarnation = n.incarnation WHERE `+where+` ORDER BY n.name LIMIT `+strconv.Itoa(limit), args...)
	if err != nil {
		return nil, err
	}
	for i := range list {
		if err := f.complete(ctx, q, &list[i]); err != nil {
			return nil, err
		}
	}
	return list, nil
}

func scanNodeView(r *sql.Rows) (n Node, err error) {
	var names string
	var instance, agent []byte
	var created, updated, transition, joined int64
	if err := r.Scan(&n.Name, &n.Cluster, &n.UID, &n.Incarnation, &names, &instance, &created, &updated, &n.Revision,
		&n.State, &n.StateReason, &agent, &n.Agent.Connected, &n.Agent.Controller, &transition, &joined); err != nil {
		return n, err
	}
	n.CreateTime, n.UpdateTime, n.Agent.Transition, n.Agent.Joined = at(created), at(updated), at(transition), at(joined)
	if n.Names, err = namesFrom(names); err != nil {
		return n, err
	}
	var a agentv1.AgentFacts
	var c agentv1.InstanceFacts
	if err := proto.Unmarshal(agent, &a); err != nil {
		return n, fault.Wrap(err, fault.Internal, "bad-row", "facts of %s cannot be read", n.Name)
	}
	if err := proto.Unmarshal(instance, &c); err != nil {
		return n, fault.Wrap(err, fault.Internal, "bad-row", "facts of %s cannot be read", n.Name)
	}
	n.Agent.Version, n.Agent.Protocol, n.Agent.OS, n.Agent.Arch, n.Agent.Mode, n.Agent.Hold = a.Version, a.Protocol, a.Os, a.Arch, modeName(a.Mode), a.Hold
	n.Instance = Instance{ClusterName: c.ClusterName, HostID: c.HostId, ConfigPath: c.ConfigPath, ListenAddress: c.ListenAddress, BroadcastAddress: c.BroadcastAddress,
		RPCAddress: c.RpcAddress, StoragePort: c.StoragePort, NativePort: c.NativePort, Datacenter: c.Datacenter, Rack: c.Rack, Version: c.CassandraVersion, Running: c.Running}
	n.Links, n.Instance.Reload = linksOf(n.Name, c.Links), reloadOf(&c)
	for _, x := range c.Findings {
		n.Instance.Findings = append(n.Instance.Findings, Finding{Code: x.Code, Severity: x.Severity, Message: x.Message, Remedy: x.Remedy})
	}
	return n, nil
}

// complete adds what stands in other tables, and the sentence that explains it.
func (f *Fleet) complete(ctx context.Context, q state.Querier, n *Node) (err error) {
	now := f.clock.Now()
	if n.Agent.Connected && !f.holds(n.Agent.Controller) {
		n.Agent.Connected, n.Agent.orphaned = false, true
	}
	if n.Stores, err = storeViews(ctx, q, n.Name); err != nil {
		return err
	}
	if n.Links != nil {
		if n.Links.Wish, err = linkWish(ctx, q, n.Name, n.Incarnation); err != nil {
			return err
		}
	}
	if n.Frozen, err = frozen(ctx, q, n.Name, now.UnixMilli()); err != nil {
		return err
	}
	if n.Conditions, err = conditions(ctx, q, n.Name, n.Frozen, now); err != nil {
		return err
	}
	if n.Generation, err = targetGeneration(ctx, q, n.Name); err != nil {
		return err
	}
	newest, err := f.moves(ctx, q, `m.claim = (SELECT claim FROM moves WHERE node = ? ORDER BY opened DESC LIMIT 1) AND (m.state = 'open' OR m.outcome = ?)`, n.Name, int(agentv1.MoveOutcome_MOVE_OUTCOME_REFUSED))
	if err != nil {
		return err
	}
	if len(newest) > 0 {
		if m := &newest[0]; m.State == moveOpen && m.Expires.After(now) {
			n.Claim = m
		} else {
			n.last = m
		}
	}
	b, err := blocker(ctx, q, n.Name, n.Cluster, now.UnixMilli())
	if err != nil {
		return err
	}
	n.Why = why(*n, b, now)
	return nil
}

func storeViews(ctx context.Context, q state.Querier, node string) ([]Store, error) {
	return collect(ctx, q, func(r *sql.Rows) (s Store, err error) {
		var st agentv1.InstallState
		var ks, ts, wanted, leaf, proven, facts []byte
		var notAfter, renewAt int64
		if err := r.Scan(&s.Name, &s.Generation, &s.Installed, &s.Reason, &st, &ks, &ts, &wanted, &leaf, &proven, &notAfter, &renewAt, &s.Unproved, &facts); err != nil {
			return s, err
		}
		s.State, s.KeystoreHash, s.TruststoreHash, s.Wanted, s.Leaf, s.Proven = stateName(st), hexOf(ks), hexOf(ts), hexOf(wanted), hexOf(leaf), hexOf(proven)
		s.NotAfter, s.RenewAt = at(notAfter), at(renewAt)
		var x agentv1.StoreFacts
		if err := proto.Unmarshal(facts, &x); err != nil {
			return s, fault.Wrap(err, fault.Internal, "bad-row", "facts of %s cannot be read", s.Name)
		}
		s.Format, s.KeystorePath, s.TruststorePath, s.Detail = formatName(x.Format), x.KeystorePath, x.TruststorePath, x.Detail
		for _, p := range x.Ports {
			s.Ports = append(s.Ports, Port{Kind: portName(p.Kind), Address: p.Address, Port: p.Port})
		}
		return s, nil
	}, `SELECT name, generation, installed, reason, state, keystore_sha256, truststore_sha256, wanted_sha256, leaf_sha256, proven_sha256, not_after_ms, renew_at_ms, unproved, facts
		FROM stores WHERE node = ? ORDER BY store`, node)
}

// ListMoves reads the newest moves of a node or of a whole cluster, with their proofs. before is the name of the
// claim after which to go on, empty at first.
func (f *Fleet) ListMoves(ctx context.Context, parent string, p Page) (list []Move, next string, err error) {
	column := "m.cluster"
	if resource.Segment(parent, "nodes") != "" {
		column = "m.node"
	}
	list, err = view(ctx, f.read, func(ctx context.Context, q state.Querier) ([]Move, error) {
		return f.moves(ctx, q, column+` = ? AND (? = '' OR m.opened < (SELECT opened FROM moves WHERE claim = ?)) ORDER BY m.opened DESC LIMIT ?`, parent, p.Token, p.Token, p.size()+1)
	})
	if len(list) > p.size() {
		list = list[:p.size()]
		next = list[len(list)-1].Claim
	}
	return list, next, err
}

// GetMove reads one move by its claim.
func (f *Fleet) GetMove(ctx context.Context, claim string) (Move, error) {
	return view(ctx, f.read, func(ctx context.Context, q state.Querier) (Move, error) {
		ms, err := f.moves(ctx, q, `m.claim = ?`, claim)
		if err == nil && len(ms) == 0 {
			err = fault.New(fault.NotFound, "no-move", "there is no move %.64q", claim)
		}
		if err != nil {
			return Move{}, err
		}
		return ms[0], nil
	})
}

func (f *Fleet) moves(ctx context.Context, q state.Querier, rest string, args ...any) ([]Move, error) {
	now := f.clock.Now().UnixMilli()
	list, err := collect(ctx, q, func(r *sql.Rows) (m Move, err error) {
		var kind agentv1.MoveKind
		var outcome agentv1.MoveOutcome
		var opened, expires, closed, took int64
		var issued, before, after []byte
		if err := r.Scan(&m.Claim, &m.Node, &m.Incarnation, &m.Store, &kind, &m.Generation, &m.State, &outcome, &issued, &before, &after, &m.Detail, &took, &opened, &expires, &closed); err != nil {
			return m, err
		}
		m.Kind, m.Outcome, m.Before, m.After, m.Seconds = kindName(kind), outcomeName(outcome), hexOf(before), hexOf(after), float64(took)/1000
		m.Opened, m.Expires, m.Closed = at(opened), at(expires), at(closed)
		if m.State == moveOpen && expires <= now {
			m.State = moveLapsed
		}
		if len(issued) > 0 {
			m.Certificate = resource.Certificate(resource.Segment(m.Node, "tenants"), hexOf(issued))
		}
		return m, nil
	}, `SELECT m.claim, m.node, m.incarnation, m.store, m.kind, m.generation, m.state, m.outcome, m.issued_sha256, m.before_sha256, m.after_sha256, m.detail, m.took_ms, m.opened_ms, m.expires_ms, m.closed_ms
		FROM moves m WHERE `+rest, args...)
	for i := range list {
		if err != nil {
			break
		}
		list[i].Proofs, err = proofViews(ctx, q, list[i].Claim)
	}
	return list, err
}

func proofViews(ctx context.Context, q state.Querier, claim string) ([]Proof, error) {
	return collect(ctx, q, func(r *sql.Rows) (p Proof, err error) {
		var kind agentv1.PortKind
		var verdict agentv1.Verdict
		var leaf, served, anchor []byte
		var asked, deadline, ms int64
		err = r.Scan(&p.Task, &p.Prober, &kind, &p.Port.Address, &p.Port.Port, &verdict, &leaf, &served, &p.Millis, &p.Detail, &asked, &deadline, &ms, &p.Authority, &p.Asked, &anchor)
		p.Port.Kind, p.Verdict, p.Expected, p.Served = portName(kind), verdictName(verdict), hexOf(leaf), hexOf(served)
		p.Begun, p.Deadline, p.Time, p.Anchor = at(asked), at(deadline), at(ms), hexOf(anchor)
		return p, err
	}, `SELECT task, prober, kind, address, port, verdict, leaf_sha256, served_sha256, took_ms, detail, asked_ms, deadline_ms, time_ms, authority, asks, anchor_sha256 FROM proof_tasks WHERE claim = ? ORDER BY asked, task`, claim)
}

// Alarms reads the newest alarms, at most limit.
func (f *Fleet) Alarms(ctx context.Context, limit int) ([]Alarm, error) {
	return view(ctx, f.read, func(ctx context.Context, q state.Querier) ([]Alarm, error) {
		return collect(ctx, q, func(r *sql.Rows) (a Alarm, err error) {
			var ms int64
			err = r.Scan(&a.Revision, &a.Kind, &a.Resource, &a.Message, &ms)
			a.Time = at(ms)
			return a, err
		}, `SELECT idx, kind, resource, message, time_ms FROM fleet_alarms ORDER BY idx DESC LIMIT ?`, limit)
	})
}
