//go:build linux

package fleetsim

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"sync"
	"time"

	"github.com/cassandra-security-manager/csm/agent/config"
)

// Spec is a simulated fleet. It is all that the program is told.
type Spec struct {
	// Dir holds a folder for each node. In memory (/dev/shm) thousands of agents cost no disk.
	Dir string `json:"dir"`
	// Controllers are host:port of the agents' ports; Pin is of the system CA.
	Controllers []string `json:"controllers"`
	Pin         string   `json:"pin"`
	// Seed of everything that is drawn: latencies, faults, pauses.
	Seed  uint64 `json:"seed"`
	Rings []Ring `json:"rings"`
	// Ramp is how many agents start in a second; 0 is all at once.
	Ramp float64 `json:"ramp,omitempty"`
	// Listen is where the program tells how its agents are: host:port on loopback.
	Listen string `json:"listen"`
	Pace   Pace   `json:"pace"`
	Faults Faults `json:"faults"`
	// Mode of the agents, as in agent.yaml; empty is manage. One that observes joins, has its stream and its target, and installs nothing.
	Mode string `json:"mode,omitempty"`
}

// Ring is a cluster of Cassandra. Nodes are numbered from First through the whole fleet: the number is name and address.
type Ring struct {
	Cluster     string `json:"cluster"`
	First       int    `json:"first"`
	Nodes       int    `json:"nodes"`
	Datacenters int    `json:"datacenters"`
	// Racks in each data centre.
	Racks int `json:"racks"`
}

// Pace is how long what is simulated takes: each time something between half and one and a half of the mean.
type Pace struct {
	// Reload is nodetool reloadssl, Ask any other nodetool, Handshake a probe of a port, Boot the start of a ring.
	Reload    time.Duration `json:"reload"`
	Ask       time.Duration `json:"ask"`
	Handshake time.Duration `json:"handshake"`
	Boot      time.Duration `json:"boot"`
}

// Faults are shares of 1.
type Faults struct {
	// Ignored is how many reloads do nothing and say that all is well.
	Ignored float64 `json:"ignored,omitempty"`
	// Silent is how many probes of a neighbour hear nothing.
	Silent float64 `json:"silent,omitempty"`
}

// Name of a node.
func Name(number int) string { return fmt.Sprintf("n%05d", number) }

// Address of a node's Cassandra. Nobody listens there.
func Address(number int) netip.Addr { return address(10, 0, number) }

// source is where the connections of a node's agent come from: controllers limit joins by address.
func source(number int) netip.Addr { return address(127, 128, number) }

func address(first, second byte, number int) netip.Addr {
	return netip.AddrFrom4([4]byte{first, second + byte(number>>16), byte(number >> 8), byte(number)})
}

func (s Spec) folder(r Ring, number int) string {
	return filepath.Join(s.Dir, r.Cluster, Name(number))
}

// place is a node's data centre and rack: neighbours by number stand in different racks.
func (r Ring) place(number int) (datacenter, rack string) {
	k := number - r.First
	return fmt.Sprintf("dc%d", k%r.Datacenters+1), fmt.Sprintf("rack%d", k/r.Datacenters%r.Racks+1)
}

// Tokens makes the join token of a node of a cluster.
type Tokens func(ctx context.Context, cluster, node string, ip netip.Addr) (string, error)

// layers is how many nodes are laid out at once.
const layers = 16

// Lay writes what an operator would put on each host: cassandra.yaml, where the node stands, and its join token.
func Lay(ctx context.Context, s Spec, tokens Tokens) error {
	type host struct {
		ring   Ring
		number int
	}
	work := make(chan host)
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	var wg sync.WaitGroup
	for range layers {
		wg.Go(func() {
			for h := range work {
				if err := s.lay(ctx, h.ring, h.number, tokens); err != nil {
					cancel(err)
				}
			}
		})
	}
	for _, r := range s.Rings {
		for k := range r.Nodes {
			if ctx.Err() == nil {
				work <- host{r, r.First + k}
			}
		}
	}
	close(work)
	wg.Wait()
	return context.Cause(ctx)
}

func (s Spec) lay(ctx context.Context, r Ring, number int, tokens Tokens) error {
	dir := s.folder(r, number)
	token, err := tokens(ctx, r.Cluster, Name(number), Address(number))
	if err != nil {
		return fmt.Errorf("token of %s: %w", Name(number), err)
	}
	section := fmt.Sprintf("optional: false, require_client_auth: true, ssl_context_factory: {class_name: org.apache.cassandra.security.PEMBasedSslContextFactory}, "+
		"keystore: %[1]s/tls/node.pem, truststore: %[1]s/tls/trust.pem", dir)
	yaml := fmt.Sprintf("cluster_name: %s\nendpoint_snitch: GossipingPropertyFileSnitch\nlisten_address: %s\nrpc_address: %[2]s\n"+
		"server_encryption_options: {internode_encryption: all, require_endpoint_verification: true, %[3]s}\nclient_encryption_options: {enabled: true, %[3]s}\n",
		r.Cluster, Address(number), section)
	dc, rack := r.place(number)
	return errors.Join(os.MkdirAll(filepath.Join(dir, "tls"), 0o700),
		os.WriteFile(filepath.Join(dir, "cassandra.yaml"), []byte(yaml), 0o600),
		os.WriteFile(filepath.Join(dir, "cassandra-rackdc.properties"), fmt.Appendf(nil, "dc=%s\nrack=%s\n", dc, rack), 0o600),
		os.WriteFile(filepath.Join(dir, "token"), []byte(token+"\n"), 0o600))
}

// config is agent.yaml of a node.
func (s Spec) config(r Ring, number int) config.Config {
	dir := s.folder(r, number)
	c := config.Defaults()
	c.Controllers, c.Pin, c.Cluster, c.Mode = s.Controllers, s.Pin, r.Cluster, cmp.Or(s.Mode, "manage")
	c.Join = config.Join{Method: "token", File: filepath.Join(dir, "token")}
	c.StateDir, c.HoldFile = filepath.Join(dir, "state"), filepath.Join(s.Dir, "HOLD")
	// Nobody answers CQL here; what is under way is asked of nodetool.
	c.Cassandra = []config.Instance{{Config: filepath.Join(dir, "cassandra.yaml"), StoreRoots: []string{filepath.Join(dir, "tls")}, CQL: config.CQL{Off: true}}}
	return c
}
