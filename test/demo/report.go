//go:build linux

package main

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/cassandra-security-manager/csm/shared/workload"
	"github.com/cassandra-security-manager/csm/test/process"
	"github.com/cassandra-security-manager/csm/test/ring"
)

const atRest = 8 * time.Second

// report checks what holds over the whole run and tells it: the last table, the load, the logs, the agents, the checksum.
func (d *demo) report(ctx context.Context) bool {
	busy := d.load.Since(d.busy)
	d.screen.step("the same load at rest")
	mark := d.load.Mark()
	pause(ctx, atRest)
	rest := d.load.Since(mark)
	d.screen.step("looking at the whole run")
	d.screen.title("What came of it")
	d.renewalTable()
	d.prove("no query failed during the whole run", d.loadReport(busy, rest))
	d.prove("our passing probes put no ERROR into Cassandra's logs", d.errorReport())
	d.prove("agents open no port and stay small", d.agentReport())
	d.prove("the state is the same on all controllers", d.checksum(ctx))
	d.prove("one proof verified without us", d.openssl(ctx))
	lost := 0
	for _, p := range d.proofs {
		if p.err != nil {
			lost++
		}
	}
	took := clock(time.Since(d.screen.begin))
	d.screen.watch(nil)
	if lost == 0 {
		d.screen.done("%s", d.screen.paint("1;32", fmt.Sprintf("ALL %d PROOFS HELD in %s", len(d.proofs), took)))
		return true
	}
	var which []string
	for _, p := range d.proofs {
		if p.err != nil {
			which = append(which, "- "+p.what+": "+cut(p.err.Error(), 300))
		}
	}
	d.screen.failed("%d of %d PROOFS DID NOT HOLD in %s:\n%s", lost, len(d.proofs), took, strings.Join(which, "\n"))
	d.screen.text("The logs are in " + d.dir)
	return false
}

// renewalTable has a line per node and port.
func (d *demo) renewalTable() {
	rows := [][]string{{"node", "port", "store", "before", "after", "proof", "by", "seconds", "queries", "failed", "p99"}}
	for _, r := range d.renewals {
		for i, proof := range strings.Split(r.proofs, ", ") {
			port, what, _ := strings.Cut(proof, " ")
			row := []string{r.node, port, r.format, brief(r.before), brief(r.after), what, r.by, fmt.Sprintf("%.1f", r.took.Seconds()),
				fmt.Sprint(r.load.Queries), fmt.Sprint(r.load.Failed), ms(r.load.P99)}
			if i > 0 {
				row[0], row[2], row[7], row[8], row[9], row[10] = "", "", "", "", "", ""
			}
			rows = append(rows, row)
		}
	}
	d.screen.text(table(rows))
}

func (d *demo) loadReport(busy, rest workload.Report) error {
	whole := d.load.Since(d.load.Begin())
	d.screen.text(fmt.Sprintf("  load            %d queries (%d writes, %d reads, each checked), %d new connections, %d failed, %d wrong\n"+
		"                  p50 %s, p99 %s while nodes were renewed and broken (max %s); p50 %s, p99 %s at rest",
		whole.Queries, whole.Writes, whole.Reads, whole.Connections, whole.Failed, whole.Wrong,
		ms(busy.P50), ms(busy.P99), ms(busy.Max), ms(rest.P50), ms(rest.P99)))
	if d.leaderOut > 0 {
		d.screen.text(fmt.Sprintf("  control plane   %.1f s from the SIGKILL of the leader to the next certificate", d.leaderOut.Seconds()))
	}
	if whole.Failed+whole.Wrong > 0 {
		return fmt.Errorf("%d failed, %d wrong of %d: %v", whole.Failed, whole.Wrong, whole.Queries, whole.Errors)
	}
	return nil
}

// errorReport counts ERROR lines since the ring had come up, apart from those that a scenario made on purpose.
func (d *demo) errorReport() error {
	var unexplained []string
	meant := 0
	for i, n := range d.ring.Nodes {
		known := map[string]int{}
		for _, l := range d.errorsBy[n.Name] {
			known[l]++
			meant++
		}
		for _, l := range n.Errors(d.ready[i]) {
			if known[l]--; known[l] < 0 {
				unexplained = append(unexplained, n.Name+": "+l)
			}
		}
	}
	d.screen.text(fmt.Sprintf("  Cassandra's log %d ERROR by our passing probes, %d by the file that was spoiled on purpose", len(unexplained), meant))
	if len(unexplained) > 0 {
		return errors.New(strings.Join(unexplained, "\n"))
	}
	return nil
}

const agentMemory = 30 << 20 // resident; the helper that runs the reload command is counted apart

func (d *demo) agentReport() (err error) {
	for _, a := range d.agents {
		u, e := a.Process.Usage()
		open, e2 := a.Process.Listening()
		if e = errors.Join(e, e2); e != nil {
			err = errors.Join(err, e)
			continue
		}
		var helper int64
		for _, pid := range a.Process.Group() {
			if h, e := process.UsageOf(pid); e == nil && pid != a.Process.Pid() {
				helper += h.Resident
			}
		}
		d.screen.text(fmt.Sprintf("  agent of %s     %.1f MB resident (peak %.1f), its helper %.1f MB; %.1f s of CPU since its start; listens on %s", a.Node.Name,
			mb(u.Resident), mb(u.Peak), mb(helper), u.CPU.Seconds(), listening(open)))
		if len(open) > 0 {
			err = errors.Join(err, fmt.Errorf("the agent of %s listens on %v", a.Node.Name, open))
		}
		if u.Peak > agentMemory {
			err = errors.Join(err, fmt.Errorf("the agent of %s took %.1f MB", a.Node.Name, mb(u.Peak)))
		}
	}
	return err
}

func mb(bytes int64) float64 { return float64(bytes) / (1 << 20) }

func listening(open []netip.AddrPort) string {
	if len(open) == 0 {
		return "no port"
	}
	return fmt.Sprint(open)
}

// checksum lets csm compare the state of all controllers; its exit code is 0 only if all are equal.
func (d *demo) checksum(ctx context.Context) error {
	out, err := d.must(ctx, "csm", "status", "--verify")
	if err != nil {
		return err
	}
	d.screen.text("\n" + indent(out))
	for _, c := range d.plane.Controllers {
		if !strings.Contains(out, c.Name) {
			return fmt.Errorf("%s gave no checksum", c.Name)
		}
	}
	return nil
}

// openssl shows a proof that needs nothing of ours but the root's certificate and an application's.
func (d *demo) openssl(ctx context.Context) error {
	n := d.ring.Nodes[0]
	p, err := onDisk(n)
	if err != nil {
		return err
	}
	at := netip.AddrPortFrom(n.Address, ring.NativePort)
	script := fmt.Sprintf("openssl s_client -connect %s -CAfile %s -cert %s -cert_chain %s -key %s -verify_return_error </dev/null 2>/dev/null | openssl x509 -noout -sha256 -fingerprint -enddate",
		at, d.rootFile(), d.appFile(), d.appFile(), d.appFile())
	out, err := shell(ctx, script)
	if err != nil {
		return fmt.Errorf("%s: %w", script, err)
	}
	d.screen.text("\n  Verify one proof without us:\n    " + script + "\n" + indent(indent(out)))
	if got := strings.ToLower(strings.ReplaceAll(out, ":", "")); !strings.Contains(got, p.fingerprint()) {
		return fmt.Errorf("openssl sees %q, on disk is %s", out, p.fingerprint())
	}
	return nil
}

func indent(s string) string {
	return "  " + strings.ReplaceAll(strings.TrimRight(s, "\n"), "\n", "\n  ")
}

// play leaves everything up for whoever wants to try.
func (d *demo) play(ctx context.Context) {
	wrapper := filepath.Join(d.dir, "csm")
	script := fmt.Sprintf("#!/bin/sh\nCSM_CONFIG=%s exec %s \"$@\"\n", d.csmConfig(), filepath.Join(d.bin, "csm"))
	if err := os.WriteFile(wrapper, []byte(script), 0o755); err != nil {
		d.screen.failed("%v", err)
		return
	}
	if rel, err := filepath.Rel(must(os.Getwd()), wrapper); err == nil {
		wrapper = rel
	}
	d.screen.title("It stays up until Ctrl-C. Three commands to try in another terminal:")
	d.screen.text(fmt.Sprintf("  %[1]s status\n  %[1]s node renew %[2]s/%[3]s --wait\n  %[1]s certificate list --limit 10\n", wrapper, clusterShort, d.agents[1].Node.Name))
	d.screen.step("running; Ctrl-C stops all of it")
	d.screen.watch(func() string {
		r := d.load.Since(d.load.Begin())
		return fmt.Sprintf("· %d queries, %d failed", r.Queries, r.Failed)
	})
	<-ctx.Done()
	d.screen.watch(nil)
}

func must[T any](v T, err error) T {
	if err != nil {
		panic(err)
	}
	return v
}
