//go:build linux

package main

import (
	"context"
	"database/sql"
	"encoding/json"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"regexp"
	"time"

	_ "modernc.org/sqlite" // the driver

	"github.com/cassandra-security-manager/csm/test/plane"
)

// backup measures what a large state costs: a backup with its verification, a restore on an empty machine, and a start; then
// how long it takes from a dead majority to serving again.
func (b *bench) backup(ctx context.Context) error {
	if err := b.largeState(ctx, true); err != nil {
		return err
	}
	return b.deadMajority(ctx)
}

// starts are the first two figures of backup, which need no more than half of its time.
func (b *bench) starts(ctx context.Context) error { return b.largeState(ctx, false) }

func (b *bench) largeState(ctx context.Context, whole bool) error {
	rows := 1_000_000
	if b.short {
		rows = 20_000
	}
	p, release, err := b.plane(ctx, "backup", 1)
	if err != nil {
		return err
	}
	defer release()
	if err := b.authority(ctx, p, "P-384"); err != nil {
		return err
	}
	c := p.Controllers[0]
	if err := c.Stop(ctx); err != nil {
		return err
	}
	began := time.Now()
	size, err := fill(ctx, filepath.Join(c.Data(), "state"), rows)
	if err != nil {
		return err
	}
	load := fmt.Sprintf("%d certificates, state of %.2f GiB, one controller", rows, float64(size)/(1<<30))
	fmt.Fprintf(os.Stderr, "  %s, filled in %s\n", load, time.Since(began).Round(time.Second))
	if err := b.started(ctx, p, c, "start to ready after a clean stop", load); err != nil {
		return err
	}
	c.Kill()
	if err := b.started(ctx, p, c, "start to ready after kill -9", load); err != nil || !whole {
		return err
	}
	location, err := b.copyState(ctx, p, c, load)
	if err != nil {
		return err
	}
	c.Kill()
	if err := os.RemoveAll(c.Data()); err != nil {
		return err
	}
	began = time.Now()
	if out, err := c.Command(ctx, "snapshot", "restore", location, "--recovery-share", p.Recovery()); err != nil {
		return fmt.Errorf("restore: %w: %s", err, out)
	}
	took := time.Since(began).Seconds()
	b.add(figure{Name: "restore on an empty machine", Value: took, Unit: "s", Goal: "< 60", Holds: yes(took < 60), Load: load})
	return b.started(ctx, p, c, "first start after a restore, to ready", load)
}

// started starts a controller and waits until it leads and answers.
func (b *bench) started(ctx context.Context, p *plane.Plane, c *plane.Controller, name, load string) error {
	began := time.Now()
	if err := c.Start(); err != nil {
		return err
	}
	ready := func() error {
		resp, err := p.API.Client.Get("https://" + c.Address(9640) + "/readyz")
		if err != nil {
			return err
		}
		defer resp.Body.Close()
		if resp.StatusCode != http.StatusOK {
			return fmt.Errorf("readyz says %d", resp.StatusCode)
		}
		return nil
	}
	if err := plane.Eventually(ctx, 3*time.Minute, ready); err != nil {
		return fmt.Errorf("%w\n%s", err, p.Tails(5))
	}
	took := time.Since(began).Seconds()
	b.add(figure{Name: name, Value: took, Unit: "s", Goal: "< 10", Holds: yes(took < 10), Load: load})
	return nil
}

func (b *bench) copyState(ctx context.Context, p *plane.Plane, c *plane.Controller, load string) (location string, err error) {
	var v struct {
		Name, State, Problem, Location string
		Size                           int64
		VerifyTime                     time.Time
	}
	began := time.Now()
	if err := p.API.On(ctx, c.Address(9640), http.MethodPost, "/v1/system/backups", map[string]string{}, &v); err != nil {
		return "", err
	}
	written := time.Duration(0)
	err = plane.Eventually(ctx, 5*time.Minute, func() error {
		if err := p.API.On(ctx, c.Address(9640), http.MethodGet, "/v1/"+v.Name, nil, &v); err != nil {
			return err
		}
		if v.State == "ready" && written == 0 {
			written = time.Since(began)
		}
		if v.VerifyTime.IsZero() {
			return fmt.Errorf("%s: %s", v.State, v.Problem)
		}
		return nil
	})
	if err != nil {
		return "", err
	}
	all := time.Since(began)
	b.add(figure{Name: "backup, written and read back", Value: written.Seconds(), Unit: "s", Goal: "< 60", Holds: yes(written < time.Minute), Load: load + fmt.Sprintf(", file of %.2f GiB", float64(v.Size)/(1<<30))})
	b.add(figure{Name: "backup, verified: decrypted, restored for a trial, every page read", Value: (all - written).Seconds(), Unit: "s", Load: load})
	return v.Location, nil
}

// fill puts rows into the ledger of a controller that is stopped, by SQL: through the log it would take minutes, and what is
// measured here depends on the rows and not on how they came.
func fill(ctx context.Context, stateDir string, rows int) (size int64, err error) {
	current, err := os.ReadFile(filepath.Join(stateDir, "CURRENT"))
	if err != nil {
		return 0, err
	}
	path := filepath.Join(stateDir, string(regexp.MustCompile(`\d+`).Find(current)), "state.db")
	db, err := sql.Open("sqlite", "file:"+path+"?_pragma=journal_mode(WAL)&_pragma=synchronous(OFF)&_pragma=cache_size(-400000)")
	if err != nil {
		return 0, err
	}
	defer db.Close()
	db.SetMaxOpenConns(1)
	var issuer string
	if err := db.QueryRowContext(ctx, `SELECT name FROM issuers WHERE kind = 'issuing' LIMIT 1`).Scan(&issuer); err != nil {
		return 0, err
	}
	const step = 50_000
	for from := 0; from < rows; from += step {
		_, err := db.ExecContext(ctx, `WITH RECURSIVE n(i) AS (SELECT ?1 UNION ALL SELECT i + 1 FROM n WHERE i + 1 < ?2)
			INSERT INTO certificates (seq, sha256, serial, request, tenant, zone, issuer, cluster, node, store, incarnation, identity, template, template_version, algorithm,
				key_sha256, subject, actor, not_before, not_after, renew_at, create_time, state, revoke_time, reason, revision, request_id, der)
			SELECT -1 - i, randomblob(32), randomblob(19), randomblob(32), 'default', '', ?3, 'tenants/default/clusters/c' || (i % 20), 'tenants/default/clusters/c' || (i % 20) || '/nodes/n' || (i % 6000),
				'node', 1, '', 'node', 1, 'P-384', randomblob(32), '', 'spiffe://bench.csm/agent/' || (i % 6000) || '/1', 1764000000000 + i, 1771776000000 + i, 1769000000000 + i,
				1764000000000 + i, 'active', 0, 0, 1, hex(randomblob(16)), randomblob(780) FROM n`, from, min(from+step, rows), issuer)
		if err != nil {
			return 0, err
		}
		if _, err := db.ExecContext(ctx, `PRAGMA wal_checkpoint(TRUNCATE)`); err != nil {
			return 0, err
		}
	}
	st, err := os.Stat(path)
	if err != nil {
		return 0, err
	}
	return st.Size(), nil
}

// deadMajority kills two of three for good and measures from the first command of the survivor to the first certificate.
func (b *bench) deadMajority(ctx context.Context) error {
	p, release, err := b.plane(ctx, "recover", 3)
	if err != nil {
		return err
	}
	defer release()
	if err := b.authority(ctx, p, "P-384"); err != nil {
		return err
	}
	for _, c := range p.Controllers {
		c.Kill()
	}
	c := p.Controllers[1]
	began := time.Now()
	out, err := c.Command(ctx, "recover", "--dry-run", "-o", "json")
	if err != nil {
		return fmt.Errorf("recover --dry-run: %w: %s", err, out)
	}
	var plan struct{ Plan string }
	if err := json.Unmarshal([]byte(out[firstBrace(out):]), &plan); err != nil {
		return fmt.Errorf("%w: %s", err, out)
	}
	if out, err := c.Command(ctx, "recover", "--plan", plan.Plan); err != nil {
		return fmt.Errorf("recover: %w: %s", err, out)
	}
	if err := c.Start(); err != nil {
		return err
	}
	err = plane.Eventually(ctx, time.Minute, func() error {
		return p.API.On(ctx, c.Address(9640), http.MethodPost, "/v1/tenants/default/clusters", map[string]any{"id": "after", "authority": "tenants/default/authorities/" + authorityID("P-384")}, nil)
	})
	if err != nil {
		return fmt.Errorf("%w\n%s", err, p.Tails(5))
	}
	b.add(figure{Name: "dead majority to serving: recover --dry-run, recover, run, first write", Value: time.Since(began).Seconds(), Unit: "s", Load: "two of three killed for good, small state"})
	return nil
}

// firstBrace is where the JSON document begins that a command printed.
func firstBrace(s string) int {
	for i := range s {
		if s[i] == '{' {
			return i
		}
	}
	return 0
}
