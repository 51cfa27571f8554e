//go:build linux

package main

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"fmt"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/cassandra-security-manager/csm/controller/fleet"
	"github.com/cassandra-security-manager/csm/shared/keystore"
	"github.com/cassandra-security-manager/csm/test/plane"
	"github.com/cassandra-security-manager/csm/test/process"
)

// observeInstances have two stores each.
const observeInstances = 5

// observe measures one agent in mode observe with ten stores of another CA: five instances, a store for links between nodes and
// one for clients each. No Cassandra runs beside it.
func (b *bench) observe(ctx context.Context) error {
	p, release, err := b.plane(ctx, "observe", 1)
	if err != nil {
		return err
	}
	defer release()
	if err := b.authority(ctx, p, "P-384"); err != nil {
		return err
	}
	if err := p.API.Do(ctx, http.MethodPost, filepath.Dir(clusterPath), map[string]string{"id": siteCluster, "authority": authorityID("P-384"), "cassandraName": siteCluster}, nil); err != nil {
		return err
	}
	dir := filepath.Join(b.work, "observer")
	conf, err := estate(ctx, p, dir)
	if err != nil {
		return err
	}
	a, err := process.Start(process.Spec{Name: "agent", Path: filepath.Join(b.bin, "csm-agent"), Args: []string{"run", "--config", conf}, Dir: dir, Log: filepath.Join(dir, "log")})
	if err != nil {
		return err
	}
	defer a.Kill()
	err = plane.Eventually(ctx, time.Minute, func() error {
		var nodes struct{ Items []fleet.Node }
		if err := p.API.Do(ctx, http.MethodGet, clusterPath+"/nodes", nil, &nodes); err != nil {
			return err
		}
		seen := 0
		for _, n := range nodes.Items {
			for _, s := range n.Stores {
				if s.State == "foreign" && s.Leaf != "" {
					seen++
				}
			}
		}
		if seen != 2*observeInstances {
			return fmt.Errorf("%d stores are seen", seen)
		}
		return nil
	})
	if err != nil {
		return fmt.Errorf("%w; the agent's log ends with: %s", err, a.Tail(3))
	}
	rest, span := 30*time.Second, time.Minute
	if b.short {
		rest, span = rest/10, span/10
	}
	if err := pause(ctx, rest); err != nil {
		return err
	}
	before, err := a.Usage()
	if err != nil {
		return err
	}
	began := time.Now()
	if err := pause(ctx, span); err != nil {
		return err
	}
	after, err := a.Usage()
	if err != nil {
		return err
	}
	share := (after.CPU - before.CPU).Seconds() / time.Since(began).Seconds() * 100
	load := fmt.Sprintf("one agent in mode observe, %d instances with 10 stores (PKCS#12, JKS) of another CA, %.0f s at rest from %.0f s after all were seen; no Cassandra runs", observeInstances, span.Seconds(), rest.Seconds())
	resident, peak := float64(after.Resident)/1e6, float64(after.Peak)/1e6
	b.add(figure{Name: "agent in observe with 10 stores, resident", Value: resident, Unit: "MB", Goal: "< 96 MB", Holds: yes(resident < 96), Load: load})
	b.add(figure{Name: "agent in observe with 10 stores, resident at its highest", Value: peak, Unit: "MB", Load: load})
	b.add(figure{Name: "agent in observe with 10 stores, CPU", Value: share, Unit: "% of one core", Load: load + "; the kernel counts in steps of 10 ms"})
	return nil
}

// estate writes the stores, cassandra.yaml of each instance, and one agent.yaml for all.
func estate(ctx context.Context, p *plane.Plane, dir string) (string, error) {
	f := p.Fleet(siteCluster)
	var yaml strings.Builder
	fmt.Fprintf(&yaml, "controllers: [%s]\npin: %s\ncluster: %s\nmode: observe\nstate_dir: %s\nhold_file: %s\ncassandra:\n", strings.Join(f.Controllers, ", "), f.Pin, f.Cluster, filepath.Join(dir, "state"), filepath.Join(dir, "HOLD"))
	for i := range observeInstances {
		name, home := fmt.Sprintf("n%d", i+1), filepath.Join(dir, fmt.Sprintf("n%d", i+1))
		if err := os.MkdirAll(filepath.Join(home, "tls"), 0o700); err != nil {
			return "", err
		}
		ip := fmt.Sprintf("127.77.0.%d", i+1)
		text := fmt.Sprintf("cluster_name: %s\nendpoint_snitch: SimpleSnitch\nlisten_address: %s\nrpc_address: %[2]s\n", siteCluster, ip)
		for section, format := range map[string]keystore.Format{"server_encryption_options": keystore.PKCS12, "client_encryption_options": keystore.JKS} {
			base := filepath.Join(home, "tls", section)
			if err := foreignStore(base, format, ip); err != nil {
				return "", err
			}
			on := "enabled: true"
			if strings.HasPrefix(section, "server") {
				on = "internode_encryption: all"
			}
			text += fmt.Sprintf("%s: {%s, optional: false, require_client_auth: true, store_type: %s, keystore: %s.ks, keystore_password: changeit, truststore: %[4]s.ts, truststore_password: changeit}\n", section, on, format, base)
		}
		if err := os.WriteFile(filepath.Join(home, "cassandra.yaml"), []byte(text), 0o600); err != nil {
			return "", err
		}
		var token struct{ Token string }
		if err := p.API.Do(ctx, http.MethodPost, clusterPath+"/joinTokens", map[string]any{"node": name, "ips": []string{ip}}, &token); err != nil {
			return "", err
		}
		if err := os.WriteFile(filepath.Join(home, "token"), []byte(token.Token+"\n"), 0o600); err != nil {
			return "", err
		}
		fmt.Fprintf(&yaml, "  - {name: %s, config: %s/cassandra.yaml, store_roots: [%[2]s/tls], join: {method: token, file: %[2]s/token}}\n", name, home)
	}
	path := filepath.Join(dir, "agent.yaml")
	return path, os.WriteFile(path, []byte(yaml.String()), 0o600)
}

func foreignStore(base string, format keystore.Format, ip string) error {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return err
	}
	c := &x509.Certificate{Subject: pkix.Name{CommonName: ip}, NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(200 * 24 * time.Hour), IPAddresses: []net.IP{net.ParseIP(ip)}, IsCA: true, BasicConstraintsValid: true}
	der, err := signed(c, c, key, key)
	if err != nil {
		return err
	}
	if c, err = x509.ParseCertificate(der); err != nil {
		return err
	}
	ks, err := keystore.EncodeKeyStore(format, key, []*x509.Certificate{c}, []byte("changeit"))
	if err != nil {
		return err
	}
	ts, err := keystore.EncodeTrustStore(format, []*x509.Certificate{c}, []byte("changeit"))
	if err != nil {
		return err
	}
	if err := os.WriteFile(base+".ks", ks, 0o600); err != nil {
		return err
	}
	return os.WriteFile(base+".ts", ts, 0o600)
}
