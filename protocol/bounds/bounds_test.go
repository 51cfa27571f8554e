package bounds_test

import (
	"strings"
	"testing"

	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"
	"google.golang.org/protobuf/reflect/protoregistry"

	agentv1 "github.com/cassandra-security-manager/csm/protocol/agent/v1"
	"github.com/cassandra-security-manager/csm/protocol/bounds"
	clusterv1 "github.com/cassandra-security-manager/csm/protocol/cluster/v1"
	"github.com/cassandra-security-manager/csm/shared/fault"
)

func TestWhatIsTooLargeIsRefusedByName(t *testing.T) {
	big := func(n int) []byte { return make([]byte, n) }
	for name, c := range map[string]struct {
		message proto.Message
		field   string
	}{
		"bytes with a bound":    {&agentv1.JoinRequest{Csr: big(16385)}, "JoinRequest.csr"},
		"text with a bound":     {&agentv1.JoinRequest{Method: strings.Repeat("x", 33)}, "JoinRequest.method"},
		"deep inside":           {&agentv1.SyncRequest{Message: &agentv1.SyncRequest_Hello{Hello: &agentv1.Hello{Instance: &agentv1.InstanceFacts{Rack: strings.Repeat("r", 129)}}}}, "InstanceFacts.rack"},
		"too many entries":      {&agentv1.Hello{Stores: make17()}, "Hello.stores"},
		"an entry too large":    {&agentv1.StoreFacts{Anchors: [][]byte{big(33)}}, "StoreFacts.anchors"},
		"bytes without a bound": {&clusterv1.Outcome{Reply: big(1048577)}, "Outcome.reply"},
		"text at its default":   {&clusterv1.Fault{Message: strings.Repeat("m", 4097)}, "Fault.message"},
	} {
		err := bounds.Check(c.message)
		if !fault.HasReason(err, "out-of-bounds") || !strings.Contains(err.Error(), c.field) {
			t.Errorf("%s: got %v, want a refusal that names %s", name, err, c.field)
		}
	}
}

func make17() []*agentv1.StoreFacts {
	out := make([]*agentv1.StoreFacts, 17)
	for i := range out {
		out[i] = &agentv1.StoreFacts{}
	}
	return out
}

func TestWhatFitsPasses(t *testing.T) {
	for _, m := range []proto.Message{nil, &agentv1.JoinRequest{}, &agentv1.JoinRequest{Csr: make([]byte, 16384), Method: strings.Repeat("x", 32)},
		&agentv1.StoreFacts{Anchors: [][]byte{make([]byte, 32)}}} {
		if err := bounds.Check(m); err != nil {
			t.Errorf("%T: %v", m, err)
		}
	}
}

func TestUnknownFieldsAreBounded(t *testing.T) {
	m := &agentv1.JoinRequest{}
	m.ProtoReflect().SetUnknown(protoreflect.RawFields(make([]byte, bounds.MaxUnknown+1)))
	if err := bounds.Check(m); !fault.HasReason(err, "out-of-bounds") {
		t.Errorf("got %v", err)
	}
}

// Every text, bytes and repeated field of the agent's protocol says itself how large it may be.
func TestEachFieldOfTheAgentsProtocolHasItsOwnBound(t *testing.T) {
	protoregistry.GlobalFiles.RangeFilesByPackage("csm.agent.v1", func(f protoreflect.FileDescriptor) bool {
		for i := range f.Messages().Len() {
			fields := f.Messages().Get(i).Fields()
			for j := range fields.Len() {
				fd := fields.Get(j)
				sized := fd.Kind() == protoreflect.StringKind || fd.Kind() == protoreflect.BytesKind || fd.IsList()
				if sized && !bounds.HasOwn(fd) {
					t.Errorf("%s has no bound", fd.FullName())
				}
			}
		}
		return true
	})
}

func FuzzCheckNeverPanics(f *testing.F) {
	seed, _ := proto.Marshal(&agentv1.Hello{Stores: make17()})
	f.Add(seed)
	f.Fuzz(func(t *testing.T, b []byte) {
		m := &agentv1.SyncRequest{}
		if proto.Unmarshal(b, m) == nil {
			_ = bounds.Check(m)
		}
		h := &agentv1.JoinRequest{}
		if proto.Unmarshal(b, h) == nil {
			_ = bounds.Check(h)
		}
	})
}
