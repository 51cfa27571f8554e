//go:build linux

package main

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"net/http"
	"os"
	"slices"
	"sync/atomic"
	"time"

	"github.com/cassandra-security-manager/csm/controller/fleet/rollout"
	"github.com/cassandra-security-manager/csm/controller/fleet/rotation"
	"github.com/cassandra-security-manager/csm/shared/certificate"
	"github.com/cassandra-security-manager/csm/shared/workload"
	"github.com/cassandra-security-manager/csm/test/plane"
	"github.com/cassandra-security-manager/csm/test/ring"
)

// nextAuthority is the CA that the ring is rotated to.
const nextAuthority = "next"

// live is a ring under a load whose certificate and roots can be changed.
type live struct {
	*bench
	*site
	load        *workload.Load
	conf        atomic.Pointer[tls.Config]
	reconnected time.Time
}

// rotation measures what a renewal of the whole ring and a change of its root cost the queries of an application, beside the
// same application at rest.
func (b *bench) rotation(ctx context.Context) error {
	s, err := b.site(ctx)
	if err != nil {
		return err
	}
	defer s.stop()
	if err := s.up(ctx); err != nil {
		return err
	}
	l := &live{bench: b, site: s}
	if err := l.application(ctx, authorityID("P-384"), authorityID("P-384")); err != nil {
		return err
	}
	if l.load, err = workload.Start(ctx, workload.Options{Hosts: s.ring.Hosts(), TLS: l.conf.Load}); err != nil {
		return err
	}
	defer l.load.Stop()
	// Before its first rollout a ring is seen as healthy by all of its agents.
	if err := pause(ctx, 10*time.Second); err != nil {
		return err
	}
	for _, step := range []struct {
		name string
		run  func(context.Context) error
	}{
		{"at rest", func(ctx context.Context) error { return pause(ctx, time.Minute) }},
		{"renewal of each node, one at a time", l.renewed},
		{"change of the root, to the last leaf", l.rotated},
		{"retire of the old root", l.retired},
	} {
		mark := l.load.Mark()
		if err := step.run(ctx); err != nil {
			return fmt.Errorf("%s: %w", step.name, err)
		}
		l.figures(step.name, l.load.Since(mark))
	}
	return nil
}

func (l *live) figures(name string, r workload.Report) {
	load := fmt.Sprintf("three Cassandra %s, P-384, one controller; %d queries and %d new connections in %.0f s", ring.Version, r.Queries, r.Connections, r.Took.Seconds())
	if name != "at rest" {
		l.add(figure{Name: name, Value: r.Took.Seconds(), Unit: "s", Load: load})
	}
	l.add(figure{Name: name + ": failed queries and connections", Value: float64(r.Failed), Unit: "", Goal: "0", Holds: yes(r.Failed == 0), Load: load})
	l.add(figure{Name: name + ": p99 of a query", Value: ms(r.P99), Unit: "ms", Load: load})
	for text, n := range r.Errors {
		fmt.Fprintf(os.Stderr, "  %d times %s\n", n, text)
	}
}

// application gives the load a certificate of a CA and the roots of some.
func (l *live) application(ctx context.Context, ca string, trusted ...string) error {
	key, err := ecdsa.GenerateKey(elliptic.P384(), rand.Reader)
	if err != nil {
		return err
	}
	csr, err := request(key, "load.bench.example")
	if err != nil {
		return err
	}
	body := issueBody("P-384", csr)
	body["authority"] = ca
	var c struct{ Chain string }
	if err := l.API.Do(ctx, http.MethodPost, "/v1/tenants/default/certificates:issue", body, &c); err != nil {
		return err
	}
	chain, err := certificate.DecodePEM([]byte(c.Chain))
	if err != nil {
		return err
	}
	roots := x509.NewCertPool()
	for _, name := range trusted {
		var a struct{ Issuers []struct{ Kind, PEM string } }
		if err := l.API.Do(ctx, http.MethodGet, "/v1/tenants/default/authorities/"+name, nil, &a); err != nil {
			return err
		}
		for _, i := range a.Issuers {
			if i.Kind == "root" {
				roots.AppendCertsFromPEM([]byte(i.PEM))
			}
		}
	}
	l.conf.Store(&tls.Config{Certificates: []tls.Certificate{{PrivateKey: key, Certificate: certificate.Raw(chain)}}, RootCAs: roots})
	return nil
}

func (l *live) renewed(ctx context.Context) error {
	var plan rollout.Plan
	body := map[string]any{"bake": "0s"}
	if err := l.API.Do(ctx, http.MethodPost, clusterPath+"/rollouts:plan", body, &plan); err != nil {
		return err
	}
	body["planHash"], body["reason"] = plan.Hash, "measured"
	var r rollout.Rollout
	if err := l.API.Do(ctx, http.MethodPost, clusterPath+"/rollouts:start", body, &r); err != nil {
		return err
	}
	name := r.Name
	return plane.Eventually(ctx, 5*time.Minute, func() error {
		if err := l.API.Do(ctx, http.MethodGet, "/v1/"+name, nil, &r); err != nil || string(r.State) == "done" {
			return err
		}
		return fmt.Errorf("%s: %+v", r.State, r.Awaits)
	})
}

const rotationsPath = "/v1/tenants/default/trustDomains/" + siteCluster + "/rotations"

func (l *live) rotated(ctx context.Context) error {
	base := "/v1/tenants/default/authorities"
	if err := l.API.Do(ctx, http.MethodPost, base, map[string]string{"id": nextAuthority, "algorithm": "P-384"}, nil); err != nil {
		return err
	}
	if err := l.API.Do(ctx, http.MethodPost, base+"/"+nextAuthority+"/issuers", map[string]string{"region": "eu-west"}, nil); err != nil {
		return err
	}
	if err := l.application(ctx, authorityID("P-384"), authorityID("P-384"), nextAuthority); err != nil {
		return err
	}
	var plan rotation.RotationPlan
	if err := l.API.Do(ctx, http.MethodPost, rotationsPath+":plan", map[string]any{"authority": nextAuthority}, &plan); err != nil {
		return err
	}
	var r rotation.Rotation
	if err := l.API.Do(ctx, http.MethodPost, rotationsPath, map[string]any{"authority": nextAuthority, "planHash": plan.Hash, "bake": "0s", "reason": "measured"}, &r); err != nil {
		return err
	}
	if err := l.reaches(ctx, rotation.Reissued); err != nil {
		return err
	}
	// From here on the application can have a certificate of the new CA, and the retire waits until it has.
	if err := l.application(ctx, nextAuthority, authorityID("P-384"), nextAuthority); err != nil {
		return err
	}
	return l.load.Reconnect()
}

// now is the one rotation that there is.
func (l *live) now(ctx context.Context) (r rotation.Rotation, err error) {
	var list struct{ Items []rotation.Rotation }
	if err := l.API.Do(ctx, http.MethodGet, rotationsPath, nil, &list); err != nil {
		return r, err
	}
	if len(list.Items) != 1 {
		return r, fmt.Errorf("%d rotations", len(list.Items))
	}
	err = l.API.Do(ctx, http.MethodGet, "/v1/"+list.Items[0].Name, nil, &r)
	return r, err
}

// reaches waits for a phase. When the canary waits for its clients, the application is restarted, at most once a minute.
func (l *live) reaches(ctx context.Context, phase rotation.Phase) error {
	return plane.Eventually(ctx, 10*time.Minute, func() error {
		r, err := l.now(ctx)
		if err != nil || r.Phase == phase {
			return err
		}
		if slices.ContainsFunc(r.Reasons, func(x rotation.Reason) bool { return x.Code == "canary" || x.Code == "seen" }) && time.Since(l.reconnected) > time.Minute {
			l.reconnected = time.Now()
			if err := l.load.Reconnect(); err != nil {
				return err
			}
		}
		return fmt.Errorf("phase %s: %+v", r.Phase, r.Reasons)
	})
}

// retired names the links: ending them takes a helper that is not allowed on loopback of every machine.
func (l *live) retired(ctx context.Context) error {
	r, err := l.now(ctx)
	if err != nil {
		return err
	}
	err = plane.Eventually(ctx, 5*time.Minute, func() error {
		var plan rotation.RetirePlan
		if err := l.API.Do(ctx, http.MethodPost, "/v1/"+r.Name+":planRetire", map[string]any{}, &plan); err != nil {
			return err
		}
		return l.API.Do(ctx, http.MethodPost, "/v1/"+r.Name+":retire", map[string]any{"planHash": plan.Hash, "except": []string{"links"}, "reason": "measured"}, nil)
	})
	if err != nil {
		return err
	}
	return l.reaches(ctx, rotation.Done)
}
