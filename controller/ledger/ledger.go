// Package ledger owns every certificate that was ever issued, the revocations, and the certificates that agents found on
// their nodes. It refuses whatever would make two certificates one: a serial twice, a request id twice with another
// key. Its invariant: a certificate that was handed out stands here, because recording is what makes it issued.
//
// RecordCertificate is decided by Apply; a caller adds what it wants checked there by Guards. Reading goes through the
// interface Ledger, so that a kind which keeps the bodies elsewhere (Cassandra) can take the place of Replicated.
package ledger

import (
	"context"
	"crypto/x509"
	"encoding/hex"
	"time"

	"github.com/cassandra-security-manager/csm/controller/state"
	clusterv1 "github.com/cassandra-security-manager/csm/protocol/cluster/v1"
	"github.com/cassandra-security-manager/csm/shared/certificate"
	"github.com/cassandra-security-manager/csm/shared/resource"
)

// Ledger is the read side: any kind answers these in the same way (package ledgertest says how).
type Ledger interface {
	// Get returns one certificate by its full name; NotFound if there is none.
	Get(ctx context.Context, name string) (*Certificate, error)
	// List returns one page and the token of the next, empty at the end.
	List(ctx context.Context, f Filter, p Page) ([]Certificate, string, error)
	// Count says how many List would return over all pages.
	Count(ctx context.Context, f Filter) (int64, error)
	// Found lists what agents saw on their nodes.
	Found(ctx context.Context, f FoundFilter, p Page) ([]Found, string, error)
}

// Guard looks at a certificate inside Apply, before it is recorded. A fault refuses it: it is then never handed out.
// A guard is pure, as every part of Apply.
type Guard func(a *state.Apply, c *clusterv1.RecordCertificate) error

// Issuers is the guard that every ledger needs: it refuses a certificate whose issuer is not active, or has another
// certificate than the one that the signer used. Package authority has it.
type Issuers interface {
	CheckIssuer(a *state.Apply, c *clusterv1.RecordCertificate) error
}

// Reader is what the ledger needs of the state machine's store.
type Reader interface {
	View(ctx context.Context, fn func(ctx context.Context, q state.Querier) error) error
}

// State of a certificate.
type State string

// The states. Expired is not stored: it is Active past its end.
const (
	Active  State = "active"
	Revoked State = "revoked"
	Expired State = "expired"
)

// Certificate is one issued certificate.
type Certificate struct {
	// Name is the full resource name; its last segment is the SHA-256 of the DER.
	Name   string
	Tenant string
	Zone   string
	// Serial in lower-case hex, whole bytes (as openssl prints it).
	Serial  string
	Subject string
	Names   certificate.Names
	// Issuer is the issuer's resource name.
	Issuer string
	// Node, Cluster and Store of a node's certificate; Identity is the SPIFFE ID of a system identity.
	Node, Cluster, Store string
	Incarnation          uint64
	Identity             string
	// Template is "node", "application", "identity", "root" or "issuer".
	Template  string
	Algorithm string
	// KeySHA256 is the SHA-256 of the SubjectPublicKeyInfo, hex.
	KeySHA256 string
	RequestID string
	// Actor who asked for it.
	Actor                        string
	NotBefore, NotAfter, RenewAt time.Time
	CreateTime                   time.Time
	State                        State
	// RevokeTime and Reason (RFC 5280, 5.3.1) are set when State is Revoked.
	RevokeTime time.Time
	Reason     Reason
	// Revision is the raft index of the newest change.
	Revision uint64
	DER      []byte
}

// Parsed is the certificate itself.
func (c *Certificate) Parsed() (*x509.Certificate, error) { return certificate.Parse(c.DER) }

// Order of a list.
type Order string

// The orders. Each is total, so pages neither repeat nor skip what stays unchanged.
const (
	// ByNewest is the default: what was recorded last comes first.
	ByNewest Order = "newest"
	ByOldest Order = "oldest"
	// ByExpiry puts what expires first at the front.
	ByExpiry     Order = "expiry"
	ByExpiryLast Order = "expiry-last"
)

// Filter chooses certificates; conditions are joined by "and", the zero value takes all.
type Filter struct {
	// Tenant restricts to one tenant; System to what belongs to none (system identities, the system CA).
	Tenant string
	System bool
	// Cluster, Node, Issuer and Authority are full resource names.
	Cluster, Node, Issuer, Authority string
	Store, Template, Identity        string
	// Serial in hex, any case, colons allowed.
	Serial string
	State  State
	// ExpiresBefore and ExpiresAfter bound the end of validity.
	ExpiresBefore, ExpiresAfter time.Time
	// NamePrefix and NameContains look at every DNS name, address, URI and common name, without regard to case.
	NamePrefix, NameContains string
	// Text is for people: part of a name, or the beginning of a serial or fingerprint.
	Text  string
	Order Order
}

// Page asks for a part of a list. Size is 100 when zero, at most 1000. Token is what the page before returned.
type Page struct {
	Size  int
	Token string
}

// Found is a certificate that an agent saw in a file or store of its node.
type Found struct {
	Node string
	// Path of the file, Entry inside it (alias, or index in a PEM file), Format of the file.
	Path, Entry, Format string
	SHA256              string
	Subject, Issuer     string
	Serial              string
	Algorithm           string
	NotAfter            time.Time
	HasPrivateKey       bool
	// Mode bits and owner of the file.
	Mode  uint32
	Owner string
	// Known is the resource name in this ledger, empty for a certificate that CSM did not issue.
	Known string
	// SeenTime is when the scan that holds it was recorded.
	SeenTime time.Time
	DER      []byte
}

// FoundFilter chooses found certificates.
type FoundFilter struct {
	Tenant, Cluster, Node string
	// Unknown takes only what CSM did not issue; Known only what it did.
	Unknown, Known bool
	ExpiresBefore  time.Time
	// Text is part of the path or the subject, or the beginning of the fingerprint.
	Text string
}

// Name is the resource name of a certificate: tenants/{t}/certificates/{sha256}, or system/certificates/{sha256} where
// no tenant owns it.
func Name(tenant string, sha256 []byte) string {
	h := hex.EncodeToString(sha256)
	if tenant == "" {
		return "system/certificates/" + h
	}
	return resource.Certificate(tenant, h)
}
