package cassandra_test

import (
	"strings"
	"testing"

	"github.com/cassandra-security-manager/csm/agent/cassandra"
	"github.com/cassandra-security-manager/csm/shared/fault"
)

const statistics = "Read Repair Statistics:\nAttempted: 0\nMismatch (Blocking): 0\nPool Name                    Active   Pending      Completed   Dropped\nLarge messages                  n/a         0              0         0\n"

func TestNetstatsTellsWhatIsUnderWay(t *testing.T) {
	for out, want := range map[string]string{
		"Mode: NORMAL\nNot sending any streams.\n" + statistics: "",
		"Mode: JOINING\nBootstrap 7a2d5f40-c7a1-11ef-9d6c-0b3f5b3a9f10\n    /127.0.0.1\n        Receiving 3 files, 900 bytes total.\n" + statistics: "bootstrap,bootstrap",
		"Mode: NORMAL\nRepair 7a2d5f40-c7a1-11ef-9d6c-0b3f5b3a9f10\n    /127.0.0.3\nBulk Load 7a2d5f40-c7a1-11ef-9d6c-0b3f5b3a9f11\n" + statistics:  "repair,stream",
		"Mode: LEAVING\r\nUnbootstrap 7a2d5f40-c7a1-11ef-9d6c-0b3f5b3a9f10\r\n":                                                                     "decommission,decommission",
		"Mode: DRAINED\nNot sending any streams.\n":                            "drain",
		"Mode: SOMETHING_NEW\nNew Kind 7a2d5f40-c7a1-11ef-9d6c-0b3f5b3a9f10\n": "stream,stream",
	} {
		works, err := cassandra.ParseNetstats(out)
		var got []string
		for _, w := range works {
			got = append(got, w.Kind)
		}
		if err != nil || strings.Join(got, ",") != want {
			t.Errorf("%q: %v %v, want %s", out, works, err, want)
		}
	}
	if _, err := cassandra.ParseNetstats("nodetool: Failed to connect"); !fault.HasReason(err, "streams-unknown") {
		t.Errorf("%v", err)
	}
	many, err := cassandra.ParseNetstats("Mode: NORMAL\n" + strings.Repeat("Repair 7a2d5f40-c7a1-11ef-9d6c-0b3f5b3a9f10\n", 100))
	if err != nil || len(many) != 20 {
		t.Errorf("%d, %v", len(many), err)
	}
}
