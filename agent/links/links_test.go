package links_test

import (
	"context"
	"errors"
	"io"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/jonboulle/clockwork"

	"github.com/cassandra-security-manager/csm/agent/links"
	"github.com/cassandra-security-manager/csm/shared/fault"
)

// table is a kernel's table in memory; it can be rude.
type table struct {
	mu         sync.Mutex
	list       []links.Link
	unread     error
	uncuttable error
	cut        []links.Link
}

func (t *table) Links(links.Port) ([]links.Link, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	return slices.Clone(t.list), t.unread
}

func (t *table) Cuttable() error { return t.uncuttable }

func (t *table) Cut(l links.Link) error {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.uncuttable != nil {
		return t.uncuttable
	}
	t.cut = append(t.cut, l)
	t.list = slices.DeleteFunc(t.list, func(x links.Link) bool { return x == l })
	return nil
}

func (t *table) set(list ...links.Link) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.list = list
}

var port = links.Port{Address: netip.MustParseAddr("10.0.0.1"), Number: 7000}

// in and out are connections with the peer 10.0.0.N; the cookie tells them apart.
func in(peer byte, cookie uint64) links.Link {
	return links.Link{Local: netip.MustParseAddrPort("10.0.0.1:7000"), Remote: netip.AddrPortFrom(netip.AddrFrom4([4]byte{10, 0, 0, peer}), uint16(40000+cookie)), Cookie: cookie}
}

func out(peer byte, cookie uint64) links.Link {
	return links.Link{Local: netip.AddrPortFrom(port.Address, uint16(40000+cookie)), Remote: netip.AddrPortFrom(netip.AddrFrom4([4]byte{10, 0, 0, peer}), 7000), Cookie: cookie, Outbound: true}
}

func TestTheBookRemembersWhatAReloadDidNotReach(t *testing.T) {
	path, k, clock := filepath.Join(t.TempDir(), "links.json"), &table{}, clockwork.NewFakeClock()
	k.set(in(2, 1), out(2, 2), in(3, 3))
	if err := links.Open(path, k, clock).Record(port); err != nil {
		t.Fatal(err)
	}
	began := clock.Now()
	clock.Advance(time.Hour)
	// One has gone, and another one took its addresses: only the cookie differs.
	again := in(2, 1)
	again.Cookie = 9
	k.set(again, out(2, 2), in(3, 3))
	b := links.Open(path, k, clock)
	if _, err := b.Look(port, false); err != nil {
		t.Fatal(err)
	}
	if m := b.Memory(); len(m.Old) != 2 || m.Old[0].Cookie == 9 || !m.Old[0].Since.Equal(began) {
		t.Fatalf("%+v", m.Old)
	}
	if err := b.Record(port); err != nil {
		t.Fatal(err)
	}
	since := map[uint64]time.Duration{}
	for _, o := range b.Memory().Old {
		since[o.Cookie] = o.Since.Sub(began)
	}
	if len(since) != 3 || since[9] != time.Hour || since[2] != 0 {
		t.Errorf("who outlived two reloads is known since the first: %v", since)
	}
	k.unread = errors.New("no netlink")
	if err := b.Record(port); err == nil || links.Open(path, k, clock).Memory().Unseen == "" {
		t.Error("a reload at which nothing could be noted is not told")
	}
}

func TestABookThatCannotBeReadSaysSo(t *testing.T) {
	path := filepath.Join(t.TempDir(), "links.json")
	os.WriteFile(path, []byte(`{"old": [`), 0o600)
	b := links.Open(path, &table{}, clockwork.NewFakeClock())
	if b.Memory().Unseen == "" {
		t.Error("a torn record counts as none")
	}
	if err := b.Record(port); err != nil || b.Memory().Unseen != "" {
		t.Error("the next reload puts it right: ", err)
	}
	if err := links.Open(filepath.Join(path, "no"), &table{}, clockwork.NewFakeClock()).Record(port); fault.From(err).Remedy == "" {
		t.Error(err)
	}
}

// serve is a helper of one Cassandra, in memory.
func serve(t *testing.T, k *table, stopped error) *links.Cutter {
	t.Helper()
	sites := map[string]links.Site{"/c.yaml": {Port: func() (links.Port, error) { return port, nil }, Stopped: func() error { return stopped }}}
	c, err := links.Over(func() (io.ReadWriteCloser, error) {
		mine, theirs := net.Pipe()
		go links.Serve(theirs, sites, k)
		return mine, nil
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	return c
}

func TestTheHelperRefusesWhatIsNotAnInternodeConnectionOfOnePeer(t *testing.T) {
	client := links.Link{Local: netip.MustParseAddrPort("10.0.0.1:9042"), Remote: netip.MustParseAddrPort("10.0.0.2:50000"), Cookie: 7}
	many := make([]links.Link, links.MaxCut+1)
	for i := range many {
		many[i] = in(2, uint64(i+1))
	}
	two := netip.MustParseAddr("10.0.0.2")
	for what, q := range map[string]struct {
		instance string
		links    []links.Link
		stopped  error
	}{
		"another Cassandra":          {"/other.yaml", []links.Link{in(2, 1)}, nil},
		"none":                       {"/c.yaml", nil, nil},
		"too many":                   {"/c.yaml", many, nil},
		"a client of CQL":            {"/c.yaml", []links.Link{in(2, 1), client}, nil},
		"two peers":                  {"/c.yaml", []links.Link{in(2, 1), in(3, 3)}, nil},
		"a host that is held":        {"/c.yaml", []links.Link{in(2, 1)}, fault.New(fault.Refused, "helper-refused", "held").Do("release")},
		"a port of another instance": {"/c.yaml", []links.Link{{Local: netip.MustParseAddrPort("10.0.0.9:7000"), Remote: netip.MustParseAddrPort("10.0.0.2:40001"), Cookie: 1}}, nil},
	} {
		k := &table{list: []links.Link{in(2, 1), in(3, 3), client}}
		if _, err := serve(t, k, q.stopped).End(context.Background(), q.instance, two, q.links); !fault.HasReason(err, "helper-refused") || fault.From(err).Remedy == "" {
			t.Errorf("%s: %v", what, err)
		}
		if len(k.cut) > 0 {
			t.Errorf("%s: %v were ended", what, k.cut)
		}
	}
}

func TestTheHelperEndsWhatIsStillThere(t *testing.T) {
	k := &table{list: []links.Link{in(2, 1), out(2, 2), in(2, 5), in(3, 3)}}
	n, err := serve(t, k, nil).End(context.Background(), "/c.yaml", netip.MustParseAddr("10.0.0.2"), []links.Link{in(2, 1), out(2, 2), in(2, 4)})
	if err != nil || n != 2 || len(k.list) != 2 {
		t.Errorf("%d, %v, left %v", n, err, k.list)
	}
	k.uncuttable = links.ErrUncuttable("a test")
	if _, err := serve(t, k, nil).End(context.Background(), "/c.yaml", netip.MustParseAddr("10.0.0.2"), []links.Link{in(2, 5)}); !fault.HasReason(err, "kernel-cannot-cut") {
		t.Error(err)
	}
}

func TestNetstatsSaysWhetherConnectionsMayBeEnded(t *testing.T) {
	const pools = "Read Repair Statistics:\nAttempted: 0\nPool Name   Active\nGossip messages n/a\n"
	for text, want := range map[string]string{
		"Mode: NORMAL\nNot sending any streams.\n" + pools:                                                       "",
		"Mode: JOINING\nNot sending any streams.\n" + pools:                                                      "node-not-normal",
		"Mode: NORMAL\nRepair 5c1\n    /10.0.0.2 (using 10.0.0.2)\n        Receiving 2 files, 9 bytes\n" + pools: "streaming",
	} {
		if r, err := links.Streaming(text); err != nil || r.Code != want {
			t.Errorf("%q: %+v %v", text, r, err)
		}
	}
	if _, err := links.Streaming("error: connection refused"); !fault.HasReason(err, "streams-unknown") {
		t.Error(err)
	}
}

func TestWhatComesNext(t *testing.T) {
	now := time.Date(2026, 11, 22, 8, 0, 0, 0, time.UTC)
	old := func(all ...links.Link) (o []links.Old) {
		for _, l := range all {
			o = append(o, links.Old{Link: l, Since: now.Add(-time.Hour)})
		}
		return o
	}
	two := netip.MustParseAddr("10.0.0.2")
	cut := &links.Cut{Wish: 5, Peer: two, Links: []links.Link{in(2, 1), out(2, 2)}, At: now.Add(-time.Second)}
	late := &links.Cut{Wish: 5, Peer: two, Links: cut.Links, At: now.Add(-links.BackFor)}
	base := links.View{Now: now, Wish: 5, Until: now.Add(time.Hour), Memory: links.Memory{Old: old(in(2, 1), out(2, 2), in(3, 3))}}
	for what, c := range map[string]struct {
		change func(*links.View)
		do     links.Do
		code   string
	}{
		"no wish":                         {func(v *links.View) { v.Wish = 0 }, links.Rest, ""},
		"a wish that was fulfilled":       {func(v *links.View) { v.Memory.Done = 5 }, links.Rest, ""},
		"nothing old":                     {func(v *links.View) { v.Memory.Old = nil }, links.Finish, "done"},
		"the first peer":                  {func(*links.View) {}, links.End, "cycle"},
		"a closed gate":                   {func(v *links.View) { v.Closed = links.Reason{Code: "frozen", Message: "f"} }, links.Wait, "frozen"},
		"a closed gate at the end":        {func(v *links.View) { v.Closed = links.Reason{Code: "frozen", Message: "f"}; v.Until = now }, links.Finish, "lapsed"},
		"a wish that lapsed":              {func(v *links.View) { v.Until = now }, links.Finish, "lapsed"},
		"it streams":                      {func(v *links.View) { v.Busy, v.Asked = links.Reason{Code: "streaming"}, now }, links.Wait, "streaming"},
		"it streamed a while ago":         {func(v *links.View) { v.Busy, v.Asked = links.Reason{Code: "streaming"}, now.Add(-time.Minute) }, links.End, "cycle"},
		"a kernel that cannot":            {func(v *links.View) { v.Uncuttable = links.ErrUncuttable("test") }, links.Finish, "kernel-cannot-cut"},
		"a table that cannot be read":     {func(v *links.View) { v.Unread = errors.New("no") }, links.Finish, "links-unread"},
		"a peer that is to come back":     {func(v *links.View) { v.Memory.Cut = cut }, links.Wait, "coming-back"},
		"a peer back one way":             {func(v *links.View) { v.Memory.Cut, v.Present = cut, []links.Link{in(2, 8)} }, links.Wait, "coming-back"},
		"back both ways":                  {func(v *links.View) { v.Memory.Cut, v.Present = cut, []links.Link{in(2, 8), out(2, 9)} }, links.Return, "back"},
		"another peer's is no way back":   {func(v *links.View) { v.Memory.Cut, v.Present = cut, []links.Link{in(3, 8), out(3, 9)} }, links.Wait, "coming-back"},
		"back, but one end lives on":      {func(v *links.View) { v.Memory.Cut, v.Present = cut, []links.Link{in(2, 1), in(2, 8), out(2, 9)} }, links.Wait, "coming-back"},
		"not back in time":                {func(v *links.View) { v.Memory.Cut, v.Present = late, []links.Link{in(2, 8)} }, links.Finish, "not-back"},
		"not ended in time":               {func(v *links.View) { v.Memory.Cut, v.Present = late, []links.Link{in(2, 1), in(2, 8), out(2, 9)} }, links.Finish, "not-cut"},
		"a gate closed while coming back": {func(v *links.View) { v.Memory.Cut = cut; v.Closed = links.Reason{Code: "held"} }, links.Wait, "coming-back"},
	} {
		v := base
		c.change(&v)
		a := links.Decide(v)
		if a.Do != c.do || a.Code != c.code {
			t.Errorf("%s: %s %s (%s)", what, a.Do, a.Code, a.Message)
		}
		if a.Do == links.End && (a.Peer != two || len(a.Links) != 2) {
			t.Errorf("%s: %v %v", what, a.Peer, a.Links)
		}
		if strings.Contains(a.Message, "%!") {
			t.Error(a.Message)
		}
	}
}
