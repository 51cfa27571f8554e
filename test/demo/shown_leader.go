//go:build linux

package main

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"strconv"
	"sync"
	"time"

	"github.com/cassandra-security-manager/csm/controller/api/rest"
	"github.com/cassandra-security-manager/csm/shared/resource"
	"github.com/cassandra-security-manager/csm/test/plane"
)

const (
	askers    = 16
	issuePath = "/v1/tenants/" + resource.DefaultTenant + "/certificates:issue"
)

// issued is a certificate that was acknowledged, when it was asked for and when it came.
type issued struct {
	name      string
	asked, at time.Time
}

// leaderKilled: SIGKILL for the leader while 16 clients ask for certificates. Whatever was acknowledged must be listed
// by every controller afterwards.
func leaderKilled(ctx context.Context, d *demo) (string, error) {
	_, csr, err := request("burst.demo.example")
	if err != nil {
		return "", err
	}
	pace := time.NewTicker(10 * time.Millisecond) // below the limit of 100 requests a second for one administrator
	defer pace.Stop()
	run, stop := context.WithCancel(ctx)
	defer stop()
	var (
		mu       sync.Mutex
		acked    []issued
		refusals = map[string]int{}
		done     sync.WaitGroup
	)
	began := time.Now()
	for w := range askers {
		done.Go(func() {
			for i := 0; ; i++ {
				select {
				case <-run.Done():
					return
				case <-pace.C:
				}
				asked := time.Now()
				name, err := d.issue(run, string(csr), fmt.Sprintf("burst-%d-%d-%d", began.UnixNano(), w, i), w, w+i)
				mu.Lock()
				if err == nil {
					acked = append(acked, issued{name, asked, time.Now()})
				} else if run.Err() == nil {
					refusals[cut(err.Error(), 120)]++
				}
				mu.Unlock()
			}
		})
	}
	err = plane.Eventually(ctx, 10*time.Second, func() error {
		mu.Lock()
		defer mu.Unlock()
		if len(acked) < 3*askers {
			return fmt.Errorf("%d certificates issued: %v", len(acked), refusals)
		}
		return nil
	})
	if err != nil {
		return "", err
	}
	leader, err := d.leader(ctx)
	if err != nil {
		return "", err
	}
	leader.Kill()
	killed := time.Now()
	err = plane.Eventually(ctx, 30*time.Second, func() error {
		mu.Lock()
		defer mu.Unlock()
		if d.leaderOut = silence(acked, killed); d.leaderOut == 0 {
			return fmt.Errorf("no certificate was issued by a new leader: %v", refusals)
		}
		return nil
	})
	pause(ctx, time.Second)
	stop()
	done.Wait()
	if err := errors.Join(err, d.comeBack(ctx, leader)); err != nil {
		return "", err
	}
	if err := d.allListed(ctx, acked); err != nil {
		return "", err
	}
	return fmt.Sprintf("%d acknowledged, all on all three controllers; %.1f s from the kill to the next certificate", len(acked), d.leaderOut.Seconds()), nil
}

// silence is the time from the kill to the first certificate that was asked for after it: only a new leader can have
// decided that one. 0 when there is none yet.
func silence(acked []issued, killed time.Time) (shortest time.Duration) {
	for _, a := range acked {
		if t := a.at.Sub(killed); a.asked.After(killed) && (shortest == 0 || t < shortest) {
			shortest = t
		}
	}
	return shortest
}

// issue asks one controller after the other with the same idempotency key, so that a lost answer is no second certificate.
func (d *demo) issue(ctx context.Context, csr, key string, subject, first int) (string, error) {
	var last error
	for try := range 30 {
		if ctx.Err() != nil {
			return "", ctx.Err()
		}
		one, cancel := context.WithTimeout(ctx, 10*time.Second)
		var c rest.Certificate
		at := d.plane.Controllers[(first+try)%len(d.plane.Controllers)]
		last = d.plane.API.Once(one, at.Address(9640), issuePath, key,
			rest.IssueBody{CSR: csr, Authority: authorityShort, Subject: fmt.Sprintf("client-%d", subject)}, &c)
		cancel()
		if last == nil {
			return c.Name, nil
		}
		var p *plane.Problem
		if errors.As(last, &p) && p.Status < 500 && p.Status != http.StatusTooManyRequests {
			return "", last
		}
		pause(ctx, 20*time.Millisecond)
	}
	return "", last
}

// leader finds the controller that leads.
func (d *demo) leader(ctx context.Context) (*plane.Controller, error) {
	s, err := d.status(ctx)
	if err != nil {
		return nil, err
	}
	for _, c := range d.plane.Controllers {
		if c.Name == resource.Last(s.Leader) {
			return c, nil
		}
	}
	return nil, fmt.Errorf("the leader %q is none of ours", s.Leader)
}

// comeBack starts controllers again and waits until all vote and have caught up.
func (d *demo) comeBack(ctx context.Context, cs ...*plane.Controller) error {
	for _, c := range cs {
		if err := c.Start(); err != nil {
			return err
		}
	}
	return plane.Eventually(ctx, 60*time.Second, func() error {
		s, err := d.status(ctx)
		if err != nil {
			return err
		}
		if s.voters() < len(d.plane.Controllers) {
			return fmt.Errorf("%d of %d controllers vote", s.voters(), len(d.plane.Controllers))
		}
		for _, c := range s.Controllers {
			if c.Lag > 0 {
				return fmt.Errorf("%s is %d entries behind", c.Name, c.Lag)
			}
		}
		return nil
	})
}

// allListed asks every controller for its whole list and looks for each acknowledged certificate.
func (d *demo) allListed(ctx context.Context, acked []issued) error {
	for _, c := range d.plane.Controllers {
		have, err := d.certificates(ctx, c)
		if err != nil {
			return fmt.Errorf("list of %s: %w", c.Name, err)
		}
		lost := 0
		for _, a := range acked {
			if !have[a.name] {
				lost++
			}
		}
		if lost > 0 {
			return fmt.Errorf("%s lacks %d of %d acknowledged certificates", c.Name, lost, len(acked))
		}
	}
	return nil
}

// certificates are the names of all that one controller lists, page by page.
func (d *demo) certificates(ctx context.Context, of *plane.Controller) (map[string]bool, error) {
	have := map[string]bool{}
	for token := ""; ; {
		var page rest.Page[rest.Certificate]
		path := "/v1/tenants/" + resource.DefaultTenant + "/certificates?pageSize=" + strconv.Itoa(rest.MaxPage) + "&pageToken=" + token
		if err := d.plane.API.On(ctx, of.Address(9640), http.MethodGet, path, nil, &page); err != nil {
			return nil, err
		}
		for _, c := range page.Items {
			have[c.Name] = true
		}
		if token = page.NextPageToken; token == "" {
			return have, nil
		}
	}
}

func pause(ctx context.Context, t time.Duration) {
	select {
	case <-ctx.Done():
	case <-time.After(t):
	}
}
