package rotation

import (
	"fmt"

	agentv1 "github.com/cassandra-security-manager/csm/protocol/agent/v1"

	"github.com/cassandra-security-manager/csm/controller/fleet"
	"github.com/cassandra-security-manager/csm/shared/algorithm"
)

// factories are the classes of ssl_context_factory that come with Cassandra, as agents tell them: whatever provider carries the handshake, the key and trust
// managers are those of the JDK, which take elliptic curves of NIST and RSA (org.apache.cassandra.security.SSLFactory and PEMReader).
var factories = map[string]bool{"": true, "DefaultSslContextFactory": true, "PEMBasedSslContextFactory": true}

// takes says for each node why it cannot be known whether it takes certificates that a CA with this kind of key has signed. What is not
// refused here is proved by handshake on every port before a leaf of it is served. Pure.
func takes(k algorithm.Key, nodes []fleet.Standing) (out []Reason) {
	if _, err := algorithm.Parse(string(k)); err != nil {
		return []Reason{{Code: "algorithm", Message: fmt.Sprintf("no node is known to take certificates signed with %.40q", k), Remedy: fmt.Sprintf("make an authority with one of %v", algorithm.All())}}
	}
	for _, n := range nodes {
		for _, s := range []struct {
			name string
			tls  *agentv1.TLSSection
		}{{"internode", n.Internode}, {"client", n.CQL}} {
			if f := s.tls.GetFactory(); s.tls.GetEnabled() && !factories[f] {
				out = append(out, Reason{Code: "algorithm", Node: short(n.Node), Message: fmt.Sprintf("loads its %s certificates by a class of its own (%.100s), and nobody knows whether that takes %s", s.name, f, k),
					Remedy: "go to an authority with the algorithm of the present one"})
			}
		}
	}
	return out
}

// signedOtherwise is what is to be known when the kind of key of the CA changes. Pure.
func signedOtherwise(from, to algorithm.Key) string {
	return fmt.Sprintf("certificates are signed with %s instead of %s; nodes make keys of %s as before. Each port is proved by a handshake with a certificate of the new CA before any leaf of it is served; clients are not: the canary shows",
		to, from, algorithm.Default)
}
