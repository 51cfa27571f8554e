package authority_test

import (
	"crypto/x509"
	"encoding/pem"
	"os"
	"os/exec"
	"path/filepath"
	"testing"
	"time"

	"github.com/cassandra-security-manager/csm/controller/authority"
	"github.com/cassandra-security-manager/csm/controller/state/statetest"
	"github.com/cassandra-security-manager/csm/shared/certificate"
)

// corporate is a PKI of openssl: a root, an intermediate, and what it signs.
type corporate struct {
	t   *testing.T
	dir string
}

func (c corporate) openssl(args ...string) {
	c.t.Helper()
	cmd := exec.Command("openssl", args...)
	cmd.Dir = c.dir
	if out, err := cmd.CombinedOutput(); err != nil {
		c.t.Fatalf("openssl %v: %v\n%s", args, err, out)
	}
}

func (c corporate) file(name, text string) {
	c.t.Helper()
	if err := os.WriteFile(filepath.Join(c.dir, name), []byte(text), 0o600); err != nil {
		c.t.Fatal(err)
	}
}

const subordinate = "basicConstraints=critical,CA:TRUE,pathlen:0\nkeyUsage=critical,keyCertSign,cRLSign\nsubjectKeyIdentifier=hash\nauthorityKeyIdentifier=keyid\n"

func newCorporate(t *testing.T, pathlen string) corporate {
	c := corporate{t, t.TempDir()}
	c.file("above.ext", "basicConstraints=critical,CA:TRUE,pathlen:"+pathlen+"\nkeyUsage=critical,keyCertSign,cRLSign\nsubjectKeyIdentifier=hash\nauthorityKeyIdentifier=keyid\n")
	c.openssl("req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-384", "-nodes", "-keyout", "root.key", "-out", "root.pem", "-days", "3650", "-subj", "/O=Example/CN=Corporate Root")
	c.openssl("req", "-new", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-384", "-nodes", "-keyout", "mid.key", "-out", "mid.csr", "-subj", "/O=Example/CN=Corporate Issuing")
	c.openssl("x509", "-req", "-in", "mid.csr", "-CA", "root.pem", "-CAkey", "root.key", "-CAcreateserial", "-days", "1800", "-extfile", "above.ext", "-out", "mid.pem")
	return c
}

// sign answers a request and gives the chain, issuing CA first.
func (c corporate) sign(csr []byte, ext string, days string, more ...string) []*x509.Certificate {
	c.t.Helper()
	c.file("ours.csr", string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE REQUEST", Bytes: csr})))
	c.file("ours.ext", ext)
	c.openssl(append([]string{"x509", "-req", "-in", "ours.csr", "-CA", "mid.pem", "-CAkey", "mid.key", "-CAcreateserial", "-days", days, "-extfile", "ours.ext", "-out", "ours.pem"}, more...)...)
	var chain []*x509.Certificate
	for _, f := range []string{"ours.pem", "mid.pem", "root.pem"} {
		b, err := os.ReadFile(filepath.Join(c.dir, f))
		if err != nil {
			c.t.Fatal(err)
		}
		cs, err := certificate.DecodePEM(b)
		if err != nil {
			c.t.Fatal(err)
		}
		chain = append(chain, cs...)
	}
	return chain
}

const external = "tenants/default/authorities/corp"

// today is a world whose clock agrees with openssl's.
func today(t *testing.T) *world {
	w := newWorld(t)
	w.log.Clock.Advance(time.Since(statetest.Start) + time.Minute)
	return w
}

func (w *world) request(t *testing.T, region string) []byte {
	t.Helper()
	csr, err := w.Request(ctx, external, region, "", "test")
	must(t, err)
	return csr
}

func TestAnIssuerUnderACorporateRootSignsAndChainsToIt(t *testing.T) {
	w, c := today(t), newCorporate(t, "1")
	chain := c.sign(w.request(t, "eu-west"), subordinate, "900")
	i, err := w.Install(ctx, external, chain, "test")
	must(t, err)
	if i.Kind != authority.Issuing || i.Region != "eu-west" || !i.Certificate.Equal(chain[0]) {
		t.Fatalf("issuer %+v", i)
	}
	chosen, err := w.IssuerFor(ctx, external, "eu-west")
	must(t, err)
	signer, err := w.Signer(ctx, chosen)
	must(t, err)
	if !certificate.SameKey(signer.Public(), chain[0].PublicKey) {
		t.Error("it signs with another key than was certified")
	}
	sent, err := w.Chain(ctx, chosen)
	must(t, err)
	anchors, err := w.Anchors(ctx, external)
	must(t, err)
	if len(sent) != 2 || !sent[1].Equal(chain[1]) || len(anchors) != 1 || !anchors[0].Equal(chain[2]) {
		t.Errorf("sent %d, anchors %d", len(sent), len(anchors))
	}
	_, err = w.CRL(ctx, i.PublicID, 0)
	must(t, err)
	_, err = w.CreateIssuer(ctx, external, "us-east", "test")
	wantReason(t, err, "external-root")
	// A second region under the same chain, and the same answer twice.
	_, err = w.Install(ctx, external, c.sign(w.request(t, "us-east"), subordinate, "900"), "test")
	must(t, err)
	_, err = w.Install(ctx, external, chain, "test")
	wantReason(t, err, "issuer-exists")
}

func TestAChainThatCannotSignForUsIsRefused(t *testing.T) {
	w, c := today(t), newCorporate(t, "1")
	csr := w.request(t, "eu-west")
	good := c.sign(csr, subordinate, "900")
	refused := func(reason string, chain []*x509.Certificate) {
		t.Helper()
		_, err := w.Install(ctx, external, chain, "test")
		wantReason(t, err, reason)
	}
	refused("bad-chain", good[:1])
	refused("no-root", good[:2])
	refused("bad-chain", []*x509.Certificate{good[0], good[2]})
	refused("not-a-ca", c.sign(csr, "basicConstraints=critical,CA:FALSE\n", "900"))
	refused("not-a-ca", c.sign(csr, "basicConstraints=critical,CA:TRUE\nkeyUsage=critical,keyCertSign\n", "900"))
	refused("expired-chain", c.sign(csr, subordinate, "10"))
	refused("wrong-subject", c.sign(csr, subordinate, "900", "-subj", "/CN=Something Else"))
	refused("bad-chain", c.sign(csr, subordinate+"extendedKeyUsage=codeSigning\n", "900"))
	refused("path-length", newCorporate(t, "0").twice(csr))
	foreign := today(t)
	_, err := foreign.Install(ctx, external, good, "test")
	wantReason(t, err, "no-request")
	other := newCorporate(t, "1")
	_, err = w.Install(ctx, external, good, "test")
	must(t, err)
	refused("another-root", other.sign(w.request(t, "us-east"), subordinate, "900"))
	_, err = w.CreateRoot(ctx, "default", "own", authority.CreateOptions{Actor: "test"})
	must(t, err)
	_, err = w.Request(ctx, "tenants/default/authorities/own", "eu", "", "test")
	wantReason(t, err, "own-root")
}

// twice lets an intermediate with path length 0 sign a CA that signs ours: too long a chain.
func (c corporate) twice(csr []byte) []*x509.Certificate {
	c.t.Helper()
	c.file("low.ext", "basicConstraints=critical,CA:TRUE\nkeyUsage=critical,keyCertSign,cRLSign\n")
	c.openssl("req", "-new", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-384", "-nodes", "-keyout", "low.key", "-out", "low.csr", "-subj", "/CN=Low")
	c.openssl("x509", "-req", "-in", "low.csr", "-CA", "mid.pem", "-CAkey", "mid.key", "-CAcreateserial", "-days", "900", "-extfile", "low.ext", "-out", "low.pem")
	above := c.sign(csr, subordinate, "900") // reads mid and root
	c.openssl("x509", "-req", "-in", "ours.csr", "-CA", "low.pem", "-CAkey", "low.key", "-CAcreateserial", "-days", "800", "-extfile", "ours.ext", "-out", "ours.pem")
	var out []*x509.Certificate
	for _, f := range []string{"ours.pem", "low.pem"} {
		b, err := os.ReadFile(filepath.Join(c.dir, f))
		must(c.t, err)
		cs, err := certificate.DecodePEM(b)
		must(c.t, err)
		out = append(out, cs...)
	}
	return append(out, above[1:]...)
}
