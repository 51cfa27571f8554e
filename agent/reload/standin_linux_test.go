package reload_test

import (
	"bufio"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/cassandra-security-manager/csm/agent/cassandra"
	"github.com/cassandra-security-manager/csm/agent/cassandra/cassandratest"
	"github.com/cassandra-security-manager/csm/agent/links"
	"github.com/cassandra-security-manager/csm/agent/reload"
	"github.com/cassandra-security-manager/csm/shared/fault"
	"github.com/cassandra-security-manager/csm/shared/keystore"
	"github.com/cassandra-security-manager/csm/test/port"
)

const secret = "correct-horse-7"

// standIn starts the beans of a Cassandra behind TLS and a login, and gives its port and a HOME whose nodetool-ssl.properties trusts it.
func standIn(t *testing.T) (number int, home, passwords string) {
	t.Helper()
	number, err := port.Free()
	if err != nil {
		t.Fatal(err)
	}
	store, ca := cassandratest.NewStore(t, keystore.PKCS12), cassandratest.NewCA(t, "jmx")
	cassandratest.Write(t, store, ca.Leaf(), ca.Root)
	home = t.TempDir()
	passwords = filepath.Join(home, "passwords")
	for path, text := range map[string]string{
		passwords:                                 "other x\ncsm " + secret + "\n",
		filepath.Join(home, "server.password"):    "csm " + secret + "\n",
		filepath.Join(home, "server.access"):      "csm readwrite\n",
		filepath.Join(home, "wrong"):              "csm " + secret + "no\n",
		filepath.Join(home, ".cassandra", "none"): "",
		filepath.Join(home, ".cassandra", "nodetool-ssl.properties"): "-Djavax.net.ssl.trustStore=" + store.TruststorePath +
			"\n-Djavax.net.ssl.trustStorePassword=" + string(store.TruststorePassword) + "\n",
	} {
		if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	const j = "-Dcom.sun.management.jmxremote."
	cmd := exec.CommandContext(t.Context(), java(t), "-XX:TieredStopAtLevel=1", "-XX:-UsePerfData", "-Xmx128m", "-Djava.rmi.server.hostname=127.0.0.1", j+"host=127.0.0.1",
		fmt.Sprint(j, "port=", number), fmt.Sprint(j, "rmi.port=", number), j+"ssl=true", j+"registry.ssl=true", j+"authenticate=true",
		j+"password.file="+filepath.Join(home, "server.password"), j+"access.file="+filepath.Join(home, "server.access"),
		"-Djavax.net.ssl.keyStore="+store.KeystorePath, "-Djavax.net.ssl.keyStorePassword="+string(store.KeystorePassword), "testdata/StandIn.java")
	cmd.Stderr = os.Stderr
	in, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { in.Close(); cmd.Process.Kill(); cmd.Wait() })
	if line, err := bufio.NewReader(out).ReadString('\n'); err != nil || line != "ready\n" {
		t.Fatalf("the stand-in says %q, %v", line, err)
	}
	return number, home, passwords
}

func TestOurOwnClientBehindTLSAndALogin(t *testing.T) {
	number, home, passwords := standIn(t)
	with := func(home string, login ...string) reload.Reloader {
		return alone(t, number, func(c *reload.Command) {
			c.Args = append(append([]string{"-h", "127.0.0.1", "-p", fmt.Sprint(number)}, login...), "reloadssl")
			c.Env = []string{"HOME=" + home}
		})
	}
	login := []string{"--ssl", "-u", "csm", "-pwf", passwords}
	good := with(home, login...)

	out, err := good.Reload(t.Context())
	if err != nil || out.ExitCode != 2 || !strings.Contains(out.Stderr, "reloadssl failed: java.io.IOException: keystore password was incorrect") {
		t.Errorf("what Cassandra says of a bad store: %+v %v", out, err)
	}
	listed, err := good.(reload.Lister).Ring(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	view, err := cassandra.ParseRing(listed)
	if err != nil || len(view.Members) != 6 {
		t.Fatalf("%v %v of %s", view, err, listed)
	}
	for n, want := range []string{"UN", "DN", "UJ", "UL", "UM", "?N"} {
		if line := fmt.Sprintf("%s  10.0.0.%d  ", want, n+1); !strings.Contains(listed, line) {
			t.Errorf("no line %q in\n%s", line, listed)
		}
	}
	streams, err := good.(reload.Streamer).Netstats(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if works, err := cassandra.ParseNetstats(streams); err != nil || len(works) != 2 || works[0].Kind != "bootstrap" || works[1].Kind != "bootstrap" {
		t.Errorf("%v %v of %s", works, err, streams)
	}
	if busy, err := links.Streaming(streams); err != nil || busy.Code != "node-not-normal" {
		t.Errorf("%v %v of %s", busy, err, streams)
	}

	for name, c := range map[string]struct {
		r    reload.Reloader
		says string
	}{
		"a wrong password":          {with(home, "--ssl", "-u", "csm", "-pwf", filepath.Join(home, "wrong")), "Invalid username or password"},
		"a user without a password": {with(home, "--ssl", "-u", "nobody", "-pwf", passwords), "no line `nobody PASSWORD` in " + passwords},
		"no file of passwords":      {with(home, "--ssl", "-u", "csm", "-pwf", "/no/such/file"), "NoSuchFileException"},
		"no login":                  {with(home, "--ssl"), "Credentials required"},
		"no trust":                  {with(t.TempDir(), login...), "PKIX path building failed"},
		"no TLS":                    {with(home, login[1:]...), "cannot connect to JMX"},
	} {
		out, err := c.r.Reload(t.Context())
		if err != nil || out.ExitCode != 1 || !strings.Contains(out.Stderr, c.says) {
			t.Errorf("%s: %+v %v", name, out, err)
		}
		if strings.Contains(out.Stdout+out.Stderr, secret) {
			t.Errorf("%s: a password is printed: %+v", name, out)
		}
		if _, err := c.r.(reload.Streamer).Netstats(t.Context()); !fault.HasReason(err, "streams-unknown") {
			t.Errorf("%s: streams are known: %v", name, err)
		}
	}
}
