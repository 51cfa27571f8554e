package consensus

import (
	"context"
	"crypto/rand"
	"crypto/sha256"
	"encoding/base64"
	"encoding/hex"
	"strings"
	"time"

	"github.com/hashicorp/raft"

	"github.com/cassandra-security-manager/csm/controller/consensus/members"
	"github.com/cassandra-security-manager/csm/controller/state"
	clusterv1 "github.com/cassandra-security-manager/csm/protocol/cluster/v1"
	"github.com/cassandra-security-manager/csm/shared/fault"
)

// TokenPrefix begins every join token of a controller, so that a leaked one is recognised for what it is.
const TokenPrefix = "csmc_"

// CreateJoinToken implements Quorum. The token is shown once: only its SHA-256 is kept.
func (n *Node) CreateJoinToken(ctx context.Context, spec TokenSpec, actor string) (string, Token, error) {
	if spec.TTL == 0 {
		spec.TTL = time.Hour
	}
	if spec.Uses == 0 {
		spec.Uses = 1
	}
	var secret [32]byte
	var id [6]byte
	rand.Read(secret[:])
	rand.Read(id[:])
	token := TokenPrefix + base64.RawURLEncoding.EncodeToString(secret[:])
	hash := sha256.Sum256([]byte(token))
	t, err := state.Reply[*clusterv1.ControllerToken](ctx, n, state.Proposal{Actor: actor, Command: &clusterv1.CreateControllerToken{
		Id: hex.EncodeToString(id[:]), Hash: hash[:], TtlMs: spec.TTL.Milliseconds(), Uses: uint32(max(spec.Uses, 0)), Name: spec.Name}})
	if err != nil {
		return "", Token{}, err
	}
	return token, Token{ID: t.Id, Name: t.Name, Created: time.UnixMilli(t.CreatedMs).UTC(), Expires: time.UnixMilli(t.ExpiresMs).UTC(),
		Uses: int(t.Uses), Used: int(t.Used), CreatedBy: t.CreatedBy}, nil
}

// JoinTokens implements Quorum.
func (n *Node) JoinTokens(ctx context.Context) (out []Token, err error) {
	err = n.store.View(ctx, func(ctx context.Context, q state.Querier) error {
		out, err = members.Tokens(ctx, q)
		return err
	})
	return out, err
}

// RevokeJoinToken implements Quorum.
func (n *Node) RevokeJoinToken(ctx context.Context, id, actor string) error {
	_, err := n.Propose(ctx, state.Proposal{Actor: actor, Command: &clusterv1.RevokeControllerToken{Id: id}})
	return err
}

// Members implements Quorum: the members table as it is applied here, pending ones too.
func (n *Node) Members(ctx context.Context) (out []Member, err error) {
	err = n.store.View(ctx, func(ctx context.Context, q state.Querier) error {
		out, err = members.List(ctx, q)
		return err
	})
	return out, err
}

// Approve implements Quorum.
func (n *Node) Approve(ctx context.Context, name, fingerprint, actor string) (Member, error) {
	key, err := hex.DecodeString(strings.TrimPrefix(strings.ToLower(strings.ReplaceAll(fingerprint, ":", "")), "sha256"))
	if err != nil || len(key) != 32 {
		return Member{}, fault.New(fault.Invalid, "bad-fingerprint", "%.100q is not a fingerprint", fingerprint).
			Do("give the 64 hex digits that the new controller prints")
	}
	r, err := state.Reply[*clusterv1.MemberReply](ctx, n, state.Proposal{Actor: actor, Command: &clusterv1.ApproveMember{Name: name, Key: key}})
	if err != nil {
		return Member{}, err
	}
	return members.FromProto(r.Member), nil
}

// ReportUnsealed implements Quorum.
func (n *Node) ReportUnsealed(ctx context.Context) error {
	if m, ok := n.dir.find(func(m Member) bool { return m.ID == n.cfg.NodeID }); ok && m.State == members.Unsealed {
		return nil
	}
	_, err := n.Propose(ctx, state.Proposal{Actor: "system", Command: &clusterv1.ReportUnsealed{Name: n.cfg.Name, Id: n.cfg.NodeID}})
	return err
}

// Remove implements Quorum. It refuses what would leave the rest without a majority that answers.
func (n *Node) Remove(ctx context.Context, name, actor, reason string) error {
	m, ok := n.dir.find(func(m Member) bool { return m.Name == name })
	if !ok {
		return fault.New(fault.NotFound, "no-such-controller", "there is no controller %q", name).Do("list them: `csm system controllers`")
	}
	if err := n.wouldLoseQuorum(m); err != nil {
		return err
	}
	if n.Leader() == name {
		if err := n.TransferLeadership(ctx, ""); err != nil {
			return err
		}
		if err := n.awaitOtherLeader(ctx, name); err != nil {
			return err
		}
	}
	_, err := n.Propose(ctx, state.Proposal{Actor: actor, Reason: reason, Command: &clusterv1.RemoveMember{Name: name}})
	return err
}

func (n *Node) wouldLoseQuorum(gone Member) error {
	conf := n.raft.GetConfiguration()
	if err := conf.Error(); err != nil {
		return err
	}
	voters, answer, votes := 0, 0, false
	for _, s := range conf.Configuration().Servers {
		switch {
		case s.Suffrage != raft.Voter:
		case string(s.ID) == gone.ID:
			votes = true
		default:
			voters++
			if string(s.ID) == n.cfg.NodeID || n.contacts.fresh(string(s.ID)) {
				answer++
			}
		}
	}
	if votes && answer < voters/2+1 {
		return fault.New(fault.Refused, "would-lose-quorum", "without %q only %d of %d voters answer: nothing could be written any more", gone.Name, answer, voters).
			Do("start the other controllers first (`csm status`), or add one")
	}
	return nil
}

func (n *Node) awaitOtherLeader(ctx context.Context, old string) error {
	ctx, cancel := context.WithTimeout(ctx, DefaultTimeout)
	defer cancel()
	for {
		changed := n.leaders.wait()
		if l := n.Leader(); l != "" && l != old {
			return nil
		}
		select {
		case <-changed:
		case <-time.After(50 * time.Millisecond):
		case <-ctx.Done():
			return fault.New(fault.Unavailable, "no-transfer", "%q still leads", old).Do("try again")
		}
	}
}

// Leave implements Quorum.
func (n *Node) Leave(ctx context.Context, actor string) error {
	return n.Remove(ctx, n.cfg.Name, actor, "it leaves")
}

// move records a new address, region or zone of this controller, once it knows its own row.
func (n *Node) move() {
	for {
		m, ok := n.dir.find(func(m Member) bool { return m.ID == n.cfg.NodeID && m.Trusted() })
		if ok && n.Age() < 10*time.Second {
			if m.Address == n.cfg.Advertise && m.Region == n.cfg.Region && m.Zone == n.cfg.Zone {
				return
			}
			_, err := n.Propose(n.ctx, state.Proposal{Actor: "system", Command: &clusterv1.MoveMember{Name: m.Name, Id: m.ID,
				Address: n.cfg.Advertise, Region: n.cfg.Region, Zone: n.cfg.Zone}})
			if err == nil {
				return
			}
			n.cfg.Logger.Warn("the new address of this controller is not recorded yet", "error", err)
		}
		select {
		case <-time.After(time.Second):
		case <-n.ctx.Done():
			return
		}
	}
}
