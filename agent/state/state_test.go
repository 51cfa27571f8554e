package state_test

import (
	"bytes"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/json"
	"math/big"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/cassandra-security-manager/csm/agent/state"
	agentv1 "github.com/cassandra-security-manager/csm/protocol/agent/v1"
	"github.com/cassandra-security-manager/csm/shared/algorithm"
	"github.com/cassandra-security-manager/csm/shared/certificate"
	"github.com/cassandra-security-manager/csm/shared/fault"
)

func open(t *testing.T, dir string, machine byte) *state.Folder {
	t.Helper()
	f, err := state.Open(dir, [32]byte{machine})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(f.Close)
	return f
}

func identityFor(t *testing.T, f *state.Folder) *state.Identity {
	t.Helper()
	key, err := f.NextKey()
	if err != nil {
		t.Fatal(err)
	}
	tmpl := &x509.Certificate{SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "agent"}, NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour)}
	der, err := x509.CreateCertificate(rand.Reader, tmpl, tmpl, key.Public(), key)
	if err != nil {
		t.Fatal(err)
	}
	c, _ := certificate.Parse(der)
	return &state.Identity{Node: "tenants/default/clusters/c/nodes/n1", UID: "u1", Incarnation: 3, TrustDomain: "x.csm", Key: key,
		Chain: []*x509.Certificate{c}, Bundle: []*x509.Certificate{c}, RenewAt: time.Unix(1e9, 0).UTC()}
}

func TestWhatWasSavedIsThereAfterARestart(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "new", "folder")
	f := open(t, dir, 1)
	id := identityFor(t, f)
	report := &agentv1.ReportMoveRequest{Claim: "c/../1", Outcome: agentv1.MoveOutcome_MOVE_OUTCOME_PROVEN}
	for _, err := range []error{f.SaveIdentity(id), f.Raise(41), f.Acknowledge("node", []byte{1, 2}), f.KeepReport(report)} {
		if err != nil {
			t.Fatal(err)
		}
	}
	f.Close()
	f = open(t, dir, 1)
	got := f.Identity()
	if got == nil || got.Node != id.Node || got.Incarnation != 3 || !got.RenewAt.Equal(id.RenewAt) || !certificate.SameKey(got.Key.Public(), id.Key.Public()) || !got.Chain[0].Equal(id.Chain[0]) {
		t.Errorf("identity = %+v", got)
	}
	if f.Counter() != 2 || f.Highest() != 41 || !bytes.Equal(f.Acknowledged("node"), []byte{1, 2}) || f.Copied() {
		t.Errorf("counter %d, highest %d, copied %v", f.Counter(), f.Highest(), f.Copied())
	}
	if r := f.Reports(); len(r) != 1 || r[0].Claim != report.Claim {
		t.Errorf("reports = %v", r)
	}
	if err := f.DropReport(report.Claim); err != nil || len(f.Reports()) != 0 {
		t.Errorf("dropped: %v, %v", err, f.Reports())
	}
	fi, err := os.Stat(filepath.Join(dir, "identity.json"))
	if err != nil || fi.Mode().Perm() != 0o600 {
		t.Errorf("mode of the key = %v, %v", fi.Mode(), err)
	}
}

func TestAFreezeIsThereAfterARestart(t *testing.T) {
	dir := t.TempDir()
	freeze := &agentv1.Frozen{Active: true, Scope: "system", Actor: "ann", Reason: "incident", Until: timestamppb.New(time.Unix(2e9, 5))}
	again := func(f *state.Folder) *state.Folder { f.Close(); return open(t, dir, 1) }
	f := open(t, dir, 1)
	if err := f.KeepStop(freeze, "released by ann"); err != nil {
		t.Fatal(err)
	}
	f = again(f)
	if got, released := f.Stop(); !proto.Equal(got, freeze) || released != "released by ann" {
		t.Errorf("kept %v, %q", got, released)
	}
	if err := f.Raise(9); err != nil {
		t.Fatal(err)
	}
	f = again(f)
	if got, _ := f.Stop(); !proto.Equal(got, freeze) {
		t.Errorf("another save lost it: %v", got)
	}
	if err := f.KeepStop(&agentv1.Frozen{}, ""); err != nil {
		t.Fatal(err)
	}
	f = again(f)
	if got, released := f.Stop(); got != nil || released != "" {
		t.Errorf("lifted, but kept: %v, %q", got, released)
	}
}

func TestAGenerationNeverGoesBack(t *testing.T) {
	f := open(t, t.TempDir(), 1)
	if err := f.Raise(7); err != nil {
		t.Fatal(err)
	}
	if err := f.Raise(6); !fault.HasReason(err, "generation-went-back") {
		t.Errorf("6 after 7: %v", err)
	}
	if err := f.Raise(7); err != nil || f.Highest() != 7 {
		t.Errorf("7 again: %v, %d", err, f.Highest())
	}
}

func TestACopiedFolderIsNoticedAndStaysSo(t *testing.T) {
	dir := t.TempDir()
	open(t, dir, 1).Close()
	for range 2 {
		f := open(t, dir, 2)
		if !f.Copied() {
			t.Error("a copy passes")
		}
		f.Close()
	}
	if f := open(t, dir, 1); f.Copied() {
		t.Error("the original is called a copy")
	}
	if f := open(t, t.TempDir(), 0); f.Copied() {
		t.Error("a host without machine id is called a copy")
	}
}

func TestOneAgentAtATime(t *testing.T) {
	dir := t.TempDir()
	f := open(t, dir, 1)
	if _, err := state.Open(dir, [32]byte{1}); !fault.HasReason(err, "state-in-use") {
		t.Errorf("a second agent: %v", err)
	}
	if !state.InUse(dir) {
		t.Error("an open folder is not in use")
	}
	f.Close()
	if state.InUse(dir) {
		t.Error("a closed folder is in use")
	}
}

func TestTheKeyStaysTheSameUntilTheIdentityIsThere(t *testing.T) {
	dir := t.TempDir()
	f := open(t, dir, 1)
	one, err := f.NextKey()
	if err != nil {
		t.Fatal(err)
	}
	f.Close()
	f = open(t, dir, 1)
	two, _ := f.NextKey()
	if !certificate.SameKey(one.Public(), two.Public()) || algorithm.CheckFloor(one.Public()) != nil {
		t.Error("a lost answer could not be asked for again with the same key")
	}
	id := identityFor(t, f)
	if err := f.SaveIdentity(id); err != nil {
		t.Fatal(err)
	}
	if three, _ := f.NextKey(); certificate.SameKey(one.Public(), three.Public()) {
		t.Error("a renewal uses the old key")
	}
}

func TestADamagedFolderIsRefusedWithWords(t *testing.T) {
	for name, content := range map[string]string{"state.json": "{", "identity.json": "{}"} {
		dir := t.TempDir()
		open(t, dir, 1).Close()
		if err := os.WriteFile(filepath.Join(dir, name), []byte(content), 0o600); err != nil {
			t.Fatal(err)
		}
		if _, err := state.Open(dir, [32]byte{1}); err == nil || fault.From(err).Remedy == "" {
			t.Errorf("%s = %q: %v", name, content, err)
		}
	}
	dir := t.TempDir()
	f := open(t, dir, 1)
	if err := f.SaveIdentity(identityFor(t, f)); err != nil {
		t.Fatal(err)
	}
	f.Close()
	whole, err := os.ReadFile(filepath.Join(dir, "identity.json"))
	if err != nil {
		t.Fatal(err)
	}
	for _, part := range []string{"key", "chain", "bundle"} {
		var file map[string]any
		if err := json.Unmarshal(whole, &file); err != nil || file[part] == "" {
			t.Fatalf("no %s in %s: %v", part, whole, err)
		}
		file[part] = ""
		cut, _ := json.Marshal(file)
		if err := os.WriteFile(filepath.Join(dir, "identity.json"), cut, 0o600); err != nil {
			t.Fatal(err)
		}
		if _, err := state.Open(dir, [32]byte{1}); !fault.HasReason(err, "identity-unreadable") || fault.From(err).Remedy == "" {
			t.Errorf("an identity without its %s: %v", part, err)
		}
	}
	dir = t.TempDir()
	if err := os.WriteFile(filepath.Join(dir, "state.json"), []byte(`{"format": 99}`), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := state.Open(dir, [32]byte{1}); !fault.HasReason(err, "state-newer") {
		t.Errorf("a newer format: %v", err)
	}
	file := filepath.Join(t.TempDir(), "file")
	if err := os.WriteFile(file, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := state.Open(file, [32]byte{1}); !fault.HasReason(err, "state-unwritable") {
		t.Errorf("a file in the place of the folder: %v", err)
	}
}

// TestMain is also the child that is killed: it raises the generation for ever and says each one that is safe.
func TestMain(m *testing.M) {
	dir := os.Getenv("CSM_TEST_KILL")
	if dir == "" {
		os.Exit(m.Run())
	}
	f, err := state.Open(dir, [32]byte{1})
	if err != nil {
		panic(err)
	}
	for g := f.Highest() + 1; ; g++ {
		if err := f.Raise(g); err != nil {
			panic(err)
		}
		os.Stdout.WriteString(big.NewInt(int64(g)).String() + "\n")
	}
}

func TestNothingSavedIsLostByAKill(t *testing.T) {
	dir := t.TempDir()
	for round := range 5 {
		cmd := exec.Command(os.Args[0])
		cmd.Env = append(os.Environ(), "CSM_TEST_KILL="+dir)
		out, err := cmd.StdoutPipe()
		if err != nil {
			t.Fatal(err)
		}
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		// Killed at any point of some write after a few that were told.
		buf := make([]byte, 16+round*7)
		n, _ := out.Read(buf)
		if err := cmd.Process.Kill(); err != nil {
			t.Fatal(err)
		}
		rest := new(bytes.Buffer)
		_, _ = rest.ReadFrom(out)
		_ = cmd.Wait()
		said := strings.Fields(string(buf[:n]) + rest.String())
		last, _ := new(big.Int).SetString(said[len(said)-1], 10)
		f, err := state.Open(dir, [32]byte{1})
		if err != nil {
			t.Fatalf("after a kill: %v", err)
		}
		if f.Highest() < last.Uint64() {
			t.Errorf("generation %d was safe, %d is there", last, f.Highest())
		}
		f.Close()
	}
}
