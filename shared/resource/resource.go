// Package resource forms and takes apart the names of things, after Google's AIP-122. A name is the path of the
// resource under /v1/, the key in the replicated state, the scope of a permission and the subject of an audit entry.
package resource

import (
	"regexp"
	"strings"

	"github.com/cassandra-security-manager/csm/shared/fault"
)

// DefaultTenant exists from the start.
const DefaultTenant = "default"

// Names of the two roots' children.
func Tenant(t string) string                      { return "tenants/" + t }
func Cluster(t, c string) string                  { return Tenant(t) + "/clusters/" + c }
func Node(t, c, n string) string                  { return Cluster(t, c) + "/nodes/" + n }
func Store(node, store string) string             { return node + "/stores/" + store }
func JoinRequest(tenant, id string) string        { return Tenant(tenant) + "/requests/" + id }
func Anchor(trustDomain, sha256hex string) string { return trustDomain + "/anchors/" + sha256hex }
func TrustDomain(t, d string) string              { return Tenant(t) + "/trustDomains/" + d }
func JoinToken(cluster, id string) string {
	return cluster + "/joinTokens/" + id
}
func Authority(t, a string) string           { return Tenant(t) + "/authorities/" + a }
func Issuer(authority, id string) string     { return authority + "/issuers/" + id }
func Certificate(t, sha256hex string) string { return Tenant(t) + "/certificates/" + sha256hex }
func Controller(name string) string          { return "system/controllers/" + name }
func Admin(name string) string               { return "system/admins/" + name }
func Backup(id string) string                { return "system/backups/" + id }
func ControllerJoinToken(id string) string   { return "system/controllerJoinTokens/" + id }

var id = regexp.MustCompile(`^[a-z0-9]([a-z0-9._-]{0,61}[a-z0-9])?$`)

// CheckID refuses what cannot be one segment of a name: 1 to 63 of a-z, 0-9, dot, dash, underscore, beginning and
// ending with a letter or digit.
func CheckID(what, s string) error {
	if !id.MatchString(s) {
		return fault.New(fault.Invalid, "bad-name", "%s %.80q is not a valid name", what, s).
			Do("use 1 to 63 lower-case letters, digits, '.', '-' or '_', beginning and ending with a letter or digit")
	}
	return nil
}

// Segment returns what follows collection in a name: Segment("tenants/a/clusters/b", "clusters") = "b"; empty if absent.
func Segment(name, collection string) string {
	parts := strings.Split(name, "/")
	for i := 0; i+1 < len(parts); i += 2 {
		if parts[i] == collection {
			return parts[i+1]
		}
	}
	return ""
}

// Last is the last segment of a name.
func Last(name string) string { return name[strings.LastIndexByte(name, '/')+1:] }

// Parent is the name without its last collection and id; empty for a root's child.
func Parent(name string) string {
	parts := strings.Split(name, "/")
	if len(parts) < 4 {
		return ""
	}
	return strings.Join(parts[:len(parts)-2], "/")
}
