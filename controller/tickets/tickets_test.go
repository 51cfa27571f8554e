package tickets_test

import (
	"bytes"
	"context"
	"crypto/tls"
	"net"
	"path/filepath"
	"testing"
	"time"

	"github.com/cassandra-security-manager/csm/controller/keyring"
	"github.com/cassandra-security-manager/csm/controller/state"
	"github.com/cassandra-security-manager/csm/controller/state/statetest"
	"github.com/cassandra-security-manager/csm/controller/tickets"
	clusterv1 "github.com/cassandra-security-manager/csm/protocol/cluster/v1"
	"github.com/cassandra-security-manager/csm/shared/fault"
	"github.com/cassandra-security-manager/csm/shared/identity"
	"github.com/cassandra-security-manager/csm/shared/identity/identitytest"
)

type world struct {
	*testing.T
	log    *statetest.Log
	keys   map[string]*keyring.Keyring
	ticket map[string]*tickets.Tickets
}

func (w *world) must(err error) {
	w.Helper()
	if err != nil {
		w.Fatal(err)
	}
}

// newWorld is two controllers over one state.
func newWorld(t *testing.T) *world {
	w := &world{T: t, log: statetest.New(t, keyring.Module(), tickets.Module()), keys: map[string]*keyring.Keyring{}, ticket: map[string]*tickets.Tickets{}}
	public, _, err := keyring.NewRecovery()
	w.must(err)
	for _, name := range []string{"c1", "c2"} {
		kek, err := keyring.CreateKEK(t.TempDir(), keyring.FileSealer{Path: filepath.Join(t.TempDir(), "master")})
		w.must(err)
		w.keys[name] = keyring.New(w.log.Store, w.log, kek, name)
		w.ticket[name] = tickets.New(w.log.Store, w.log, w.keys[name], w.log.Clock)
	}
	w.must(w.keys["c1"].Initialise(t.Context(), "ann", public))
	return w
}

// ticket is what a client was given first.
type ticket struct{ state *tls.ClientSessionState }

func (t *ticket) Get(string) (*tls.ClientSessionState, bool) { return t.state, t.state != nil }

func (t *ticket) Put(_ string, s *tls.ClientSessionState) {
	if t.state == nil {
		t.state = s
	}
}

// meet shakes hands with a controller over what a client was given, if it was, and says whether that was taken.
func (w *world) meet(at string, by *ticket) bool {
	w.Helper()
	key, now := identitytest.Key(w), w.log.Clock.Now()
	leaf := identitytest.New(w, now).SignFor(identity.ControllerID("csm.example", at), key.Public(), now, now.AddDate(1, 0, 0))
	c := &tls.Config{MinVersion: tls.VersionTLS13, Certificates: []tls.Certificate{{Certificate: [][]byte{leaf.Raw}, PrivateKey: key}}, Time: w.log.Clock.Now}
	c.WrapSession = func(cs tls.ConnectionState, s *tls.SessionState) ([]byte, error) {
		return w.ticket[at].Config().EncryptTicket(cs, s)
	}
	c.UnwrapSession = func(b []byte, cs tls.ConnectionState) (*tls.SessionState, error) {
		return w.ticket[at].Config().DecryptTicket(b, cs)
	}
	mine, theirs := net.Pipe()
	defer mine.Close()
	go func() {
		defer theirs.Close()
		_, _ = tls.Server(theirs, c).Write([]byte("x"))
	}()
	client := tls.Client(mine, &tls.Config{InsecureSkipVerify: true, ServerName: "controllers", ClientSessionCache: by, Time: w.log.Clock.Now})
	_, err := client.Read(make([]byte, 1))
	w.must(err)
	return client.ConnectionState().DidResume
}

// seal is a ticket of a controller.
func (w *world) seal(by string) *ticket {
	w.Helper()
	t := &ticket{}
	if w.meet(by, t); t.state == nil {
		w.Fatal("no ticket was given")
	}
	return t
}

func (w *world) load() {
	w.Helper()
	for _, t := range w.ticket {
		w.must(t.Load(w.Context()))
	}
}

func (w *world) count() (n int) {
	w.Helper()
	w.must(w.log.Store.View(w.Context(), func(ctx context.Context, q state.Querier) error {
		return q.QueryRowContext(ctx, `SELECT COUNT(*) FROM ticket_keys`).Scan(&n)
	}))
	return n
}

func TestAllControllersOpenTheTicketsOfEachUntilTheirKeyIsGone(t *testing.T) {
	w := newWorld(t)
	ctx := t.Context()
	w.must(w.ticket["c2"].Turn(ctx)) // it is sealed still, and makes nothing
	if n := w.count(); n != 0 {
		t.Fatalf("%d keys", n)
	}
	w.must(w.ticket["c1"].Load(ctx))
	local := w.seal("c1")
	if !w.meet("c1", local) {
		t.Error("without a key in the state a process does not open its own tickets")
	}
	w.must(w.keys["c1"].WrapFor(ctx, "c2", w.keys["c2"].Public(), "ann"))
	w.must(w.keys["c2"].Unseal(ctx))

	w.must(w.ticket["c1"].Turn(ctx))
	w.load()
	first := w.seal("c1")
	if !w.meet("c2", first) || !w.meet("c1", first) || w.meet("c2", local) {
		t.Error("the key is not shared")
	}
	for range 3 { // neither of two leaders makes another before its time
		w.must(w.ticket["c1"].Turn(ctx))
		w.must(w.ticket["c2"].Turn(ctx))
	}
	if n := w.count(); n != 1 {
		t.Errorf("%d keys", n)
	}
	for turn := 2; turn <= 4; turn++ {
		w.log.Clock.Advance(tickets.Turn)
		w.must(w.ticket["c2"].Turn(ctx))
		w.load()
		if got, want := w.meet("c1", first), turn <= 3; got != want {
			t.Errorf("after turn %d the first ticket opens: %t", turn, got)
		}
	}
	if n := w.count(); n != 3 {
		t.Errorf("%d keys", n)
	}
}

func TestARemovedControllerOpensNoTicketMadeAfter(t *testing.T) {
	w := newWorld(t)
	ctx := t.Context()
	w.must(w.keys["c1"].WrapFor(ctx, "c2", w.keys["c2"].Public(), "ann"))
	w.must(w.keys["c2"].Unseal(ctx))
	w.must(w.ticket["c1"].Turn(ctx))
	w.load()
	before := w.seal("c2")
	_, err := w.keys["c1"].Rotate(ctx, "c2", "ann", "it was stolen")
	w.must(err)
	w.must(w.ticket["c1"].Turn(ctx))
	w.must(w.ticket["c1"].Load(ctx))
	if n := w.count(); n != 1 {
		t.Errorf("%d keys", n)
	}
	if w.meet("c1", before) {
		t.Error("a ticket that the removed controller can make is taken")
	}
	if err := w.ticket["c2"].Load(ctx); err == nil || w.meet("c2", w.seal("c1")) {
		t.Errorf("the removed controller opens new tickets: %v", err)
	}
}

func TestTheStateRefusesKeysThatAreTooEarlyOrNone(t *testing.T) {
	w := newWorld(t)
	propose := func(c *clusterv1.AddTicketKey) error {
		_, err := w.log.Propose(t.Context(), state.Proposal{Actor: "ann", Command: c})
		return err
	}
	w.must(w.ticket["c1"].Turn(t.Context()))
	w.must(w.ticket["c1"].Load(t.Context()))
	made := w.seal("c1")
	w.log.Clock.Advance(tickets.Turn)
	sealed := bytes.Repeat([]byte{7}, 64)
	w.must(propose(&clusterv1.AddTicketKey{Sealed: sealed}))
	w.log.Clock.Advance(tickets.Fresh - time.Second)
	if err := propose(&clusterv1.AddTicketKey{Sealed: sealed}); !fault.HasReason(err, "ticket-key-fresh") {
		t.Errorf("early: %v", err)
	}
	for _, size := range []int{0, 513} {
		if err := propose(&clusterv1.AddTicketKey{Sealed: make([]byte, size), Alone: true}); !fault.Is(err, fault.Invalid) {
			t.Errorf("%d bytes: %v", size, err)
		}
	}
	w.must(propose(&clusterv1.AddTicketKey{Sealed: sealed, Alone: true}))
	if n := w.count(); n != 1 {
		t.Errorf("%d keys", n)
	}
	// What does not open is said, and what was in use stays.
	if err := w.ticket["c1"].Load(t.Context()); err == nil || !w.meet("c1", made) {
		t.Errorf("a key that is none: %v", err)
	}
}
