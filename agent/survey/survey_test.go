package survey_test

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"testing"

	"github.com/cassandra-security-manager/csm/agent/cql"
	"github.com/cassandra-security-manager/csm/agent/cql/cqltest"
	"github.com/cassandra-security-manager/csm/agent/survey"
	agentv1 "github.com/cassandra-security-manager/csm/protocol/agent/v1"
	"github.com/cassandra-security-manager/csm/shared/fault"
)

// canned answers statements by their beginning, and refuses all that is no SELECT.
type canned struct {
	t     *testing.T
	rows  map[string][]cql.Row
	fails map[string]error
	more  bool
	asked []string
}

func (c *canned) Query(_ context.Context, statement string, level cql.Consistency, _ int) ([]cql.Row, bool, error) {
	if !strings.HasPrefix(statement, "SELECT ") {
		c.t.Errorf("this is no SELECT: %s", statement)
	}
	c.asked = append(c.asked, level.String()+" "+statement)
	for part, err := range c.fails {
		if strings.Contains(level.String()+" "+statement, part) {
			return nil, false, err
		}
	}
	best := ""
	for part := range c.rows {
		if strings.Contains(statement, part) && len(part) > len(best) {
			best = part
		}
	}
	return c.rows[best], c.more, nil
}

func uuid(n byte) []byte { return append(make([]byte, 15), n) }

func client(address byte, user, driver, tls string) cql.Row {
	r := cql.Row{"address": {10, 0, 0, address}, "username": []byte(user), "driver_name": []byte(driver), "driver_version": []byte("1.0"), "protocol_version": cqltest.Number(5)}
	if tls != "" {
		r["ssl_enabled"], r["ssl_protocol"] = []byte{1}, []byte(tls)
	} else {
		r["ssl_enabled"] = []byte{0}
	}
	return r
}

func TestConnectionsAreCountedByWhoAndHow(t *testing.T) {
	c := &canned{t: t, rows: map[string][]cql.Row{"system_views.clients": {client(1, "app", "java", "TLSv1.3"), client(1, "app", "java", "TLSv1.3"), client(2, "old", "php", ""),
		client(2, "old", "php", ""), client(9, "csm", cql.DriverName, "TLSv1.3"), {"username": []byte("no address")}}}}
	f, err := survey.Clients(t.Context(), c, nil)
	if err != nil || f.Encrypted != 2 || f.Plaintext != 2 || len(f.Seen) != 2 || f.Seen[0].User != "old" || f.Seen[0].Connections != 2 || f.Seen[1].Tls != "TLSv1.3" || f.Truncated {
		t.Errorf("%v %v", f, err)
	}
	if len(f.PlaintextClients) != 1 || f.PlaintextClients[0].Address != "10.0.0.2" || f.PlaintextClients[0].Driver != "php 1.0" {
		t.Errorf("%v", f.PlaintextClients)
	}
}

func TestConnectionsSinceTheLeafAreToldApart(t *testing.T) {
	var rows []cql.Row
	for i, tls := range []string{"TLSv1.3", "TLSv1.3", ""} {
		r := client(1, "app", "java", tls)
		r["port"] = cqltest.Number(40000 + i)
		rows = append(rows, r)
	}
	rows = append(rows, client(1, "app", "java", "TLSv1.3")) // without a port
	f, err := survey.Clients(t.Context(), &canned{t: t, rows: map[string][]cql.Row{"system_views.clients": rows}}, func(a netip.AddrPort) bool { return a.String() != "10.0.0.1:40000" })
	if err != nil || len(f.Seen) != 2 || f.Seen[0].Fresh != 0 || f.Seen[1].Connections != 3 || f.Seen[1].Fresh != 1 {
		t.Errorf("%v %v", f, err)
	}
}

func TestTooManyClientsAreToldAsTooMany(t *testing.T) {
	var rows []cql.Row
	for i := range 1000 {
		tls := "TLSv1.3"
		if i >= 900 {
			tls = ""
		}
		rows = append(rows, client(byte(i), fmt.Sprint("user", i), strings.Repeat("ü", 200), tls))
	}
	f, err := survey.Clients(t.Context(), &canned{t: t, rows: map[string][]cql.Row{"clients": rows}}, nil)
	if err != nil || len(f.Seen) != 200 || !f.Truncated || f.Plaintext != 100 || len(f.PlaintextClients) != 50 || f.Seen[99].Tls != "" {
		t.Errorf("%d seen, %d plaintext told, truncated %v, %v", len(f.Seen), len(f.PlaintextClients), f.Truncated, err)
	}
	if len(f.Seen[0].Driver) > 128 {
		t.Errorf("a driver's name of %d bytes", len(f.Seen[0].Driver))
	}
	f, _ = survey.Clients(t.Context(), &canned{t: t, rows: map[string][]cql.Row{"clients": rows[:1]}, more: true}, nil)
	if !f.Truncated {
		t.Error("there were more rows")
	}
}

// ringOf is a ring as node self of two data centres sees it.
func ringOf(t *testing.T, self byte, dcs map[byte]string, replication ...string) *canned {
	c := &canned{t: t, fails: map[string]error{}, rows: map[string][]cql.Row{
		"FROM system.local":            {{"host_id": uuid(self), "data_center": []byte(dcs[self]), "partitioner": []byte("org.apache.cassandra.dht.Murmur3Partitioner")}},
		"FROM system_schema.keyspaces": {{"keyspace_name": []byte("system_distributed"), "replication": cqltest.Pairs(replication...)}, {"keyspace_name": []byte("system"), "replication": cqltest.Pairs("class", "org.apache.cassandra.locator.LocalStrategy")}},
		"FROM system_schema.columns": {{"column_name": []byte("view_name"), "kind": []byte("partition_key"), "position": cqltest.Number(1)}, {"column_name": []byte("status"), "kind": []byte("regular")},
			{"column_name": []byte("keyspace_name"), "kind": []byte("partition_key"), "position": cqltest.Number(0)}},
	}}
	for n, dc := range dcs {
		if n != self {
			c.rows["FROM system.peers_v2"] = append(c.rows["FROM system.peers_v2"], cql.Row{"peer": {10, 0, 0, n}, "peer_port": cqltest.Number(7000), "host_id": uuid(n), "data_center": []byte(dc)})
			c.rows[fmt.Sprintf("tokens FROM system.peers_v2 WHERE peer = '10.0.0.%d' AND peer_port = 7000", n)] = []cql.Row{{"tokens": cqltest.Texts(fmt.Sprint(int(n)*1000), "-9223372036854775808", fmt.Sprint(int(n)*2000))}}
		}
	}
	return c
}

var simple = []string{"class", "org.apache.cassandra.locator.SimpleStrategy", "replication_factor", "3"}

func six() map[byte]string {
	return map[byte]string{1: "east", 2: "east", 3: "east", 4: "west", 5: "west", 6: "west"}
}

func TestEachMemberIsReadOfByThreeOthers(t *testing.T) {
	readers := map[byte]int{}
	for self := range six() {
		f, err := survey.Ring(t.Context(), ringOf(t, self, six(), simple...), "")
		if err != nil || len(f.Probes) != 3 {
			t.Fatal(f, err)
		}
		for _, p := range f.Probes {
			readers[p.HostId[15]]++
			if p.HostId[15] == self {
				t.Errorf("%d reads of itself", self)
			}
		}
	}
	for n := range six() {
		if readers[n] != 3 {
			t.Errorf("member %d is read of by %d others", n, readers[n])
		}
	}
}

func TestOneTokenOfTheMembersOwnRangeIsReadAtEachQuorumThatTellsOfIt(t *testing.T) {
	c := ringOf(t, 2, six(), simple...)
	f, err := survey.Ring(t.Context(), c, "")
	if err != nil {
		t.Fatal(err)
	}
	p := f.Probes[0] // 3, of the same data centre
	if p.HostId[15] != 3 || p.Token != 3000 || p.Table != survey.DefaultTable || levelsOf(p) != "LOCAL_QUORUM QUORUM ALL" {
		t.Errorf("%v", p)
	}
	if other := f.Probes[1]; levelsOf(other) != "QUORUM ALL" {
		t.Errorf("a quorum of the own data centre says nothing of %v", other)
	}
	want := `QUORUM SELECT "keyspace_name" FROM "system_distributed"."view_build_status" WHERE token("keyspace_name", "view_name") > 2999 AND token("keyspace_name", "view_name") <= 3000 LIMIT 1`
	if !slices.Contains(c.asked, want) {
		t.Errorf("not asked: %s\nbut %s", want, strings.Join(c.asked, "\n"))
	}
}

func levelsOf(p *agentv1.RangeProbe) string {
	var out []string
	for _, a := range p.Answers {
		out = append(out, a.Consistency)
	}
	return strings.Join(out, " ")
}

func TestWhatARangeAnsweredIsToldAsItCame(t *testing.T) {
	unavailable := &cql.Error{Code: 0x1000, Message: "Cannot achieve consistency level QUORUM"}
	c := ringOf(t, 1, six(), simple...)
	c.fails[`QUORUM SELECT "keyspace_name"`] = unavailable // LOCAL_QUORUM too
	f, err := survey.Ring(t.Context(), c, "")
	if err != nil || f.Probes[0].Answers[0].Ok || !strings.Contains(f.Probes[0].Answers[1].Error, "Cannot achieve") || !f.Probes[0].Answers[2].Ok {
		t.Errorf("%v %v", f, err)
	}
	c.fails = map[string]error{`ALL SELECT`: cql.ErrLate}
	if f, err = survey.Ring(t.Context(), c, ""); err != nil || f.Probes[0].Answers[2].Ok || f.Probes[0].Answers[2].Error == "" {
		t.Errorf("late: %v %v", f, err)
	}
	c.fails = map[string]error{`LIMIT 1`: errors.New("connection reset")}
	if _, err = survey.Ring(t.Context(), c, ""); !fault.HasReason(err, "cql-failed") {
		t.Errorf("a connection that broke: %v", err)
	}
	c.fails = map[string]error{`LIMIT 1`: &cql.Error{Code: 0x2100}}
	if f, err = survey.Ring(t.Context(), c, ""); err != nil || f.Reason != "cql-not-granted" || len(f.Probes) != 0 || !strings.Contains(f.Unprobed, "GRANT SELECT ON "+survey.DefaultTable) {
		t.Errorf("not granted is no failure of the ring: %v %v", f, err)
	}
}

func TestMembersWithoutAReplicaAreNotReadOf(t *testing.T) {
	f, err := survey.Ring(t.Context(), ringOf(t, 1, six(), "class", "org.apache.cassandra.locator.NetworkTopologyStrategy", "east", "3", "west", "0"), "")
	if err != nil {
		t.Fatal(err)
	}
	for _, p := range f.Probes {
		if east := p.HostId[15] <= 3; east != (len(p.Answers) > 0) {
			t.Errorf("%v", p)
		}
	}
	c := ringOf(t, 1, six(), simple...)
	c.rows["FROM system.local"][0]["partitioner"] = []byte("org.apache.cassandra.dht.RandomPartitioner")
	if f, err := survey.Ring(t.Context(), c, ""); err != nil || f.Reason != "partitioner" || len(f.Probes) != 0 {
		t.Errorf("another partitioner: %v %v", f, err)
	}
	c = ringOf(t, 1, map[byte]string{1: "east"}, simple...)
	if f, err := survey.Ring(t.Context(), c, ""); err != nil || len(f.Probes) != 0 || f.Unprobed != "" {
		t.Errorf("a ring of one: %v %v", f, err)
	}
	c.rows["FROM system_schema.columns"] = nil
	if _, err := survey.Ring(t.Context(), c, "ks.none"); !fault.HasReason(err, "cql-no-table") {
		t.Errorf("no such table: %v", err)
	}
}

func TestKeyspacesOfOneReplicaAreNamed(t *testing.T) {
	c := ringOf(t, 1, six(), simple...)
	c.rows["FROM system_schema.keyspaces"] = append(c.rows["FROM system_schema.keyspaces"],
		cql.Row{"keyspace_name": []byte("b"), "replication": cqltest.Pairs("class", "x.NetworkTopologyStrategy", "east", "3", "west", "1")},
		cql.Row{"keyspace_name": []byte("a"), "replication": cqltest.Pairs("class", "x.SimpleStrategy", "replication_factor", "1")},
		cql.Row{"keyspace_name": []byte("c"), "replication": cqltest.Pairs("class", "x.EverywhereStrategy")})
	f, err := survey.Ring(t.Context(), c, "")
	if err != nil || !slices.Equal(f.SingleReplica, []string{"a", "b"}) {
		t.Errorf("%v %v", f.GetSingleReplica(), err)
	}
}

func TestWhatIsUnderWay(t *testing.T) {
	c := &canned{t: t, fails: map[string]error{}, rows: map[string][]cql.Row{
		"streaming": {{"operation": []byte("Bootstrap"), "status": []byte("start"), "peers": cqltest.Texts("/10.0.0.2:7000")}, {"status": []byte("success")}, {"status": []byte("failure")}},
		"repairs":   {{"keyspace_name": []byte("ks"), "status": []byte("repair_start"), "completed": {0}}, {"completed": {1}}}}}
	works, err := survey.Works(t.Context(), c)
	if err != nil || len(works) != 2 || works[0].Kind != "stream" || !strings.Contains(works[0].Detail, "Bootstrap with [/10.0.0.2:7000]: start") || works[1].Kind != "repair" || !strings.Contains(works[1].Detail, "of ks") {
		t.Errorf("%v %v", works, err)
	}
	c.fails["repairs"] = &cql.Error{Code: 0x2200, Message: "unconfigured table"}
	if _, err := survey.Works(t.Context(), c); !fault.HasReason(err, "cql-no-table") {
		t.Errorf("4.0: %v", err)
	}
	c.fails["repairs"] = &cql.Error{Code: 0x2100}
	if _, err := survey.Works(t.Context(), c); !fault.HasReason(err, "cql-not-granted") {
		t.Errorf("not granted: %v", err)
	}
}
