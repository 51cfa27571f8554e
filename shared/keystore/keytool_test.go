package keystore_test

import (
	"crypto/x509"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"github.com/cassandra-security-manager/csm/shared/keystore"
)

// keytool runs the JDK's own tool: it reads stores with the same code as Cassandra's JVM.
func keytool(t *testing.T, args ...string) string {
	t.Helper()
	path, err := exec.LookPath("keytool")
	if err != nil {
		t.Fatal("keytool is missing: `make setup` installs a JDK")
	}
	cmd := exec.Command(path, append([]string{"-J-XX:TieredStopAtLevel=1"}, args...)...)
	cmd.Env = append(os.Environ(), "LC_ALL=C")
	out, err := cmd.CombinedOutput()
	if err != nil {
		t.Fatalf("keytool %s: %v\n%s", strings.Join(args, " "), err, out)
	}
	return string(out)
}

var entries = regexp.MustCompile(`(?i)(PrivateKeyEntry|trustedCertEntry)`)

func TestARealJVMReadsEachEntry(t *testing.T) {
	p, key, dir := newPKI(t), newKey(t), t.TempDir()
	chain := []*x509.Certificate{p.leaf(t, key.Public(), nil), p.issuer}
	for _, f := range []keystore.Format{keystore.PKCS12, keystore.JKS} {
		ks, err := keystore.EncodeKeyStore(f, key, chain, password)
		if err != nil {
			t.Fatal(err)
		}
		ts, err := keystore.EncodeTrustStore(f, []*x509.Certificate{p.root, newPKI(t).root}, password)
		if err != nil {
			t.Fatal(err)
		}
		for name, want := range map[string]int{"keystore": 1, "truststore": 2} {
			path := filepath.Join(dir, name+"."+string(f))
			data := map[string][]byte{"keystore": ks, "truststore": ts}[name]
			if err := os.WriteFile(path, data, 0o600); err != nil {
				t.Fatal(err)
			}
			out := keytool(t, "-list", "-keystore", path, "-storetype", string(f), "-storepass", string(password))
			if got := len(entries.FindAllString(out, -1)); got != want {
				t.Errorf("%s %s: the JVM sees %d entries, want %d\n%s", f, name, got, want, out)
			}
		}
		// The JVM can also open the private key with the store's password.
		alias := map[keystore.Format]string{keystore.JKS: keystore.Alias, keystore.PKCS12: keystore.AliasPKCS12}[f]
		out := keytool(t, "-certreq", "-alias", alias, "-keystore", filepath.Join(dir, "keystore."+string(f)), "-storetype", string(f), "-storepass", string(password))
		if !strings.Contains(out, "BEGIN NEW CERTIFICATE REQUEST") {
			t.Errorf("%s: the JVM cannot use the key:\n%s", f, out)
		}
	}
}

func TestStoresMadeByKeytoolAreRead(t *testing.T) {
	for _, f := range []keystore.Format{keystore.PKCS12, keystore.JKS} {
		dir := t.TempDir()
		ks, ts, crt := filepath.Join(dir, "ks"), filepath.Join(dir, "ts"), filepath.Join(dir, "crt")
		pw := string(password)
		keytool(t, "-genkeypair", "-alias", "Node1", "-keyalg", "EC", "-groupname", "secp384r1", "-dname", "CN=n1", "-keystore", ks, "-storetype", string(f), "-storepass", pw, "-keypass", pw)
		keytool(t, "-exportcert", "-alias", "Node1", "-keystore", ks, "-storepass", pw, "-file", crt)
		keytool(t, "-importcert", "-noprompt", "-alias", "ca", "-file", crt, "-keystore", ts, "-storetype", string(f), "-storepass", pw)
		data, _ := os.ReadFile(ks)
		if got, err := keystore.DecodeKeyStore(f, data, password); err != nil || len(got.Chain) != 1 {
			t.Errorf("%s keystore: %+v, %v", f, got, err)
		}
		data, _ = os.ReadFile(ts)
		if got, err := keystore.DecodeTrustStore(f, data, password); err != nil || len(got) != 1 {
			t.Errorf("%s truststore: %v, %v", f, got, err)
		}
	}
}
