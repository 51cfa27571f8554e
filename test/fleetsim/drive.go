//go:build linux

package fleetsim

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"net/netip"
	"os"
	"path/filepath"
	"time"

	"github.com/cassandra-security-manager/csm/test/plane"
	"github.com/cassandra-security-manager/csm/test/port"
	"github.com/cassandra-security-manager/csm/test/process"
)

// Fleet is a simulated fleet in a process of its own.
type Fleet struct {
	Spec
	*process.Process
}

// Over makes a spec of a fleet that belongs to a control plane.
func Over(p *plane.Plane, dir string, seed uint64, pace Pace, rings ...Ring) (Spec, error) {
	f := p.Fleet("")
	s := Spec{Dir: dir, Controllers: f.Controllers, Pin: f.Pin, Seed: seed, Pace: pace, Rings: rings}
	free, err := port.Free()
	s.Listen = fmt.Sprint("127.0.0.1:", free)
	return s, err
}

// TokensOf makes join tokens over REST, as an administrator does.
func TokensOf(p *plane.Plane) Tokens {
	return func(ctx context.Context, cluster, node string, ip netip.Addr) (string, error) {
		var made struct{ Token string }
		for {
			err := p.API.Do(ctx, http.MethodPost, "/v1/tenants/default/clusters/"+cluster+"/joinTokens", map[string]any{"node": node, "ips": []string{ip.String()}}, &made)
			var refused *plane.Problem
			if !errors.As(err, &refused) || !again(refused) {
				return made.Token, err
			}
			select {
			case <-time.After(time.Second):
			case <-ctx.Done():
				return "", err
			}
		}
	}
}

// again says whether the same may be asked again: one administrator may ask so often in a second, a quorum may be too busy, and a
// token whose answer was lost is shown to nobody.
func again(p *plane.Problem) bool {
	return p.Status == http.StatusTooManyRequests || p.Status == http.StatusServiceUnavailable || p.Status == http.StatusGatewayTimeout || p.Reason == "token-shown"
}

// Start starts the program of folder bin over a fleet that is laid out. Its agents are meant to be on hosts of their own: here they get
// what the controllers leave them of the processors.
func Start(s Spec, bin string) (*Fleet, error) {
	data, err := json.Marshal(s)
	if err != nil {
		return nil, err
	}
	name := filepath.Join(s.Dir, fmt.Sprintf("fleet-%d.json", s.Rings[0].First))
	if err := os.WriteFile(name, data, 0o600); err != nil {
		return nil, err
	}
	p, err := process.Start(process.Spec{Name: "fleetsim", Path: "nice", Args: []string{"-n", "4", filepath.Join(bin, "fleetsim"), name}, Env: []string{"GOGC=400"}, Dir: s.Dir, Log: name + ".log"})
	return &Fleet{s, p}, err
}

// Agents are told by the program.
func (f *Fleet) Agents(ctx context.Context) (all []Agent, err error) {
	if !f.Running() {
		return nil, fmt.Errorf("the simulator has ended: %s", f.Tail(5))
	}
	ctx, cancel := context.WithTimeout(ctx, 10*time.Second)
	defer cancel()
	q, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://"+f.Listen+"/", nil)
	if err != nil {
		return nil, err
	}
	resp, err := http.DefaultClient.Do(q)
	if err != nil {
		return nil, err
	}
	defer resp.Body.Close()
	return all, json.NewDecoder(resp.Body).Decode(&all)
}
