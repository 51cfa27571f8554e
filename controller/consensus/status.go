package consensus

import (
	"context"
	"fmt"
	"sync"
	"time"

	"github.com/hashicorp/raft"

	"github.com/cassandra-security-manager/csm/controller/consensus/members"
	"github.com/cassandra-security-manager/csm/controller/state"
	clusterv1 "github.com/cassandra-security-manager/csm/protocol/cluster/v1"
	"github.com/cassandra-security-manager/csm/shared/fault"
)

// Status is the control plane as this controller sees it.
type Status struct {
	ClusterID string
	// Name of the controller that answers, and of the leader it knows; empty without one.
	Name, Leader string
	Term         uint64
	// Applied by the state machine of the controller that answers.
	Applied uint64
	// Age of its state: how long ago the leader had applied no more than it has. AgeUnknown before the first tick.
	Age time.Duration
	// Quorum: a majority of voters answers and there is a leader.
	Quorum  bool
	Members []MemberStatus
	// Problems in words, each with what to do; empty when all is well.
	Problems []string
}

// MemberStatus is one controller.
type MemberStatus struct {
	Name, Region, Zone, Address string
	// ID of the installation.
	ID string
	// Voter says that it counts in the quorum now. State is "pending", "approved", "unsealed" (members table) or, once it
	// takes part, "leader", "voter", "non-voter".
	Voter bool
	State string
	// Reachable by the controller that answers, just now.
	Reachable bool
	// Applied index, and how many entries it is behind the leader (0 when unknown).
	Applied, Lag uint64
	Version      string
	FeatureLevel uint32
	// ClockOffset is its wall clock minus ours, +-half a round trip.
	ClockOffset time.Duration
	// LastContact of it with a leader; negative when never or unknown.
	LastContact time.Duration
	DiskFree    float64
	// KeyFingerprint is the SHA-256 of its public key, in hex.
	KeyFingerprint string
}

// MemberChecksum is one controller's answer to Verify.
type MemberChecksum struct {
	Name  string
	Index uint64
	// Sum is the SHA-256 over all replicated rows in primary-key order at Index; Rows their number.
	Sum  [32]byte
	Rows int64
	// Err says why there is no sum.
	Err error
}

// Member and Token are rows of the tables that this package owns.
type (
	Member = members.Member
	Token  = members.Token
)

// TokenSpec says what a join token for controllers may do.
type TokenSpec struct {
	// TTL until it expires; one hour when zero, at most 7 days.
	TTL time.Duration
	// Uses; 1 when zero.
	Uses int
	// Name, if set, is the only controller that may use it.
	Name string
}

// Status implements Quorum: it asks every member now and waits at most a second.
func (n *Node) Status(ctx context.Context) (Status, error) {
	n.pingAll(ctx)
	me := n.self()
	s := Status{ClusterID: n.cfg.ClusterID, Name: n.cfg.Name, Leader: n.Leader(), Term: me.Term, Applied: me.Applied, Age: n.Age()}
	suffrage := map[string]raft.ServerSuffrage{}
	conf := n.raft.GetConfiguration()
	if err := conf.Error(); err != nil {
		return s, err
	}
	voters, answer := 0, 0
	for _, v := range conf.Configuration().Servers {
		suffrage[string(v.ID)] = v.Suffrage
	}
	var head uint64
	for _, m := range n.dir.all() {
		ms := MemberStatus{Name: m.Name, Region: m.Region, Zone: m.Zone, Address: m.Address, ID: m.ID, State: string(m.State), Version: m.Version,
			KeyFingerprint: m.Fingerprint(), LastContact: -1}
		kind, in := suffrage[m.ID]
		ms.Voter = in && kind == raft.Voter
		a, offset := me, time.Duration(0)
		if m.ID != n.cfg.NodeID {
			c := n.contacts.get(m.ID)
			a, offset = c.answer, c.offset
			ms.Reachable = n.contacts.fresh(m.ID)
		} else {
			ms.Reachable = true
		}
		if a != nil && m.Trusted() {
			ms.Applied, ms.Version, ms.FeatureLevel, ms.ClockOffset, ms.DiskFree = a.Applied, a.Version, a.FeatureLevel, offset, a.DiskFree
			if a.LastContactMs >= 0 {
				ms.LastContact = time.Duration(a.LastContactMs) * time.Millisecond
			}
		}
		switch {
		case m.Name == s.Leader:
			ms.State = "leader"
			head = ms.Applied
		case ms.Voter:
			ms.State = "voter"
		case in && m.State == members.Unsealed:
			ms.State = "non-voter"
		}
		if ms.Voter {
			voters++
			if ms.Reachable {
				answer++
			}
		}
		s.Members = append(s.Members, ms)
	}
	for i := range s.Members {
		if m := &s.Members[i]; m.Applied < head {
			m.Lag = head - m.Applied
		}
	}
	s.Quorum = s.Leader != "" && answer >= voters/2+1
	s.Problems = n.problems(s)
	return s, nil
}

// goneAfter is how long a member may be silent before what it holds counts as gone; a lost ping or an election is shorter.
const goneAfter = 10 * time.Second

// Answers says whether the controller of that name answered this one within the last 10 s. One that has not been asked
// yet is taken to answer; one that is no member does not.
func (n *Node) Answers(name string) bool {
	m, ok := n.dir.find(func(m Member) bool { return m.Name == name })
	if !ok || m.ID == n.cfg.NodeID {
		return ok
	}
	c := n.contacts.get(m.ID)
	if c.at.IsZero() {
		return c.failed == nil
	}
	return time.Since(c.at) < goneAfter
}

// problems says in words what an administrator should do something about.
func (n *Node) problems(s Status) []string {
	var out []string
	if !s.Quorum {
		f := n.noQuorum()
		out = append(out, f.Error())
	}
	for _, m := range s.Members {
		switch {
		case m.State == string(members.Pending):
			out = append(out, fmt.Sprintf("%s waits for approval: compare its key %s, then `csm system approve %s --fingerprint …`", m.Name, m.KeyFingerprint, m.Name))
			continue
		case !m.Reachable && n.shutOut.Load() != nil: // told above
		case !m.Reachable:
			out = append(out, fmt.Sprintf("%s (%s) does not answer %s: start csm-controller there, or mend the network on port 9642", m.Name, m.Address, s.Name))
		case m.ClockOffset.Abs() > MaxClockOffset:
			out = append(out, fmt.Sprintf("the clock of %s is off by %s against %s: set it (chrony, systemd-timesyncd)", m.Name, m.ClockOffset.Round(time.Second), s.Name))
		}
		if m.Reachable && m.DiskFree < n.cfg.MinDiskFree {
			out = append(out, fmt.Sprintf("the disk of %s has %.1f %% free: it takes no writes below %.1f %%", m.Name, m.DiskFree*100, n.cfg.MinDiskFree*100))
		}
	}
	if ahead := n.store.Now().Sub(n.cfg.Clock.Now()); ahead > MaxClockOffset {
		out = append(out, fmt.Sprintf("the clock of the state is %s ahead of the clock of %s: an earlier leader dated writes in the future", ahead.Round(time.Second), s.Name))
	}
	if f := n.clockWrong(); f != nil {
		out = append(out, f.Error())
	}
	return out
}

// Verify implements Quorum: it proposes a marker, and each controller hashes its state as it was right after it.
func (n *Node) Verify(ctx context.Context, actor string) ([]MemberChecksum, error) {
	return n.checksums(ctx, actor, Member.Trusted)
}

func (n *Node) checksums(ctx context.Context, actor string, of func(Member) bool) ([]MemberChecksum, error) {
	res, err := n.Propose(ctx, state.Proposal{Command: &clusterv1.Marker{}, Actor: actor, Reason: "verify"})
	if err != nil {
		return nil, err
	}
	var out []MemberChecksum
	for _, m := range n.dir.all() {
		if of(m) {
			out = append(out, MemberChecksum{Name: m.Name, Index: res.Index})
		}
	}
	var wg sync.WaitGroup
	for i := range out {
		wg.Add(1)
		go func() {
			defer wg.Done()
			c := &out[i]
			if c.Name == n.cfg.Name {
				c.Sum, c.Rows, c.Err = n.store.Checksum(ctx, c.Index)
				return
			}
			m, _ := n.dir.find(func(m Member) bool { return m.Name == c.Name })
			cc, err := n.connected(ctx, m.Address, 2*time.Second)
			if err != nil {
				c.Err = err
				return
			}
			r, err := clusterv1.NewClusterServiceClient(cc).Checksum(ctx, &clusterv1.ChecksumRequest{Index: c.Index})
			if err != nil {
				c.Err = fault.FromGRPC(err)
				return
			}
			copy(c.Sum[:], r.GetSum())
			c.Rows = r.GetRows()
		}()
	}
	wg.Wait()
	return out, nil
}

// Checksum implements cluster.proto.
func (s service) Checksum(ctx context.Context, r *clusterv1.ChecksumRequest) (*clusterv1.ChecksumResponse, error) {
	sum, rows, err := s.n.store.Checksum(ctx, r.GetIndex())
	if err != nil {
		return nil, fault.From(err)
	}
	return &clusterv1.ChecksumResponse{Sum: sum[:], Rows: rows}, nil
}
