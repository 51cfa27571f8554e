package survey

import (
	"bytes"
	"cmp"
	"context"
	"errors"
	"fmt"
	"math"
	"net/netip"
	"slices"
	"strconv"
	"strings"
	"time"

	agentv1 "github.com/cassandra-security-manager/csm/protocol/agent/v1"

	"github.com/cassandra-security-manager/csm/agent/cql"
	"github.com/cassandra-security-manager/csm/shared/fault"
)

// DefaultTable is there in every release, is small, and is replicated as the operator has set system_distributed.
const DefaultTable = "system_distributed.view_build_status"

// probed is how many members one node reads ranges of: in a ring by host id the next three, so that each member is read of by
// exactly three others, without anybody to share the work out.
const probed = 3

// readFor is how long one read of a range may take.
const readFor = 4 * time.Second

const (
	maxMembers  = 5000
	murmur3     = "Murmur3Partitioner"
	maxSingle   = 50
	maxKeyspace = 1000
)

func addressText(b []byte) string {
	a, ok := netip.AddrFromSlice(b)
	if !ok {
		return ""
	}
	return a.Unmap().String()
}

// member is a node as system.local and system.peers_v2 tell of it.
type member struct {
	hostID []byte
	peer   netip.Addr
	port   int
	dc     string
}

// table is what is read: its partition key, and how its keyspace is replicated.
type table struct {
	keyspace, name string
	key            []string
	replication    map[string]string
}

func (t table) String() string { return t.keyspace + "." + t.name }

// holds says whether a member of a data centre can hold a replica: its first range is its own then.
func (t table) holds(dc string) bool {
	class := t.replication["class"]
	switch class[strings.LastIndexByte(class, '.')+1:] {
	case "SimpleStrategy":
		return true
	case "NetworkTopologyStrategy":
		n, _, _ := strings.Cut(t.replication[dc], "/")
		return n != "" && n != "0"
	}
	return false
}

// Ring reads one token of each of the next members' ranges. What it cannot read is in the facts, in words; the error is of the
// connection or of what all the rest stands on.
func Ring(ctx context.Context, r Reader, tableName string) (*agentv1.HealthFacts, error) {
	f := &agentv1.HealthFacts{}
	self, peers, partitioner, err := membersOf(ctx, r)
	if err != nil {
		return nil, err
	}
	keyspaces, _, err := r.Query(ctx, `SELECT keyspace_name, replication FROM system_schema.keyspaces`, cql.One, maxKeyspace)
	if err != nil {
		return nil, unread(err, "system_schema.keyspaces")
	}
	f.SingleReplica = singleReplica(keyspaces)
	if !strings.HasSuffix(partitioner, murmur3) {
		f.Reason, f.Unprobed = "partitioner", fmt.Sprintf("ranges of %.100s are not read", partitioner)
		return f, nil
	}
	t, err := describe(ctx, r, cmp.Or(tableName, DefaultTable), keyspaces)
	if err != nil {
		return nil, err
	}
	for _, m := range next(self, peers) {
		p, err := probe(ctx, r, t, self, m)
		if err != nil {
			return nil, err
		}
		f.Probes = append(f.Probes, p)
	}
	if notGranted(f.Probes) {
		f.Probes = nil
		f.Reason, f.Unprobed = "cql-not-granted", fmt.Sprintf("the role may not read %s: GRANT SELECT ON %s TO it", t, t)
	}
	return f, nil
}

func membersOf(ctx context.Context, r Reader) (self member, peers []member, partitioner string, err error) {
	rows, _, err := r.Query(ctx, `SELECT host_id, data_center, partitioner FROM system.local`, cql.One, 1)
	if err != nil || len(rows) == 0 {
		return self, nil, "", unread(err, "system.local")
	}
	self, partitioner = member{hostID: rows[0].UUID("host_id"), dc: rows[0].Text("data_center")}, rows[0].Text("partitioner")
	rows, _, err = r.Query(ctx, `SELECT peer, peer_port, host_id, data_center FROM system.peers_v2`, cql.One, maxMembers)
	if err != nil {
		return self, nil, "", unread(err, "system.peers_v2")
	}
	for _, x := range rows {
		m := member{hostID: x.UUID("host_id"), peer: x.Address("peer"), port: x.Int("peer_port"), dc: x.Text("data_center")}
		if m.hostID != nil && m.peer.IsValid() {
			peers = append(peers, m)
		}
	}
	return self, peers, partitioner, nil
}

// next are the members behind self in the order of data centre and host id, around the ring. Pure.
func next(self member, peers []member) []member {
	order := func(a, b member) int { return cmp.Or(cmp.Compare(a.dc, b.dc), bytes.Compare(a.hostID, b.hostID)) }
	sorted := slices.SortedFunc(slices.Values(peers), order)
	at, _ := slices.BinarySearchFunc(sorted, self, order)
	out := append(slices.Clone(sorted[at:]), sorted[:at]...)
	return out[:min(len(out), probed)]
}

// singleReplica are keyspaces with one replica in some data centre. Pure.
func singleReplica(rows []cql.Row) (out []string) {
	for _, r := range rows {
		replication := r.Map("replication")
		class := replication["class"]
		if class = class[strings.LastIndexByte(class, '.')+1:]; class != "SimpleStrategy" && class != "NetworkTopologyStrategy" {
			continue
		}
		for k, v := range replication {
			if n, _, _ := strings.Cut(v, "/"); k != "class" && n == "1" {
				out = append(out, clip(r.Text("keyspace_name"), 64))
				break
			}
		}
	}
	slices.Sort(out)
	return out[:min(len(out), maxSingle)]
}

func describe(ctx context.Context, r Reader, name string, keyspaces []cql.Row) (table, error) {
	t := table{}
	t.keyspace, t.name, _ = strings.Cut(name, ".")
	for _, k := range keyspaces {
		if k.Text("keyspace_name") == t.keyspace {
			t.replication = k.Map("replication")
		}
	}
	rows, _, err := r.Query(ctx, fmt.Sprintf(`SELECT column_name, kind, position FROM system_schema.columns WHERE keyspace_name = '%s' AND table_name = '%s'`, t.keyspace, t.name), cql.One, 1000)
	if err != nil {
		return t, unread(err, "system_schema.columns")
	}
	slices.SortFunc(rows, func(a, b cql.Row) int { return cmp.Compare(a.Int("position"), b.Int("position")) })
	for _, x := range rows {
		if x.Text("kind") == "partition_key" {
			t.key = append(t.key, `"`+strings.ReplaceAll(x.Text("column_name"), `"`, `""`)+`"`)
		}
	}
	if len(t.key) == 0 {
		return t, fault.New(fault.Invalid, "cql-no-table", "there is no table %s to read ranges of", t).Do("correct cql.table in agent.yaml")
	}
	return t, nil
}

// probe reads the last token of one range that m owns: the range ends there, so m is its first replica.
func probe(ctx context.Context, r Reader, t table, self, m member) (*agentv1.RangeProbe, error) {
	p := &agentv1.RangeProbe{HostId: m.hostID, Address: m.peer.AsSlice(), Table: t.String()}
	rows, _, err := r.Query(ctx, fmt.Sprintf(`SELECT tokens FROM system.peers_v2 WHERE peer = '%s' AND peer_port = %d`, m.peer, m.port), cql.One, 1)
	if err != nil {
		return nil, unread(err, "system.peers_v2")
	}
	token, ok := int64(0), false
	if len(rows) == 1 {
		token, ok = anyToken(rows[0].Texts("tokens"))
	}
	if !ok || !t.holds(m.dc) {
		return p, nil // it owns nothing, or nothing of this table
	}
	p.Token = token
	for _, level := range levels(self, m) {
		a := &agentv1.ProbeAnswer{Consistency: level.String()}
		err := readOne(ctx, r, t.read(token), level)
		if err != nil && !cql.Answered(err) && (!errors.Is(err, cql.ErrLate) || ctx.Err() != nil) {
			return nil, unread(err, t.String())
		}
		if a.Ok = err == nil; !a.Ok {
			a.Error = clip(err.Error(), 512)
			if errors.Is(err, cql.ErrLate) {
				a.Error = "no answer within " + readFor.String()
			}
			if cql.NotGranted(err) {
				a.Error = notGrantedText
			}
		}
		p.Answers = append(p.Answers, a)
	}
	return p, nil
}

// readOne gives a coordinator less time than it gives its replicas (10 s): a member that has just died makes each read late.
func readOne(ctx context.Context, r Reader, statement string, level cql.Consistency) error {
	ctx, cancel := context.WithTimeout(ctx, readFor)
	defer cancel()
	_, _, err := r.Query(ctx, statement, level, 1)
	return err
}

const notGrantedText = "not granted"

func notGranted(ps []*agentv1.RangeProbe) bool {
	for _, p := range ps {
		for _, a := range p.Answers {
			if a.Error == notGrantedText {
				return true
			}
		}
	}
	return false
}

// levels: a quorum of one's own data centre says nothing of a member of another.
func levels(self, m member) []cql.Consistency {
	if self.dc == m.dc {
		return []cql.Consistency{cql.LocalQuorum, cql.Quorum, cql.All}
	}
	return []cql.Consistency{cql.Quorum, cql.All}
}

// anyToken is the smallest token that has one before it.
func anyToken(tokens []string) (int64, bool) {
	var all []int64
	for _, s := range tokens {
		if n, err := strconv.ParseInt(s, 10, 64); err == nil && n > math.MinInt64 {
			all = append(all, n)
		}
	}
	if len(all) == 0 {
		return 0, false
	}
	return slices.Min(all), true
}

// read is a SELECT of at most one row of one token.
func (t table) read(token int64) string {
	key := strings.Join(t.key, ", ")
	return fmt.Sprintf(`SELECT %s FROM "%s"."%s" WHERE token(%s) > %d AND token(%s) <= %d LIMIT 1`, t.key[0], t.keyspace, t.name, key, token-1, key, token)
}
