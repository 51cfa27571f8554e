package cassandra_test

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/cassandra-security-manager/csm/agent/cassandra"
)

func TestTheCommandLineTellsHowJMXIsOpen(t *testing.T) {
	const jvm = "-Dcom.sun.management.jmxremote."
	for name, c := range map[string]struct {
		args                     string
		port                     uint32
		remote, tls, auth, login bool
	}{
		"nothing at all":                {"", 0, false, false, false, false},
		"loopback, as it ships":         {"-Dcassandra.jmx.local.port=7199 " + jvm + "authenticate=false", 7199, false, false, false, false},
		"loopback, password":            {"-Dcassandra.jmx.local.port=7199 " + jvm + "authenticate=true " + jvm + "password.file=/x", 7199, false, false, false, true},
		"loopback with TLS is for all":  {"-Dcassandra.jmx.local.port=7199 " + jvm + "ssl=true", 7199, true, true, false, false},
		"loopback, the JVM's host":      {"-Dcassandra.jmx.remote.port=7199 " + jvm + "host=127.0.0.1", 7199, true, false, false, false},
		"remote, bare":                  {"-Dcassandra.jmx.remote.port=7199", 7199, true, false, false, false},
		"remote, as it ships":           {"-Dcassandra.jmx.remote.port=7199 " + jvm + "authenticate=true", 7199, true, false, false, true},
		"remote, only a password file":  {"-Dcassandra.jmx.remote.port=7199 " + jvm + "password.file=/x", 7199, true, false, false, false},
		"remote, only roles":            {"-Dcassandra.jmx.remote.port=7199 -Dcassandra.jmx.remote.login.config=CassandraLogin", 7199, true, false, false, false},
		"remote, roles":                 {"-Dcassandra.jmx.remote.port=7199 -Dcassandra.jmx.remote.login.config=CassandraLogin " + jvm + "authenticate=TRUE", 7199, true, false, false, true},
		"remote, password, TLS":         {"-Dcassandra.jmx.remote.port=7199 " + jvm + "authenticate=true " + jvm + "password.file=/x " + jvm + "ssl=true " + jvm + "ssl.need.client.auth=true", 7199, true, true, true, true},
		"remote wins over local":        {"-Dcassandra.jmx.local.port=7199 -Dcassandra.jmx.remote.port=7299", 7299, true, false, false, false},
		"the last word counts":          {"-Dcassandra.jmx.local.port=7199 -Dcassandra.jmx.local.port=7299", 7299, false, false, false, false},
		"the JVM's own, as it is":       {jvm + "port=7099", 7099, true, true, false, true},
		"the JVM's own, all off":        {jvm + "port=7099 " + jvm + "ssl=false " + jvm + "authenticate=false", 7099, true, false, false, false},
		"the JVM's own, loopback":       {jvm + "port=7099 " + jvm + "host=127.0.0.1", 7099, false, true, false, true},
		"the JVM's own before all else": {jvm + "port=7099 -Dcassandra.jmx.remote.port=7199", 7099, true, true, false, true},
	} {
		t.Run(name, func(t *testing.T) {
			f := newFolder(t)
			i, _ := f.read(f.yaml())
			config := filepath.Join(f.conf, "cassandra.yaml")
			os.MkdirAll(filepath.Join(f.proc, "7"), 0o755)
			cmd := append(strings.Fields("java "+c.args), "-Dcassandra.config=file://"+config, "org.apache.cassandra.service.CassandraDaemon")
			os.WriteFile(filepath.Join(f.proc, "7", "cmdline"), []byte(strings.Join(cmd, "\x00")+"\x00"), 0o644)
			if seen := i.Facts(true).Jmx.Seen; seen {
				t.Fatal("JMX was seen of a process that does not run")
			}
			i, _, err := f.o.Read(config)
			if err != nil {
				t.Fatal(err)
			}
			j := i.Facts(true).Jmx
			if !j.Seen || j.Port != c.port || j.Remote != c.remote || j.Tls != c.tls || j.ClientAuth != c.auth || j.Authenticated != c.login {
				t.Errorf("%s is read as %v", c.args, j)
			}
		})
	}
}

func TestFactsCarryWhatAReportJudges(t *testing.T) {
	f := newFolder(t)
	f.more = "authenticator: {class_name: org.apache.cassandra.auth.MutualTlsAuthenticator}\n"
	i, _ := f.read(f.yaml())
	x := i.Facts(true)
	if x.Authenticator != "MutualTlsAuthenticator" || !x.Internode.Enabled || x.Internode.Mode != "all" || !x.Internode.EndpointVerification || x.Client.ClientAuth != "true" || x.Client.Optional {
		t.Errorf("facts are %v", x)
	}
	f = newFolder(t)
	f.internode = "internode_encryption: all\n  ssl_context_factory: {class_name: com.example.Vault}\n  "
	i, _ = f.read(f.yaml())
	x = i.Facts(true)
	for _, n := range x.Findings {
		if n.Code == "unknown-factory" {
			if !n.Blocks || n.Store != cassandra.StoreInternode || n.Line == 0 {
				t.Errorf("the finding on the wire is %v", n)
			}
			return
		}
	}
	t.Errorf("no finding speaks of the factory: %v", x.Findings)
}
