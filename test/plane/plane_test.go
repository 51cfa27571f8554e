//go:build linux

package plane_test

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"errors"
	"flag"
	"fmt"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"github.com/cassandra-security-manager/csm/test/plane"
	"github.com/cassandra-security-manager/csm/test/process"
)

// world is a control plane of three real programs.
type world struct {
	*plane.Plane
	t *testing.T
}

// program builds csm-controller and csm once for all tests; TestMain takes them away.
var program = sync.OnceValues(func() (string, error) {
	c := exec.Command("go", "build", "-o", folder+"/", "./controller/cmd/csm-controller", "./controller/cmd/csm")
	c.Dir, c.Env = "../..", append(os.Environ(), "CGO_ENABLED=0")
	if out, err := c.CombinedOutput(); err != nil {
		return "", fmt.Errorf("%w: %s", err, out)
	}
	return folder, nil
})

var folder string

// TestMain lets more tests run at once than there are processors: controllers wait for each other for most of a test.
func TestMain(m *testing.M) {
	flag.Parse()
	err := flag.Set("test.parallel", "4")
	if err != nil {
		panic(err)
	}
	if folder, err = os.MkdirTemp("", "csm-plane-"); err != nil {
		panic(err)
	}
	code := m.Run()
	os.RemoveAll(folder)
	os.Exit(code)
}

func start(t *testing.T) world {
	t.Helper()
	return startWith(t, "")
}

// startWith adds something to every controller.yaml.
func startWith(t *testing.T, extra string) world {
	t.Helper()
	if testing.Short() {
		t.Skip("real programs are left out of -short runs")
	}
	bin, err := program()
	if err != nil {
		t.Fatal(err)
	}
	r, err := process.Claim(170, 3, 9640, 9641, 9642, 9643, 9644)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(r.Release)
	p, err := plane.Start(t.Context(), plane.Options{Dir: t.TempDir(), Bin: bin, Host: r.Host, Regions: []string{"eu-west", "us-east", "ap-south"}, Root: "lab", Extra: extra})
	if p != nil {
		t.Cleanup(func() {
			if t.Failed() {
				t.Log(p.Tails(20))
			}
			p.Stop()
		})
	}
	if err != nil {
		t.Fatal(err)
	}
	return world{p, t}
}

// issue asks one controller for a certificate and gives its name.
func (w world) issue(ctx context.Context, c *plane.Controller, csr string) (string, error) {
	var made struct{ Name string }
	err := w.API.On(ctx, c.Address(9640), http.MethodPost, "/v1/tenants/default/certificates:issue", map[string]string{"authority": "root", "csr": csr}, &made)
	return made.Name, err
}

// everywhere says which of the names a controller does not know.
func (w world) everywhere(names []string) {
	w.t.Helper()
	for _, c := range w.Controllers {
		for _, name := range names {
			if err := w.API.On(w.t.Context(), c.Address(9640), http.MethodGet, "/v1/"+name+"?consistency=linearizable", nil, nil); err != nil {
				w.t.Errorf("%s does not have the acknowledged %s: %v", c.Name, name, err)
			}
		}
	}
	var sums struct{ Consistent bool }
	if err := w.API.Do(w.t.Context(), http.MethodPost, "/v1/system:verify", struct{}{}, &sums); err != nil || !sums.Consistent {
		w.t.Errorf("the controllers do not hold the same state: %+v %v", sums, err)
	}
}

func request(t *testing.T, name string) string {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P384(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	der, err := x509.CreateCertificateRequest(rand.Reader, &x509.CertificateRequest{Subject: pkix.Name{CommonName: name}, DNSNames: []string{name}}, key)
	if err != nil {
		t.Fatal(err)
	}
	return string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE REQUEST", Bytes: der}))
}

func TestWhatWasAcknowledgedSurvivesTheDeathOfEveryController(t *testing.T) {
	t.Parallel()
	w := start(t)
	var mu sync.Mutex
	var acked []string
	ctx, cancel := context.WithCancel(t.Context())
	var wg sync.WaitGroup
	for i, c := range w.Controllers {
		wg.Go(func() {
			for n := 0; ctx.Err() == nil; n++ {
				name, err := w.issue(ctx, c, request(t, fmt.Sprintf("app%d-%d.example", i, n)))
				if err == nil {
					mu.Lock()
					acked = append(acked, name)
					mu.Unlock()
				}
			}
		})
	}
	enough := func() error {
		mu.Lock()
		defer mu.Unlock()
		if len(acked) < 30 {
			return fmt.Errorf("%d acknowledged", len(acked))
		}
		return nil
	}
	if err := plane.Eventually(t.Context(), 60*time.Second, enough); err != nil {
		t.Fatal(err, w.Tails(10))
	}
	for _, c := range w.Controllers {
		c.Kill() // SIGKILL, all of them, in the middle of the load
	}
	cancel()
	wg.Wait()
	for _, c := range w.Controllers {
		if err := c.Start(); err != nil {
			t.Fatal(err)
		}
	}
	if err := w.Ready(t.Context()); err != nil {
		t.Fatal(err, w.Tails(20))
	}
	w.everywhere(acked)
}

func TestWithoutAQuorumTheAnswerSaysWhatToStartAndReadsGoOn(t *testing.T) {
	t.Parallel()
	w := start(t)
	last := w.Controllers[2]
	name, err := w.issue(t.Context(), last, request(t, "before.example"))
	if err != nil {
		t.Fatal(err)
	}
	if err := w.API.On(t.Context(), last.Address(9640), http.MethodGet, "/v1/"+name, nil, nil); err != nil {
		t.Fatal(err)
	}
	w.Controllers[0].Kill()
	w.Controllers[1].Kill()
	csr := request(t, "during.example")
	refused := func() error {
		_, err := w.issue(t.Context(), last, csr)
		var p *plane.Problem
		if !errors.As(err, &p) || p.Status != http.StatusServiceUnavailable || p.Reason != "no-quorum" || p.Remedy == "" {
			return fmt.Errorf("answered with %v", err)
		}
		return nil
	}
	// A write that is under way when the quorum goes is honestly of unknown outcome; then it is a clear 503.
	if err := plane.Eventually(t.Context(), 40*time.Second, refused); err != nil {
		t.Fatal(err)
	}
	if err := w.API.On(t.Context(), last.Address(9640), http.MethodGet, "/v1/"+name, nil, nil); err != nil {
		t.Errorf("a read without a quorum: %v", err)
	}
	for _, c := range w.Controllers[:2] {
		if err := c.Start(); err != nil {
			t.Fatal(err)
		}
	}
	if err := w.Ready(t.Context()); err != nil {
		t.Fatal(err, w.Tails(20))
	}
	after, err := w.issue(t.Context(), last, request(t, "after.example"))
	if err != nil {
		t.Fatal(err)
	}
	w.everywhere([]string{name, after})
}

func TestAControllerWhoseLogLostItsTailNeverVotesOnIt(t *testing.T) {
	t.Parallel()
	w := start(t)
	victim := w.Controllers[2]
	var names []string
	for i := range 5 {
		name, err := w.issue(t.Context(), victim, request(t, fmt.Sprintf("app%d.example", i)))
		if err != nil {
			t.Fatal(err)
		}
		names = append(names, name)
	}
	victim.Kill()
	segments, err := filepath.Glob(filepath.Join(filepath.Dir(victim.Config), "data", "raft", "*.wal"))
	if err != nil || len(segments) == 0 {
		t.Fatal("no log segment", err)
	}
	flip(t, segments[len(segments)-1])
	if err := victim.Start(); err != nil {
		t.Fatal(err)
	}
	ended := func() error {
		if victim.Running() {
			return errors.New("it still runs")
		}
		return nil
	}
	if err := plane.Eventually(t.Context(), 20*time.Second, ended); err != nil {
		t.Fatalf("a controller started on a changed log: %v\n%s", err, process.Tail(victim.Log, 5))
	}
	for _, c := range w.Controllers[:2] {
		for _, name := range names {
			if err := w.API.On(t.Context(), c.Address(9640), http.MethodGet, "/v1/"+name, nil, nil); err != nil {
				t.Errorf("%s: %v", c.Name, err)
			}
		}
	}
}

// flip changes one bit in the middle of the records of a log segment.
func flip(t *testing.T, path string) {
	t.Helper()
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	end := len(b)
	for end > 0 && b[end-1] == 0 { // segments are preallocated with zeros
		end--
	}
	b[end/2] ^= 1
	if err := os.WriteFile(path, b, 0o600); err != nil {
		t.Fatal(err)
	}
}
