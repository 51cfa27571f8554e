package state_test

import (
	"context"
	"testing"

	"google.golang.org/protobuf/types/known/wrapperspb"

	"github.com/cassandra-security-manager/csm/controller/state"
	clusterv1 "github.com/cassandra-security-manager/csm/protocol/cluster/v1"
)

func lids(sql string) state.Module {
	return state.Module{Name: "lids", Migrations: []state.Migration{{Number: 9100, SQL: sql}}}
}

const lidTable = `CREATE TABLE lids (name TEXT PRIMARY KEY) STRICT; -- of boxes; nothing else
	CREATE UNIQUE INDEX lids_name ON lids (name)`

func withLids(o *state.Options) { o.Modules = append(o.Modules, lids(lidTable)) }

func TestANewerProgramAddsItsTablesAndTheChecksumStaysThatOfTheOlderOne(t *testing.T) {
	dir, other := t.TempDir(), t.TempDir()
	older := open(t, dir)
	older.do(wrapperspb.String("a"), "a")
	older.Close()
	upgraded, err := tryOpen(t, dir, withLids)
	if err != nil {
		t.Fatal(err)
	}
	if n := upgraded.count("SELECT count(*) FROM lids"); n != 0 {
		t.Errorf("%d lids", n)
	}
	still := open(t, other)
	still.do(wrapperspb.String("a"), "a")
	for _, m := range []*machine{upgraded, still} {
		if m.Applied() != 1 {
			t.Fatalf("applied %d", m.Applied())
		}
	}
	newSum, newRows := upgraded.markedAs("m")
	oldSum, oldRows := still.markedAs("m")
	if newSum != oldSum || newRows != oldRows {
		t.Error("a table that is empty makes a difference")
	}
}

func TestAMigrationThatDoesMoreThanCreateIsRefused(t *testing.T) {
	for _, sql := range []string{"CREATE TABLE x (y INTEGER PRIMARY KEY); UPDATE boxes SET time = 0", "ALTER TABLE boxes ADD COLUMN colour TEXT",
		"DROP TABLE boxes", "CREATE TRIGGER t AFTER INSERT ON boxes BEGIN SELECT 1; END", "-- CREATE TABLE\nINSERT INTO boxes VALUES (1)"} {
		if _, err := tryOpen(t, t.TempDir(), func(o *state.Options) { o.Modules = append(o.Modules, lids(sql)) }); err == nil {
			t.Errorf("%s was run", sql)
		}
	}
}

// markedAs marks the state under an id that is the same on each machine, and gives its checksum.
func (m *machine) markedAs(id string) ([32]byte, int64) {
	m.t.Helper()
	res, err := m.do(&clusterv1.Marker{}, id)
	if err != nil {
		m.t.Fatal(err)
	}
	sum, rows, err := m.Checksum(context.Background(), res.Index)
	if err != nil {
		m.t.Fatal(err)
	}
	return sum, rows
}
