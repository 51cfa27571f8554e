package wal

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"syscall"
	"testing"
	"time"

	"github.com/hashicorp/raft"

	"github.com/cassandra-security-manager/csm/shared/fault"
)

func open(t *testing.T, dir string) *Log {
	t.Helper()
	l, err := Open(dir, nil)
	if err != nil {
		t.Fatal(err)
	}
	return l
}

func TestADiskThatTakesNothingIsNotABrokenLog(t *testing.T) {
	for errno, reason := range map[syscall.Errno]string{syscall.ENOSPC: "disk-full", syscall.EROFS: "disk-locked", syscall.EACCES: "disk-locked"} {
		err := fmt.Errorf("open: %w", &os.PathError{Op: "open", Path: "x", Err: errno})
		if f := blocked(err, "x"); f == nil || f.Reason != reason || f.Remedy == Remedy {
			t.Errorf("%v: %v", errno, f)
		}
	}
	if f := blocked(errors.New("checksum mismatch"), "x"); f != nil {
		t.Errorf("a broken log became %v", f)
	}
}

func entries(from, to uint64) []*raft.Log {
	var out []*raft.Log
	for i := from; i <= to; i++ {
		out = append(out, &raft.Log{Index: i, Term: 3, Type: raft.LogCommand, Data: fmt.Appendf(nil, "command %04d", i),
			Extensions: []byte("x"), AppendedAt: time.Unix(1700000000, int64(i))})
	}
	return out
}

func TestALogComesBackAfterAReopenInTheSameProcess(t *testing.T) {
	dir := t.TempDir()
	l := open(t, dir)
	if err := l.StoreLogs(entries(1, 50)); err != nil {
		t.Fatal(err)
	}
	if err := l.SetUint64([]byte("CurrentTerm"), 7); err != nil {
		t.Fatal(err)
	}
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
	l = open(t, dir)
	defer l.Close()
	for _, want := range entries(1, 50) {
		var got raft.Log
		if err := l.GetLog(want.Index, &got); err != nil {
			t.Fatal(err)
		}
		if !bytes.Equal(got.Data, want.Data) || got.Term != 3 || got.Index != want.Index || !got.AppendedAt.Equal(want.AppendedAt) || string(got.Extensions) != "x" {
			t.Fatalf("%d came back as %+v", want.Index, got)
		}
	}
	if term, err := l.GetUint64([]byte("CurrentTerm")); err != nil || term != 7 {
		t.Fatal(term, err)
	}
	if err := l.StoreLogs(entries(51, 52)); err != nil {
		t.Fatal(err)
	}
}

func TestALogSurvivesTruncationsOfItsTailAndReopens(t *testing.T) {
	dir := t.TempDir()
	l := open(t, dir)
	if err := l.StoreLogs(entries(1, 50)); err != nil {
		t.Fatal(err)
	}
	last := uint64(50)
	for _, cut := range []uint64{40, 45, 20, 3} { // as after conflicts with new leaders
		if err := l.DeleteRange(cut, last); err != nil {
			t.Fatal(err)
		}
		if got, _ := l.LastIndex(); got != cut-1 {
			t.Fatalf("after the cut at %d it ends at %d", cut, got)
		}
		last = cut + 5
		if cut == 20 {
			last = cut - 1 // nothing is appended before the reopen
		} else if err := l.StoreLogs(entries(cut, last)); err != nil {
			t.Fatal(err)
		}
		l.Close()
		l = open(t, dir)
		if got, _ := l.LastIndex(); got != last {
			t.Fatalf("after the cut at %d and a reopen it ends at %d", cut, got)
		}
		for _, want := range entries(1, last) {
			var got raft.Log
			if err := l.GetLog(want.Index, &got); err != nil || !bytes.Equal(got.Data, want.Data) {
				t.Fatalf("after the cut at %d: %d: %v", cut, want.Index, err)
			}
		}
	}
	if err := l.DeleteRange(1, 2); err != nil {
		t.Fatal(err)
	}
	l.Close()
	l = open(t, dir)
	defer l.Close()
	if first, _ := l.FirstIndex(); first != 3 {
		t.Fatal(first)
	}
}

func TestTwoProcessesCannotShareALog(t *testing.T) {
	dir := t.TempDir()
	l := open(t, dir)
	defer l.Close()
	if _, err := Open(dir, nil); !fault.HasReason(err, "data-folder-in-use") {
		t.Fatal(err)
	}
}

func TestAFlippedBitInsideARecordIsSeen(t *testing.T) {
	dir := t.TempDir()
	l := open(t, dir)
	if err := l.StoreLogs(entries(1, 20)); err != nil {
		t.Fatal(err)
	}
	if err := l.StoreLogs(entries(21, 40)); err != nil {
		t.Fatal(err)
	}
	l.Close()
	flip(t, dir, "command 0007")
	l = open(t, dir)
	defer l.Close()
	var got raft.Log
	if err := l.GetLog(7, &got); !errors.Is(err, ErrChanged) {
		t.Fatalf("the changed record was read: %v", err)
	}
	if err := l.GetLog(8, &got); err != nil {
		t.Fatal(err)
	}
}

// flip changes one bit of the record that holds text.
func flip(t *testing.T, dir, text string) {
	t.Helper()
	files, _ := filepath.Glob(filepath.Join(dir, "*.wal"))
	for _, f := range files {
		b, err := os.ReadFile(f)
		if err != nil {
			t.Fatal(err)
		}
		if i := bytes.Index(b, []byte(text)); i >= 0 {
			b[i] ^= 4
			if err := os.WriteFile(f, b, 0o600); err != nil {
				t.Fatal(err)
			}
			return
		}
	}
	t.Fatalf("%q is in no segment", text)
}

func FuzzDecodeNeverPanicsAndOnlyTakesWhatEncodeWrote(f *testing.F) {
	var b bytes.Buffer
	codec{}.Encode(entries(1, 1)[0], &b)
	f.Add(b.Bytes())
	f.Add([]byte{1, 2, 3, 4, 5, 6})
	f.Fuzz(func(t *testing.T, in []byte) {
		var l raft.Log
		if (codec{}).Decode(in, &l) != nil {
			return
		}
		var out bytes.Buffer
		if err := (codec{}).Encode(&l, &out); err != nil {
			t.Fatal(err)
		}
	})
}
