package node

import (
	"crypto/tls"
	"os"
	"strings"

	"github.com/cassandra-security-manager/csm/agent/config"
	"github.com/cassandra-security-manager/csm/agent/install"
	"github.com/cassandra-security-manager/csm/agent/join"
	"github.com/cassandra-security-manager/csm/shared/certificate"
	"github.com/cassandra-security-manager/csm/shared/fault"
	"github.com/cassandra-security-manager/csm/shared/resource"
)

// cassandraKey is the certificate and key that Cassandra uses today: of the internode store where there are two.
func (n *Node) cassandraKey() (*tls.Certificate, error) {
	for _, s := range n.storesNow() {
		return install.Certificate(s)
	}
	return nil, fault.New(fault.NotFound, "no-store", "cassandra.yaml names no keystore, so there is no key to prove").
		Do("join this node by a token: `csm cluster join-command`")
}

// wish is what the node asks to be called: its configured name or the host's, the addresses that its certificates need,
// and the DNS names that the certificate in use carries.
func (n *Node) wish(j config.Join) join.Wish {
	w := join.Wish{Node: j.Node}
	if w.Node == "" {
		host, _ := os.Hostname()
		w.Node = hostLabel(host)
		if n.o.Instance.Name != "" {
			w.Node = hostLabel(host) + "-" + n.o.Instance.Name
		}
	}
	for _, s := range n.storesNow() {
		need := n.inst.RequiredNamesFor(s.Name)
		w.Names.IPs = append(w.Names.IPs, need.IPs...)
		w.Names.DNS = append(w.Names.DNS, need.DNS...)
		if c, err := install.Certificate(s); err == nil {
			w.Names.DNS = append(w.Names.DNS, carried(c)...)
		}
	}
	if names, err := w.Names.Normalise(); err == nil {
		w.Names = names
	}
	return w
}

// carried are the DNS names of the certificate in use that one of ours could carry: no wildcards, nothing malformed.
func carried(c *tls.Certificate) (out []string) {
	if c.Leaf == nil {
		return nil
	}
	for _, d := range certificate.OfCertificate(c.Leaf).DNS {
		if n, err := certificate.ParseNames([]string{d}, nil, nil); err == nil && !strings.Contains(d, "*") {
			out = append(out, n.DNS...)
		}
	}
	return out
}

// hostLabel makes a node's short name of a host's: its first label, as far as it can be one.
func hostLabel(host string) string {
	label, _, _ := strings.Cut(strings.ToLower(host), ".")
	label = strings.Map(func(r rune) rune {
		if r >= 'a' && r <= 'z' || r >= '0' && r <= '9' || r == '-' || r == '_' {
			return r
		}
		return '-'
	}, label)
	label = strings.Trim(label[:min(len(label), 63)], "-_")
	if resource.CheckID("node", label) != nil {
		return "node"
	}
	return label
}
