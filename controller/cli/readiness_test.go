package cli_test

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/json"
	"math/big"
	"net"
	"strings"
	"testing"
	"time"

	agentv1 "github.com/cassandra-security-manager/csm/protocol/agent/v1"
	"github.com/cassandra-security-manager/csm/shared/readiness"
)

func TestTheFirstDayReportNamesBlockersAndEndsWithTen(t *testing.T) {
	u := newUser(t)
	cluster := u.w.Cluster("prod")
	now := u.w.Log.Clock.Now()
	key, err := ecdsa.GenerateKey(elliptic.P384(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	make := func(name string, life time.Duration, ca bool, by *x509.Certificate) *x509.Certificate {
		c := &x509.Certificate{SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: name}, NotBefore: now.Add(-time.Hour).Truncate(time.Second), NotAfter: now.Add(life).Truncate(time.Second), IsCA: ca,
			BasicConstraintsValid: true, IPAddresses: []net.IP{net.ParseIP("10.0.0.1")}}
		if by == nil {
			by = c
		}
		der, err := x509.CreateCertificate(rand.Reader, c, by, &key.PublicKey, key)
		if err != nil {
			t.Fatal(err)
		}
		c, _ = x509.ParseCertificate(der)
		return c
	}
	root := make("corporate root", 400*24*time.Hour, true, nil)
	one, two := u.w.Join(cluster, "n1"), u.w.Join(cluster, "n2")
	one.Instance.Findings = []*agentv1.Finding{{Code: "kubernetes-volume", Severity: "error", Message: "keystore is a link of a Kubernetes secret volume", Remedy: "copy it", Store: "node", Blocks: true, Line: 7}}
	one.Instance.ConfigPath = "/etc/cassandra/cassandra.yaml"
	one.Foreign(make("n1", 90*24*time.Hour, false, root).Raw, root.Raw)
	two.Foreign(make("n2", 10*24*time.Hour, false, root).Raw, root.Raw)

	u.golden("cluster_readiness", u.exits(10, u.run("cluster", "readiness", "prod", "-o", "wide")).out)
	var r readiness.Report
	if err := json.Unmarshal([]byte(u.exits(10, u.run("cluster", "readiness", "prod", "-o", "json")).out), &r); err != nil || r.Total != 2 || r.Ready != 1 || r.Blockers != 1 {
		t.Fatalf("%+v %v", r, err)
	}
	if out := u.exits(10, u.run("cluster", "readiness", "prod", "--severity", "blocker")).out; !strings.Contains(out, "kubernetes-volume") || strings.Contains(out, "shared-key") {
		t.Errorf("--severity blocker shows %s", out)
	}
	if out := u.exits(10, u.run("cluster", "readiness", "prod", "--node", "n2")).out; strings.Contains(out, "kubernetes-volume") || !strings.Contains(out, "near-expiry") {
		t.Errorf("--node n2 shows %s", out)
	}
	u.exits(4, u.run("cluster", "readiness", "nothing"))
	u.exits(4, u.run("cluster", "readiness", "prod", "--node", "n9"))
	u.exits(2, u.run("cluster", "readiness", "prod", "--severity", "mood"))

	one.Instance.Findings = nil
	one.Report()
	u.ok(u.run("cluster", "readiness", "prod")) // errors are no blockers
}
