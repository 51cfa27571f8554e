package issuance

import (
	"crypto/x509"
	"time"

	"github.com/cassandra-security-manager/csm/shared/fault"
	"github.com/cassandra-security-manager/csm/shared/identity"
)

const day = 24 * time.Hour

// Template says what a kind of leaf looks like. Templates become resources of tenants later; these are the built-in ones.
type Template struct {
	Name    string
	Version uint32
	Usages  []x509.ExtKeyUsage
	// Validity when none is asked for; at most Max, at least Min.
	Validity, Max, Min time.Duration
	// HourlyCap is how many of them one node, identity or subject may be issued within an hour.
	HourlyCap uint32
	// NeedsHost: at least one DNS name or address, or endpoint verification could never succeed.
	NeedsHost bool
}

var both = []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth}
var clientOnly = []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth}

// The built-in templates. A node uses one keystore as server and as client, so it gets both usages (Cassandra's
// internode connections are mutual TLS).
var (
	nodeTemplate = Template{Name: "node", Version: 1, Usages: both, Validity: 90 * day, Max: 398 * day, Min: day, HourlyCap: 60, NeedsHost: true}
	appTemplate  = Template{Name: "application", Version: 1, Usages: clientOnly, Validity: 30 * day, Max: 398 * day, Min: day, HourlyCap: 60}
	// A probe is what a prober offers to a neighbour's port: it shows that an authority is trusted there, and serves nothing.
	probeTemplate = Template{Name: "probe", Version: 1, Usages: clientOnly, Validity: 10 * time.Minute, Max: time.Hour, Min: 5 * time.Minute, HourlyCap: 600, NeedsHost: true}
	idTemplate    = Template{Name: "identity", Version: 1, Usages: clientOnly, Validity: 30 * day, Max: 30 * day, Min: day, HourlyCap: 60}
)

func templateOf(name string) (Template, error) {
	switch name {
	case nodeTemplate.Name:
		return nodeTemplate, nil
	case appTemplate.Name:
		return appTemplate, nil
	case probeTemplate.Name:
		return probeTemplate, nil
	}
	return Template{}, fault.New(fault.Invalid, "no-template", "there is no template %.60q", name).Do("use node or application")
}

// identityTemplate: a controller serves and calls, an agent and an administrator only call.
func identityTemplate(k identity.Kind) (Template, error) {
	t := idTemplate
	switch k {
	case identity.Controller:
		t.Usages = both
	case identity.Agent, identity.Admin:
	default:
		return Template{}, fault.New(fault.Invalid, "no-template", "%s is not a kind of system identity", k)
	}
	return t, nil
}

// lifetime decides the end of a leaf's validity: what is asked for, within the template's bounds, cut at the issuer's end.
func (t Template) lifetime(asked time.Duration, now, issuerEnd time.Time) (time.Time, error) {
	if asked == 0 {
		asked = t.Validity
	}
	if asked < t.Min {
		return time.Time{}, fault.New(fault.Invalid, "validity-too-short", "a validity of %s is below %s: renewal could not keep up with an outage", asked, t.Min).
			Do("ask for %s or more", t.Min)
	}
	if asked > t.Max {
		return time.Time{}, fault.New(fault.Invalid, "validity-too-long", "a validity of %s is above the %s of template %s", asked, t.Max, t.Name).Do("ask for less")
	}
	end := now.Add(asked)
	if end.After(issuerEnd) {
		end = issuerEnd
	}
	if end.Sub(now) < t.Min {
		return time.Time{}, fault.New(fault.Unavailable, "issuer-expiring", "the issuer expires in %s", issuerEnd.Sub(now).Round(time.Minute)).
			Do("make a new issuer with `csm ca create --issuer`")
	}
	return end, nil
}
