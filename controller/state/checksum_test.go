package state_test

import (
	"context"
	"errors"
	"testing"
	"time"

	"github.com/hashicorp/raft"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/wrapperspb"
	"pgregory.net/rapid"

	clusterv1 "github.com/cassandra-security-manager/csm/protocol/cluster/v1"
	"github.com/cassandra-security-manager/csm/shared/fault"
)

// commands draws what a cluster might see: good, refused, repeated, late, failing and rubbish entries.
func commands(t *rapid.T, m *machine) []*raft.Log {
	var logs []*raft.Log
	for range rapid.IntRange(1, 100).Draw(t, "entries") {
		m.now = m.now.Add(rapid.SampledFrom([]time.Duration{0, time.Millisecond, time.Second, 70 * time.Second, -2 * time.Second}).Draw(t, "pause"))
		id := rapid.SampledFrom([]string{"", "", "", "x", "y"}).Draw(t, "id")
		name := rapid.SampledFrom([]string{"a", "b", "c", "d", "forbidden"}).Draw(t, "name")
		c := rapid.SampledFrom([]proto.Message{wrapperspb.String(name), wrapperspb.Bytes([]byte(name)), wrapperspb.Int64(2),
			wrapperspb.Bool(false), &clusterv1.Marker{}, &clusterv1.TermStart{Term: 1}, nil}).Draw(t, "command")
		m.index += uint64(rapid.IntRange(0, 2).Draw(t, "gap"))
		if c == nil {
			m.index++
			kind := rapid.SampledFrom([]raft.LogType{raft.LogConfiguration, raft.LogCommand}).Draw(t, "kind")
			logs = append(logs, &raft.Log{Index: m.index, Term: 1, Type: kind, Data: []byte("rubbish")})
			continue
		}
		logs = append(logs, m.entry(proposal(c, id)))
	}
	return logs
}

func TestTheSameLogGivesTheSameStateHoweverItIsCut(t *testing.T) {
	rapid.Check(t, func(r *rapid.T) {
		one, two := open(t, t.TempDir()), open(t, t.TempDir())
		defer one.Close()
		defer two.Close()
		logs := commands(r, one)
		for _, l := range logs {
			one.Apply(l)
		}
		for rest := logs; len(rest) > 0; {
			n := rapid.IntRange(1, len(rest)).Draw(r, "batch")
			if got := two.ApplyBatch(rest[:n]); len(got) != n {
				r.Fatalf("%d answers to %d entries", len(got), n)
			}
			if rapid.Bool().Draw(r, "again") {
				two.ApplyBatch(rest[:n]) // as after a restart
			}
			rest = rest[n:]
		}
		if one.fatal != nil || two.fatal != nil {
			r.Fatal(one.fatal, two.fatal)
		}
		one.now = one.Now()
		var a, b [32]byte
		var n, k int64
		busy := fault.New(fault.Exhausted, "", "not yet asked")
		for err, err2 := error(busy), error(nil); fault.Is(err, fault.Exhausted) || fault.Is(err2, fault.Exhausted); {
			marker := one.entry(proposal(&clusterv1.Marker{}, "")) // those drawn above may still be computed
			one.Apply(marker)
			two.Apply(marker)
			a, n, err = one.Checksum(context.Background(), marker.Index)
			b, k, err2 = two.Checksum(context.Background(), marker.Index)
			if err := errors.Join(err, err2); err != nil && !fault.Is(err, fault.Exhausted) {
				r.Fatal(err)
			}
		}
		if a != b || n != k {
			r.Fatalf("%x (%d rows) and %x (%d rows)", a, n, b, k)
		}
	})
}

func TestAChecksumStandsForTheStateRightAfterItsMarker(t *testing.T) {
	one, two := open(t, t.TempDir()), open(t, t.TempDir())
	a := one.entry(proposal(wrapperspb.String("a"), ""))
	marker := one.entry(proposal(&clusterv1.Marker{}, ""))
	after := one.entry(proposal(wrapperspb.String("after"), ""))
	one.ApplyBatch([]*raft.Log{a, marker, after}) // the marker stands in the middle of a batch
	two.ApplyBatch([]*raft.Log{a, marker})
	x, rows, err := one.Checksum(context.Background(), marker.Index)
	y, _, err2 := two.Checksum(context.Background(), marker.Index)
	if err != nil || err2 != nil || x != y || rows == 0 {
		t.Errorf("%x, %v and %x, %v", x, err, y, err2)
	}
}

func TestAChecksumSeesEveryDifferenceButLocalOnes(t *testing.T) {
	base := open(t, t.TempDir())
	base.mustDo(wrapperspb.String("a"))
	want, _ := base.sum()
	for query, differs := range map[string]bool{
		"INSERT INTO local_boxes (name) VALUES ('here only')":                                 false,
		"UPDATE local_meta SET node_id = 'n9'":                                                false,
		"UPDATE boxes SET time = time + 1":                                                    true,
		"UPDATE boxes SET content = x''":                                                      true,
		"UPDATE boxes SET name = 'A'":                                                         true,
		"INSERT INTO weights (kilo, gram) VALUES (1.0, 1)":                                    true,
		"DELETE FROM boxes":                                                                   true,
		"DELETE FROM outcomes":                                                                true,
		"UPDATE audit SET actor = 'someone else'":                                             true,
		"ALTER TABLE boxes RENAME COLUMN content TO substance":                                true,
		"CREATE TABLE more (id INTEGER PRIMARY KEY) STRICT":                                   false,
		"CREATE TABLE more (id INTEGER PRIMARY KEY) STRICT; INSERT INTO more (id) VALUES (1)": true,
		"UPDATE meta SET clock = clock WHERE id = 1":                                          false,
		"CREATE INDEX boxes_by_time ON boxes (time)":                                          false,
	} {
		m := open(t, t.TempDir())
		p := proposal(wrapperspb.String("a"), "")
		p.ID = "same"
		m.Apply(m.entry(p))
		ref := open(t, t.TempDir())
		ref.Apply(ref.entry(p))
		if err := m.Tamper(query); err != nil {
			t.Fatalf("%s: %v", query, err)
		}
		marker := m.entry(proposal(&clusterv1.Marker{}, "marker"))
		m.Apply(marker)
		ref.Apply(marker)
		got, _, err := m.Checksum(context.Background(), marker.Index)
		exp, _, err2 := ref.Checksum(context.Background(), marker.Index)
		if err != nil || err2 != nil || (got != exp) != differs {
			t.Errorf("%s: differs %v, want %v (%v, %v)", query, got != exp, differs, err, err2)
		}
		m.Close()
		ref.Close()
	}
	if want == ([32]byte{}) {
		t.Error("an empty checksum")
	}
}

func TestOnlyTheLastChecksumsAreKept(t *testing.T) {
	m := open(t, t.TempDir())
	var first uint64
	for i := range 12 {
		res := m.mustDo(&clusterv1.Marker{})
		if i == 0 {
			first = res.Index
		}
		if _, _, err := m.Checksum(context.Background(), res.Index); err != nil {
			t.Fatal(err)
		}
	}
	if _, _, err := m.Checksum(context.Background(), first); !fault.Is(err, fault.NotFound) {
		t.Error(err)
	}
	m.mustDo(wrapperspb.String("no marker"))
	if _, _, err := m.Checksum(context.Background(), m.Applied()); !fault.Is(err, fault.NotFound) {
		t.Error(err)
	}
}
