//go:build linux

package runbooks

import (
	"os"
	"os/exec"
	"path/filepath"
	"strings"
)

// signedWithoutControllers: every controller is dead, and one certificate is signed by what is left: a backup, or a data folder.
func signedWithoutControllers(o operator) {
	o.t.Helper()
	dir := o.t.TempDir()
	o.env = append(o.env, "TMPDIR="+o.t.TempDir())
	file := func(name string) string { return filepath.Join(dir, name) }
	o.openssl("req", "-new", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-384", "-nodes", "-keyout", file("n7.key"), "-out", file("n7.csr"),
		"-subj", "/CN=n7", "-addext", "subjectAltName=DNS:n7.example,IP:10.0.0.7")
	files := o.files()
	for from, says := range map[string]string{
		"--backup " + files[len(files)-1]:         "signed by what stood in the state at",
		"--data-dir " + o.p.Controllers[1].Data(): "",
	} {
		line := func(more string) string {
			return "csm offline issue " + from + " --share " + o.p.Recovery() + " --ca root --node prod-eu/n7 --csr " + file("n7.csr") + " --out " + file("n7.pem") + " --entry " + file("n7.entry.json") + " --reason 'INC-4711'" + more
		}
		o.expect(line(""), 3, "RISK: the recovery share opens every key", "nothing was signed")
		o.expect(line(" --yes"), 0, says, "NOT RECORDED", "REVOCATION: it cannot be revoked before it is imported", "REVOCATION: it names revocation lists that no controller serves now", "/crl/")
		o.verified(file("n7.pem"), file)
		for _, name := range []string{"n7.pem", "n7.entry.json"} {
			if err := os.Rename(file(name), file(strings.Trim(from[:6], "- ")+"."+name)); err != nil {
				o.t.Fatal(err)
			}
		}
	}
	if left, _ := os.ReadDir(o.env[len(o.env)-1][len("TMPDIR="):]); len(left) > 0 {
		o.t.Errorf("the state stays in %v", left)
	}
	if c, out := o.csm("csm offline issue --backup " + file("n7.csr") + " --share " + o.p.Recovery() + " --ca root --csr " + file("n7.csr") + " --out " + file("x") + " --entry " + file("y") + " --reason x --yes"); c == 0 || !strings.Contains(out, "is no backup of CSM") {
		o.t.Errorf("what is no backup: exit %d: %s", c, out)
	}
	o.start(0, 1, 2)
	o.expect("csm certificate import "+file("back.n7.entry.json"), 0, "recorded")
	o.expect("csm certificate list --filter dns:n7.example", 0, "n7")
}

// verified lets openssl look at what was signed: chain, name, key.
func (o operator) verified(chain string, file func(string) string) {
	o.t.Helper()
	b, err := os.ReadFile(chain)
	if err != nil {
		o.t.Fatal(err)
	}
	certs := strings.SplitAfter(strings.TrimSpace(string(b)), "-----END CERTIFICATE-----")
	if certs = certs[:len(certs)-1]; len(certs) != 3 {
		o.t.Fatalf("%d certificates, not leaf, issuer and root:\n%s", len(certs), b)
	}
	for i, name := range []string{"leaf", "issuer", "anchor"} {
		if err := os.WriteFile(file(name), []byte(certs[i]+"\n"), 0o600); err != nil {
			o.t.Fatal(err)
		}
	}
	o.openssl("verify", "-x509_strict", "-purpose", "sslserver", "-verify_hostname", "n7.example", "-CAfile", file("anchor"), "-untrusted", file("issuer"), file("leaf"))
	if got, want := o.openssl("x509", "-in", file("leaf"), "-noout", "-pubkey"), o.openssl("pkey", "-in", file("n7.key"), "-pubout"); got != want {
		o.t.Errorf("the certificate is for another key: %s", got)
	}
	// Nobody serves its revocation list now: who insists on one refuses the certificate.
	c := exec.Command("openssl", "verify", "-crl_check", "-CAfile", file("anchor"), "-untrusted", file("issuer"), file("leaf"))
	if out, err := c.CombinedOutput(); err == nil || !strings.Contains(string(out), "unable to get certificate CRL") {
		o.t.Errorf("with -crl_check: %v %s", err, out)
	}
}

func (o operator) openssl(args ...string) string {
	o.t.Helper()
	out, err := exec.Command("openssl", args...).CombinedOutput()
	if err != nil {
		o.t.Fatalf("openssl %v: %v: %s", args, err, out)
	}
	return string(out)
}
