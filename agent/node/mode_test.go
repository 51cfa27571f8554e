package node

import (
	"fmt"
	"testing"
	"time"

	"google.golang.org/protobuf/reflect/protoreflect"
	"google.golang.org/protobuf/types/known/timestamppb"

	agentv1 "github.com/cassandra-security-manager/csm/protocol/agent/v1"
)

// Whatever the controllers say and whatever the disk looks like: below manage nothing is done that could change something.
func TestNothingRaisesTheLocalMode(t *testing.T) {
	seen := map[Do]int{}
	for _, mode := range []agentv1.Mode{agentv1.Mode_MODE_UNSPECIFIED, agentv1.Mode_MODE_OBSERVE, agentv1.Mode_MODE_STAGE, agentv1.Mode_MODE_MANAGE} {
		for state := range agentv1.InstallState_name {
			for bits := range 1 << 10 {
				bit := func(n int) bool { return bits>>n&1 == 1 }
				v := healthy()
				v.Mode, v.Store.State = mode, agentv1.InstallState(state)
				v.Store.Changed, v.Store.Unsettled, v.Running, v.Settled = bit(0), bit(1), bit(2), bit(2)
				if bit(3) {
					v.Target = nil
				} else if bit(4) {
					v.Target.Generation = 99
				} else if bit(5) {
					v.Target.RenewAt = timestamppb.New(at.Add(-time.Hour))
				}
				if bit(6) {
					v.Anchors = [][]byte{{7}}
				}
				if bit(7) {
					v.NextProof = at
				}
				if bit(8) {
					v.Store.NotAfter = at.Add(time.Hour)
				}
				if bit(9) {
					v.Store.Acknowledged = nil
				}
				a := Decide(v)
				if mode == agentv1.Mode_MODE_MANAGE {
					seen[a.Do]++
				} else if a.Do != Rest && a.Do != Wait {
					t.Fatalf("mode %s does %s (%s) with state %d, bits %b", mode, a.Do, a.Reason, state, bits)
				}
			}
		}
	}
	for _, do := range []Do{Settle, Restore, Install, Prove, Reprove} {
		if seen[do] == 0 {
			t.Errorf("the table never asks for %s, so it proves nothing about it", do)
		}
	}
}

// No message that a controller sends has a field by which a mode, a program or a file of the host could be named.
func TestNoMessageOfAControllerNamesAModeOrAFile(t *testing.T) {
	forbidden := map[protoreflect.Name]bool{"mode": true, "command": true, "path": true, "keystore_path": true, "truststore_path": true, "config_path": true, "program": true, "hook": true, "args": true}
	seen := map[protoreflect.FullName]bool{}
	var walk func(protoreflect.MessageDescriptor) error
	walk = func(m protoreflect.MessageDescriptor) error {
		if seen[m.FullName()] {
			return nil
		}
		seen[m.FullName()] = true
		for i := range m.Fields().Len() {
			f := m.Fields().Get(i)
			if forbidden[f.Name()] || f.Enum() != nil && f.Enum().FullName() == (agentv1.Mode_MODE_OBSERVE).Descriptor().FullName() {
				return fmt.Errorf("%s", f.FullName())
			}
			if f.Message() != nil {
				if err := walk(f.Message()); err != nil {
					return err
				}
			}
		}
		return nil
	}
	methods := agentv1.File_agent_v1_agent_proto.Services().ByName("AgentService").Methods()
	for i := range methods.Len() {
		if err := walk(methods.Get(i).Output()); err != nil {
			t.Errorf("%s answers with %v", methods.Get(i).Name(), err)
		}
	}
	if len(seen) < 10 || walk((&agentv1.Hello{}).ProtoReflect().Descriptor()) == nil {
		t.Error("the walk finds nothing, not even what agents say of themselves")
	}
}
