package cassandra_test

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/cassandra-security-manager/csm/agent/cassandra"
	"github.com/cassandra-security-manager/csm/shared/fault"
	"github.com/cassandra-security-manager/csm/shared/keystore"
)

// folder is a configuration folder with a store folder beside it.
type folder struct {
	t           *testing.T
	conf, tls   string
	o           cassandra.Options
	proc        string
	internode   string
	client      string
	more        string
	keystoreYML string
}

func newFolder(t *testing.T) *folder {
	t.Helper()
	dir, err := filepath.EvalSymlinks(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	f := &folder{t: t, conf: filepath.Join(dir, "conf"), tls: filepath.Join(dir, "tls"), proc: filepath.Join(dir, "proc")}
	os.MkdirAll(f.conf, 0o755)
	os.MkdirAll(f.tls, 0o755)
	f.o = cassandra.Options{Roots: []string{f.tls}, Proc: f.proc,
		Hostname: func() (string, error) { return "node1", nil },
		Resolve: func(_ context.Context, host string) ([]netip.Addr, error) {
			if host == "node1" {
				return []netip.Addr{netip.MustParseAddr("fd00::1"), netip.MustParseAddr("10.0.0.1")}, nil
			}
			return nil, errors.New("no such host")
		},
		Interface: func(name string) ([]net.Addr, error) {
			if name != "eth1" {
				return nil, errors.New("no such interface")
			}
			a, n, _ := net.ParseCIDR("10.1.0.5/24")
			return []net.Addr{&net.IPNet{IP: a, Mask: n.Mask}}, nil
		}}
	f.keystoreYML = fmt.Sprintf("store_type: PKCS12\n  keystore: %[1]s/ks.p12\n  keystore_password: changeit\n  truststore: %[1]s/ts.p12\n  truststore_password: changeit\n", f.tls)
	f.internode = "internode_encryption: all\n  optional: false\n  require_client_auth: true\n  require_endpoint_verification: true\n  "
	f.client = "enabled: true\n  optional: false\n  require_client_auth: true\n  "
	return f
}

func (f *folder) yaml() string {
	return "cluster_name: 'Test Cluster'\nlisten_address: 10.0.0.1\nrpc_address: 0.0.0.0\nbroadcast_rpc_address: 192.0.2.1\n" + f.more +
		"server_encryption_options:\n  " + f.internode + f.keystoreYML +
		"client_encryption_options:\n  " + f.client + f.keystoreYML
}

func (f *folder) read(text string) (*cassandra.Instance, []cassandra.Finding) {
	f.t.Helper()
	path := filepath.Join(f.conf, "cassandra.yaml")
	if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
		f.t.Fatal(err)
	}
	i, fs, err := f.o.Read(path)
	if err != nil {
		f.t.Fatal(err)
	}
	return i, fs
}

func has(fs []cassandra.Finding, code string) *cassandra.Finding {
	for n := range fs {
		if fs[n].Code == code {
			return &fs[n]
		}
	}
	return nil
}

func TestASecuredNodeIsOneManageableStoreOnBothPorts(t *testing.T) {
	f := newFolder(t)
	i, fs := f.read(f.yaml())
	s := i.Store(cassandra.StoreNode)
	if s == nil || len(i.Stores) != 1 || !s.Manageable || s.Format != keystore.PKCS12 || len(s.Ports) != 2 || !s.ClientAuth || !s.EndpointVerification {
		t.Fatalf("%+v\n%+v", s, fs)
	}
	if s.KeystorePath != f.tls+"/ks.p12" || string(s.TruststorePassword) != "changeit" {
		t.Errorf("%+v", s)
	}
	var got []string
	for _, a := range i.RequiredNames().IPs {
		got = append(got, a.String())
	}
	if fmt.Sprint(got) != "[10.0.0.1 192.0.2.1]" || i.StoragePort != 7000 || i.NativePort != 9042 || i.CQLPort().Address != i.Listen {
		t.Errorf("names %v, instance %+v", got, i)
	}
	for _, x := range fs {
		if x.Severity != cassandra.Info {
			t.Errorf("unexpected finding %+v", x)
		}
	}
}

func TestOnLoopbackTheOutgoingAddressIsRequiredToo(t *testing.T) {
	f := newFolder(t)
	i, _ := f.read(strings.NewReplacer("10.0.0.1", "127.0.0.2", "0.0.0.0", "127.0.0.2", "broadcast_rpc_address: 192.0.2.1\n", "").Replace(f.yaml()))
	if ips := i.RequiredNames().IPs; len(ips) != 2 || ips[1].String() != "127.0.0.1" {
		t.Errorf("%v", ips)
	}
}

func TestTwoPairsAreTwoStores(t *testing.T) {
	f := newFolder(t)
	i, _ := f.read(strings.Replace(f.yaml(), "enabled: true\n  optional: false\n  require_client_auth: true\n  "+f.keystoreYML,
		"enabled: true\n  require_client_auth: true\n  "+strings.NewReplacer("ks.p12", "cks.jks", "ts.p12", "cts.jks", "PKCS12", "JKS").Replace(f.keystoreYML), 1))
	a, b := i.Store(cassandra.StoreInternode), i.Store(cassandra.StoreClient)
	if a == nil || b == nil || b.Format != keystore.JKS || len(a.Ports) != 1 || !a.Manageable || !b.Manageable {
		t.Fatalf("%+v %+v %+v", a, b, i.Findings)
	}
	if n := i.RequiredNamesFor(cassandra.StoreClient).IPs; len(n) != 1 || n[0].String() != "192.0.2.1" {
		t.Errorf("%v", n)
	}
}

func TestThePEMFactoryIsUnderstood(t *testing.T) {
	f := newFolder(t)
	f.keystoreYML = fmt.Sprintf("ssl_context_factory:\n    class_name: org.apache.cassandra.security.PEMBasedSslContextFactory\n  keystore: %[1]s/ks.pem\n  truststore: %[1]s/ts.pem\n", f.tls)
	i, fs := f.read(f.yaml())
	if s := i.Store(cassandra.StoreNode); s == nil || s.Format != keystore.PEM || !s.Manageable || s.KeystorePassword != nil {
		t.Fatalf("%+v %+v", s, fs)
	}
}

func TestWhatCannotBeManagedIsAFindingWithLineAndRemedy(t *testing.T) {
	for code, change := range map[string]func(*folder) string{
		"outbound-keystore": func(f *folder) string {
			f.internode += "outbound_keystore: /x\n  "
			return f.yaml()
		},
		"unknown-factory": func(f *folder) string {
			return strings.ReplaceAll(f.yaml(), "store_type: PKCS12", "ssl_context_factory: {class_name: com.example.Vault}")
		},
		"unknown-option":     func(f *folder) string { f.client += "keystroke: 1\n  "; return f.yaml() },
		"unknown-store-type": func(f *folder) string { return strings.ReplaceAll(f.yaml(), "PKCS12", "BCFKS") },
		"no-password":        func(f *folder) string { return strings.ReplaceAll(f.yaml(), "truststore_password: changeit", "") },
		"default-location": func(f *folder) string {
			return strings.ReplaceAll(f.yaml(), f.tls+"/ks.p12", f.conf+"/.keystore")
		},
		"relative-path":        func(f *folder) string { return strings.ReplaceAll(f.yaml(), f.tls+"/ks.p12", "tls/ks.p12") },
		"outside-roots":        func(f *folder) string { return strings.ReplaceAll(f.yaml(), f.tls+"/ks.p12", f.conf+"/ks.p12") },
		"store-folder-missing": func(f *folder) string { return strings.ReplaceAll(f.yaml(), f.tls, f.tls+"/none") },
		"one-file":             func(f *folder) string { return strings.ReplaceAll(f.yaml(), "ts.p12", "ks.p12") },
		"duplicate-key":        func(f *folder) string { f.client += "optional: true\n  "; return f.yaml() },
		"not-understood":       func(f *folder) string { f.client += "require_endpoint_verification: [1]\n  "; return f.yaml() },
		"half-shared": func(f *folder) string {
			text := f.yaml()
			at := strings.LastIndex(text, "ts.p12")
			return text[:at] + "other.p12" + text[at+6:]
		},
		"pem-inline": func(f *folder) string {
			f.keystoreYML = "ssl_context_factory:\n    class_name: org.apache.cassandra.security.PEMBasedSslContextFactory\n    parameters: {private_key: abc, trusted_certificates: def}\n"
			return f.yaml()
		},
		"pem-encrypted-key": func(f *folder) string {
			return strings.ReplaceAll(f.yaml(), "store_type: PKCS12", "ssl_context_factory: {class_name: org.apache.cassandra.security.PEMBasedSslContextFactory}")
		},
		"kubernetes-volume": func(f *folder) string {
			os.MkdirAll(f.tls+"/..2026_11_22/", 0o755)
			os.Symlink("..2026_11_22", f.tls+"/..data")
			os.WriteFile(f.tls+"/..data/ks.p12", nil, 0o600)
			os.Symlink("..data/ks.p12", f.tls+"/ks.p12")
			return f.yaml()
		},
		"broken-link":         func(f *folder) string { os.Symlink("/nowhere", f.tls+"/ks.p12"); return f.yaml() },
		"password-unreadable": func(f *folder) string { f.client += "keystore_password_file: /none\n  "; return f.yaml() },
		"address-unknown":     func(f *folder) string { return strings.Replace(f.yaml(), "10.0.0.1", "no.such.host", 1) },
		"listen-wildcard":     func(f *folder) string { return strings.Replace(f.yaml(), "10.0.0.1", "0.0.0.0", 1) },
	} {
		t.Run(code, func(t *testing.T) {
			f := newFolder(t)
			i, fs := f.read(change(f))
			x := has(fs, code)
			if x == nil {
				t.Fatalf("not found in %+v", fs)
			}
			if !x.Blocks || x.Severity != cassandra.Error || x.Remedy == "" || x.Line == 0 {
				t.Errorf("%+v", x)
			}
			if !slices.ContainsFunc(i.Stores, func(s *cassandra.Store) bool { return !s.Manageable }) {
				t.Error("all stores are manageable all the same")
			}
		})
	}
}

func TestALinkOutOfTheRootsIsNotFollowed(t *testing.T) {
	f := newFolder(t)
	os.WriteFile(f.conf+"/real.p12", nil, 0o600)
	os.Symlink(f.conf+"/real.p12", f.tls+"/ks.p12")
	i, fs := f.read(f.yaml())
	if has(fs, "outside-roots") == nil || i.Stores[0].Manageable || i.Stores[0].KeystorePath != f.conf+"/real.p12" {
		t.Errorf("%+v", fs)
	}
}

func TestWeakSettingsAreFindings(t *testing.T) {
	for code, change := range map[string]func(*folder) string{
		"internode-plaintext": func(f *folder) string {
			return strings.Replace(f.yaml(), "internode_encryption: all", "internode_encryption: none", 1)
		},
		"internode-partly": func(f *folder) string {
			return strings.Replace(f.yaml(), "internode_encryption: all", "internode_encryption: dc", 1)
		},
		"cql-plaintext":                func(f *folder) string { return strings.Replace(f.yaml(), "enabled: true", "enabled: false", 1) },
		"optional":                     func(f *folder) string { return strings.ReplaceAll(f.yaml(), "optional: false", "optional: true") },
		"no-client-auth":               func(f *folder) string { return strings.ReplaceAll(f.yaml(), "require_client_auth: true", "") },
		"no-endpoint-verification":     func(f *folder) string { return strings.ReplaceAll(f.yaml(), "require_endpoint_verification: true", "") },
		"client-endpoint-verification": func(f *folder) string { f.client += "require_endpoint_verification: true\n  "; return f.yaml() },
		"old-protocol":                 func(f *folder) string { f.client += "accepted_protocols: [TLSv1.1, TLSv1.2]\n  "; return f.yaml() },
		"weak-cipher": func(f *folder) string {
			f.client += "cipher_suites: [TLS_RSA_WITH_AES_128_CBC_SHA]\n  "
			return f.yaml()
		},
		"native-port-ssl":  func(f *folder) string { f.more = "native_transport_port_ssl: 9142\n"; return f.yaml() },
		"default-password": func(f *folder) string { return strings.ReplaceAll(f.yaml(), "changeit", "cassandra") },
		"legacy-port":      func(f *folder) string { f.internode += "legacy_ssl_storage_port_enabled: true\n  "; return f.yaml() },
		"keystore-readable": func(f *folder) string {
			os.WriteFile(f.tls+"/ks.p12", nil, 0o644)
			os.Chmod(f.tls+"/ks.p12", 0o644)
			return f.yaml()
		},
		"implicit-optional": func(f *folder) string {
			os.WriteFile(f.tls+"/ks.p12", nil, 0o600)
			return strings.Replace(strings.Replace(f.yaml(), "internode_encryption: all", "internode_encryption: none", 1), "optional: false", "", 1)
		},
		"no-rackdc": func(f *folder) string { f.more = "endpoint_snitch: GossipingPropertyFileSnitch\n"; return f.yaml() },
	} {
		t.Run(code, func(t *testing.T) {
			f := newFolder(t)
			_, fs := f.read(change(f))
			if x := has(fs, code); x == nil || x.Remedy == "" || x.Message == "" || x.Blocks {
				t.Fatalf("%+v in %+v", x, fs)
			}
		})
	}
}

func TestAnExistingKeystoreMakesAPlainNodeAcceptTLS(t *testing.T) {
	f := newFolder(t)
	text := strings.Replace(strings.Replace(f.yaml(), "internode_encryption: all", "internode_encryption: none", 1), "optional: false", "", 1)
	if i, _ := f.read(text); i.Internode.Optional || i.Store(cassandra.StoreClient) == nil {
		t.Fatalf("without the file: %+v", i.Internode)
	}
	os.WriteFile(f.tls+"/ks.p12", nil, 0o600)
	if i, _ := f.read(text); !i.Internode.Optional || i.Store(cassandra.StoreNode) == nil {
		t.Fatalf("with the file: %+v", i.Internode)
	}
}

func TestAddressesAreComputedAsCassandraDoes(t *testing.T) {
	for text, want := range map[string]string{
		"listen_address: node1\n":  "10.0.0.1 10.0.0.1 10.0.0.1 10.0.0.1",
		"{}\n":                     "10.0.0.1 10.0.0.1 10.0.0.1 10.0.0.1",
		"listen_interface: eth1\n": "10.1.0.5 10.1.0.5 10.1.0.5 10.1.0.5",
		"listen_address: 10.9.9.9\nrpc_address:\n":                       "10.9.9.9 10.9.9.9 10.9.9.9 10.9.9.9",
		"listen_address: ::1\nbroadcast_address: 10.2.2.2\n":             "::1 10.2.2.2 ::1 ::1",
		"listen_address: 10.9.9.9\nrpc_address: 10.3.3.3\n":              "10.9.9.9 10.9.9.9 10.3.3.3 10.3.3.3",
		"listen_address: 10.9.9.9\nlisten_interface: eth1\n":             "invalid IP invalid IP invalid IP invalid IP",
		"listen_address: 10.9.9.9\nbroadcast_rpc_address: 192.0.2.7\n":   "10.9.9.9 10.9.9.9 10.9.9.9 192.0.2.7",
		"a: &x 10.4.4.4\nlisten_address: *x\nstart_native_transport: no": "10.4.4.4 10.4.4.4 10.4.4.4 10.4.4.4",
	} {
		i, _ := newFolder(t).read(text)
		if got := fmt.Sprint(i.Listen, i.Broadcast, i.RPC, i.BroadcastRPC); got != want {
			t.Errorf("%q: %s, expected %s", text, got, want)
		}
	}
}

func TestDatacenterAndRackComeFromTheSnitchFile(t *testing.T) {
	f := newFolder(t)
	os.WriteFile(filepath.Join(f.conf, "cassandra-rackdc.properties"), []byte("# which\ndc=eu-west\n rack = r7 \n"), 0o644)
	f.more = "endpoint_snitch: org.apache.cassandra.locator.GossipingPropertyFileSnitch\n"
	if i, _ := f.read(f.yaml()); i.Datacenter != "eu-west" || i.Rack != "r7" {
		t.Errorf("%q %q", i.Datacenter, i.Rack)
	}
}

func TestPasswordFilesWinAndAreNotTrimmed(t *testing.T) {
	f := newFolder(t)
	os.WriteFile(f.tls+"/pw", []byte("from file\n"), 0o600)
	f.keystoreYML += "  keystore_password_file: " + f.tls + "/pw\n"
	i, fs := f.read(f.yaml())
	if string(i.Stores[0].KeystorePassword) != "from file\n" || has(fs, "password-newline") == nil {
		t.Errorf("%q %+v", i.Stores[0].KeystorePassword, fs)
	}
}

func TestARunningProcessGivesTheWorkingDirectoryAndTheVersion(t *testing.T) {
	f := newFolder(t)
	work := filepath.Dir(f.tls)
	text := strings.ReplaceAll(f.yaml(), f.tls+"/", "tls/")
	proc := func(pid, config string) {
		os.MkdirAll(filepath.Join(f.proc, pid), 0o755)
		cmd := []string{"java", "-Dcassandra.config=file://" + config, "-cp", "/opt/lib/apache-cassandra-5.0.8.jar", "org.apache.cassandra.service.CassandraDaemon"}
		os.WriteFile(filepath.Join(f.proc, pid, "cmdline"), []byte(strings.Join(cmd, "\x00")+"\x00"), 0o644)
		os.Symlink(work, filepath.Join(f.proc, pid, "cwd"))
	}
	proc("41", "/another/cassandra.yaml")
	proc("42", filepath.Join(f.conf, "cassandra.yaml"))
	i, fs := f.read(text)
	if i.Process.PID != 42 || i.Process.Version != "5.0.8" || i.Stores[0].KeystorePath != f.tls+"/ks.p12" || !i.Stores[0].Manageable {
		t.Errorf("%+v %+v", i.Process, fs)
	}
	proc("43", filepath.Join(f.conf, "cassandra.yaml"))
	if i, _ := f.read(text); i.Process.PID != 0 || i.Stores[0].Manageable {
		t.Errorf("two processes fit, but %+v was taken", i.Process)
	}
}

func TestAFileThatIsNoConfigurationIsAFault(t *testing.T) {
	dir := t.TempDir()
	for name, text := range map[string]string{"empty": "", "list": "- a\n", "broken": "a: [1", "two": "a: 1\n---\nb: 2\n", "scalar": "hello"} {
		path := filepath.Join(dir, name)
		os.WriteFile(path, []byte(text), 0o644)
		if _, _, err := cassandra.Read(path); !fault.HasReason(err, "bad-yaml") {
			t.Errorf("%s: %v", name, err)
		}
	}
	if _, _, err := cassandra.Read(filepath.Join(dir, "none")); !fault.HasReason(err, "no-cassandra-yaml") {
		t.Error(err)
	}
	if _, _, err := cassandra.Read(dir); err == nil {
		t.Error("a folder was read as a file")
	}
}

func FuzzRead(f *testing.F) {
	f.Add("cluster_name: a\nserver_encryption_options: {internode_encryption: all, keystore: /x/ks, truststore: /x/ts}\n")
	f.Add("client_encryption_options: &a {enabled: true, ssl_context_factory: {class_name: x, parameters: {private_key: y}}}\nserver_encryption_options: *a\n")
	f.Add("listen_interface: lo\nrpc_address: [1]\n? {a: b}\n: c\n")
	f.Fuzz(func(t *testing.T, text string) {
		path := filepath.Join(t.TempDir(), "cassandra.yaml")
		os.WriteFile(path, []byte(text), 0o644)
		none := func(context.Context, string) ([]netip.Addr, error) { return nil, errors.New("no names here") }
		i, fs, err := cassandra.Options{Resolve: none, Proc: t.TempDir()}.Read(path)
		if err != nil {
			return
		}
		for _, s := range i.Stores {
			if s.Manageable && (s.KeystorePath == "" || s.Format == "") {
				t.Fatalf("a store without a path or format is manageable: %+v", s)
			}
		}
		for _, x := range fs {
			if x.Code == "" || x.Message == "" {
				t.Fatalf("empty finding %+v", x)
			}
		}
	})
}
