//go:build linux

package plane_test

import (
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/cassandra-security-manager/csm/test/clock"
	"github.com/cassandra-security-manager/csm/test/plane"
	"github.com/cassandra-security-manager/csm/test/process"
)

const leapYear = 400 * 24 * time.Hour

// clocked is a system of three controllers and one agent, of programs whose clocks a test may set.
type clocked struct {
	world
	hands map[string]clock.Hand
	node  *host
	made  int
}

func startClocked(t *testing.T) *clocked {
	t.Helper()
	if os.Getenv("CSM_TEST_FULL") == "" {
		t.Skip("programs with another clock are compiled anew, with all that they import: `make test-full` does it")
	}
	bin, dir := t.TempDir(), t.TempDir()
	t.Chdir("../..")
	if err := clock.Build(bin, "./controller/cmd/csm-controller", "./agent/cmd/csm-agent"); err != nil {
		t.Fatal(err)
	}
	c := &clocked{hands: map[string]clock.Hand{}}
	for _, name := range []string{"csm1", "csm2", "csm3", "agent"} {
		h, err := clock.NewHand(filepath.Join(dir, "hand-"+name))
		if err != nil {
			t.Fatal(err)
		}
		c.hands[name] = h
	}
	r, err := process.Claim(170, 3, 9640, 9641, 9642, 9643, 9644)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(r.Release)
	p, err := plane.Start(t.Context(), plane.Options{Dir: dir, Bin: bin, Host: r.Host, Regions: []string{"eu-west", "us-east", "ap-south"}, Root: "lab",
		Env: func(n int) []string { return []string{c.hands[fmt.Sprint("csm", n)].Entry()} }})
	if p != nil {
		t.Cleanup(p.Stop)
	}
	if err != nil {
		t.Fatal(err)
	}
	c.world = world{p, t}
	c.must(c.cluster("prod"))
	c.node = c.hostOf(filepath.Join(bin, "csm-agent"), "n1", c.hands["agent"].Entry())
	c.node.installed()
	return c
}

func (c *clocked) set(name string, by time.Duration) {
	c.t.Helper()
	c.must(c.hands[name].Set(by))
}

// write does a write at a controller and says when the state thinks that it was done.
func (c *clocked) write(at *plane.Controller) {
	c.t.Helper()
	c.made++
	id := fmt.Sprintf("made%d", c.made)
	var made struct{ CreateTime time.Time }
	c.must(plane.Eventually(c.t.Context(), 60*time.Second, func() error {
		err := c.API.On(c.t.Context(), at.Address(9640), http.MethodPost, "/v1/tenants/default/clusters", map[string]any{"id": id, "authority": "root", "cassandraName": "ring"}, nil)
		if p, ok := err.(*plane.Problem); ok && p.Status == http.StatusConflict {
			err = nil // done by a try whose answer was lost
		}
		if err == nil {
			err = c.API.On(c.t.Context(), at.Address(9640), http.MethodGet, "/v1/tenants/default/clusters/"+id, nil, &made)
		}
		return err
	}))
	if off := time.Since(made.CreateTime); off.Abs() > 5*time.Minute {
		c.t.Fatalf("a write is dated %s off: %s", off, made.CreateTime)
	}
}

// others are the controllers but one.
func (c *clocked) others(but *plane.Controller) (out []*plane.Controller) {
	for _, x := range c.Controllers {
		if x != but {
			out = append(out, x)
		}
	}
	return out
}

// leader as a controller sees it.
func (c *clocked) leader(as *plane.Controller) string {
	var s struct{ Leader string }
	if err := c.API.On(c.t.Context(), as.Address(9640), http.MethodGet, "/v1/system", nil, &s); err != nil {
		return ""
	}
	return s.Leader
}

func (c *clocked) said(within time.Duration, log string, words ...string) {
	c.t.Helper()
	c.must(plane.Eventually(c.t.Context(), within, func() error {
		text := process.Tail(log, 400)
		for _, w := range words {
			if !strings.Contains(text, w) {
				return fmt.Errorf("the log does not say %q:\n%s", w, process.Tail(log, 10))
			}
		}
		return nil
	}))
}

// TestClocksThatAreSetWhileEverythingRuns is one system and one story: starting it is most of the time.
func TestClocksThatAreSetWhileEverythingRuns(t *testing.T) {
	c := startClocked(t)
	for _, by := range []time.Duration{leapYear, -leapYear, 3 * time.Minute, 11 * time.Minute} {
		if !t.Run(fmt.Sprintf("the leader's by %s", by), func(t *testing.T) { c.leaderIsSet(t, by) }) {
			return
		}
	}
	for _, by := range []time.Duration{leapYear, -leapYear} {
		if !t.Run(fmt.Sprintf("a follower's by %s", by), func(t *testing.T) { c.followerIsSet(t, by) }) {
			return
		}
	}
	for _, by := range []time.Duration{leapYear, -leapYear, 30 * time.Minute} {
		if !t.Run(fmt.Sprintf("the agent's by %s", by), func(t *testing.T) { c.agentIsSet(t, by) }) {
			return
		}
	}
	var sums struct{ Consistent bool }
	c.must(c.API.Do(t.Context(), http.MethodPost, "/v1/system:verify", struct{}{}, &sums))
	if !sums.Consistent {
		t.Error("the states of the controllers differ")
	}
}

// leaderIsSet: a leader far from the others dates nothing and hands over; one that is a little off goes on.
func (c *clocked) leaderIsSet(t *testing.T, by time.Duration) {
	was := c.t
	c.t = t
	defer func() { c.t = was }()
	l, err := c.Leader(t.Context())
	c.must(err)
	others := c.others(l)
	c.set(l.Name, by)
	for range 3 {
		for _, o := range others {
			c.write(o)
		}
	}
	if by.Abs() > 10*time.Minute {
		c.must(plane.Eventually(t.Context(), 60*time.Second, func() error {
			if now := c.leader(others[0]); now == "" || now == l.Name {
				return fmt.Errorf("%q leads", now)
			}
			return nil
		}))
	}
	c.set(l.Name, 0)
	for _, x := range c.Controllers {
		c.write(x)
	}
	c.must(c.Ready(t.Context()))
}

// followerIsSet: it goes on as a voter, dates nothing, and its agents go elsewhere.
func (c *clocked) followerIsSet(t *testing.T, by time.Duration) {
	was := c.t
	c.t = t
	defer func() { c.t = was }()
	l, err := c.Leader(t.Context())
	c.must(err)
	f := c.others(l)[0]
	c.set(f.Name, by)
	for range 3 {
		for _, o := range c.others(f) {
			c.write(o)
		}
	}
	c.said(60*time.Second, f.Log, "clocks differ")
	c.set(f.Name, 0)
	c.write(f)
	c.node.renew()
}

// agentIsSet: it changes nothing while its clock is wrong, and goes on when it is right again.
func (c *clocked) agentIsSet(t *testing.T, by time.Duration) {
	was := c.t
	c.t = t
	defer func() { c.t = was }()
	h := c.node
	h.w.t = t
	before := h.await("connected", func(v nodeView) bool { return v.Agent.Connected })
	c.set("agent", by)
	// The wish wakes the agent, which looks at its clock before it decides. A controller may notice before it does.
	c.must(c.API.Do(t.Context(), http.MethodPost, h.path()+":renew", map[string]string{"reason": "test"}, nil))
	h.await("let go", func(v nodeView) bool { return !v.Agent.Connected })
	c.said(60*time.Second, h.log, "no stream")
	if v := h.installed(); v.Stores[0].LeafSha256 != before.Stores[0].LeafSha256 {
		t.Errorf("something was done by a wrong clock: %+v", v)
	}
	c.set("agent", 0)
	h.await("renewed when its clock is right again", func(v nodeView) bool {
		return v.Agent.Connected && v.Stores[0].LeafSha256 != before.Stores[0].LeafSha256 && v.Stores[0].Installed == v.Stores[0].Generation
	})
}
