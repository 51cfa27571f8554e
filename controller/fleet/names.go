package fleet

import (
	"encoding/json"

	agentv1 "github.com/cassandra-security-manager/csm/protocol/agent/v1"

	"github.com/cassandra-security-manager/csm/shared/certificate"
	"github.com/cassandra-security-manager/csm/shared/fault"
)

// Normalise gives the one form in which names are compared and stored, or refuses what cannot stand in a certificate.
func (n Names) Normalise() (Names, error) {
	c, err := certificate.ParseNames(n.DNS, n.IPs, nil)
	if err != nil {
		return Names{}, err
	}
	return Names{DNS: c.DNS, IPs: c.IPStrings()}, nil
}

// Certificate gives the names as who signs takes them.
func (n Names) Certificate() (certificate.Names, error) {
	return certificate.ParseNames(n.DNS, n.IPs, nil)
}

// Empty says whether there is no name at all.
func (n Names) Empty() bool { return len(n.DNS)+len(n.IPs) == 0 }

func (n Names) wire() *agentv1.Names { return &agentv1.Names{Dns: n.DNS, Ips: n.IPs} }

func namesOf(w *agentv1.Names) Names { return Names{DNS: w.GetDns(), IPs: w.GetIps()} }

// column is the text under which names stand in the state: JSON of the normal form.
func (n Names) column() (string, error) {
	b, err := json.Marshal(n)
	return string(b), err
}

func namesFrom(column string) (n Names, err error) {
	if err := json.Unmarshal([]byte(column), &n); err != nil {
		return Names{}, fault.Wrap(err, fault.Internal, "bad-row", "names in the state cannot be read")
	}
	return n, nil
}
