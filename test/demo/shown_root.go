//go:build linux

package main

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/cassandra-security-manager/csm/shared/certificate"
)

// changeRoot replaces the root that the ring lives by, under the load that runs already, up to where a person decides that the root
// before may go. It costs each node two reloads of the six in an hour; that one costs a third. With things that go wrong meanwhile
// it is a story of its own: tellRotation.
func changeRoot(ctx context.Context, d *demo) {
	r := &drill{demo: d}
	d.screen.title("The root is replaced under the same load")
	for _, s := range []scenario{
		{"root", "a second root, and a plan that names who would break", r.plan},
		{"root", "a start that nobody has planned and a retire before its time are refused", r.wrongOrder},
		{"root", "every truststore takes the new root, and each port is proved to accept it", r.trust},
		{"root", "each node serves a leaf of the new root, one after the other", r.leaves},
	} {
		if !d.show(ctx, s) {
			return
		}
	}
}

func (d *drill) trust(ctx context.Context, _ *demo) (string, error) {
	if err := d.start(ctx); err != nil {
		return "", err
	}
	return d.until(ctx, 5*time.Minute, "reissue", "reissued")
}

// leaves waits for the last leaf, and believes nobody: files and ports must lead to the new root, and trust both.
func (d *drill) leaves(ctx context.Context, _ *demo) (string, error) {
	said, err := d.until(ctx, 8*time.Minute, "reissued")
	if err != nil {
		return said, err
	}
	if d.root = d.roots[len(d.roots)-1]; d.root == d.roots[0] {
		return "", errors.New("there is no second root")
	}
	for _, n := range d.ring.Nodes {
		p, err := onDisk(n)
		if err != nil {
			return "", err
		}
		if err := d.client.use(d.client.config().Certificates[0], d.root); err != nil { // the new root alone, for this look
			return "", err
		}
		served, err := d.served(n)
		if back := d.client.use(d.client.config().Certificates[0], d.roots...); err != nil || back != nil {
			return "", errors.Join(err, back)
		}
		if served != p.fingerprint() || len(p.anchors) != len(d.roots) {
			return "", fmt.Errorf("%s serves %s and trusts %d anchors; on disk is %s", n.Name, brief(served), len(p.anchors), brief(p.fingerprint()))
		}
		last := p.key.Chain[len(p.key.Chain)-1]
		d.screen.note("%s serves %s, issued by %s, and trusts %s", n.Name, brief(served), last.Subject.CommonName, strings.Join(anchors(p), " and "))
	}
	cost := d.since(d.began)
	if cost.Failed+cost.Wrong > 0 {
		return "", fmt.Errorf("%d queries failed and %d were wrong: %v", cost.Failed, cost.Wrong, cost.Errors)
	}
	return fmt.Sprintf("%d queries and %d new connections since the start, 0 failed; the root before goes when a person says so", cost.Queries, cost.Connections), nil
}

func anchors(p pair) (out []string) {
	for _, a := range p.anchors {
		out = append(out, brief(certificate.Hex(certificate.Fingerprint(a.Raw))))
	}
	return out
}
