// Package cassandra reads what one Apache Cassandra on this host is configured to do with TLS: cassandra.yaml of 4.0 to
// 6.0, the files it names, the addresses and ports, and whether it runs.
//
// It owns the understanding of that file and never guesses: what it cannot understand is a Finding with a remedy, and
// the store concerned is unmanageable, that is observed and never written. It writes nothing, asks Cassandra nothing, and
// keeps no state. Passwords that it reads stay in this process.
package cassandra

import (
	"net/netip"

	agentv1 "github.com/cassandra-security-manager/csm/protocol/agent/v1"
	"github.com/cassandra-security-manager/csm/shared/certificate"
	"github.com/cassandra-security-manager/csm/shared/keystore"
)

// Names of stores.
const (
	StoreNode      = "node"      // one pair of files serves both TLS sections
	StoreInternode = "internode" // server_encryption_options alone
	StoreClient    = "client"    // client_encryption_options alone
)

// Severity of a finding.
type Severity string

// The severities.
const (
	Error   Severity = "error"
	Warning Severity = "warning"
	Info    Severity = "info"
)

// Finding is something wrong, weak or worth knowing, with what to do about it.
type Finding struct {
	// Code is a stable kebab-case word.
	Code     string   `json:"code"`
	Severity Severity `json:"severity"`
	Message  string   `json:"message"`
	Remedy   string   `json:"remedy"`
	// Store it concerns; empty when it concerns the whole instance.
	Store string `json:"store,omitempty"`
	// Line of cassandra.yaml, from 1; 0 when it is about no line of it.
	Line int `json:"line,omitempty"`
	// Blocks says that the store (each store, when Store is empty) is unmanageable because of it.
	Blocks bool `json:"blocks,omitempty"`
}

// Proto is the finding on the wire.
func (f Finding) Proto() *agentv1.Finding {
	return &agentv1.Finding{Code: f.Code, Severity: string(f.Severity), Message: clip(f.Message, 1000), Remedy: clip(f.Remedy, 1000), Store: f.Store, Blocks: f.Blocks, Line: uint32(f.Line)}
}

// Instance is one Cassandra as its configuration describes it.
type Instance struct {
	// ConfigPath is the absolute path of cassandra.yaml.
	ConfigPath  string
	ClusterName string
	// Listen is where internode connections come in; Broadcast what peers are told (equal to Listen unless set).
	Listen, Broadcast netip.Addr
	// RPC is where CQL listens and may be 0.0.0.0; BroadcastRPC is what drivers are told.
	RPC, BroadcastRPC netip.Addr
	// StoragePort and NativePort are TCP ports, 7000 and 9042 by default.
	StoragePort, NativePort uint16
	// NativeTransport says whether CQL is started with the node (start_native_transport).
	NativeTransport bool
	// Datacenter and Rack are of cassandra-rackdc.properties; empty where the snitch does not use it.
	Datacenter, Rack, Snitch string
	// Authenticator is the class that logs CQL clients in, without its package.
	Authenticator string
	// Internode and Client are the two TLS sections as Cassandra computes them.
	Internode, Client Section
	// Stores are the pairs of files to manage or observe, at most two; none where no TLS is configured.
	Stores []*Store
	// Findings are everything seen, most severe first.
	Findings []Finding
	// Process is the running Cassandra where it could be recognised in the process table; zero otherwise. Its absence
	// proves nothing: Detect asks the ports.
	Process Process
}

// Section is one TLS section after Cassandra's own computation of defaults.
type Section struct {
	// Present says whether the section stands in the file.
	Present bool
	// Enabled: client_encryption_options.enabled, or internode_encryption other than none.
	Enabled bool
	// Mode is internode_encryption: none, dc, rack or all; empty for the client section.
	Mode string
	// Optional is Cassandra's computed value: plaintext is accepted beside TLS.
	Optional bool
	// ClientAuth is require_client_auth: "true", "false" or (6.0) "optional".
	ClientAuth string
	// EndpointVerification is require_endpoint_verification.
	EndpointVerification bool
	// Factory is the short class name of ssl_context_factory.
	Factory string
	// Protocols are accepted_protocols as written; empty is the JVM's default.
	Protocols []string
	// Line of the section's key in cassandra.yaml, 0 when absent.
	Line int

	keystore, truststore       string
	keystorePass, truststorePw []byte
	keystoreSet                bool
	format                     keystore.Format
	blocks                     []Finding
}

// Active says whether a port of the section speaks TLS at all: it is enabled, or accepts TLS beside plaintext.
func (s *Section) Active() bool { return s.Enabled || s.Optional }

// Store is one keystore and truststore pair.
type Store struct {
	// Name is StoreNode, StoreInternode or StoreClient.
	Name   string
	Format keystore.Format
	// KeystorePath and TruststorePath are absolute; the last element may be a symbolic link only where Manageable is false.
	KeystorePath, TruststorePath string
	// Passwords are nil where none is configured (PEM).
	KeystorePassword, TruststorePassword []byte
	// Ports that serve this store over TLS.
	Ports []Port
	// ClientAuth says whether each of the ports asks for a client certificate and so builds a trust context.
	ClientAuth bool
	// EndpointVerification says whether names are checked against addresses by Cassandra itself.
	EndpointVerification bool
	// Manageable says whether the agent may write these files. The reasons why not are the findings that block it.
	Manageable bool

	sections []*Section
}

// Port is one TLS port of the instance, with the address a probe on this host connects to.
type Port struct {
	Kind    agentv1.PortKind
	Address netip.Addr
	Port    uint16
}

// Proto is the port on the wire.
func (p Port) Proto() *agentv1.Port {
	return &agentv1.Port{Kind: p.Kind, Address: p.Address.String(), Port: uint32(p.Port)}
}

// Store returns the store of this name, nil when there is none.
func (i *Instance) Store(name string) *Store {
	for _, s := range i.Stores {
		if s.Name == name {
			return s
		}
	}
	return nil
}

// RequiredNames are the names that a certificate for all stores of the instance must carry.
func (i *Instance) RequiredNames() certificate.Names {
	return i.names(true, true)
}

// RequiredNamesFor are the names that the certificate of one store must carry: what peers and drivers compare with the
// address they connect to, and, on internode ports with endpoint verification, with the address we come from
// (CASSANDRA-9220; 5.0 checks inbound peers by remote address).
func (i *Instance) RequiredNamesFor(store string) certificate.Names {
	return i.names(store != StoreClient, store != StoreInternode)
}

func (i *Instance) names(internode, client bool) certificate.Names {
	var n certificate.Names
	add := func(a netip.Addr) {
		a = a.Unmap()
		if !a.IsValid() || a.IsUnspecified() {
			return
		}
		for _, have := range n.IPs {
			if have == a {
				return
			}
		}
		n.IPs = append(n.IPs, a)
	}
	if internode {
		add(i.Listen)
		add(i.Broadcast)
		if i.Listen.IsLoopback() && i.Listen.Is4() {
			// Cassandra does not bind outbound links: on loopback each of them comes from 127.0.0.1.
			add(netip.AddrFrom4([4]byte{127, 0, 0, 1}))
		}
	}
	if client && i.NativeTransport {
		add(i.RPC)
		add(i.BroadcastRPC)
	}
	return n
}

// Facts is the instance on the wire. running is what Detect found.
func (i *Instance) Facts(running bool) *agentv1.InstanceFacts {
	f := &agentv1.InstanceFacts{
		ClusterName: i.ClusterName, ConfigPath: i.ConfigPath, ListenAddress: text(i.Listen), BroadcastAddress: text(i.Broadcast),
		RpcAddress: text(i.RPC), StoragePort: uint32(i.StoragePort), NativePort: uint32(i.NativePort),
		Datacenter: i.Datacenter, Rack: i.Rack, Running: running, CassandraVersion: i.Process.Version,
		Internode: i.Internode.proto(), Client: i.Client.proto(), Jmx: i.Process.JMX.proto(), Authenticator: clip(i.Authenticator, 128), BroadcastRpcAddress: text(i.BroadcastRPC),
	}
	for n, x := range i.Findings {
		if n == 100 { // the wire's bound
			break
		}
		f.Findings = append(f.Findings, x.Proto())
	}
	return f
}

func text(a netip.Addr) string {
	if !a.IsValid() {
		return ""
	}
	return a.String()
}

func (s *Section) proto() *agentv1.TLSSection {
	return &agentv1.TLSSection{Enabled: s.Enabled, Optional: s.Optional, Mode: s.Mode, ClientAuth: s.ClientAuth, EndpointVerification: s.EndpointVerification, Factory: clip(s.Factory, 256)}
}

func clip(s string, n int) string {
	if len(s) <= n {
		return s
	}
	for n > 0 && s[n]&0xC0 == 0x80 {
		n--
	}
	return s[:n]
}
