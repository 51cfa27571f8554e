package agentapi_test

import (
	"strings"
	"testing"

	"google.golang.org/protobuf/proto"

	agentv1 "github.com/cassandra-security-manager/csm/protocol/agent/v1"
	"github.com/cassandra-security-manager/csm/protocol/bounds"

	"github.com/cassandra-security-manager/csm/controller/fleet"
	"github.com/cassandra-security-manager/csm/shared/fault"
)

func tokenSpec(node string) fleet.TokenSpec { return fleet.TokenSpec{Node: node, Rejoin: true} }

// rejoin lets another host take the node's place.
func rejoin(w *world, node string) error {
	secret, _, err := w.fleet.CreateToken(w.t.Context(), cluster, tokenSpec(node), ann)
	if err != nil {
		return err
	}
	k := w.key()
	r := &agentv1.JoinRequest{Method: "token", Evidence: []byte(secret), Csr: w.csr(k, nil, nil), Cluster: cluster, Agent: &agentv1.AgentFacts{Clock: clock(w)}}
	_, err = w.client(nil).Join(w.t.Context(), r)
	return err
}

// newPort opens the same controller on another port, with a certificate that is good now.
func newPort(w *world) *world {
	again := *w
	again.server = nil
	return again.reopen()
}

// Whatever a stranger sends to Join is answered by a fault that is not a defect, or by an identity.
func FuzzJoin(f *testing.F) {
	w := newWorld(f)
	// A token that nobody made and a request that is none: what lies behind both is slow to reach and tested elsewhere.
	stranger, noRequest := w.joinRequest("n1", w.key()), w.joinRequest("n1", w.key())
	stranger.Evidence, noRequest.Csr = []byte("csmt_"+strings.Repeat("A", 43)), noRequest.Csr[:40]
	for _, r := range []*agentv1.JoinRequest{stranger, noRequest} {
		b, err := proto.Marshal(r)
		w.must(err)
		f.Add(b)
	}
	f.Add([]byte{})
	f.Fuzz(func(t *testing.T, b []byte) {
		r := &agentv1.JoinRequest{}
		if proto.Unmarshal(b, r) != nil || bounds.Check(r) != nil {
			return
		}
		if _, err := w.server.Join(t.Context(), r); err != nil && fault.From(err).Code == fault.Internal {
			t.Errorf("%v", err)
		}
	})
}

// Whatever an agent says of itself on its stream is taken or refused, and nothing breaks.
func FuzzReport(f *testing.F) {
	w := newWorld(f)
	j, err := w.server.Join(f.Context(), w.joinRequest("n1", w.key()))
	w.must(err)
	seed, _ := proto.Marshal(&agentv1.Report{Agent: &agentv1.AgentFacts{GenerationCounter: 1, Mode: agentv1.Mode_MODE_MANAGE}, Stores: []*agentv1.StoreFacts{{Store: "node"}}})
	f.Add(seed)
	f.Fuzz(func(t *testing.T, b []byte) {
		r := &agentv1.Report{}
		if proto.Unmarshal(b, r) != nil || bounds.Check(r) != nil {
			return
		}
		c, err := fleet.Report{UID: j.Uid, Incarnation: 1, Agent: r.Agent, Instance: r.Instance, Stores: r.Stores}.Encode()
		if err == nil {
			err = w.fleet.Reported(t.Context(), c)
		}
		if err != nil && fault.From(err).Code == fault.Internal {
			t.Errorf("%v", err)
		}
		if _, _, err := w.fleet.Target(t.Context(), j.Node); err != nil {
			t.Errorf("target: %v", err)
		}
		if _, err := w.fleet.GetNode(t.Context(), j.Node); err != nil {
			t.Errorf("node: %v", err)
		}
	})
}
