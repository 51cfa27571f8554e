//go:build linux

package main

import (
	"context"
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"fmt"
	"math/big"
	"runtime"
	"sort"
	"sync"
	"sync/atomic"
	"time"
)

// run is what a load gave.
type result struct {
	rate     float64
	p50, p99 time.Duration
	done     int
}

// drive has n clients call one after the other for d; the first error ends it.
func drive(ctx context.Context, n int, d time.Duration, call func(ctx context.Context, client, i int) error) (result, error) {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	took := make([][]time.Duration, n)
	start := time.Now()
	var wg sync.WaitGroup
	for c := range n {
		wg.Go(func() {
			for i := 0; time.Since(start) < d && ctx.Err() == nil; i++ {
				t := time.Now()
				if err := call(ctx, c, i); err != nil {
					cancel(err)
					return
				}
				took[c] = append(took[c], time.Since(t))
			}
		})
	}
	wg.Wait()
	elapsed := time.Since(start)
	if err := context.Cause(ctx); err != nil {
		return result{}, err
	}
	var all []time.Duration
	for _, t := range took {
		all = append(all, t...)
	}
	if len(all) == 0 {
		return result{}, fmt.Errorf("nothing was done in %s", d)
	}
	sort.Slice(all, func(i, j int) bool { return all[i] < all[j] })
	return result{rate: float64(len(all)) / elapsed.Seconds(), p50: all[len(all)/2], p99: all[len(all)*99/100], done: len(all)}, nil
}

// request makes a PKCS#10 request for a name; one key serves all, as making keys is not what is measured.
func request(key crypto.Signer, name string) ([]byte, error) {
	return x509.CreateCertificateRequest(rand.Reader, &x509.CertificateRequest{Subject: pkix.Name{CommonName: name}, DNSNames: []string{name}}, key)
}

// ceiling is how many times a second this machine can check a request, sign a certificate and verify it, and nothing else.
func ceiling(ctx context.Context, curve elliptic.Curve, d time.Duration) (float64, error) {
	issuer, err := ecdsa.GenerateKey(curve, rand.Reader)
	if err != nil {
		return 0, err
	}
	csr, err := request(issuer, "node.bench.example")
	if err != nil {
		return 0, err
	}
	parent := &x509.Certificate{SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "bench"}, IsCA: true, BasicConstraintsValid: true,
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour), KeyUsage: x509.KeyUsageCertSign}
	var serial atomic.Int64
	r, err := drive(ctx, runtime.NumCPU(), d, func(context.Context, int, int) error {
		req, err := x509.ParseCertificateRequest(csr)
		if err != nil {
			return err
		}
		if err := req.CheckSignature(); err != nil {
			return err
		}
		leaf := &x509.Certificate{SerialNumber: big.NewInt(serial.Add(1)), Subject: req.Subject, DNSNames: req.DNSNames,
			NotBefore: parent.NotBefore, NotAfter: parent.NotAfter, KeyUsage: x509.KeyUsageDigitalSignature}
		// CreateCertificate verifies its own signature: the one verification.
		_, err = x509.CreateCertificate(rand.Reader, leaf, parent, req.PublicKey, issuer)
		return err
	})
	return r.rate, err
}
