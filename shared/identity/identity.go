// Package identity names who speaks: controllers, agents, administrators, Cassandra nodes and applications, as SPIFFE IDs
// (SPIFFE-ID specification, section 2) in the one URI subject alternative name of a certificate.
//
// System identities (controller, agent, admin) chain to the system CA; node and application names are issued by
// tenant CAs. The two kinds never mix: a verifier asks for a kind, and a certificate of another kind is refused.
package identity

import (
	"crypto/x509"
	"fmt"
	"net/url"
	"strconv"
	"strings"

	"github.com/cassandra-security-manager/csm/shared/fault"
)

// Kind says what an identity is.
type Kind string

// The kinds. Controller, Agent and Admin are system identities.
const (
	Controller  Kind = "controller"
	Agent       Kind = "agent"
	Admin       Kind = "admin"
	Node        Kind = "node"
	Application Kind = "application"
)

// ID is one identity. TrustDomain is "<system id>.csm". Path is what follows the kind.
type ID struct {
	TrustDomain string
	Kind        Kind
	Path        string
}

// ControllerID names a controller of the control plane.
func ControllerID(td, name string) ID { return ID{td, Controller, name} }

// AdminID names an administrator's client certificate.
func AdminID(td, name string) ID { return ID{td, Admin, name} }

// AgentID names the agent of one incarnation of a node. uid is the node's uid, never its name or address.
func AgentID(td, uid string, incarnation uint64) ID {
	return ID{td, Agent, uid + "/" + strconv.FormatUint(incarnation, 10)}
}

// NodeID names a Cassandra node in certificates of a tenant CA.
func NodeID(td, tenant, cluster, node string) ID {
	return ID{td, Node, tenant + "/" + cluster + "/" + node}
}

// ApplicationID names an application of a tenant.
func ApplicationID(td, tenant, app string) ID { return ID{td, Application, tenant + "/" + app} }

// String is the SPIFFE ID.
func (id ID) String() string {
	return "spiffe://" + id.TrustDomain + "/" + string(id.Kind) + "/" + id.Path
}

// URL is the SPIFFE ID as a URL, for a certificate's URI SAN.
func (id ID) URL() *url.URL {
	return &url.URL{Scheme: "spiffe", Host: id.TrustDomain, Path: "/" + string(id.Kind) + "/" + id.Path}
}

// AgentParts returns the node uid and incarnation of an agent's identity.
func (id ID) AgentParts() (uid string, incarnation uint64, err error) {
	uid, inc, ok := strings.Cut(id.Path, "/")
	if id.Kind != Agent || !ok {
		return "", 0, fault.New(fault.Unauthenticated, "not-an-agent", "%s is not the identity of an agent", id)
	}
	incarnation, err = strconv.ParseUint(inc, 10, 64)
	if err != nil {
		return "", 0, fault.New(fault.Unauthenticated, "not-an-agent", "%s has no incarnation", id)
	}
	return uid, incarnation, nil
}

// Parse reads a SPIFFE ID of one of our kinds. It refuses userinfo, port, query, fragment, empty and dot segments.
func Parse(s string) (ID, error) {
	bad := func(why string) (ID, error) {
		return ID{}, fault.New(fault.Unauthenticated, "bad-identity", "%.200q is not an identity of this system: %s", s, why)
	}
	if len(s) > 2048 {
		return bad("longer than 2048 bytes")
	}
	u, err := url.Parse(s)
	if err != nil || u.Scheme != "spiffe" {
		return bad("no spiffe URI")
	}
	if u.User != nil || u.RawQuery != "" || u.Fragment != "" || u.Host == "" || u.Port() != "" || strings.HasSuffix(u.Host, ":") || u.RawPath != "" {
		return bad("only a trust domain and a path are allowed")
	}
	parts := strings.Split(strings.TrimPrefix(u.Path, "/"), "/")
	for _, p := range parts {
		if p == "" || p == "." || p == ".." {
			return bad("empty or dot segment")
		}
	}
	if len(parts) < 2 {
		return bad("no kind and name")
	}
	id := ID{TrustDomain: u.Host, Kind: Kind(parts[0]), Path: strings.Join(parts[1:], "/")}
	want := map[Kind]int{Controller: 1, Admin: 1, Agent: 2, Node: 3, Application: 2}
	if n, known := want[id.Kind]; !known || n != len(parts)-1 {
		return bad("unknown kind or shape")
	}
	if id.String() != s {
		return bad("not in canonical form")
	}
	return id, nil
}

// FromCertificate reads the one identity of a certificate: exactly one URI SAN (X.509-SVID, section 2).
func FromCertificate(c *x509.Certificate) (ID, error) {
	if len(c.URIs) != 1 {
		return ID{}, fault.New(fault.Unauthenticated, "bad-identity", "the certificate of %q carries %d URI names, one is needed", c.Subject, len(c.URIs))
	}
	return Parse(c.URIs[0].String())
}

// Require refuses every identity that is not of this trust domain and one of these kinds.
func (id ID) Require(td string, kinds ...Kind) error {
	for _, k := range kinds {
		if id.Kind == k && id.TrustDomain == td {
			return nil
		}
	}
	return fault.New(fault.Refused, "wrong-identity", "%s may not do this", id).Do("use a certificate of kind %s of %s", fmt.Sprint(kinds), td)
}
