//go:build linux

package main

import (
	"context"
	"crypto/elliptic"
	"encoding/pem"
	"fmt"
	"net/http"
	"sort"
	"sync"
	"time"

	"github.com/cassandra-security-manager/csm/test/plane"
)

// failover kills the leader again and again while certificates are asked for: how long until the next one is issued, and
// is every acknowledged one still there.
func (b *bench) failover(ctx context.Context) error {
	p, release, err := b.plane(ctx, "failover", 3)
	if err != nil {
		return err
	}
	defer release()
	if err := b.authority(ctx, p, "P-384"); err != nil {
		return err
	}
	csrs, err := requests(elliptic.P384())
	if err != nil {
		return err
	}
	kills := 20
	if b.short {
		kills = 3
	}
	var gaps []time.Duration
	var mu sync.Mutex
	var acked []string
	for k := range kills {
		leader, err := p.Leader(ctx)
		if err != nil {
			return err
		}
		died := time.Now()
		leader.Kill()
		gap, err := b.firstAfter(ctx, p.Controllers, leader.Name, func(ctx context.Context, host string, i int) error {
			var made struct{ Name string }
			err := p.API.On(ctx, host, http.MethodPost, "/v1/tenants/default/certificates:issue", issueBody("P-384", csrs[(k*7+i)%len(csrs)]), &made)
			if err == nil {
				mu.Lock()
				acked = append(acked, made.Name)
				mu.Unlock()
			}
			return err
		}, died)
		if err != nil {
			return fmt.Errorf("kill %d: %w\n%s", k+1, err, p.Tails(5))
		}
		gaps = append(gaps, gap)
		if err := leader.Start(); err != nil {
			return err
		}
		if err := p.Ready(ctx); err != nil {
			return err
		}
	}
	lost := 0
	for _, name := range acked {
		for _, c := range p.Controllers {
			if err := p.API.On(ctx, c.Address(9640), http.MethodGet, "/v1/"+name, nil, nil); err != nil {
				lost++
			}
		}
	}
	sort.Slice(gaps, func(i, j int) bool { return gaps[i] < gaps[j] })
	load := fmt.Sprintf("%d kills (SIGKILL) of the leader of three, 8 clients at the other two", kills)
	p99 := gaps[(len(gaps)*99-1)/100].Seconds()
	b.add(figure{Name: "leader killed to next certificate, p50", Value: gaps[len(gaps)/2].Seconds(), Unit: "s", Load: load})
	b.add(figure{Name: "leader killed to next certificate, p99", Value: p99, Unit: "s", Goal: "< 3 s", Holds: yes(p99 < 3), Load: load})
	b.add(figure{Name: "acknowledged certificates lost", Value: float64(lost), Unit: fmt.Sprintf("of %d, asked of each controller", len(acked)), Goal: "0", Holds: yes(lost == 0), Load: load})
	return nil
}

// firstAfter has 8 clients ask the controllers that live until one request that began after the kill is answered.
func (b *bench) firstAfter(ctx context.Context, controllers []*plane.Controller, dead string, ask func(context.Context, string, int) error, died time.Time) (time.Duration, error) {
	ctx, cancel := context.WithTimeout(ctx, 30*time.Second)
	defer cancel()
	var hosts []string
	for _, c := range controllers {
		if c.Name != dead {
			hosts = append(hosts, c.Address(9640))
		}
	}
	first := make(chan time.Duration, 8)
	var last error
	var mu sync.Mutex
	var wg sync.WaitGroup
	for client := range 8 {
		wg.Go(func() {
			for i := 0; ctx.Err() == nil; i++ {
				err := ask(ctx, hosts[client%len(hosts)], client*100+i)
				if err == nil {
					first <- time.Since(died)
					cancel()
					return
				}
				mu.Lock()
				last = err
				mu.Unlock()
			}
		})
	}
	wg.Wait()
	select {
	case d := <-first:
		return d, nil
	default:
		return 0, fmt.Errorf("no certificate within 30 s: %w", last)
	}
}

func issueBody(alg string, csr []byte) map[string]string {
	return map[string]string{"authority": authorityID(alg), "csr": string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE REQUEST", Bytes: csr}))}
}
