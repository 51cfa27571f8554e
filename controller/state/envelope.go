package state

import (
	"fmt"
	"strings"
	"time"

	"github.com/google/uuid"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/anypb"
	"google.golang.org/protobuf/types/known/timestamppb"

	clusterv1 "github.com/cassandra-security-manager/csm/protocol/cluster/v1"
	"github.com/cassandra-security-manager/csm/shared/fault"
)

// Bounds of a command, as PROTOCOL and state machine hold them.
const (
	// MaxCommand is the largest command in bytes.
	MaxCommand = 128 << 10
	// MaxDeadline is how far ahead of the stamp a deadline counts; a later one is taken as this.
	MaxDeadline = 10 * time.Minute
	// DefaultTimeout of a Proposal that names none.
	DefaultTimeout = 5 * time.Second

	// envelopeVersion and kindVersion are the newest this controller knows.
	envelopeVersion = 1
	kindVersion     = 1
	// keepOutcome is how long after its deadline a command's outcome is kept for a repeat.
	keepOutcome = time.Minute
)

// Kind is the name of a command in envelopes and in the audit log: its full protobuf name.
func Kind(command proto.Message) string {
	return string(command.ProtoReflect().Descriptor().FullName())
}

// NewEnvelope wraps a proposal. The leader still has to stamp it. It fails with Invalid when the proposal can never
// become an entry: no actor, command too large, a field out of bounds.
func NewEnvelope(p Proposal, now time.Time) (*clusterv1.Envelope, error) {
	if p.Command == nil {
		return nil, fault.New(fault.Invalid, "no-command", "the proposal holds no command")
	}
	body, err := proto.MarshalOptions{Deterministic: true}.Marshal(p.Command)
	if err != nil {
		return nil, fmt.Errorf("encode %s: %w", Kind(p.Command), err)
	}
	id, timeout := p.ID, p.Timeout
	if id == "" {
		fresh, err := uuid.NewV7() // begins with the time: outcomes are then added at one end of their index
		if err != nil {
			return nil, fmt.Errorf("draw an id: %w", err)
		}
		id = fresh.String()
	}
	if timeout <= 0 {
		timeout = DefaultTimeout
	}
	e := &clusterv1.Envelope{
		Version: envelopeVersion, Id: id, Deadline: timestamppb.New(now.Add(min(timeout, MaxDeadline))),
		Tenant: p.Tenant, Zone: p.Zone, Actor: p.Actor, CorrelationId: p.CorrelationID, Reason: p.Reason,
		Kind: Kind(p.Command), KindVersion: kindVersion, Command: body, RequestSha256: p.Request,
	}
	return e, checkBounds(e)
}

// checkBounds is deterministic: Apply refuses by it what a careless proposer put into the log.
func checkBounds(e *clusterv1.Envelope) error {
	for _, f := range []struct {
		name     string
		size     int
		min, max int
	}{
		{"id", len(e.Id), 1, 64}, {"actor", len(e.Actor), 1, 2048}, {"kind", len(e.Kind), 1, 128},
		{"tenant", len(e.Tenant), 0, 63}, {"zone", len(e.Zone), 0, 63},
		{"correlation id", len(e.CorrelationId), 0, 128}, {"reason", len(e.Reason), 0, 1024},
		{"command", len(e.Command), 0, MaxCommand}, {"sealed part", len(e.Sealed), 0, MaxCommand},
		{"request's hash", len(e.RequestSha256), 0, 32},
	} {
		if f.size < f.min {
			return fault.New(fault.Invalid, "bad-envelope", "the command has no %s", f.name)
		}
		if f.size > f.max {
			return fault.New(fault.Invalid, "too-large", "the command's %s has %d bytes, %d are allowed", f.name, f.size, f.max).
				Do("split the request into smaller ones")
		}
	}
	if e.Deadline == nil {
		return fault.New(fault.Invalid, "bad-envelope", "the command has no deadline")
	}
	return nil
}

// Check tells the leader, before anything enters the log, whether every controller like this one can apply the
// envelope: a kind that nobody knows would stop them all. The fault is Invalid, or Refused when it is newer than us.
func (s *Store) Check(e *clusterv1.Envelope) error {
	if err := checkBounds(e); err != nil {
		return err
	}
	if err := s.checkVersion(e); err != nil {
		return err
	}
	return nil
}

func (s *Store) checkVersion(e *clusterv1.Envelope) *fault.Error {
	switch {
	case e.Version > envelopeVersion:
		return fault.New(fault.Refused, "newer-command", "the envelope has version %d, this controller knows %d", e.Version, envelopeVersion).
			Do("install the newer csm-controller here; the log goes on where it stopped")
	case s.registry.handlers[e.Kind] == nil:
		return fault.New(fault.Refused, "newer-command", "this controller does not know the command %.128q", e.Kind).
			Do("install the newer csm-controller here; the log goes on where it stopped")
	case e.KindVersion > kindVersion:
		return fault.New(fault.Refused, "newer-command", "the command %s has version %d, this controller knows %d", e.Kind, e.KindVersion, kindVersion).
			Do("install the newer csm-controller here; the log goes on where it stopped")
	}
	return nil
}

// EncodeFault and DecodeFault carry a fault through the log and over the wire unchanged.
func EncodeFault(e *fault.Error) *clusterv1.Fault {
	if e == nil {
		return nil
	}
	return &clusterv1.Fault{Code: uint32(e.Code), Reason: clip(e.Reason), Message: clip(e.Message), Remedy: clip(e.Remedy)}
}

// DecodeFault is the inverse of EncodeFault.
func DecodeFault(f *clusterv1.Fault) *fault.Error {
	if f == nil {
		return nil
	}
	return &fault.Error{Code: fault.Code(f.Code), Reason: f.Reason, Message: f.Message, Remedy: f.Remedy}
}

// clip makes a text fit for a bounded protobuf string.
func clip(s string) string {
	const most = 4096
	s = strings.ToValidUTF8(s, "\uFFFD")
	if len(s) <= most {
		return s
	}
	cut := most
	for cut > 0 && s[cut]&0xC0 == 0x80 { // not in the middle of a rune: protobuf strings are UTF-8
		cut--
	}
	return s[:cut]
}

// encodeReply packs a reply with its type, so that any controller can give it back as what the handler returned.
func encodeReply(m proto.Message) ([]byte, error) {
	if m == nil || !m.ProtoReflect().IsValid() {
		m = &clusterv1.Empty{}
	}
	var any anypb.Any
	if err := anypb.MarshalFrom(&any, m, proto.MarshalOptions{Deterministic: true}); err != nil {
		return nil, fmt.Errorf("encode the reply: %w", err)
	}
	return proto.MarshalOptions{Deterministic: true}.Marshal(&any)
}

// DecodeOutcome turns what Apply answered into a Result, or into the fault it decided. kind names the command in errors.
func DecodeOutcome(o *clusterv1.Outcome, kind string) (Result, error) {
	if o == nil {
		return Result{}, fault.New(fault.Unknown, "no-outcome", "%s: the log gave no outcome", kind).Do("ask again with the same id")
	}
	res := Result{Index: o.Index, Repeated: o.Repeated, Time: o.Time.AsTime()}
	if o.Fault != nil {
		return res, DecodeFault(o.Fault)
	}
	var any anypb.Any
	if err := proto.Unmarshal(o.Reply, &any); err != nil {
		return res, fmt.Errorf("decode the reply of %s: %w", kind, err)
	}
	reply, err := any.UnmarshalNew()
	if err != nil {
		return res, fmt.Errorf("decode the reply of %s: %w", kind, err)
	}
	res.Reply = reply
	return res, nil
}
