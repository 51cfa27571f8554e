//go:build linux

package plane_test

import (
	"fmt"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"github.com/cassandra-security-manager/csm/test/plane"
	"github.com/cassandra-security-manager/csm/test/process"
)

// corporate is the PKI of a company: a root and a CA below it, made by openssl, in a folder where an administrator works.
type corporate struct {
	t   *testing.T
	dir string
	env []string
}

// signed is how openssl makes a CA certificate; the first one signs itself.
const signed = `
openssl req -new -newkey ec -pkeyopt ec_paramgen_curve:P-384 -nodes -keyout corporate-root.key -out root.csr -subj '/O=Corporation/CN=Corporate Root'
printf 'basicConstraints=critical,CA:TRUE\nkeyUsage=critical,keyCertSign,cRLSign\nsubjectKeyIdentifier=hash\n' > root.ext
openssl x509 -req -in root.csr -key corporate-root.key -days 7300 -extfile root.ext -out corporate-root.pem
openssl req -new -newkey ec -pkeyopt ec_paramgen_curve:P-384 -nodes -keyout corporate.key -out corporate.csr -subj '/O=Corporation/CN=Corporate CA'
printf 'basicConstraints=critical,CA:TRUE,pathlen:1\nkeyUsage=critical,keyCertSign,cRLSign\nsubjectKeyIdentifier=hash\nauthorityKeyIdentifier=keyid\n' > corporate.ext
openssl x509 -req -in corporate.csr -CA corporate-root.pem -CAkey corporate-root.key -CAcreateserial -days 3650 -extfile corporate.ext -out corporate.pem
`

func (c corporate) run(script string) string {
	c.t.Helper()
	cmd := exec.Command("sh", "-ec", script)
	cmd.Dir, cmd.Env = c.dir, c.env
	out, err := cmd.CombinedOutput()
	if err != nil {
		c.t.Fatalf("%v\n%s\n%s", err, script, out)
	}
	return string(out)
}

// documented is the block of docs/roots.md that signs and installs.
func documented(t *testing.T) string {
	t.Helper()
	b, err := os.ReadFile("../../docs/roots.md")
	if err != nil {
		t.Fatal(err)
	}
	for _, m := range regexp.MustCompile("(?s)```\n(.*?)```").FindAllStringSubmatch(string(b), -1) {
		if strings.Contains(m[1], "openssl x509 -req") {
			return m[1]
		}
	}
	t.Fatal("docs/roots.md shows no openssl")
	return ""
}

// TestARootElsewhereSignsOurIssuer: init under a root that is not ours, by the commands of docs/roots.md, to a store that an agent
// wrote and that openssl verifies against the root alone.
func TestARootElsewhereSignsOurIssuer(t *testing.T) {
	t.Parallel()
	for root, request := range map[string]string{
		"subordinate": "mv %s/csm-issuer.csr issuer.csr",
		"offline":     "csm ca csr root --region eu-west > issuer.csr",
	} {
		t.Run(root, func(t *testing.T) {
			t.Parallel()
			w, c := under(t, root)
			if strings.Contains(request, "%s") {
				request = fmt.Sprintf(request, filepath.Dir(w.Controllers[0].Config))
			}
			c.run(request)
			c.run(documented(t))
			if out := c.run("csm ca get root"); !strings.Contains(out, "issuer eu-west") && !strings.Contains(out, "eu-west") {
				t.Errorf("csm ca get root: %s", out)
			}
			w.must(w.cluster("prod"))
			h := w.host("n1")
			h.installed()
			c.proves(h)
		})
	}
}

// under is one controller of a system whose root is elsewhere, and the administrator of both.
func under(t *testing.T, root string) (world, corporate) {
	t.Helper()
	if testing.Short() {
		t.Skip("real programs are left out of -short runs")
	}
	bin, err := program()
	if err != nil {
		t.Fatal(err)
	}
	r, err := process.Claim(170, 1, 9640, 9641, 9642, 9643, 9644)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(r.Release)
	p, err := plane.Start(t.Context(), plane.Options{Dir: t.TempDir(), Bin: bin, Host: r.Host, Regions: []string{"eu-west"}, Root: root})
	if p != nil {
		t.Cleanup(p.Stop)
	}
	if err != nil {
		t.Fatal(err)
	}
	w := world{p, t}
	dir := t.TempDir()
	c := corporate{t, dir, append(os.Environ(), "HOME="+dir, "PATH="+bin+":"+os.Getenv("PATH"))}
	c.run(signed)
	c.run(fmt.Sprintf("csm context set test --server https://%s --ca-pin %s --cert %s --key %s", p.Controllers[0].Address(9640), p.API.Pin, p.AdminFile, p.AdminFile))
	// Nothing can be issued before the root has spoken.
	if err := w.API.Do(t.Context(), http.MethodPost, "/v1/tenants/default/certificates:issue", map[string]string{"authority": "root", "csr": request(t, "early.example")}, nil); err == nil {
		t.Error("a certificate was issued without an issuer")
	}
	return w, c
}

// proves lets openssl look at the stores.
func (c corporate) proves(h *host) {
	c.t.Helper()
	out := c.run(fmt.Sprintf(`
openssl pkcs12 -in %[1]s/keystore.p12 -passin pass:changeit -nokeys -clcerts -out leaf.pem
openssl pkcs12 -in %[1]s/keystore.p12 -passin pass:changeit -nokeys -cacerts -out above.pem
openssl pkcs12 -in %[1]s/keystore.p12 -passin pass:changeit -nodes -nocerts | openssl pkey -pubout > key.pub
openssl x509 -in leaf.pem -noout -pubkey | cmp - key.pub
openssl verify -x509_strict -purpose sslserver -verify_hostname %[2]s.example -CAfile corporate-root.pem -untrusted above.pem leaf.pem
openssl verify -x509_strict -purpose sslclient -CAfile corporate-root.pem -untrusted above.pem leaf.pem
openssl pkcs12 -in %[1]s/truststore.p12 -passin pass:changeit -nokeys | openssl x509 -noout -fingerprint -sha256 > trusted
openssl x509 -in corporate-root.pem -noout -fingerprint -sha256 | cmp - trusted
grep -c BEGIN above.pem`, h.stores, h.name))
	if lines := strings.Fields(out); lines[len(lines)-1] != "2" {
		c.t.Errorf("above the leaf there are not our issuer and the corporate CA: %s", out)
	}
}
