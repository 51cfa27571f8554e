package probe

import (
	"encoding/hex"
	"net/netip"
	"testing"
)

// The frame was taken by Cassandra 5.0.8, which answered it with an Accept frame (ring test).
func TestTheInitiateFrameHasCassandrasBytes(t *testing.T) {
	got := hex.EncodeToString(initiateFrame(netip.MustParseAddrPort("127.0.0.9:7000")))
	if want := "ca552dfac8c80c22067f0000091b58"; got[:len(want)] != want || len(got) != len(want)+8 {
		t.Errorf("frame = %s", got)
	}
	if l := initiateFrame(netip.MustParseAddrPort("[::1]:7000"))[8]; l != 18 {
		t.Errorf("an IPv6 address takes %d bytes with its port", l)
	}
	if a, b := initiateFrame(netip.MustParseAddrPort("[::ffff:127.0.0.9]:7000")), initiateFrame(netip.MustParseAddrPort("127.0.0.9:7000")); string(a) != string(b) {
		t.Error("an IPv4 address in IPv6 clothes must be sent as IPv4")
	}
}

func TestAnAnswerWithAWrongChecksumIsNoAcceptFrame(t *testing.T) {
	if _, _, err := parseAccept(make([]byte, acceptSize)); err == nil {
		t.Error("twelve zero bytes were taken for an Accept frame")
	}
	if _, _, err := parseAccept(nil); err == nil {
		t.Error("nothing was taken for an Accept frame")
	}
}

func FuzzParseAccept(f *testing.F) {
	f.Add([]byte("123456789012"))
	f.Fuzz(func(t *testing.T, b []byte) { parseAccept(b) })
}
