package consensus

import (
	"context"
	"crypto/sha256"
	"net"
	"sync"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"

	"github.com/cassandra-security-manager/csm/controller/consensus/transport"
	clusterv1 "github.com/cassandra-security-manager/csm/protocol/cluster/v1"
)

// Proof is what a handshake with another controller has shown.
type Proof struct {
	Name string
	// Leaf is the SHA-256 of the leaf that it serves to new connections.
	Leaf [sha256.Size]byte
	// Trusts are the SHA-256 of the roots of the system CA that its verifier uses, as it says.
	Trusts [][]byte
}

// Prove makes a new connection to every other controller, and has a call answered on it: each side has then taken the other's certificate,
// and what it serves now was seen. Who does not answer within a second is left out. The only controller there is speaks for itself.
func (n *Node) Prove(ctx context.Context) []Proof {
	var mu sync.Mutex
	var wg sync.WaitGroup
	var out []Proof
	members := n.dir.trusted()
	for _, m := range members {
		if m.ID == n.cfg.NodeID {
			continue
		}
		wg.Go(func() {
			if p, err := n.prove(ctx, m); err == nil {
				mu.Lock()
				defer mu.Unlock()
				out = append(out, p)
			}
		})
	}
	wg.Wait()
	if c, err := n.cfg.Identity.Certificate(); err == nil && len(members) == 1 {
		out = append(out, Proof{Name: n.cfg.Name, Leaf: sha256.Sum256(c.Certificate[0]), Trusts: n.trusts()})
	}
	return out
}

func (n *Node) prove(ctx context.Context, m Member) (p Proof, err error) {
	ctx, cancel := context.WithTimeout(ctx, probeTimeout)
	defer cancel()
	c, err := n.trans.Dial(ctx, transport.GRPC, m.Address)
	if err != nil {
		return p, err
	}
	defer c.Close()
	cc, err := grpc.NewClient("passthrough:///"+m.Address, grpc.WithTransportCredentials(insecure.NewCredentials()), // TLS is done
		grpc.WithContextDialer(func(context.Context, string) (net.Conn, error) { return c, nil }))
	if err != nil {
		return p, err
	}
	defer cc.Close()
	r, err := clusterv1.NewClusterServiceClient(cc).Ping(ctx, &clusterv1.PingRequest{})
	if err != nil {
		return p, err
	}
	return Proof{Name: m.Name, Leaf: sha256.Sum256(c.State.PeerCertificates[0].Raw), Trusts: r.GetTrusts()}, nil
}

// trusts are the roots that this controller's verifier uses now.
func (n *Node) trusts() (out [][]byte) {
	for _, r := range n.cfg.Identity.Roots() {
		sum := sha256.Sum256(r.Raw)
		out = append(out, sum[:])
	}
	return out
}
