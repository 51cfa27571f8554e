package fault_test

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/cassandra-security-manager/csm/shared/fault"
)

func TestAFaultCrossesGRPCUnchanged(t *testing.T) {
	for c := fault.Internal; c <= fault.Differs; c++ {
		in := fault.New(c, "some-reason", "what %s", "happened").Do("do this")
		out := fault.From(fault.FromGRPC(status.Convert(fmt.Errorf("handler: %w", in)).Err()))
		if c != fault.Internal && (out.Code != in.Code || out.Reason != in.Reason || out.Remedy != in.Remedy) {
			t.Errorf("%v became %+v", c, out)
		}
	}
}

func TestWhenToAskAgainCrossesGRPC(t *testing.T) {
	in := fault.New(fault.Unavailable, "signer-busy", "many are before this one").Do("ask again").After(90 * time.Second)
	if out := fault.From(fault.FromGRPC(status.Convert(in).Err())); out.RetryAfter != 90*time.Second || out.Reason != in.Reason {
		t.Errorf("%+v", out)
	}
	if out := fault.From(fault.FromGRPC(status.Convert(fault.New(fault.Unavailable, "r", "m")).Err())); out.RetryAfter != 0 {
		t.Errorf("%+v", out)
	}
}

func TestEachCodeHasANameAndAnExitCode(t *testing.T) {
	for c := fault.Internal; c <= fault.Differs; c++ {
		if fault.ParseCode(c.String()) != c {
			t.Errorf("%d: name %q does not come back", c, c)
		}
		if fault.ExitCode(fault.New(c, "r", "m")) == 0 {
			t.Errorf("%v exits 0", c)
		}
	}
	if fault.ExitCode(nil) != 0 {
		t.Error("success must exit 0")
	}
}

func TestForeignErrorsAreClassified(t *testing.T) {
	if got := fault.From(context.DeadlineExceeded).Code; got != fault.Unavailable {
		t.Errorf("deadline = %v", got)
	}
	cause := errors.New("disk on fire")
	if e := fault.From(cause); e.Code != fault.Internal || !errors.Is(e, cause) {
		t.Errorf("foreign error = %+v", e)
	}
	if fault.From(nil) != nil || fault.FromGRPC(nil) != nil {
		t.Error("nil must stay nil")
	}
}

func TestALostConnectionIsToldInTheWordsOfTheNetwork(t *testing.T) {
	for said, want := range map[string]string{
		`connection error: desc = "transport: Error while dialing: dial tcp 10.0.0.1:9641: connect: connection refused"`: "the other side cannot be reached: dial tcp 10.0.0.1:9641: connect: connection refused",
		`connection error: desc = "transport: authentication handshake failed: tls: bad certificate"`:                    "the other side cannot be reached: tls: bad certificate",
		`connection error: desc = "error reading server preface: remote error: tls: bad certificate"`:                    "the other side cannot be reached: remote error: tls: bad certificate",
	} {
		if got := fault.From(fault.FromGRPC(status.Error(codes.Unavailable, said))).Error(); !strings.HasPrefix(got, want) {
			t.Errorf("%q, want %q", got, want)
		} else if strings.Contains(said, "certificate") == strings.Contains(got, "port is open") {
			t.Errorf("the remedy is another's: %q", got)
		}
	}
	gone := fault.From(fault.FromGRPC(status.Error(codes.Unavailable, `connection error: desc = "transport: authentication handshake failed: EOF"`)))
	if gone.Reason != "sent-away" || !strings.Contains(gone.Remedy, "no leader") {
		t.Errorf("a door that was closed: %v, %q", gone, gone.Remedy)
	}
}
