package fleet

import (
	"bytes"
	"context"
	"database/sql"
	"encoding/json"
	"strings"
	"time"

	"google.golang.org/protobuf/proto"

	agentv1 "github.com/cassandra-security-manager/csm/protocol/agent/v1"
	clusterv1 "github.com/cassandra-security-manager/csm/protocol/cluster/v1"

	"github.com/cassandra-security-manager/csm/controller/state"
	"github.com/cassandra-security-manager/csm/shared/fault"
	"github.com/cassandra-security-manager/csm/shared/resource"
)

// States of a request to join. An approved one is "joined" once the agent came back for its identity.
const (
	requestPending  = "pending"
	requestApproved = "approved"
	requestDenied   = "denied"
	requestJoined   = "joined"
)

const (
	// maxPending bounds the queue of one cluster.
	maxPending = 500
	// ApprovalTTL is how long an approval waits for its agent, PendingTTL how long a request outlives its agent's last attempt.
	ApprovalTTL = 24 * time.Hour
	PendingTTL  = 7 * 24 * time.Hour
)

// JoinRequest is a join that the rule does not cover: a person decides.
type JoinRequest struct {
	Name         string    `json:"name"`
	Cluster      string    `json:"cluster"`
	Node         string    `json:"node" doc:"full name that the node would get"`
	Method       string    `json:"method"`
	State        string    `json:"state" enum:"pending,approved,denied,joined,expired"`
	Doubts       []string  `json:"doubts" doc:"why the rule does not cover it"`
	Names        Names     `json:"names" doc:"names it asks for"`
	Attested     Names     `json:"attested" doc:"names that the certificate in use carries"`
	Anchor       string    `json:"anchor,omitempty" doc:"external anchor that its certificate chains to; none for a token"`
	Token        string    `json:"token,omitempty" doc:"join token that it came with"`
	Key          string    `json:"keySha256" doc:"new key of the agent (SubjectPublicKeyInfo); csm-agent status shows it"`
	CassandraKey string    `json:"cassandraKeySha256,omitempty" doc:"key that Cassandra uses today (SubjectPublicKeyInfo), where its possession is the evidence"`
	Peer         string    `json:"peer" doc:"address that asked"`
	Ring         string    `json:"ring" doc:"cluster_name of its cassandra.yaml"`
	HostID       string    `json:"hostId,omitempty"`
	Listen       string    `json:"listenAddress,omitempty"`
	Decider      string    `json:"decider,omitempty"`
	Reason       string    `json:"reason,omitempty"`
	Created      time.Time `json:"createTime"`
	Seen         time.Time `json:"seenTime" doc:"last attempt that was recorded"`
	Decided      time.Time `json:"decideTime,omitzero"`
	Revision     uint64    `json:"revision"`
}

// requestRow is a request as Apply decides by it.
type requestRow struct {
	name, method, cluster, node, anchor, token, names, state, decider, reason, doubts string
	cassandraKey                                                                      []byte
	decided, seen                                                                     int64
}

// petition is a join as the queue keeps it, by whatever method. names and attested are columns; id is what a new request is called.
type petition struct {
	method, cluster, node, anchor, token, names, attested, peer, id string
	key, cassandraKey, instance                                     []byte
}

func possessionAsking(c *clusterv1.JoinByPossession) (x petition, err error) {
	x = petition{method: MethodPossession, cluster: c.Cluster, node: c.Cluster + "/nodes/" + c.Node, anchor: c.Anchor, key: c.KeySha256, cassandraKey: c.CassandraKeySha256,
		peer: c.Peer, instance: c.Instance, id: c.Id}
	if x.names, err = namesOf(c.Names).column(); err != nil {
		return x, err
	}
	x.attested, err = namesOf(c.Attested).column()
	return x, err
}

const requestColumns = `SELECT name, method, cluster, node, anchor, token, names, state, decider, reason, doubts, cassandra_key_sha256, decided_ms, seen_ms FROM join_requests`

func scanRequest(r *sql.Row) (x requestRow, ok bool, err error) {
	ok, err = found(r.Scan(&x.name, &x.method, &x.cluster, &x.node, &x.anchor, &x.token, &x.names, &x.state, &x.decider, &x.reason, &x.doubts, &x.cassandraKey, &x.decided, &x.seen))
	return x, ok, err
}

func requestOfKey(ctx context.Context, q state.Querier, key []byte) (requestRow, bool, error) {
	return scanRequest(q.QueryRowContext(ctx, requestColumns+` WHERE key_sha256 = ?`, key))
}

// same says whether the agent asks for what the request says.
func (r requestRow) same(x petition) bool {
	return r.method == x.method && r.cluster == x.cluster && r.node == x.node && r.anchor == x.anchor && r.token == x.token && r.names == x.names && bytes.Equal(r.cassandraKey, x.cassandraKey)
}

// approves says whether a person's word covers exactly this join, and still does.
func (r requestRow) approves(x petition, now time.Time) bool {
	return r.state == requestApproved && r.same(x) && now.UnixMilli() < r.decided+ApprovalTTL.Milliseconds()
}

func (r requestRow) denied() error {
	return fault.New(fault.Refused, "join-denied", "%s denied this join at %s: %s", r.decider, at(r.decided).Format(time.RFC3339), r.reason).
		Do("ask them; to ask anew, remove the agent's state folder, so that it makes a new key")
}

func (r requestRow) pending(why []string) error {
	return fault.New(fault.Unavailable, "approval-pending", "a person must approve this join (request %s): %s", resource.Last(r.name), strings.Join(clipped(why, 4), "; ")).
		Do("`csm request get %s`, then `csm node approve %s`; the agent asks again by itself", resource.Last(r.name), short(r.node))
}

func clipped(all []string, n int) []string {
	if len(all) > n {
		return append(append([]string{}, all[:n]...), "and more")
	}
	return all
}

// stillPending gives the answer to a repeat that would change nothing; nil when a command is worth it. doubts are those of now.
func stillPending(ctx context.Context, q state.Querier, x petition, now time.Time, doubts func() ([]string, error)) (error, error) {
	r, ok, err := requestOfKey(ctx, q, x.key)
	if err != nil || !ok || !r.same(x) {
		return nil, err
	}
	if r.state == requestDenied {
		return r.denied(), nil
	}
	// Once a day the attempt is recorded, so that a request whose agent still asks is not forgotten.
	if r.state != requestPending || now.Sub(at(r.seen)) > 24*time.Hour {
		return nil, nil
	}
	why, err := doubts()
	if err != nil {
		return nil, err
	}
	if encoded, err := json.Marshal(why); err != nil || string(encoded) != r.doubts {
		return nil, err
	}
	return r.pending(why), nil
}

// queue writes the request down for a person. The refusal is part of a reply: the request stays.
func queue(a *state.Apply, x petition, held requestRow, why []string) (*clusterv1.JoinNodeReply, error) {
	encoded, err := json.Marshal(why)
	if err != nil {
		return nil, err
	}
	now := a.Now.UnixMilli()
	r := requestRow{name: held.name, node: x.node}
	if r.name == "" {
		r.name = resource.JoinRequest(resource.Segment(x.cluster, "tenants"), x.id)
		if err := roomFor(a, x.cluster, now); err != nil {
			return nil, err
		}
	}
	if _, err := a.Exec(`INSERT INTO join_requests (name, method, cluster, node, key_sha256, cassandra_key_sha256, anchor, token, names, attested, doubts, peer, instance, state, decider, reason, created_ms, seen_ms, decided_ms, revision)
		VALUES (?,?,?,?,?,?,?,?,?,?,?,?,?,?,'','',?,?,0,?) ON CONFLICT (name) DO UPDATE SET method = excluded.method, cluster = excluded.cluster, node = excluded.node, cassandra_key_sha256 = excluded.cassandra_key_sha256,
		anchor = excluded.anchor, token = excluded.token, names = excluded.names, attested = excluded.attested, doubts = excluded.doubts, peer = excluded.peer, instance = excluded.instance,
		state = excluded.state, decider = '', reason = '', seen_ms = excluded.seen_ms, decided_ms = 0, revision = excluded.revision`,
		r.name, x.method, x.cluster, x.node, x.key, x.cassandraKey, x.anchor, x.token, x.names, x.attested, string(encoded), x.peer, x.instance, requestPending, now, now, a.Index); err != nil {
		return nil, err
	}
	a.Touch(state.Updated, r.name)
	return &clusterv1.JoinNodeReply{Refused: toFault(r.pending(why))}, nil
}

// roomFor forgets what nobody asks for any more and bounds the queue.
func roomFor(a *state.Apply, cluster string, now int64) error {
	if _, err := a.Exec(`DELETE FROM join_requests WHERE name IN (SELECT name FROM join_requests WHERE cluster = ? AND (state = ? AND seen_ms < ? OR state <> ? AND decided_ms < ?) ORDER BY seen_ms, name LIMIT 10)`,
		cluster, requestPending, now-PendingTTL.Milliseconds(), requestPending, now-keep.Milliseconds()); err != nil {
		return err
	}
	var n int
	if err := a.QueryRow(`SELECT count(*) FROM join_requests WHERE cluster = ? AND state = ?`, cluster, requestPending).Scan(&n); err != nil {
		return err
	}
	if n >= maxPending {
		return fault.New(fault.Exhausted, "queue-full", "%d joins of %s wait for a decision", n, short(cluster)).Do("decide them: `csm request list`")
	}
	return nil
}

// closeRequest ends the request of an agent that has joined.
func closeRequest(a *state.Apply, key []byte) error {
	r, ok, err := requestOfKey(a.Context(), a.Querier(), key)
	if err != nil || !ok {
		return err
	}
	a.Touch(state.Updated, r.name)
	_, err = a.Exec(`UPDATE join_requests SET state = ?, revision = ?, decided_ms = CASE WHEN decided_ms = 0 THEN ? ELSE decided_ms END WHERE name = ?`, requestJoined, a.Index, a.Now.UnixMilli(), r.name)
	return err
}

// DecideJoin approves or denies a request. Of two that decide at once the second is told what the first said.
func (f *Fleet) DecideJoin(ctx context.Context, name string, approve bool, reason, actor string) (JoinRequest, error) {
	if !approve && reason == "" {
		return JoinRequest{}, fault.New(fault.Invalid, "no-reason", "say why it is denied").Do("add --reason")
	}
	if _, err := f.propose(ctx, name, actor, reason, &clusterv1.DecideJoinRequest{Name: name, Approve: approve, Reason: reason}); err != nil {
		return JoinRequest{}, err
	}
	return f.GetJoinRequest(ctx, name)
}

func applyDecideJoinRequest(a *state.Apply, c *clusterv1.DecideJoinRequest) (*clusterv1.Empty, error) {
	r, ok, err := scanRequest(a.QueryRow(requestColumns+` WHERE name = ?`, c.Name))
	switch {
	case err != nil:
		return nil, err
	case !ok:
		return nil, noRequest(c.Name)
	case r.state != requestPending:
		e := fault.New(fault.Conflict, "request-decided", "this join was %s by %s at %s", r.state, r.decider, at(r.decided).Format(time.RFC3339))
		if r.decider == "" {
			e = fault.New(fault.Conflict, "request-decided", "this node has joined at %s: the rule covered it meanwhile", at(r.decided).Format(time.RFC3339))
		}
		return nil, e.Do("see `csm request get %s`; to undo an approval, remove the node: `csm node remove %s`", resource.Last(r.name), short(r.node))
	}
	to := requestDenied
	if c.Approve {
		to = requestApproved
	}
	if _, err := a.Exec(`UPDATE join_requests SET state = ?, decider = ?, reason = ?, decided_ms = ?, revision = ? WHERE name = ?`,
		to, a.Envelope.GetActor(), c.Reason, a.Now.UnixMilli(), a.Index, c.Name); err != nil {
		return nil, err
	}
	a.Touch(state.Updated, c.Name)
	return &clusterv1.Empty{}, nil
}

func noRequest(name string) error {
	return fault.New(fault.NotFound, "no-request", "there is no request %.200q", name).Do("see `csm request list`")
}

// GetJoinRequest reads one request.
func (f *Fleet) GetJoinRequest(ctx context.Context, name string) (JoinRequest, error) {
	list, err := f.joinRequests(ctx, `name = ?`, name)
	if err == nil && len(list) == 0 {
		err = noRequest(name)
	}
	if err != nil {
		return JoinRequest{}, err
	}
	return list[0], nil
}

// ListJoinRequests reads the requests of a tenant ("-" for all), by name.
func (f *Fleet) ListJoinRequests(ctx context.Context, tenant string) ([]JoinRequest, error) {
	p := resource.Tenant(tenant) + "/"
	if tenant == "-" {
		p = "tenants/"
	}
	return f.joinRequests(ctx, `substr(name, 1, length(?1)) = ?1`, p)
}

func (f *Fleet) joinRequests(ctx context.Context, where string, args ...any) ([]JoinRequest, error) {
	now := f.clock.Now()
	return view(ctx, f.read, func(ctx context.Context, q state.Querier) ([]JoinRequest, error) {
		return collect(ctx, q, func(r *sql.Rows) (j JoinRequest, err error) {
			var names, attested, why string
			var key, cassandraKey, instance []byte
			var created, seen, decided int64
			if err := r.Scan(&j.Name, &j.Method, &j.Cluster, &j.Node, &key, &cassandraKey, &j.Anchor, &j.Token, &names, &attested, &why, &j.Peer, &instance, &j.State, &j.Decider, &j.Reason, &created, &seen, &decided, &j.Revision); err != nil {
				return j, err
			}
			j.Key, j.CassandraKey = hexOf(key), hexOf(cassandraKey)
			j.Created, j.Seen, j.Decided = at(created), at(seen), at(decided)
			if j.State == requestApproved && !now.Before(j.Decided.Add(ApprovalTTL)) {
				j.State = "expired"
			}
			if j.Names, err = namesFrom(names); err != nil {
				return j, err
			}
			if j.Attested, err = namesFrom(attested); err != nil {
				return j, err
			}
			if err := json.Unmarshal([]byte(why), &j.Doubts); err != nil {
				return j, fault.Wrap(err, fault.Internal, "bad-row", "the doubts of %s cannot be read", j.Name)
			}
			var facts agentv1.InstanceFacts
			if err := proto.Unmarshal(instance, &facts); err != nil {
				return j, fault.Wrap(err, fault.Internal, "bad-row", "facts of %s cannot be read", j.Name)
			}
			j.Ring, j.HostID, j.Listen = facts.ClusterName, facts.HostId, facts.ListenAddress
			return j, nil
		}, `SELECT name, method, cluster, node, key_sha256, cassandra_key_sha256, anchor, token, names, attested, doubts, peer, instance, state, decider, reason, created_ms, seen_ms, decided_ms, revision
			FROM join_requests WHERE `+where+` ORDER BY name LIMIT 1000`, args...)
	})
}
