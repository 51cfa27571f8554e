package rest_test

import (
	"encoding/json"
	"testing"

	"github.com/cassandra-security-manager/csm/controller/api/rest"
	"github.com/cassandra-security-manager/csm/controller/api/rest/resttest"
	"github.com/cassandra-security-manager/csm/controller/consensus"
	"github.com/cassandra-security-manager/csm/shared/fault"
)

func TestReadinessSaysWhichCheckFailsAndWhatToDo(t *testing.T) {
	bad := fault.New(fault.Unavailable, "x", "it is so").Do("do this")
	for name, c := range map[string]struct {
		health   consensus.Health
		unsealed bool
		fails    string
	}{
		"well":   {consensus.Health{}, true, ""},
		"behind": {consensus.Health{Lag: 20_000}, true, "applied"},
		"disk":   {consensus.Health{DiskLow: bad}, true, "disk"},
		"clock":  {consensus.Health{ClockWrong: bad}, true, "clock"},
		"out":    {consensus.Health{ShutOut: bad}, true, "leader"},
		"sealed": {consensus.Health{}, false, "keys"},
	} {
		w := resttest.New(t, func(d *rest.Deps) { d.Unsealed = func() bool { return c.unsealed } })
		w.Quorum.SetHealth(c.health)
		a := as(t, w, nil).get("/readyz?verbose")
		var h rest.Health
		if err := json.Unmarshal(a.body, &h); err != nil || len(h.Checks) != 5 {
			t.Fatalf("%s: %v %s", name, err, a.body)
		}
		want := map[bool]int{true: 200, false: 503}[c.fails == ""]
		if a.status != want || h.OK != (c.fails == "") || as(t, w, nil).get("/readyz").status != want {
			t.Errorf("%s: %d %s", name, a.status, a.body)
		}
		for _, x := range h.Checks {
			if x.OK == (x.Name == c.fails) || x.Detail == "" || !x.OK && x.Remedy == "" {
				t.Errorf("%s: %+v", name, x)
			}
		}
	}
}
