package node

import (
	"context"
	"io"
	"log/slog"
	"testing"
	"time"

	"github.com/jonboulle/clockwork"

	agentv1 "github.com/cassandra-security-manager/csm/protocol/agent/v1"
	"github.com/cassandra-security-manager/csm/shared/fault"
)

func TestAnAgentComesBackWhenTheSignerHasTimeAndNotForEver(t *testing.T) {
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	busy := fault.New(fault.Unavailable, "signer-busy", "many are before this one").After(90 * time.Second)
	for name, c := range map[string]struct {
		answers []error
		asked   int
		waited  time.Duration
	}{
		"twice busy":              {[]error{busy, busy, nil}, 3, 3 * time.Minute},
		"busy for too long":       {[]error{busy, busy, busy, busy, busy, busy, nil}, 6, 7*time.Minute + 30*time.Second},
		"another word is the end": {[]error{fault.New(fault.Refused, "name-not-allowed", "no")}, 1, 0},
	} {
		clock := clockwork.NewFakeClock()
		n := &Node{log: slog.New(slog.NewTextHandler(io.Discard, nil)), o: Options{Clock: clock}}
		began, asked := clock.Now(), 0
		ended := make(chan error, 1)
		go func() {
			ended <- n.inTurn(ctx, func() error { asked++; return c.answers[asked-1] })
		}()
		for waiting := true; waiting; {
			waits := make(chan error, 1)
			one, stop := context.WithCancel(ctx)
			go func() { waits <- clock.BlockUntilContext(one, 1) }()
			select {
			case err := <-ended:
				waiting = false
				if want := c.answers[c.asked-1]; err != want {
					t.Errorf("%s: ended with %v, not %v", name, err, want)
				}
			case err := <-waits:
				if err != nil {
					t.Fatalf("%s: neither asked nor waited: %v", name, err)
				}
				clock.Advance(90 * time.Second)
			}
			stop()
		}
		if asked != c.asked || clock.Since(began) != c.waited {
			t.Errorf("%s: asked %d times in %s, not %d in %s", name, asked, clock.Since(began), c.asked, c.waited)
		}
	}
}

func TestAClaimThatWasNotAnsweredIsAskedForUnderTheSameId(t *testing.T) {
	lost := fault.New(fault.Unknown, "unreachable", "no answer")
	u := unansweredClaims{}
	ask := func(r *agentv1.ClaimMoveRequest, err error) string {
		claim, got := u.claim(r, func() (string, error) { return "c1", err })
		if claim != "c1" || got != err {
			t.Fatalf("%s, %v", claim, got)
		}
		return r.RequestId
	}
	request := func(store string, generation uint64) *agentv1.ClaimMoveRequest {
		return &agentv1.ClaimMoveRequest{Store: store, Generation: generation, Incarnation: 1, Kind: agentv1.MoveKind_MOVE_KIND_RENEW}
	}
	first := ask(request("a", 1), lost)
	if other := ask(request("b", 1), nil); other == first {
		t.Error("two stores share an id")
	}
	if again := ask(request("a", 1), lost); again != first {
		t.Error("a claim that may be open is asked for under another id")
	}
	if newer := ask(request("a", 2), lost); newer == first {
		t.Error("a claim of another generation is asked for under the id of the one before")
	}
	second := ask(request("a", 2), nil)
	if after := ask(request("a", 2), nil); after == second {
		t.Error("a claim that was answered is asked for again")
	}
}
