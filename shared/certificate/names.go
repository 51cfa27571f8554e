package certificate

import (
	"crypto/x509"
	"net/netip"
	"net/url"
	"slices"
	"strings"

	"github.com/cassandra-security-manager/csm/shared/fault"
)

// MaxNames is the most names of each sort that one certificate may carry.
const MaxNames = 64

// Names are the subject alternative names of a certificate (RFC 5280, 4.2.1.6). The zero value is no name at all.
type Names struct {
	DNS  []string
	IPs  []netip.Addr
	URIs []string
}

// ParseNames reads names as they stand on the wire or in a command and normalises them.
func ParseNames(dns, ips, uris []string) (Names, error) {
	n := Names{DNS: dns, URIs: uris}
	for _, s := range ips {
		a, err := netip.ParseAddr(s)
		if err != nil {
			return Names{}, fault.New(fault.Invalid, "bad-name", "%.80q is not an IP address", s).Do("write it as 10.0.0.1 or 2001:db8::1")
		}
		n.IPs = append(n.IPs, a)
	}
	return n.Normalise()
}

// Normalise sorts, removes doubles, lower-cases DNS names without their last dot, unmaps IPv4-in-IPv6, and refuses what
// cannot stand in a certificate: wildcards, bad labels, zones, relative URIs, more than MaxNames of a sort.
func (n Names) Normalise() (Names, error) {
	var out Names
	if len(n.DNS) > MaxNames || len(n.IPs) > MaxNames || len(n.URIs) > MaxNames {
		return Names{}, fault.New(fault.Invalid, "too-many-names", "more than %d names of one sort", MaxNames)
	}
	for _, d := range n.DNS {
		d = strings.ToLower(strings.TrimSuffix(d, "."))
		if !validDNS(d) {
			return Names{}, fault.New(fault.Invalid, "bad-name", "%.80q is not a DNS name", d).Do("use a full host name without wildcard; addresses go among the IPs")
		}
		out.DNS = append(out.DNS, d)
	}
	for _, a := range n.IPs {
		if a = a.Unmap(); !a.IsValid() || a.Zone() != "" || a.IsUnspecified() || a.IsMulticast() {
			return Names{}, fault.New(fault.Invalid, "bad-name", "%v is not the address of one host", a)
		}
		out.IPs = append(out.IPs, a)
	}
	for _, s := range n.URIs {
		u, err := url.Parse(s)
		if err != nil || u.Scheme == "" || u.Host == "" || u.String() != s || len(s) > 2048 {
			return Names{}, fault.New(fault.Invalid, "bad-name", "%.80q is not an absolute URI", s)
		}
		out.URIs = append(out.URIs, s)
	}
	slices.Sort(out.DNS)
	slices.SortFunc(out.IPs, netip.Addr.Compare)
	slices.Sort(out.URIs)
	out.DNS, out.IPs, out.URIs = slices.Compact(out.DNS), slices.Compact(out.IPs), slices.Compact(out.URIs)
	return out, nil
}

func validDNS(d string) bool {
	if d == "" || len(d) > 253 {
		return false
	}
	if _, err := netip.ParseAddr(d); err == nil {
		return false
	}
	for l := range strings.SplitSeq(d, ".") {
		if l == "" || len(l) > 63 || l[0] == '-' || l[len(l)-1] == '-' {
			return false
		}
		for _, c := range []byte(l) {
			if (c < 'a' || c > 'z') && (c < '0' || c > '9') && c != '-' && c != '_' {
				return false
			}
		}
	}
	return true
}

// Empty says whether there is no name of any sort.
func (n Names) Empty() bool { return len(n.DNS)+len(n.IPs)+len(n.URIs) == 0 }

// Contains says whether each name of o is one of n. Both sides are compared in normal form; names that have none are
// contained in nothing.
func (n Names) Contains(o Names) bool { return n.missing(o).Empty() && o.normal() }

func (n Names) normal() bool { _, err := n.Normalise(); return err == nil }

// Missing returns the names of o that n does not have, for messages.
func (n Names) Missing(o Names) Names { return n.missing(o) }

func (n Names) missing(o Names) Names {
	a, err := n.Normalise()
	if err != nil {
		return o
	}
	b, err := o.Normalise()
	if err != nil {
		return o
	}
	return Names{without(b.DNS, a.DNS), without(b.IPs, a.IPs), without(b.URIs, a.URIs)}
}

func without[T comparable](all, known []T) (out []T) {
	for _, x := range all {
		if !slices.Contains(known, x) {
			out = append(out, x)
		}
	}
	return out
}

// Equal says whether both hold the same names in normal form.
func (n Names) Equal(o Names) bool { return n.Contains(o) && o.Contains(n) }

// IPStrings are the addresses as text.
func (n Names) IPStrings() []string {
	out := make([]string, len(n.IPs))
	for i, a := range n.IPs {
		out[i] = a.String()
	}
	return out
}

// String lists all names for people: "DNS:n1.example, IP:10.0.0.1".
func (n Names) String() string {
	var out []string
	for _, d := range n.DNS {
		out = append(out, "DNS:"+d)
	}
	for _, a := range n.IPs {
		out = append(out, "IP:"+a.String())
	}
	for _, u := range n.URIs {
		out = append(out, "URI:"+u)
	}
	return strings.Join(out, ", ")
}

// OfCertificate reads the names of a certificate as they are, not normalised.
func OfCertificate(c *x509.Certificate) Names {
	n := Names{DNS: slices.Clone(c.DNSNames)}
	for _, ip := range c.IPAddresses {
		if a, ok := netip.AddrFromSlice(ip); ok {
			n.IPs = append(n.IPs, a.Unmap())
		}
	}
	for _, u := range c.URIs {
		n.URIs = append(n.URIs, u.String())
	}
	return n
}

// OfRequest reads the names of a request as they are, not normalised.
func OfRequest(r *x509.CertificateRequest) Names {
	return OfCertificate(&x509.Certificate{DNSNames: r.DNSNames, IPAddresses: r.IPAddresses, URIs: r.URIs})
}
