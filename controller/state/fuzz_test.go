package state_test

import (
	"context"
	"os"
	"testing"

	"github.com/hashicorp/raft"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/timestamppb"
	"google.golang.org/protobuf/types/known/wrapperspb"

	"github.com/cassandra-security-manager/csm/controller/state"
	clusterv1 "github.com/cassandra-security-manager/csm/protocol/cluster/v1"
	"github.com/cassandra-security-manager/csm/shared/fault"
)

// FuzzApply: whatever stands in an entry, it is answered with an outcome, or the state machine stops because the entry is
// newer than it. Nothing else stops it, and the store goes on.
func FuzzApply(f *testing.F) {
	e, err := state.NewEnvelope(proposal(wrapperspb.String("a"), "seed"), start)
	if err != nil {
		f.Fatal(err)
	}
	e.Stamp = timestamppb.New(start)
	f.Add(encode(f, e))
	e.Actor, e.Reason, e.Command = "an\x00n", "\x00", []byte("\x0a\x03\xff\xfe\x00")
	f.Add(encode(f, e))
	e.Deadline, e.Stamp = &timestamppb.Timestamp{Seconds: -1 << 63, Nanos: -5}, &timestamppb.Timestamp{Seconds: 1 << 62}
	f.Add(encode(f, e))
	f.Add([]byte{})
	f.Add([]byte("rubbish"))
	root := f.TempDir()
	var m *machine
	f.Fuzz(func(t *testing.T, data []byte) {
		if m == nil || m.fatal != nil {
			dir, err := os.MkdirTemp(root, "store")
			if err != nil {
				t.Fatal(err)
			}
			m = &machine{t: t, now: start}
			m.Store, err = state.Open(context.Background(), state.Options{Dir: dir, ClusterID: cluster, NodeID: "n1",
				Modules: []state.Module{boxes()}, Fatal: func(err error) { m.fatal = err }})
			if err != nil {
				t.Fatal(err)
			}
		}
		m.index++
		_, err := decide(m.Apply(&raft.Log{Index: m.index, Term: 1, Data: data}))
		if m.fatal != nil {
			if !fault.HasReason(m.fatal, "newer-command") {
				t.Fatalf("%x stopped it: %v", data, m.fatal)
			}
			return
		}
		var e clusterv1.Envelope
		if proto.Unmarshal(data, &e) != nil && !fault.Is(err, fault.Invalid) {
			t.Fatalf("%x answered %v", data, err)
		}
		if m.Applied() != m.index {
			t.Fatalf("applied %d of %d", m.Applied(), m.index)
		}
	})
}
