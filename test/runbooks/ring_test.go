//go:build linux

package runbooks

import (
	"context"
	"fmt"
	"net/http"
	"net/netip"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/cassandra-security-manager/csm/test/clock"
	"github.com/cassandra-security-manager/csm/test/handmade"
	"github.com/cassandra-security-manager/csm/test/plane"
	"github.com/cassandra-security-manager/csm/test/process"
	"github.com/cassandra-security-manager/csm/test/ring"
)

// old is how long ago the certificates of the ring were made: they live 90 days, and end within hours.
const old = 90*24*time.Hour - 12*time.Hour

// estate is a system of three controllers and a real ring of two nodes.
type estate struct {
	*absence
	ring   *ring.Ring
	agents []*plane.Agent
}

// ofARing are the runbooks of a ring, one story.
var ofARing = []struct {
	name     string
	rehearse func(*estate, *testing.T)
}{
	{"certificate-expired", (*estate).certificateExpired},
	{"proof-fails", (*estate).proofFails},
	{"store-contested", (*estate).storeContested},
	{"ca-compromised", (*estate).caCompromised},
}

// TestTheRunbooksOfARing: the certificates of a ring end today, then a proof fails, then another tool writes a store.
func TestTheRunbooksOfARing(t *testing.T) {
	if os.Getenv("CSM_TEST_FULL") == "" {
		t.Skip("takes minutes; runs with make test-full")
	}
	e := madeLongAgo(t)
	for _, book := range ofARing {
		if !t.Run(book.name, func(t *testing.T) { book.rehearse(e, t) }) {
			t.Fatal("what follows needs it")
		}
	}
}

// madeLongAgo: controllers and agents of the past wrote the stores; the ring starts on them today, and so do controllers of today.
func madeLongAgo(t *testing.T) *estate {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Minute)
	t.Cleanup(cancel)
	dist := must[*ring.Distribution](t)(ring.Prepare(ctx, "../../build/cassandra/"+ring.Version, false, func(s string) { t.Log(s) }))
	today, past, dir := must[string](t)(shipped()), must[string](t)(shifted()), t.TempDir()
	name, value, _ := strings.Cut(clock.Shift(-old), "=")
	t.Setenv(name, value)
	p := found(t, plane.Options{Dir: dir, Bin: past, Now: func() time.Time { return time.Now().Add(-old) }})
	e := &estate{absence: &absence{operator: operator{t, p, past, environment(dir), t}, dir: dir}}
	e.context()
	e.expect("csm cluster create prod-eu --ca root --cassandra-name ring", 0)
	var err error
	e.ring, err = ring.New(dist, ring.Options{Dir: filepath.Join(dir, "ring"), Cluster: "ring", Addresses: []netip.Addr{p.Host(4), p.Host(5)}, Formats: []string{"PKCS12", "PEM"}})
	e.must(err)
	t.Cleanup(e.ring.Kill)
	for i, n := range e.ring.Nodes {
		n.Name = fmt.Sprint("n", 7+i)
		a := plane.NewAgent(filepath.Join(dir, n.Name, "agent"), past, n)
		e.must(a.Write(p.Fleet("prod-eu"), "manage"))
		e.paste(a, e.expect(fmt.Sprintf("csm cluster join-command prod-eu/%s --dns %s.example --ip %s --ip 127.0.0.1", n.Name, n.Name, n.Address), 0))
		e.run(a)
		a.Process.Kill()
	}
	p.Stop()
	for _, n := range e.ring.Nodes {
		e.must(n.Start())
	}
	e.bin = today
	e.controllersComeBack(today)
	for _, n := range e.ring.Nodes {
		e.must(n.WaitReady(ctx))
		a := plane.NewAgent(filepath.Join(dir, n.Name, "agent"), today, n)
		e.agents = append(e.agents, a)
		t.Cleanup(func() {
			if a.Process != nil {
				a.Process.Kill()
			}
		})
	}
	return e
}

// certificateExpired: the certificates end within the day, because somebody froze the ring and forgot it.
func (e *estate) certificateExpired(t *testing.T) {
	e.t = t
	e.planned("csm cluster freeze prod-eu --reason 'INC-4711'")
	for _, a := range e.agents {
		e.run(a)
	}
	out := e.expect("csm doctor -c prod-eu", 10, "prod-eu/n7, prod-eu/n8", "runbooks/certificate-expired.md", "next: csm emergency reissue -c prod-eu --dry-run")
	if !strings.HasPrefix(out, "critical prod-eu/n7: do NOT restart Cassandra on ") {
		t.Errorf("the first line is not the first rule: %s", out)
	}
	e.operator.until(e.p.Controllers[0], `csm_certificates_expiring\{[^}]*window="24h"\}`, is(2))
	e.expect("csm check expiry", 2, "CSM CRITICAL")
	if out := e.operator.node(e.agents[0], "csm-agent doctor", 10, "DO NOT RESTART"); !strings.HasPrefix(strings.SplitN(out, "\n", 3)[1], "DO NOT RESTART") {
		t.Errorf("the first rule does not come first: %s", out)
	}
	e.expect("csm why prod-eu/n7", 0, "frozen")
	e.expect("csm cluster unfreeze prod-eu --reason 'INC-4711 is over' --yes", 0)
	e.expect("csm node renew prod-eu/n7 --wait --timeout 10m", 0)
	e.planned("csm emergency reissue -c prod-eu --reason 'INC-4711'")
	e.expect("csm ca create --help", 0)
	e.settled()
	e.operator.node(e.agents[0], "csm-agent probe", 0, "accepted")
}

// settled: both nodes have new certificates that are proved.
func (e *estate) settled() {
	e.t.Helper()
	e.expect("csm check agents expiry", 0)
	e.expect("csm doctor", 0)
}

// proofFails: something spoils the keystore whenever a new one is loaded, so that no neighbour accepts the node, until a person puts it
// right; what is put back loads well.
func (e *estate) proofFails(t *testing.T) {
	e.t = t
	a := e.agents[0]
	before := e.sum("csm_agent_rollbacks_total")
	e.spoil(a)
	if code, out := e.csm("csm node renew prod-eu/n7 --wait --timeout 3m"); code == 0 {
		t.Errorf("a renewal that is spoiled went well: %s", out)
	}
	e.expect("csm doctor", 10, "prod-eu/n7: the last install of store", "was rolled back", "runbooks/proof-fails.md", "next: csm why prod-eu/n7")
	if after := e.sum("csm_agent_rollbacks_total"); after <= before {
		t.Errorf("%v rollbacks, then %v", before, after)
	}
	e.expect("csm node moves prod-eu/n7", 0, "rolled-back")
	e.expect("csm why prod-eu/n7", 0, "was rolled back")
	e.must(os.Remove(a.Trap))
	e.operator.node(a, "csm-agent probe", 0, "accepted")
	e.operator.node(a, "csm-agent inspect", 0)
	e.expect("csm node renew prod-eu/n7 --wait --timeout 10m", 0)
	e.settled()
}

// spoil cuts the keystore off before each second reload while the trap is there: those of new files, not those of a rollback.
func (e *estate) spoil(a *plane.Agent) {
	e.t.Helper()
	e.must(os.WriteFile(a.Reload, fmt.Appendf(nil, `#!/bin/sh
if [ -e %[1]s.sprung ]; then rm %[1]s.sprung; elif [ -e %[1]s ]; then : >%[1]s.sprung; truncate -s 100 %[2]s; fi
exec %[3]s reloadssl
`, a.Trap, a.Node.Keystore, a.Node.Nodetool), 0o755))
	e.must(os.WriteFile(a.Trap, nil, 0o600))
}

// sum is a counter over its labels, of the controller that counts most; there may be none yet.
func (e *estate) sum(name string) (most float64) {
	e.t.Helper()
	for _, c := range e.p.Controllers {
		most = max(most, e.total(c, name))
	}
	return most
}

// storeContested: another tool puts files of its own CA in the place of ours, again and again.
func (e *estate) storeContested(t *testing.T) {
	e.t = t
	a, tool := e.agents[0], handmade.New(t)
	e.must(e.ring.WaitUp(t.Context()))
	tool.Equip(a.Node)
	e.heardOf(a, "restored")
	e.settled()
	tool.Equip(a.Node)
	e.expect("csm doctor", 10, "critical prod-eu/n7: another tool writes store", "runbooks/store-contested.md", "next: csm node get prod-eu/n7")
	e.expect("csm check agents", 2, "CSM CRITICAL")
	e.expect("csm node get prod-eu/n7", 0, "contested")
	e.operator.node(a, "csm-agent doctor", 10, "another tool writes its files")
	if log := process.Tail(a.Log(), 200); !strings.Contains(log, a.Node.Keystore) {
		t.Errorf("the agent's log does not name %s", a.Node.Keystore)
	}
	e.operator.node(a, "csm-agent release", 0)
	e.expect("csm node get prod-eu/n7", 0, "foreign")
	e.expect("csm why prod-eu/n7", 0, "were not written by CSM")
	for _, file := range []string{a.Node.Keystore, a.Node.Truststore} {
		e.must(os.Rename(file, file+".of-the-tool"))
	}
	e.must(a.Restart(t.Context()))
	e.expect("csm why prod-eu/n7", 0)
	e.settled()
}

// caCompromised: the CA of the ring may be in other hands; in the end no node trusts it any more.
func (e *estate) caCompromised(t *testing.T) {
	e.t = t
	for _, a := range e.agents {
		if a.Process == nil {
			e.run(a)
		}
	}
	for _, a := range e.agents {
		e.expect("csm node renew prod-eu/"+a.Node.Name+" --wait --timeout 10m", 0)
	}
	e.settled()
	e.expect("csm ca list", 0, "root")
	e.expect("csm trust list", 0, "prod-eu")
	e.expect("csm ca create root-2028 --region eu-west", 0)
	ask := " -c prod-eu --to root-2028 --emergency"
	plan := e.expect("csm rotation plan"+ask, 0, "EMERGENCY", "gives up", "[by-hand]", "retire: by itself", "a node needs the old anchor as long as one live peer serves a leaf of it")
	hash := regexp.MustCompile(`plan ([0-9a-f]{16})`).FindStringSubmatch(plan)
	if hash == nil {
		t.Fatalf("no plan: %s", plan)
	}
	e.expect("csm rotation start"+ask+" --reason 'INC-4711'", 3)
	e.expect("csm rotation start"+ask+" --plan "+hash[1]+" --reason 'INC-4711'", 0)
	e.expect("csm rotation explain -c prod-eu", 0, "an emergency that gives up")
	e.expect("csm rotation resume -c prod-eu --except links --reason 'INC-4711: every Cassandra was restarted' --yes", 0)
	if code, out := e.csm("csm rotation status -c prod-eu --wait --timeout 10m"); code != 0 {
		t.Fatalf("exit %d: %s", code, out)
	}
	e.expect("csm rotation status -c prod-eu", 0, "done")
	var trust struct {
		Anchors []struct {
			Subject string `json:"subject"`
		} `json:"anchors"`
	}
	e.must(e.p.API.Do(t.Context(), http.MethodGet, "/v1/tenants/default/trustDomains/prod-eu", nil, &trust))
	if len(trust.Anchors) != 1 || !strings.Contains(trust.Anchors[0].Subject, "root-2028") {
		t.Errorf("the ring trusts %+v", trust)
	}
	for _, a := range e.agents {
		e.operator.node(a, "csm-agent probe", 0, "accepted")
	}
	e.settled()
}
