package readiness

import (
	"crypto/sha256"
	"crypto/x509"
	"encoding/hex"
	"fmt"
	"slices"
	"time"

	agentv1 "github.com/cassandra-security-manager/csm/protocol/agent/v1"
	"github.com/cassandra-security-manager/csm/shared/certificate"
	"github.com/cassandra-security-manager/csm/shared/resource"
	"github.com/cassandra-security-manager/csm/shared/scan"
)

// stores judges each pair of files that Cassandra loads.
func (j *judge) stores() {
	n := j.node
	if n.Instance != nil && len(n.Stores) == 0 {
		j.unseen("stores", "cassandra.yaml names no TLS store that is in use", "")
	}
	if !n.Scanned && len(n.Stores) > 0 {
		j.unseen("certificates", "the agent has not sent an inventory yet", "wait for its first scan; `csm node get` says whether it is connected")
	}
	for _, s := range n.Stores {
		j.state(s)
		if n.Scanned {
			j.certificates(s)
		}
	}
}

func (j *judge) state(s *agentv1.StoreFacts) {
	say := func(sev Severity, code, message, remedy string) {
		j.add(Concern{Severity: sev, Code: code, Store: s.Store, Message: message, Evidence: first(s.Detail, s.KeystorePath), Remedy: remedy})
	}
	switch s.State {
	case agentv1.InstallState_INSTALL_STATE_CONTESTED:
		say(Blocker, "store-contested", "another tool puts its own files back", "stop that tool, then `csm-agent release`")
	case agentv1.InstallState_INSTALL_STATE_FAILED:
		say(Blocker, "store-failed", "the store is broken, or not as CSM left it", "see `csm node get`, the agent's log and Cassandra's")
	case agentv1.InstallState_INSTALL_STATE_ROLLED_BACK:
		say(Warning, "store-rolled-back", "the last move was rolled back", "see `csm node moves`; `csm node renew` tries again")
	case agentv1.InstallState_INSTALL_STATE_ABSENT:
		say(Info, "store-absent", "there is no store yet", "")
	case agentv1.InstallState_INSTALL_STATE_FOREIGN:
		say(Info, "store-foreign", "CSM did not write these files: they are observed", "")
		if len(s.LeafSha256) == 0 {
			say(Blocker, "store-unread", "the keystore gives no private key with a certificate", "check the file and its password in cassandra.yaml")
		}
	}
}

func first(a, b string) string {
	if a != "" {
		return a
	}
	return b
}

// certificates judges the leaf, its chain and the anchors of one store.
func (j *judge) certificates(s *agentv1.StoreFacts) {
	leaf := j.node.leaf(s)
	if leaf == nil {
		return
	}
	j.expires(s, "leaf", leaf.Parsed, s.KeystorePath)
	for _, c := range j.node.chain(s, leaf) {
		j.expires(s, "issuer", c, s.KeystorePath)
	}
	j.leaf(s, leaf)
	j.names(s, leaf)
	j.shared(s, leaf)
	j.trust(s, leaf)
	j.anchors(s)
}

func (j *judge) expires(s *agentv1.StoreFacts, kind string, p *Parsed, path string) {
	j.report.Expires = append(j.report.Expires, Expiry{Store: s.Store, Kind: kind, Subject: certificate.Subject(p.X), SHA256: hex.EncodeToString(p.SHA256[:]), NotAfter: p.X.NotAfter.UTC(), Path: path})
}

func (j *judge) leaf(s *agentv1.StoreFacts, leaf *Found) {
	shown := certificate.Subject(leaf.X) + " in " + s.KeystorePath
	for _, w := range scan.Weaknesses(leaf.X, j.now, Soon) {
		f := Concern{Severity: Severity(w.Severity), Code: w.Code, Store: s.Store, Message: "the certificate: " + w.Message, Evidence: shown, Remedy: "a certificate of CSM has none of this"}
		switch w.Code {
		case "expired":
			f.Severity, f.Remedy = Blocker, "do not restart Cassandra: it could not join the ring; renew first"
		case "near-expiry":
			f.Severity, f.Remedy = Error, "renew it before any restart"
		case "no-names":
			continue // names says it better
		}
		j.add(f)
	}
	for _, u := range []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth} {
		if s.Store == "client" && u == x509.ExtKeyUsageClientAuth {
			continue
		}
		if len(leaf.X.ExtKeyUsage)+len(leaf.X.UnknownExtKeyUsage) > 0 && !slices.Contains(leaf.X.ExtKeyUsage, u) && !slices.Contains(leaf.X.ExtKeyUsage, x509.ExtKeyUsageAny) {
			j.add(Concern{Severity: Error, Code: "wrong-usage", Store: s.Store, Message: "the certificate lacks the usage " + certificate.UsageName(u) + ", which links between nodes need", Evidence: shown, Remedy: "issue it with serverAuth and clientAuth"})
		}
	}
}

// names tells which addresses endpoint verification would not find in the certificate.
func (j *judge) names(s *agentv1.StoreFacts, leaf *Found) {
	want, err := certificate.ParseNames(s.Required.GetDns(), s.Required.GetIps(), nil)
	if s.Required == nil {
		want, err = j.addresses()
	}
	if err != nil || want.Empty() {
		j.unseen("names of store "+s.Store, "the agent did not say which names it must carry", "update the agent")
		return
	}
	have := certificate.OfCertificate(leaf.X)
	if have.Contains(want) {
		return
	}
	f := Concern{Severity: Warning, Code: "names-missing", Store: s.Store, Message: "the certificate lacks " + have.Missing(want).String() + ": require_endpoint_verification, and drivers that verify names, would refuse this node",
		Evidence: "it carries " + first(have.String(), "no names"), Remedy: "a certificate of CSM carries them; keep endpoint verification off until then"}
	if i := j.node.Instance; s.Store != "client" && i.GetInternode().GetEndpointVerification() {
		f.Severity, f.Message = Blocker, "endpoint verification is on and the certificate lacks "+have.Missing(want).String()+": links to this node fail when they reconnect"
		f.Remedy = "renew the certificate with these names before any restart"
	}
	j.add(f)
}

// addresses are what an older agent tells of the names.
func (j *judge) addresses() (certificate.Names, error) {
	i := j.node.Instance
	var ips []string
	for _, a := range []string{i.GetListenAddress(), i.GetBroadcastAddress(), i.GetRpcAddress()} {
		if a != "" && a != "0.0.0.0" && a != "::" && !slices.Contains(ips, a) {
			ips = append(ips, a)
		}
	}
	return certificate.ParseNames(nil, ips, nil)
}

// shared says which other nodes, and which other files of this one, hold the same private key.
func (j *judge) shared(s *agentv1.StoreFacts, leaf *Found) {
	var others []string
	for _, at := range j.ring.keys[leaf.SPKI] {
		if at != j.node {
			others = append(others, resource.Last(at.Name))
		}
	}
	if len(others) > 0 {
		j.add(Concern{Severity: Error, Code: "shared-key", Store: s.Store, Message: fmt.Sprintf("the same private key serves %d nodes: who takes one host can be each of them", len(others)+1),
			Evidence: "also on " + some(others), Remedy: "give each node a key of its own; with CSM keys are made on the node and never leave it"})
	}
	var copies []string
	for _, f := range j.node.Found {
		if f.HasPrivateKey && f.SPKI == leaf.SPKI && f.Path != leaf.Path && !j.node.inUse(f.Path) {
			copies = append(copies, f.Path)
		}
	}
	if len(copies) > 0 {
		j.add(Concern{Severity: Warning, Code: "key-copied", Store: s.Store, Message: "the private key lies in other files as well", Evidence: some(copies), Remedy: "remove the copies that nobody needs"})
	}
}

// trust says whether the ring takes this node's certificate, and this node that of the others.
func (j *judge) trust(s *agentv1.StoreFacts, leaf *Found) {
	if s.Store == "client" {
		return
	}
	var refused []string
	for _, l := range j.ring.leaves {
		if l.node != j.node && !j.ring.trusts(s, l) {
			refused = append(refused, resource.Last(l.node.Name))
		}
	}
	if len(refused) > 0 {
		j.add(Concern{Severity: Blocker, Code: "peer-untrusted", Store: s.Store, Message: fmt.Sprintf("the truststore does not hold the CA of %d other nodes: links to them fail when they reconnect", len(refused)),
			Evidence: some(refused), Remedy: "add their CA to " + s.TruststorePath + " before any restart"})
	}
	if own := j.ring.leafOf(j.node, s.Store); own != nil && !j.ring.trusts(s, own) {
		j.add(Concern{Severity: Warning, Code: "own-ca-untrusted", Store: s.Store, Message: "the truststore does not hold the CA of the node's own certificate", Evidence: certificate.Subject(leaf.X), Remedy: "add it: the other nodes need it too"})
	}
}

// anchors judges what the truststore holds.
func (j *judge) anchors(s *agentv1.StoreFacts) {
	for _, sum := range s.Anchors {
		if len(sum) != sha256.Size {
			continue
		}
		p := j.ring.certificates[[sha256.Size]byte(sum)]
		if p == nil {
			continue
		}
		j.expires(s, "anchor", p, s.TruststorePath)
		shown := fmt.Sprintf("%s (sha256 %s) in %s", certificate.Subject(p.X), hex.EncodeToString(p.SHA256[:8]), s.TruststorePath)
		switch {
		case j.now.After(p.X.NotAfter):
			j.add(Concern{Severity: Warning, Code: "anchor-expired", Store: s.Store, Message: "a trust anchor expired on " + p.X.NotAfter.UTC().Format(time.DateOnly), Evidence: shown, Remedy: "remove it once nothing chains to it"})
		case !j.ring.used[p.SHA256]:
			sev := Warning
			if s.Store == "client" {
				sev = Info
			}
			j.add(Concern{Severity: sev, Code: "anchor-unused", Store: s.Store, Message: "no certificate seen on any node chains to this trust anchor; whoever holds a certificate of it is let in", Evidence: shown, Remedy: "find out whose it is (clients may use it), else remove it"})
		}
		if !p.X.IsCA && p.X.BasicConstraintsValid {
			j.add(Concern{Severity: Info, Code: "anchor-not-ca", Store: s.Store, Message: "a leaf is trusted by itself instead of by its CA", Evidence: shown, Remedy: "a common CA saves touching each truststore at each renewal"})
		}
	}
}

// otherFiles names private keys that everyone on the host can read.
func (j *judge) otherFiles() {
	var open []string
	for _, f := range j.node.Found {
		if f.HasPrivateKey && f.Mode&0o004 != 0 && !j.node.inUse(f.Path) && !slices.Contains(open, f.Path) {
			open = append(open, f.Path)
		}
	}
	if len(open) > 0 {
		j.add(Concern{Severity: Error, Code: "key-readable", Message: "every user of the host may read private keys", Evidence: some(open), Remedy: "chmod 0600, or remove what nobody needs"})
	}
}
