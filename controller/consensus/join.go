package consensus

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/hex"
	"errors"
	"net"
	"sync/atomic"
	"time"

	"github.com/jonboulle/clockwork"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/cassandra-security-manager/csm/controller/consensus/members"
	"github.com/cassandra-security-manager/csm/controller/consensus/transport"
	clusterv1 "github.com/cassandra-security-manager/csm/protocol/cluster/v1"
	"github.com/cassandra-security-manager/csm/shared/fault"
	"github.com/cassandra-security-manager/csm/shared/identity"
)

// JoinOptions are what a new controller says of itself.
type JoinOptions struct {
	// Addresses of controllers (host:9642), tried in turn.
	Addresses []string
	// Pin is the "sha256:..." of the system CA, given by hand.
	Pin string
	// Token from CreateJoinToken.
	Token string
	// Name, NodeID and the rest as in Config.
	Name, NodeID, Region, Zone, Advertise string
	// CSR is a PKCS#10 request signed by the new controller's key.
	CSR       []byte
	KEKPublic []byte
	Version   string
	// Clock is the wall clock; optional.
	Clock clockwork.Clock
	// Waiting is called whenever the answer is "not approved yet", with the fingerprint to compare. Optional.
	Waiting func(fingerprint string)
	// Trouble is called with each error after which the next address is tried. Optional.
	Trouble func(address string, err error)
}

// Admission is what an approved controller gets.
type Admission struct {
	ClusterID, TrustDomain string
	// Chain is its certificate, leaf first; Bundle the system CA's roots.
	Chain, Bundle []*x509.Certificate
	Members       []Member
}

// Join asks for admission until an administrator has approved it or ctx ends. A refusal is final; the same options may be
// given again after a crash and get the same answer.
func Join(ctx context.Context, o JoinOptions) (*Admission, error) {
	pin, err := identity.ParsePin(o.Pin)
	if err != nil {
		return nil, err
	}
	if len(o.Addresses) == 0 {
		return nil, fault.New(fault.Invalid, "no-address", "no controller to join is named").Do("set join_peers to host:9642 of a running controller")
	}
	if o.Clock == nil {
		o.Clock = clockwork.NewRealClock()
	}
	var last error
	pending := false
	for i := 0; ; i++ {
		addr := o.Addresses[i%len(o.Addresses)]
		r, err := o.ask(ctx, addr, pin)
		if err == nil && r.GetState() == clusterv1.MemberState_MEMBER_STATE_PENDING {
			if o.Waiting != nil {
				o.Waiting(hex.EncodeToString(r.GetKey()))
			}
			i-- // ask the same one again
			pending = true
			if ctx.Err() == nil {
				continue
			}
		}
		if errors.Is(ctx.Err(), context.Canceled) {
			return nil, ctx.Err()
		}
		if pending && ctx.Err() != nil {
			return nil, o.notApproved()
		}
		if err == nil {
			return admitted(r)
		}
		switch f := fault.From(err); f.Code {
		case fault.Unavailable, fault.Unknown, fault.Exhausted:
			last = err
			if o.Trouble != nil {
				o.Trouble(addr, err)
			}
		default:
			return nil, err
		}
		select {
		case <-ctx.Done():
			if pending { // the other side may have heard the deadline's tick first
				return nil, o.notApproved()
			}
			return nil, last
		case <-time.After(min(time.Duration(i+1)*100*time.Millisecond, 3*time.Second)):
		}
	}
}

func (o JoinOptions) notApproved() error {
	return fault.New(fault.Running, "not-approved", "nobody has approved the controller %q yet", o.Name).
		Do("approve it (`csm system approve %s --fingerprint …`), then give the same join command again: it goes on with the same key and token", o.Name)
}

func (o JoinOptions) ask(ctx context.Context, addr string, pin []byte) (*clusterv1.JoinResponse, error) {
	var refused atomic.Pointer[fault.Error]                                                                     // why this side does not trust the other, which gRPC would tell in its own words
	cc, err := grpc.NewClient("passthrough:///"+addr, grpc.WithTransportCredentials(insecure.NewCredentials()), // the dialer below does TLS
		grpc.WithContextDialer(func(ctx context.Context, addr string) (net.Conn, error) {
			c, err := dialPinned(ctx, addr, pin, o.Clock.Now)
			if f := (*fault.Error)(nil); errors.As(err, &f) {
				refused.Store(f)
			}
			return c, err
		}),
		grpc.WithDefaultCallOptions(grpc.MaxCallRecvMsgSize(4<<20)))
	if err != nil {
		return nil, err
	}
	defer cc.Close()
	ctx, cancel := context.WithTimeout(ctx, 45*time.Second)
	defer cancel()
	r, err := clusterv1.NewAdmissionServiceClient(cc).Join(ctx, &clusterv1.JoinRequest{Token: o.Token, Name: o.Name, Id: o.NodeID, Region: o.Region,
		Zone: o.Zone, Address: o.Advertise, Csr: o.CSR, KekPublic: o.KEKPublic, Version: o.Version, Now: timestamppb.New(o.Clock.Now())})
	if f := refused.Load(); f != nil && err != nil {
		return nil, f
	}
	return r, fault.FromGRPC(err)
}

// dialPinned takes only a controller whose chain ends at the pinned system CA.
func dialPinned(ctx context.Context, addr string, pin []byte, now func() time.Time) (net.Conn, error) {
	var d net.Dialer
	raw, err := d.DialContext(ctx, "tcp", addr)
	if err != nil {
		return nil, err
	}
	cfg := identity.Base()
	cfg.NextProtos = []string{transport.GRPC}
	cfg.InsecureSkipVerify = true // VerifyConnection does the whole check, from the pin
	cfg.VerifyConnection = func(cs tls.ConnectionState) error {
		root, err := identity.PinnedRoot(cs.PeerCertificates, pin)
		if err != nil {
			return err
		}
		v := identity.Verifier{Roots: func() []*x509.Certificate { return []*x509.Certificate{root} }, Kinds: []identity.Kind{identity.Controller}, Now: now,
			// A wrong clock here must reach the server, which names it; the pin does not age.
			IgnoreExpiry: func(*x509.Certificate) bool { return true }}
		return v.VerifyConnection(cs)
	}
	c := tls.Client(raw, cfg)
	if err := c.HandshakeContext(ctx); err != nil {
		raw.Close()
		return nil, err
	}
	return c, nil
}

func admitted(r *clusterv1.JoinResponse) (*Admission, error) {
	a := &Admission{ClusterID: r.GetClusterId(), TrustDomain: r.GetTrustDomain()}
	for _, m := range r.GetMembers() {
		a.Members = append(a.Members, members.FromProto(m))
	}
	for _, list := range []struct {
		der [][]byte
		to  *[]*x509.Certificate
	}{{r.GetChain(), &a.Chain}, {r.GetBundle(), &a.Bundle}} {
		for _, der := range list.der {
			c, err := x509.ParseCertificate(der)
			if err != nil {
				return nil, fault.Wrap(err, fault.Internal, "bad-answer", "the controllers sent a certificate that cannot be read")
			}
			*list.to = append(*list.to, c)
		}
	}
	if len(a.Chain) == 0 || len(a.Bundle) == 0 {
		return nil, fault.New(fault.Internal, "bad-answer", "the controllers sent no certificate")
	}
	return a, nil
}
