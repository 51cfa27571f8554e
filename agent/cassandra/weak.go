package cassandra

import (
	"fmt"
	"strings"
)

// weak reports settings that Cassandra accepts and an auditor does not.
func (r *reader) weak(top *mapping) {
	i := r.inst
	server, client := &i.Internode, &i.Client
	say := func(sev Severity, code string, line int, message, remedy string) {
		r.add(Finding{Code: code, Severity: sev, Line: line, Message: message, Remedy: remedy})
	}
	if !server.Enabled {
		say(Error, "internode-plaintext", server.Line, "links between nodes are not encrypted", "set internode_encryption: all (in two rolling restarts, the first with optional: true)")
	}
	if server.Mode == "dc" || server.Mode == "rack" {
		say(Error, "internode-partly", server.Line, "internode_encryption: "+server.Mode+" leaves links inside unencrypted and lets every peer skip TLS", "set internode_encryption: all")
	}
	if i.NativeTransport && !client.Enabled {
		say(Error, "cql-plaintext", client.Line, "CQL is not encrypted", "set client_encryption_options.enabled: true (first with optional: true, until all clients use TLS)")
	}
	for _, s := range []*Section{server, client} {
		name := map[*Section]string{server: "server_encryption_options", client: "client_encryption_options"}[s]
		if !s.Enabled || s == client && !i.NativeTransport {
			continue
		}
		if s.Optional && s.Mode != "dc" && s.Mode != "rack" {
			say(Error, "optional", s.Line, name+" accepts plaintext beside TLS", "set optional: false once everybody uses TLS")
		}
		if s.ClientAuth != "true" {
			say(Warning, "no-client-auth", s.Line, name+" lets anyone connect without a certificate", "set require_client_auth: true")
		}
		for _, p := range s.Protocols {
			if p == "TLSv1" || p == "TLSv1.1" || strings.HasPrefix(p, "SSL") {
				say(Error, "old-protocol", s.Line, name+" accepts "+p, "accept TLSv1.2 and TLSv1.3 only")
			}
		}
		r.ciphers(top, name)
	}
	if server.Enabled && !server.EndpointVerification {
		say(Warning, "no-endpoint-verification", server.Line, "a node takes any certificate of the CA for any peer: one stolen key can be every node",
			"set require_endpoint_verification: true once each certificate carries its node's addresses")
	}
	if client.Enabled && client.EndpointVerification {
		say(Warning, "client-endpoint-verification", client.Line, "each CQL client's certificate must carry its own source address", "turn require_endpoint_verification off in client_encryption_options, unless that is meant")
	}
	if p, ok := top.scalar("native_transport_port_ssl"); ok {
		say(Warning, "native-port-ssl", top.at("native_transport_port_ssl"), fmt.Sprintf("native_transport_port_ssl (%s) is deprecated, works only for one node, and is not watched", p), "use one port with TLS")
	}
}

func (r *reader) ciphers(top *mapping, name string) {
	m := asMapping(top.get(name))
	list, ok := m.list("cipher_suites")
	if m == nil || !ok {
		return
	}
	for _, c := range list {
		for _, bad := range []string{"_NULL_", "_RC4_", "_3DES_", "_DES_", "_anon_", "_EXPORT_", "TLS_RSA_", "_MD5"} {
			if strings.Contains(c, bad) {
				r.add(Finding{Code: "weak-cipher", Severity: Error, Line: m.at("cipher_suites"), Message: name + " accepts the cipher suite " + c,
					Remedy: "keep suites with ECDHE and GCM or CHACHA20, or remove cipher_suites"})
				break
			}
		}
	}
}
