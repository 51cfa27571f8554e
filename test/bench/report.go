//go:build linux

package main

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math/big"
	"net"
	"net/http"
	"slices"
	"testing"
	"time"

	"github.com/cassandra-security-manager/csm/controller/api/rest"
	"github.com/cassandra-security-manager/csm/controller/api/rest/resttest"
	"github.com/cassandra-security-manager/csm/shared/readiness"
)

const reportNodes = 600

// report measures the first-day report over 600 nodes: the real REST handler over TLS on the real state of one voter, into
// which 600 agents have reported by hand. Each node has a leaf of its own and four anchors, two of which nobody uses.
func (b *bench) report(ctx context.Context) error {
	var took []time.Duration
	var size int
	var err error
	done := false
	testing.Init() // the world of package resttest wants a test; a benchmark that runs once is one
	testing.Benchmark(func(t *testing.B) {
		if done {
			return
		}
		done = true
		w := resttest.New(t, func(d *rest.Deps) { d.Limits.Timeout = 5 * time.Minute })
		if err = simulate(w); err != nil {
			return
		}
		client := w.Client(&w.Ada)
		for range 5 {
			began := time.Now()
			var r readiness.Report
			if r, size, err = ask(ctx, client, w.Server.URL+"/v1/tenants/default/clusters/prod:checkReadiness"); err != nil {
				return
			}
			if r.Total != reportNodes || r.Ready != reportNodes || r.Warnings < 2*reportNodes {
				err = fmt.Errorf("the report is about %d nodes, %d ready, %d warnings", r.Total, r.Ready, r.Warnings)
				return
			}
			took = append(took, time.Since(began))
		}
	})
	if err == nil && len(took) == 0 {
		err = errors.New("the simulated estate could not be made")
	}
	if err != nil {
		return err
	}
	slices.Sort(took)
	load := fmt.Sprintf("REST over TLS, one voter in this process, %d nodes with 5 found certificates each; answer of %.1f MB; five reports", reportNodes, float64(size)/1e6)
	b.add(figure{Name: "first-day report over 600 simulated nodes, median", Value: took[len(took)/2].Seconds(), Unit: "s", Load: load})
	b.add(figure{Name: "first-day report over 600 simulated nodes, longest", Value: took[len(took)-1].Seconds(), Unit: "s", Load: load})
	return nil
}

func ask(ctx context.Context, c *http.Client, url string) (r readiness.Report, size int, err error) {
	q, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
	if err != nil {
		return r, 0, err
	}
	resp, err := c.Do(q)
	if err != nil {
		return r, 0, err
	}
	defer resp.Body.Close()
	data, err := io.ReadAll(resp.Body)
	if err == nil && resp.StatusCode != http.StatusOK {
		err = fmt.Errorf("%s: %.500s", resp.Status, data)
	}
	if err == nil {
		err = json.Unmarshal(data, &r)
	}
	return r, len(data), err
}

// simulate lets 600 agents join and report stores of another CA.
func simulate(w *resttest.World) error {
	cluster := w.Cluster("prod")
	now := w.Log.Clock.Now()
	var anchors [][]byte
	var root *x509.Certificate
	rootKey, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return err
	}
	for i := range 4 {
		c := &x509.Certificate{Subject: pkix.Name{CommonName: fmt.Sprintf("root %d", i)}, NotBefore: now.Add(-time.Hour), NotAfter: now.Add(1000 * 24 * time.Hour), IsCA: true, BasicConstraintsValid: true}
		der, err := signed(c, c, rootKey, rootKey)
		if err != nil {
			return err
		}
		anchors = append(anchors, der)
		if i == 0 {
			root, _ = x509.ParseCertificate(der)
		}
	}
	for i := range reportNodes {
		key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
		if err != nil {
			return err
		}
		c := &x509.Certificate{Subject: pkix.Name{CommonName: fmt.Sprintf("n%d", i)}, NotBefore: now.Add(-time.Hour), NotAfter: now.Add(time.Duration(100+i) * 24 * time.Hour), IPAddresses: []net.IP{net.IPv4(10, 0, 0, 1)}}
		der, err := signed(c, root, key, rootKey)
		if err != nil {
			return err
		}
		w.Join(cluster, fmt.Sprintf("n%d", i)).Foreign(der, anchors...)
	}
	return nil
}

func signed(c, by *x509.Certificate, key, with *ecdsa.PrivateKey) ([]byte, error) {
	n, err := rand.Int(rand.Reader, new(big.Int).Lsh(big.NewInt(1), 120))
	if err != nil {
		return nil, err
	}
	c.SerialNumber = n
	return x509.CreateCertificate(rand.Reader, c, by, &key.PublicKey, with)
}
