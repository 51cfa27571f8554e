//go:build linux

package rollouts_test

import (
	"crypto"
	"crypto/x509"
	"encoding/pem"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"

	"github.com/cassandra-security-manager/csm/agent/cassandra/cassandratest"
	"github.com/cassandra-security-manager/csm/shared/certificate"
)

// corporate is a CA as many a ring has one: a folder, a configuration file, and the command `openssl ca`.
type corporate struct {
	e    *estate
	dir  string
	root *x509.Certificate
	made int
}

const corporateConf = `[ca]
default_ca = corporate
[corporate]
dir = %[1]s
database = %[1]s/index.txt
new_certs_dir = %[1]s/issued
serial = %[1]s/serial
certificate = %[1]s/root.pem
private_key = %[1]s/root.key
default_md = sha384
default_days = 90
policy = anything
unique_subject = no
[anything]
commonName = supplied
[req]
distinguished_name = name
prompt = no
[name]
CN = corporate root
[root]
basicConstraints = critical, CA:TRUE
keyUsage = critical, keyCertSign, cRLSign
subjectKeyIdentifier = hash
`

func (e *estate) corporate() *corporate {
	e.t.Helper()
	c := &corporate{e: e, dir: filepath.Join(e.dir, "corporate")}
	e.must(os.MkdirAll(filepath.Join(c.dir, "issued"), 0o700))
	for name, text := range map[string]string{"ca.conf": fmt.Sprintf(corporateConf, c.dir), "index.txt": "", "serial": "1000\n"} {
		e.must(os.WriteFile(filepath.Join(c.dir, name), []byte(text), 0o600))
	}
	c.openssl("ecparam", "-name", "secp384r1", "-genkey", "-noout", "-out", c.file("root.key"))
	c.openssl("req", "-x509", "-new", "-config", c.file("ca.conf"), "-extensions", "root", "-key", c.file("root.key"), "-sha384", "-days", "3650", "-out", c.file("root.pem"))
	c.root = c.read("root.pem")[0]
	return c
}

func (c *corporate) file(name string) string { return filepath.Join(c.dir, name) }

func (c *corporate) openssl(args ...string) {
	c.e.t.Helper()
	if out, err := exec.CommandContext(c.e.t.Context(), "openssl", args...).CombinedOutput(); err != nil {
		c.e.must(fmt.Errorf("openssl %s: %w: %s", strings.Join(args, " "), err, out))
	}
}

func (c *corporate) read(name string) []*x509.Certificate {
	c.e.t.Helper()
	data, err := os.ReadFile(c.file(name))
	c.e.must(err)
	all, err := certificate.DecodePEM(data)
	c.e.must(err)
	return all
}

// leaf issues a certificate for an address by `openssl ca`.
func (c *corporate) leaf(name, address string) cassandratest.Leaf {
	c.e.t.Helper()
	c.made++
	base := fmt.Sprintf("%s-%d", name, c.made)
	ext := "basicConstraints = CA:FALSE\nkeyUsage = critical, digitalSignature\nextendedKeyUsage = serverAuth, clientAuth\nsubjectAltName = IP:" + address + ", IP:127.0.0.1\n"
	c.e.must(os.WriteFile(c.file(base+".ext"), []byte(ext), 0o600))
	c.openssl("ecparam", "-name", "secp384r1", "-genkey", "-noout", "-out", c.file(base+".key"))
	c.openssl("req", "-new", "-config", c.file("ca.conf"), "-key", c.file(base+".key"), "-subj", "/CN="+name, "-out", c.file(base+".csr"))
	c.openssl("ca", "-batch", "-notext", "-config", c.file("ca.conf"), "-extfile", c.file(base+".ext"), "-in", c.file(base+".csr"), "-out", c.file(base+".pem"))
	return cassandratest.Leaf{Key: c.key(base + ".key"), Chain: c.read(base + ".pem")}
}

func (c *corporate) key(name string) crypto.Signer {
	c.e.t.Helper()
	data, err := os.ReadFile(c.file(name))
	c.e.must(err)
	block, _ := pem.Decode(data)
	if block == nil {
		c.e.t.Fatalf("%s holds no key", name)
	}
	k, err := x509.ParseECPrivateKey(block.Bytes)
	c.e.must(err)
	return k
}
