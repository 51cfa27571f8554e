package cassandra

import (
	"fmt"
	"os"
	"slices"
	"strings"

	"github.com/cassandra-security-manager/csm/shared/keystore"
)

// Known class names of ssl_context_factory (CEP-9; org.apache.cassandra.security).
const (
	securityPackage = "org.apache.cassandra.security."
	FactoryDefault  = "DefaultSslContextFactory"
	FactoryPEM      = "PEMBasedSslContextFactory"
)

// Options of both TLS sections in 4.0 to 6.0 (EncryptionOptions.java), and those of one section alone.
var (
	bothOptions = strings.Fields(`keystore keystore_password keystore_password_file truststore truststore_password truststore_password_file
		store_type protocol accepted_protocols cipher_suites algorithm require_client_auth require_endpoint_verification optional
		enabled ssl_context_factory max_certificate_validity_period certificate_validity_warn_threshold`)
	serverOptions = strings.Fields(`internode_encryption enable_legacy_ssl_storage_port legacy_ssl_storage_port_enabled
		outbound_keystore outbound_keystore_password outbound_keystore_password_file`)
)

// section reads server_encryption_options or client_encryption_options as Cassandra computes it. What concerns a store
// is kept in the section until stores says which store that is.
func (r *reader) section(top *mapping, server bool) {
	key, s := "client_encryption_options", &r.inst.Client
	if server {
		key, s = "server_encryption_options", &r.inst.Internode
	}
	s.ClientAuth, s.Factory, s.Mode = "false", FactoryDefault, ""
	if server {
		s.Mode = "none"
	}
	if !top.has(key) {
		s.keystore, s.truststore, s.format = "conf/.keystore", "conf/.truststore", keystore.JKS
		s.Optional = r.implicitOptional(s)
		return
	}
	s.Present, s.Line = true, top.at(key)
	m := asMapping(top.get(key))
	if m == nil {
		s.block("not-understood", s.Line, key+" is not a plain mapping of options", "write it out without anchors and merge keys")
		return
	}
	sr := sectionReader{r: r, s: s, m: m, server: server}
	sr.read()
}

type sectionReader struct {
	r      *reader
	s      *Section
	m      *mapping
	server bool
}

func (s *Section) block(code string, line int, message, remedy string) {
	s.blocks = append(s.blocks, Finding{Code: code, Severity: Error, Line: line, Message: message, Remedy: remedy, Blocks: true})
}

func (s *Section) note(sev Severity, code string, line int, message, remedy string) {
	s.blocks = append(s.blocks, Finding{Code: code, Severity: sev, Line: line, Message: message, Remedy: remedy})
}

func (x *sectionReader) unclear(key string) {
	x.s.block("not-understood", x.m.at(key), "the value of "+key+" is not understood", "write it as Cassandra's documentation does, or report the line")
}

func (x *sectionReader) boolean(key string, absent bool) bool {
	v, ok := x.m.boolean(key, absent)
	if !ok {
		x.unclear(key)
	}
	return v
}

func (x *sectionReader) string(key, absent string) string {
	if v, ok := x.m.scalar(key); ok {
		return v
	}
	if x.m.has(key) {
		x.unclear(key)
	}
	return absent
}

func (x *sectionReader) read() {
	s, m := x.s, x.m
	for _, d := range m.duplicates {
		s.block("duplicate-key", d.line, "the key "+d.key+" stands twice", "remove one: which of them counts depends on the release")
	}
	for _, k := range m.order {
		if !slices.Contains(bothOptions, k) && !(x.server && slices.Contains(serverOptions, k)) {
			s.block("unknown-option", m.at(k), "the option "+k+" is not known", "remove it, or report it: it may belong to a newer release")
		}
	}
	x.policy()
	x.factory()
	x.paths()
	s.EndpointVerification = x.boolean("require_endpoint_verification", false)
	var ok bool
	if s.Protocols, ok = m.list("accepted_protocols"); !ok {
		x.unclear("accepted_protocols")
	}
	switch v := strings.ToLower(x.string("require_client_auth", "false")); v {
	case "true", "yes", "on":
		s.ClientAuth = "true"
	case "false", "no", "off":
		s.ClientAuth = "false"
	case "optional":
		s.ClientAuth = "optional"
	default:
		x.unclear("require_client_auth")
	}
	x.computeOptional()
}

// policy reads whether the section is on.
func (x *sectionReader) policy() {
	s := x.s
	if !x.server {
		s.Enabled = x.boolean("enabled", false)
		return
	}
	s.Mode = strings.ToLower(x.string("internode_encryption", "none"))
	if !slices.Contains([]string{"none", "dc", "rack", "all"}, s.Mode) {
		x.unclear("internode_encryption")
	}
	s.Enabled = s.Mode != "none"
	for _, k := range []string{"enable_legacy_ssl_storage_port", "legacy_ssl_storage_port_enabled"} {
		if x.boolean(k, false) {
			s.note(Warning, "legacy-port", x.m.at(k), "the legacy TLS port for releases before 4.0 is open as well; before 4.1.4 it keeps an old certificate after a reload",
				"close it once no 3.x node is left")
		}
	}
	for _, k := range []string{"outbound_keystore", "outbound_keystore_password", "outbound_keystore_password_file"} {
		if x.m.has(k) {
			s.block("outbound-keystore", x.m.at(k), "a keystore of its own is used for outgoing links; what a node presents there cannot be probed",
				"remove outbound_keystore and use one certificate with serverAuth and clientAuth, or keep managing this pair by hand")
			break
		}
	}
}

// computeOptional follows EncryptionOptions.applyConfig: unset, it is true where TLS is off but a keystore exists.
func (x *sectionReader) computeOptional() {
	s := x.s
	switch {
	case x.m.has("optional"):
		s.Optional = x.boolean("optional", false)
	default:
		s.Optional = x.r.implicitOptional(s)
	}
	if s.Mode == "dc" || s.Mode == "rack" {
		s.Optional = true
	}
}

func (r *reader) implicitOptional(s *Section) bool {
	if s.Enabled {
		return false
	}
	p := r.absolute(s.keystore)
	if p == "" {
		return false
	}
	if _, err := os.Stat(p); err != nil {
		return false
	}
	s.note(Warning, "implicit-optional", s.Line, "TLS is off, but the keystore "+p+" exists, so Cassandra accepts TLS beside plaintext and will not start if that store is broken",
		"set optional explicitly, or move the file away")
	return true
}

func (x *sectionReader) factory() {
	s, m := x.s, x.m
	s.format = ""
	storeType := strings.ToUpper(x.string("store_type", "JKS"))
	if m.has("ssl_context_factory") {
		f := asMapping(m.get("ssl_context_factory"))
		if f == nil {
			x.unclear("ssl_context_factory")
			return
		}
		class := f.text("class_name", "")
		s.Factory = strings.TrimPrefix(class, securityPackage)
		if class != securityPackage+s.Factory || s.Factory != FactoryDefault && s.Factory != FactoryPEM {
			s.block("unknown-factory", m.at("ssl_context_factory"), fmt.Sprintf("the TLS context factory %q is not known, so what it loads is not either", class),
				"use DefaultSslContextFactory or PEMBasedSslContextFactory; until then this store is only observed")
			s.Factory = class
			return
		}
		for _, k := range f.order {
			if k != "class_name" && k != "parameters" {
				s.block("unknown-option", f.at(k), "the option "+k+" of ssl_context_factory is not known", "remove it")
			}
		}
		if p := f.get("parameters"); p != nil {
			x.parameters(asMapping(p), f.at("parameters"))
		}
	}
	switch {
	case s.Factory == FactoryPEM:
		s.format = keystore.PEM
	case storeType == "PKCS12":
		s.format = keystore.PKCS12
	case storeType == "JKS":
		s.format = keystore.JKS
	default:
		s.block("unknown-store-type", m.at("store_type"), "stores of type "+storeType+" are not known", "use PKCS12, JKS, or PEM files with PEMBasedSslContextFactory")
	}
}

func (x *sectionReader) parameters(p *mapping, line int) {
	if p == nil {
		x.unclear("ssl_context_factory")
		return
	}
	for _, k := range p.order {
		switch k {
		case "private_key", "trusted_certificates", "private_key_password", "outbound_private_key", "outbound_private_key_password":
			if p.has(k) {
				x.s.block("pem-inline", p.at(k), "key or certificates stand in cassandra.yaml itself, which Cassandra never reloads",
					"put them into files named by keystore and truststore")
				return
			}
		default:
			x.s.block("unknown-option", line, "the parameter "+k+" of ssl_context_factory is not known", "remove it")
		}
	}
}

func (x *sectionReader) paths() {
	s, m := x.s, x.m
	s.keystoreSet = m.has("keystore")
	s.keystore = x.string("keystore", "conf/.keystore")
	s.truststore = x.string("truststore", "conf/.truststore")
	s.keystorePass = x.password("keystore_password")
	s.truststorePw = x.password("truststore_password")
	if s.Factory == FactoryPEM {
		if len(s.keystorePass) > 0 {
			s.block("pem-encrypted-key", m.at("keystore_password"), "keystore_password makes Cassandra expect an encrypted PEM key, which is not written",
				"remove keystore_password; the file's mode protects the key")
		}
		return
	}
	for _, k := range []string{"keystore_password", "truststore_password"} {
		have := s.keystorePass
		if k == "truststore_password" {
			have = s.truststorePw
		}
		if have == nil {
			s.block("no-password", s.Line, k+" is not set: up to 4.1.1 it was \"cassandra\", later releases refuse the keystore and read an empty PKCS12 truststore",
				"set "+k+" (or "+k+"_file in 6.0)")
		}
	}
}

// password reads the inline value or, with precedence as in Cassandra 6.0, the whole untrimmed content of the file.
func (x *sectionReader) password(key string) []byte {
	file := x.string(key+"_file", "")
	if file == "" {
		if v, ok := x.m.scalar(key); ok {
			if v == "cassandra" {
				x.s.note(Warning, "default-password", x.m.at(key), key+" is Cassandra's old default, known to everyone", "choose another one at the next planned restart")
			}
			return []byte(v)
		}
		if x.m.has(key) {
			x.unclear(key)
		}
		return nil
	}
	line := x.m.at(key + "_file")
	p := x.r.absolute(file)
	if p == "" {
		x.s.block("relative-path", line, key+"_file is relative and Cassandra's working directory is not known", "write an absolute path")
		return nil
	}
	data, err := readBounded(p)
	if err != nil {
		x.s.block("password-unreadable", line, "the password file cannot be read: "+err.Error(), "let the agent's user read "+p)
		return nil
	}
	if strings.HasSuffix(string(data), "\n") {
		x.s.note(Warning, "password-newline", line, p+" ends in a newline, which Cassandra takes as part of the password", "write it with printf %s, if the store was not made with the newline")
	}
	return data
}
