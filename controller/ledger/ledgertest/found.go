package ledgertest

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/cassandra-security-manager/csm/controller/ledger"
	clusterv1 "github.com/cassandra-security-manager/csm/protocol/cluster/v1"
)

const (
	foundNode  = "tenants/default/clusters/prod/nodes/n1"
	foundOther = "tenants/default/clusters/prod/nodes/n2"
)

func (b *book) seen(path string) ledger.Seen {
	b.n++
	c := der(b.t, b.n, "found "+strings.ToValidUTF8(path, ""), []string{"old.example"}, nil, b.Now().Add(24*time.Hour).Truncate(time.Second))
	return ledger.Seen{DER: c.Raw, Path: path, Entry: "0", Format: "PEM", Owner: "cassandra", Mode: 0o640}
}

func (b *book) report(node string, seen ...ledger.Seen) {
	b.t.Helper()
	_, err := ledger.ReportFound(b.ctx, b.Reader, b.Log, node, "agent", seen)
	check(b.t, err)
}

func (b *book) found(f ledger.FoundFilter, size int) []ledger.Found {
	b.t.Helper()
	var out []ledger.Found
	p := ledger.Page{Size: size}
	for {
		fs, next, err := b.Ledger.Found(b.ctx, f, p)
		check(b.t, err)
		out = append(out, fs...)
		if next == "" {
			return out
		}
		p.Token = next
	}
}

func (b *book) wantPaths(f ledger.FoundFilter, paths ...string) {
	b.t.Helper()
	var got []string
	for _, x := range b.found(f, 0) {
		got = append(got, x.Path)
	}
	if fmt.Sprint(got) != fmt.Sprint(paths) {
		b.t.Errorf("%+v gives %v, want %v", f, got, paths)
	}
}

func scans(t *testing.T, b *book) {
	x, y, z := b.seen("/a"), b.seen("/b"), b.seen("/c")
	b.report(foundNode, y, x)
	b.report(foundOther, x)
	b.wantPaths(ledger.FoundFilter{Node: foundNode}, "/a", "/b")
	b.report(foundNode, z)
	b.wantPaths(ledger.FoundFilter{Node: foundNode}, "/c")
	b.wantPaths(ledger.FoundFilter{Node: foundOther}, "/a")
	b.wantPaths(ledger.FoundFilter{Cluster: "tenants/default/clusters/prod"}, "/c", "/a")
	first := b.found(ledger.FoundFilter{Node: foundNode}, 0)[0].SeenTime
	b.Advance(time.Hour)
	b.report(foundNode, z)
	if got := b.found(ledger.FoundFilter{Node: foundNode}, 0)[0]; !got.SeenTime.Equal(first) || string(got.DER) != string(z.DER) || got.Mode != 0o640 {
		t.Errorf("an unchanged scan was written again: %v, %v", got.SeenTime, first)
	}
	b.report(foundNode)
	b.wantPaths(ledger.FoundFilter{Node: foundNode})
	rubbish := ledger.Seen{DER: []byte("no certificate"), Path: "/r"}
	odd := b.seen("/odd\xff")
	b.report(foundNode, rubbish, odd)
	b.wantPaths(ledger.FoundFilter{Node: foundNode}, "/odd\uFFFD")
}

func foundKnown(t *testing.T, b *book) {
	c := b.command(nil)
	r, err := b.propose(c)
	check(t, err)
	foreign := b.seen("/foreign")
	b.report(foundNode, ledger.Seen{DER: c.Der, Path: "/ours"}, foreign)
	b.wantPaths(ledger.FoundFilter{Unknown: true}, "/foreign")
	b.wantPaths(ledger.FoundFilter{Known: true}, "/ours")
	b.wantPaths(ledger.FoundFilter{Text: "FOREIGN"}, "/foreign")
	b.wantPaths(ledger.FoundFilter{ExpiresBefore: b.Now()})
	if got := b.found(ledger.FoundFilter{Known: true}, 0)[0].Known; got != r.(*clusterv1.RecordedCertificate).Name {
		t.Errorf("known as %q", got)
	}
}

func largeScan(t *testing.T, b *book) {
	one := b.seen("/x")
	var seen []ledger.Seen
	for i := range 300 { // 300 copies of 300 bytes and more are several commands
		s := one
		s.Path, s.Entry = fmt.Sprintf("/very/long/path/to/the/store/number/%04d", i), "alias"
		seen = append(seen, s)
	}
	b.report(foundNode, seen...)
	if got := b.found(ledger.FoundFilter{}, 37); len(got) != 300 || got[299].Path != seen[299].Path {
		t.Errorf("%d of 300 found", len(got))
	}
	_, next, err := b.Ledger.Found(b.ctx, ledger.FoundFilter{}, ledger.Page{Size: 10})
	check(t, err)
	_, _, err = b.Ledger.Found(b.ctx, ledger.FoundFilter{Node: foundNode}, ledger.Page{Size: 10, Token: next})
	b.wantReason(err, "bad-page-token")
}
