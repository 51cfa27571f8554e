//go:build linux

package main

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	mrand "math/rand/v2"
	"net/http"
	"os"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/cassandra-security-manager/csm/test/plane"
)

const (
	stormSize = 30_000
	// stormRate is what the signer is said to make in a second.
	stormRate = 200
	// stormHosts is how many hosts they come from: a controller lets 250 requests wait on a connection.
	stormHosts = 128
	// stormSpare is when a certificate ends after its turn, had all been asked for at the beginning: those who are told to come back
	// are away for seconds.
	stormSpare = 10 * time.Second
)

// renewal is one certificate that is to be replaced.
type renewal struct {
	name  string
	ends  time.Time
	body  []byte
	asked time.Time
	done  time.Time
	// failed is how often it was asked again for another reason than its turn.
	failed int
}

// storm measures renewals that all come at once: with the software signer as fast as it goes, and before a signer of known rate.
func (b *bench) storm(ctx context.Context) error {
	p, release, err := b.plane(ctx, "storm", 3)
	if err != nil {
		return err
	}
	defer release()
	if err := b.authority(ctx, p, "P-384"); err != nil {
		return err
	}
	n := stormSize
	if b.short {
		n /= 10
	}
	all, err := b.firsts(ctx, p, n)
	if err != nil {
		return fmt.Errorf("%w\n%s", err, p.Tails(5))
	}
	_, free, err := rush(ctx, p, all, most, "free")
	if err != nil {
		return fmt.Errorf("%w\n%s", err, p.Tails(5))
	}
	b.add(figure{Name: "renewals/s, software signer", Value: float64(n) / free.Seconds(), Unit: "1/s",
		Load: fmt.Sprintf("%d renewals, P-384, %d at once over REST to one of three fsynced voters, clients on this machine", n, most)})
	if err := throttle(ctx, p); err != nil {
		return err
	}
	var before, after = float64(0), float64(0)
	if u, err := p.Controllers[0].Usage(); err == nil {
		before = u.CPU.Seconds()
	}
	began, took, err := rush(ctx, p, all, n, "slow")
	if err != nil {
		return fmt.Errorf("%w\n%s", err, p.Tails(5))
	}
	if u, err := p.Controllers[0].Usage(); err == nil {
		after = u.CPU.Seconds()
	}
	b.judge(all, began, took, (after-before)/took.Seconds())
	return nil
}

// firsts issues what is to be renewed; it ends at times of its own between one and three days from now.
func (b *bench) firsts(ctx context.Context, p *plane.Plane, n int) ([]renewal, error) {
	key, err := ecdsa.GenerateKey(elliptic.P384(), rand.Reader)
	if err != nil {
		return nil, err
	}
	all := make([]renewal, n)
	var next atomic.Int64
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	var wg sync.WaitGroup
	began := time.Now()
	for client := range most {
		wg.Go(func() {
			for i := next.Add(1) - 1; i < int64(n) && ctx.Err() == nil; i = next.Add(1) - 1 {
				csr, err := request(key, fmt.Sprintf("app%d.storm.example", i))
				if err != nil {
					cancel(err)
					return
				}
				body := issueBody("P-384", csr)
				body["validity"] = fmt.Sprintf("%ds", 24*3600+mrand.IntN(48*3600))
				var made struct {
					Name     string
					NotAfter time.Time
				}
				host := p.Controllers[client%len(p.Controllers)].Address(9640)
				if err := p.API.On(ctx, host, http.MethodPost, "/v1/tenants/default/certificates:issue", body, &made); err != nil {
					cancel(err)
					return
				}
				renew := maps.Clone(body)
				renew["renews"] = made.Name
				delete(renew, "validity")
				data, _ := json.Marshal(renew) // of strings: it cannot fail
				all[i] = renewal{name: made.Name, ends: made.NotAfter, body: data}
			}
		})
	}
	wg.Wait()
	if err := context.Cause(ctx); err != nil {
		return nil, err
	}
	fmt.Fprintf(os.Stderr, "  %d certificates made in %s\n", n, time.Since(began).Round(time.Second))
	return all, nil
}

// hosts makes that many clients, each with one HTTP/2 connection to the first controller that stands already: as those who renew have
// long been there, each of many requests is a stream.
func hosts(ctx context.Context, p *plane.Plane, n int) ([]*plane.API, error) {
	all := make([]*plane.API, n)
	for i := range all {
		t := p.API.Client.Transport.(*http.Transport).Clone()
		t.ForceAttemptHTTP2 = true
		t.HTTP2 = &http.HTTP2Config{StrictMaxConcurrentRequests: true}
		one := *p.API
		one.Client = &http.Client{Timeout: 30 * time.Second, Transport: t}
		if err := one.On(ctx, p.Controllers[0].Address(9640), http.MethodGet, "/v1/whoami", nil, nil); err != nil {
			return nil, err
		}
		all[i] = &one
	}
	return all, nil
}

// rush renews all, so many at once, in no order. Who is told to come back does so when it was told.
func rush(ctx context.Context, p *plane.Plane, all []renewal, atOnce int, run string) (began time.Time, took time.Duration, err error) {
	host := p.Controllers[0].Address(9640)
	clients, err := hosts(ctx, p, min(atOnce, stormHosts))
	if err != nil {
		return began, 0, err
	}
	defer func() {
		for _, c := range clients {
			c.Client.CloseIdleConnections()
		}
	}()
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	order := mrand.Perm(len(all))
	var next atomic.Int64
	var wg sync.WaitGroup
	began = time.Now()
	for i := range atOnce {
		wg.Go(func() {
			for k := next.Add(1) - 1; k < int64(len(all)) && ctx.Err() == nil; k = next.Add(1) - 1 {
				if err := renew(ctx, clients[i%len(clients)], host, &all[order[k]], fmt.Sprintf("%s-%d", run, order[k])); err != nil {
					cancel(err)
					return
				}
			}
		})
	}
	wg.Wait()
	return began, time.Since(began), context.Cause(ctx)
}

func renew(ctx context.Context, c *plane.API, host string, r *renewal, id string) error {
	for r.asked, r.failed = (time.Time{}), 0; ; {
		err := c.Once(ctx, host, "/v1/tenants/default/certificates:issue", id, r.body, nil)
		var p *plane.Problem
		said := errors.As(err, &p)
		if r.asked.IsZero() && (err == nil || said && p.Reason == "signer-busy") {
			r.asked = time.Now()
		}
		if err == nil || said && p.Status != http.StatusServiceUnavailable && p.Status != http.StatusGatewayTimeout || ctx.Err() != nil || r.failed > 20 {
			r.done = time.Now()
			return err
		}
		if !said {
			p = &plane.Problem{}
		}
		if p.Reason != "signer-busy" { // the machine is too busy to hear it, or for its quorum: asked again with the same id, as the answer says
			r.failed++
		}
		if err := pause(ctx, max(time.Second, p.RetryAfter)); err != nil {
			return err
		}
	}
}

// throttle tells the first controller that its signer has a rate.
func throttle(ctx context.Context, p *plane.Plane) error {
	c := p.Controllers[0]
	data, err := os.ReadFile(c.Config)
	if err != nil {
		return err
	}
	if err := os.WriteFile(c.Config, fmt.Appendf(data, "\nsigner: {rate_limit: %d}\n", stormRate), 0o600); err != nil {
		return err
	}
	if err := c.Stop(ctx); err != nil {
		return err
	}
	if err := c.Start(); err != nil {
		return err
	}
	return p.Ready(ctx)
}

// judge says at which rate they were signed, and who was late: later than its turn by the nearest end, or than its first question
// was answered, by more than stormSpare.
func (b *bench) judge(all []renewal, began time.Time, took time.Duration, cpu float64) {
	slices.SortFunc(all, func(x, y renewal) int { return x.ends.Compare(y.ends) })
	late, failed, heard := 0, 0, time.Duration(0)
	over := make([]float64, len(all))
	for i, r := range all {
		turn := began.Add(time.Duration(i) * time.Second / stormRate)
		if r.asked.After(turn) {
			turn = r.asked
		}
		over[i] = r.done.Sub(turn).Seconds()
		if r.done.Sub(turn) > stormSpare {
			late++
		}
		failed += r.failed
		heard = max(heard, r.asked.Sub(began))
	}
	slices.Sort(over)
	rate := float64(len(all)) / took.Seconds()
	load := fmt.Sprintf("%d renewals at once, in no order, P-384, over %d standing REST connections to one of three voters with signer.rate_limit %d; the last was heard for the first time after %.0f s; the controller took %.2f cores; %d times it was asked again since it was not heard or a quorum did not answer in time", len(all), stormHosts, stormRate, heard.Seconds(), cpu, failed)
	b.add(figure{Name: "storm: renewals/s before a signer of 200/s", Value: rate, Unit: "1/s", Goal: ">= 180", Holds: yes(rate >= 0.9*stormRate), Load: load})
	b.add(figure{Name: "storm: late although their turn could be in time", Value: float64(late), Unit: "renewals", Goal: "0", Holds: yes(late == 0),
		Load: fmt.Sprintf("the same; late is more than %.0f s after the turn that the order of ends gives, or after the first answer", stormSpare.Seconds())})
	b.add(figure{Name: "storm: after the turn that the order of ends gives, p99", Value: over[(len(over)*99-1)/100], Unit: "s", Load: "the same"})
	b.add(figure{Name: "storm: after the turn that the order of ends gives, last", Value: over[len(over)-1], Unit: "s", Load: "the same"})
}
