package model

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"go/parser"
	"go/token"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"time"
)

// mutant is a gate of the code that is taken out: once, in one file.
type mutant struct{ file, old, new string }

// mutantLimit bounds the tests of one mutant: one that makes them hang is killed as well.
const mutantLimit = 5 * time.Minute

var mutantOnly = os.Getenv("CSM_TEST_MUTANTS") // "all", or a part of a file's path; with ":3-9", only these of the file's

// wanted says whether the k-th mutant of its file is to be run.
func wanted(t *testing.T, file string, k int) bool {
	part, bounds, some := strings.Cut(mutantOnly, ":")
	if mutantOnly == "" || mutantOnly != "all" && !strings.Contains(file, part) {
		return false
	}
	if !some {
		return true
	}
	var first, last int
	if n, err := fmt.Sscanf(bounds, "%d-%d", &first, &last); n != 2 || err != nil {
		t.Fatalf("CSM_TEST_MUTANTS=%s: write it like gate.go:3-9", mutantOnly)
	}
	return first <= k && k <= last
}

// Every mutant can still be made: its text is there exactly once, and what comes out is Go. `make mutants` runs the tests of
// the package on each of them, through an overlay: nothing in the tree changes. One that no test notices is a failure.
func TestMutants(t *testing.T) {
	root, err := filepath.Abs("../..")
	if err != nil {
		t.Fatal(err)
	}
	if len(mutants) < 50 {
		t.Errorf("only %d mutants", len(mutants))
	}
	var killed, ran atomic.Int32
	t.Run("each", func(t *testing.T) {
		number := map[string]int{}
		for _, m := range mutants {
			k := number[m.file]
			number[m.file]++
			t.Run(filepath.Base(filepath.Dir(m.file))+"/"+strings.TrimSpace(strings.Split(m.old, "\n")[0]), func(t *testing.T) {
				source := m.source(t, root)
				if !wanted(t, m.file, k) {
					return
				}
				t.Parallel()
				busy <- struct{}{}
				defer func() { <-busy }()
				ran.Add(1)
				if m.survives(t, root, source) {
					t.Errorf("no test of %s notices that\n\t%s\nhas become\n\t%s", filepath.Dir(m.file), m.old, m.new)
					return
				}
				killed.Add(1)
			})
		}
	})
	if mutantOnly != "" {
		t.Logf("%d of %d mutants killed", killed.Load(), ran.Load())
	}
}

func (m mutant) source(t *testing.T, root string) []byte {
	t.Helper()
	before, err := os.ReadFile(filepath.Join(root, m.file))
	if err != nil {
		t.Fatal(err)
	}
	if n := bytes.Count(before, []byte(m.old)); n != 1 {
		t.Fatalf("%s has %d times\n\t%s", m.file, n, m.old)
	}
	after := bytes.Replace(before, []byte(m.old), []byte(m.new), 1)
	if _, err := parser.ParseFile(token.NewFileSet(), m.file, after, 0); err != nil {
		t.Fatalf("the mutant of %s is no Go: %v", m.file, err)
	}
	return after
}

// survives runs the tests of the package on the mutant. A mutant that does not compile is a failure of the table.
func (m mutant) survives(t *testing.T, root string, source []byte) bool {
	t.Helper()
	dir := t.TempDir()
	changed, overlay := filepath.Join(dir, filepath.Base(m.file)), filepath.Join(dir, "overlay.json")
	list, err := json.Marshal(map[string]map[string]string{"Replace": {filepath.Join(root, m.file): changed}})
	if err == nil {
		err = errors.Join(os.WriteFile(changed, source, 0o644), os.WriteFile(overlay, list, 0o644))
	}
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(context.Background(), mutantLimit)
	defer cancel()
	c := exec.CommandContext(ctx, "go", "test", "-overlay", overlay, "-failfast", "-short", "-timeout", "4m", "./"+filepath.Dir(m.file))
	c.Dir = root
	out, err := c.CombinedOutput()
	if bytes.Contains(out, []byte("[build failed]")) || bytes.Contains(out, []byte("[setup failed]")) {
		t.Fatalf("the mutant does not compile:\n%s", out)
	}
	return err == nil
}

const (
	gateFile   = "controller/fleet/rotation/gate.go"
	viewFile   = "controller/fleet/rotation/view.go"
	seenFile   = "controller/fleet/rotation/seen.go"
	applyFile  = "controller/fleet/rotation/apply.go"
	rowFile    = "controller/fleet/rotation/row.go"
	planFile   = "controller/fleet/rotation/plan.go"
	asideFile  = "controller/fleet/rotation/aside.go"
	askedFile  = "controller/fleet/rotation/asked.go"
	turnFile   = "controller/fleet/rotation/back.go"
	decideFile = "controller/fleet/rotation/decide.go"
	typesFile  = "controller/fleet/rotation/rotation.go"
	waveFile   = "controller/fleet/rollout/decide.go"
	openFile   = "controller/fleet/rollout/gate.go"
	setFile    = "controller/fleet/rollout/apply.go"
	factsFile  = "controller/fleet/rollout/facts.go"
	claimFile  = "controller/fleet/claims.go"
	backFile   = "agent/install/reprove.go"
	eyesFile   = "controller/fleet/clients.go"
	guardFile  = "controller/fleet/guard.go"

	sysGates  = "controller/systemca/gate.go"
	sysDecide = "controller/systemca/decide.go"
	sysApply  = "controller/systemca/apply.go"
	sysView   = "controller/systemca/view.go"
	sysWish   = "controller/systemca/service.go"
	sysPhases = "controller/systemca/systemca.go"
)

var mutants = []mutant{
	{gateFile, `if v.Frozen == "" {`, `if true {`},
	{gateFile, `if !v.Paused {`, `if true {`},
	{gateFile, `for _, d := range v.Doubts {`, `for _, d := range v.Doubts[:0] {`},
	{gateFile, `if len(v.Doubts) == 0 && len(v.Members) == 0 {`, `if false {`},
	{gateFile, `case m.Node == "":`, `case false:`},
	{gateFile, `case !m.Active:`, `case false:`},
	{gateFile, `if m.Up {`, `if true {`},
	{gateFile, `if m.State == "normal" {`, `if true {`},
	{gateFile, `if err := release.OneReload(versions); err != nil {`, `if err := release.OneReload(versions); false && err != nil {`},
	{gateFile, `if m.counts() && m.Node != "" {`, `if m.Node != "" {`},
	{gateFile, `if m.Waiting && m.Aside == "" {`, `if false {`},
	{gateFile, `if m.Waiting && m.Aside == "" {`, `if m.Waiting {`},
	{gateFile, `if v.Signer == "" || v.Kind == Takeover && v.Phase.Undo() {`, `if true {`},
	{gateFile, `if s.Behind {`, `if false {`},
	{gateFile, `if v.Kind == Rekey {`, `if true {`},
	{gateFile, `case p.Trusts || p.Exempt != "":`, `case true:`},
	{gateFile, `case After:`, `case After, Before, Neither:`},
	{gateFile, `case Before:`, `case Before, After, Neither:`},
	{gateFile, `if s.Moving {`, `if false {`},
	{gateFile, `case m.OldLinks < 0:`, `case false:`},
	{gateFile, `case m.OldLinks > 0:`, `case false:`},
	{gateFile, `if !c.Named {`, `if false {`},
	{gateFile, `if !m.counts() || who != "" && m.Node == who && !m.Up {`, `if m.Aside != "" || who != "" && m.Node == who && !m.Up {`},
	{gateFile, `if !m.counts() || who != "" && m.Node == who && !m.Up {`, `if !m.counts() || m.Node == who {`},
	{gateFile, `if len(m.Stores) == 0 {`, `if false {`},
	{gateFile, `{"up", without(everywhere, StepBack),`, `{"up", []Step{StepLeaf},`},
	{gateFile, `{"enrolled", without(everywhere, StepBack),`, `{"enrolled", []Step{},`},
	{gateFile, `{"trust-proved", []Step{StepReissue, StepLeaf},`, `{"trust-proved", []Step{StepReissue},`},
	{gateFile, `{"still", []Step{StepReissued, StepRetire, StepWithdraw, StepDone, StepUndone},`, `{"still", []Step{},`},
	{gateFile, `{"links", []Step{StepRetire},`, `{"links", []Step{},`},
	{gateFile, `{"clients", []Step{StepRetire, StepWithdraw},`, `{"clients", []Step{StepRetire},`},
	{gateFile, `{"clients", []Step{StepRetire, StepWithdraw},`, `{"clients", []Step{StepWithdraw},`},

	{gateFile, `{"canary", []Step{StepLeaf},`, `{"canary", []Step{},`},
	{gateFile, `{"seen", []Step{StepRetire},`, `{"seen", []Step{},`},
	{gateFile, `{"started", transition,`, `{"started", []Step{},`},
	{seenFile, `if !x.Named && (node == "" || slices.Contains(x.Nodes, node)) {`, `if false && !x.Named && (node == "" || slices.Contains(x.Nodes, node)) {`},
	{seenFile, `if !x.Named && (node == "" || slices.Contains(x.Nodes, node)) {`, `if node == "" || slices.Contains(x.Nodes, node) {`},
	{viewFile, `	if more {`, `	if false && more {`},
	{viewFile, `if s.r.phase.Undo() {
		goes, stays`, `if false {
		goes, stays`},
	{viewFile, `if n.Incarnation == 0 || n.Met ||`, `if true || n.Incarnation == 0 || n.Met ||`},
	{seenFile, `if c.TLS == "" || c.Last.Before(since) {`, `if c.Last.Before(since) {`},
	{seenFile, `back[who] = back[who] || side == After`, `back[who] = back[who] || side != Unknown`},
	{seenFile, `return back[x.Detail] })`, `return true })`},
	{seenFile, `if len(x.Nodes) == 0 {`, `if true {`},
	{seenFile, `return m.Node == v.Canary && m.Node != "" && m.counts() && m.Up }) {`, `return true }) {`},

	{applyFile, `if len(p.Blockers) > 0 {`, `if false {`},
	{applyFile, `if !bytes.Equal(p.sum(), c.PlanHash) {`, `if false && !bytes.Equal(p.sum(), c.PlanHash) {`},
	{applyFile, `case r.phase != Reissued:`, `case false:`},
	{applyFile, `p.Hash != hex.EncodeToString(c.PlanHash) {`, `false && p.Hash != hex.EncodeToString(c.PlanHash) {`},
	{applyFile, `m.gates.Ask(StepRetire, named, ""); len(reasons) > 0 {`, `m.gates.Ask(StepRetire, named, ""); false && len(reasons) > 0 {`},
	{applyFile, `case r.phase == Retire:`, `case false:`},
	{applyFile, `case r.phase.Undo():`, `case false:`},
	{applyFile, `m.gates.wayBack(named); len(reasons) > 0 {`, `m.gates.wayBack(named); false && len(reasons) > 0 {`},
	{turnFile, `if who != "" && m.Node != who || s.Gone == "" || s.Stays || s.Leaf == Before {`, `if true {`},
	{turnFile, `case s.LacksBefore != "":`, `case false:`},
	{turnFile, `case s.Leaf == Unknown && !s.Moving && m.Up && m.Node != who:`, `case false:`},
	{askedFile, `if err == nil && !ok && (mv.Kind ==`, `if err == nil && false && (mv.Kind ==`},
	{applyFile, `return enter(a, r, Undoing, "turned round: "+reason)`, `return enter(a, r, Withdrawing, "turned round: "+reason)`},
	{applyFile, `case reason == "":`, `case false:`},
	{applyFile, `case c.Reason == "":`, `case false:`},
	{rowFile, `return r.sumsAfter`, `return r.sumsBefore`},
	{rowFile, `return r.sumsBefore`, `return r.sumsAfter`},
	{rowFile, `phase == Withdrawing && len(r.sumsBefore) > 0`, `phase == Withdrawing`},
	{planFile, `if draft.kind != Rekey && draft.kind != Takeover {`, `if draft.kind != Rekey {`},
	{planFile, `if draft.kind != Rekey && draft.kind != Takeover {`, `if draft.kind != Takeover {`},
	{applyFile, `w.Kind, w.Authority, w.Undo = waveLeaf, r.before, true`, `w.Kind, w.Authority, w.Undo = waveLeaf, r.before, false`},
	{applyFile, `fleet.SetClusterAuthority(a, r.cluster, r.after)`, `fleet.SetClusterAuthority(a, r.cluster, r.before)`},

	{applyFile, `if len(c.Exceptions) > 0 && c.Verb == "pause" {`, `if false {`},
	{applyFile, `if first != "" {
		w.Members`, `if false {
		w.Members`},

	{asideFile, `case x.Up:`, `case false:`},
	{asideFile, `case x.Incarnation != c.Incarnation:`, `case false:`},
	{asideFile, `case c.Reason == "":`, `case false:`},
	{asideFile, `return m.Aside != "" && m.Up }`, `return false }`},
	{asideFile, `w.Move == s.Move && (w.Authority`, `true || (w.Authority`},
	{asideFile, `(w.Authority == "" || w.Authority == s.Signer)`, `true`},
	{asideFile, `if !held {`, `if _ = held; true {`},
	{asideFile, `case leaves && s.Lacks && (m.Up && !r.phase.Ended() || alone):`, `case false:`},
	{asideFile, `s.Lacks && (m.Up && !r.phase.Ended() || alone):`, `s.Lacks && m.Up && !r.phase.Ended():`},
	{asideFile, `s.Lacks && (m.Up && !r.phase.Ended() || alone):`, `s.Lacks && alone:`},
	{asideFile, `case leaves && (r.phase == Reissued || r.phase == Retire) && m.Up && s.Leaf == Before:`, `case false:`},
	{asideFile, `case (r.phase == Retire || r.phase == Withdrawing) && m.Up && s.Stale && !s.Behind:`, `case false:`},
	{asideFile, `case leaves && old(After):`, `case false:`},
	{asideFile, `m.left() || m.Aside != "" && r.phase.Ended()`, `m.left()`},
	{asideFile, `(r.phase == Retire || r.phase == Done) && r.kind != Takeover`, `r.phase == Retire && r.kind != Takeover`},
	{asideFile, `r.phase.Undo() && r.kind != Takeover && old(Before):`, `false:`},
	{asideFile, `(r.phase == Retire || r.phase == Withdrawing) && s.Behind || s.Stale:`, `(r.phase == Retire || r.phase == Withdrawing) && s.Behind:`},
	{asideFile, `here = here && !s.Moving`, `here = true || here && !s.Moving`},
	{decideFile, `if v.Phase == Retire && s.Leaf == Before || v`, `if v`},
	{decideFile, `v.Phase == Withdrawing && v.Kind != Takeover && s.Leaf == After {`, `false {`},
	{askedFile, `case s.Leaf == After && !r.phase.Undo():`, `case s.Leaf == After && r.phase != Undoing:`},
	{viewFile, `x.Stale = !done`, `x.Stale = true`},

	{typesFile, `return !m.Waiting && (m.Aside == "" || m.Up)`, `return !m.Waiting && m.Aside == ""`},
	{typesFile, `return !m.Waiting && (m.Aside == "" || m.Up)`, `return !m.Waiting`},
	{typesFile, `return !m.Waiting && (m.Aside == "" || m.Up)`, `return m.Aside == "" || m.Up`},

	{decideFile, `m.Node != "" && m.Active && !m.left() && lacks`, `m.Node != "" && !m.left() && lacks`},
	{decideFile, `m.Node != "" && m.Active && !m.left() && lacks`, `m.Node != "" && m.Active && lacks`},
	{decideFile, `if v.Paused {`, `if false {`},
	{decideFile, `if waits := g.waitsForCanary(v); len(waits) > 0 {`, `if waits := g.waitsForCanary(v); false && len(waits) > 0 {`},
	{decideFile, "case rolloutDone:\n\t\tif len(reasons) == 0 {", "case rolloutDone:\n\t\tif true {"},
	{decideFile, "if v.relaxes(relaxByHand) {\n\t\t\tif len(reasons) == 0 {", "if v.relaxes(relaxByHand) {\n\t\t\tif true {"},
	{decideFile, `return StepWithdraw, Withdrawing`, `return StepUndone, Withdrawing`},
	{decideFile, `return StepReissue, Reissue`, `return StepUndone, Reissue`},

	{askedFile, `g.gates.Ask(step, v, mv.Node); len(reasons) > 0 {`, `g.gates.Ask(step, v, mv.Node); false && len(reasons) > 0 {`},
	{askedFile, `return "", "trust shrinks only when every member is proved without it"`, `return "", ""`},
	{askedFile, `return "", "a leaf of the new CA comes only when every member is proved to trust it"`, `return "", ""`},
	{askedFile, `return "", "the CA before is withdrawn: no leaf of it may be served any more"`, `return "", ""`},
	{askedFile, `return "", "a leaf of the CA before comes again only by a rollback"`, `return "", ""`},
	{askedFile, `return StepShrink, ""`, `return "", ""`},

	{waveFile, `case n.Broken:`, `case false:`},
	{waveFile, `case n.Phase == Failed && n.Canary:`, `case false:`},
	{waveFile, `if f.Failures > f.Spec.FailureBudget {`, `if false {`},
	{waveFile, `if len(out) <= f.Spec.MaxUnavailable {`, `if true {`},
	{waveFile, `if n.Fallen && n.Phase == Proved {`, `if false {`},
	{waveFile, `slots := f.Spec.Width - f.inFlight()`, `slots := f.Spec.Width`},
	{waveFile, `return f.Unknown }`, `return nil }`},
	{waveFile, `return f.Unsettled }`, `return nil }`},
	{waveFile, `return f.Outside }`, `return nil }`},
	{waveFile, `if f.Freeze == nil {`, `if true {`},
	{waveFile, `case n.Frozen != "":`, `case false:`},
	{waveFile, `case n.Unable != "":`, `case false:`},
	{waveFile, `if !begun {`, `if false && !begun {`},

	{openFile, `if f.State != Running && f.State != RollingBack {`, `if false {`},
	{openFile, `if len(reasons) == 0 && busy >= f.Spec.Width {`, `if false {`},

	{setFile, `case contains(r.spec.Aside, x.node) && !moving(x, n):`, `case false:`},
	{setFile, `case r.state == Aborting && x.state == storeOpen && waits(x, n):`, `case false:`},
	{setFile, `case r.back && x.state == storePending && asked(n, x) && waits(x, n):`, `case false:`},
	{setFile, `asked(byName[x.node], x) && !back:`, `asked(byName[x.node], x) && false:`},
	{setFile, "case Abort:\n\t\tif err := forgetFailed(a, from.stores); err != nil {", "case Abort:\n\t\tif err := error(nil); err != nil {"},
	{factsFile, `case !m.Up && slices.Contains(f.Spec.Aside, m.HostID):`, `case false:`},
	{factsFile, `case !m.Up && slices.Contains(f.Spec.Aside, m.HostID):`, `case slices.Contains(f.Spec.Aside, m.HostID):`},
	{factsFile, `case unproved && !slices.Contains(f.Spec.Aside, n.Node):`, `case unproved:`},
	{setFile, `case s.Owner != "":`, `case false:`},
	{setFile, `case s.Kind != Renew:`, `case false:`},
	{setFile, `if p.Hash != hex.EncodeToString(c.PlanHash) {`, `if false && p.Hash != hex.EncodeToString(c.PlanHash) {`},
	{setFile, `if !contains(from, r.state) {`, `if false && !contains(from, r.state) {`},
	{setFile, `if r.spec.Owner != "" && (c.Verb == AbortIt || c.Verb == Rollback) {`, `if false {`},
	{setFile, `} else if r != nil {`, `} else if false {`},

	{claimFile, `if n.name != r.GetNode() {`, `if false {`},
	{claimFile, `case r.Generation < s.generation:`, `case false:`},
	{claimFile, `case r.Generation > s.generation:`, `case false:`},
	{claimFile, `case !bytes.Equal(r.KeystoreSha256, s.keystore) ||`, `case false && !bytes.Equal(r.KeystoreSha256, s.keystore) || false &&`},
	{claimFile, `case s.state == agentv1.InstallState_INSTALL_STATE_CONTESTED:`, `case false:`},
	{claimFile, `if failed < maxFailures {`, `if true {`},
	{claimFile, `if counter >= n.agent.counter {`, `if false {`},
	{claimFile, `if alone && !owned {`, `if false && alone && !owned {`},
	{claimFile, `case n.agent.mode != agentv1.Mode_MODE_MANAGE:`, `case false:`},
	{claimFile, `case n.agent.hold != "":`, `case false:`},
	{claimFile, `if err != nil || z == nil {`, `if err != nil || true {`},
	{claimFile, `if trustAlone(r.Kind) || r.Kind == agentv1.MoveKind_MOVE_KIND_GIVE_BACK {`, `if false {`},

	{guardFile, `case m.node != c.Node || m.store != c.Store:`, `case false:`},
	{guardFile, `case c.Incarnation != n.incarnation || m.incarnation != n.incarnation:`, `case false:`},
	{guardFile, `case m.state != moveOpen || m.expires <= a.Now.UnixMilli():`, `case false:`},
	{guardFile, `if err := authorityFits(a, m, c.Issuer); err != nil {`, `if err := authorityFits(a, m, c.Issuer); false && err != nil {`},
	{guardFile, `if !ok {`, `if false && !ok {`},

	{backFile, `if !alike(t.new, previous) {`, `if false && !alike(t.new, previous) {`},
	{backFile, `return root != "" && root == b.root() && slices.Equal(ids(a), ids(b))`, `return root != "" && root == b.root() && (true || slices.Equal(ids(a), ids(b)))`},
	{backFile, `return root != "" && root == b.root() && slices.Equal(ids(a), ids(b))`, `return (true || root != "" && root == b.root()) && slices.Equal(ids(a), ids(b))`},
	{eyesFile, `if s.Fresh > 0 && len(f.LeafSha256) > 0 {`, `if len(f.LeafSha256) > 0 {`},
	{eyesFile, `if s.Fresh > 0 && len(f.LeafSha256) > 0 {`, `if false {`},

	{sysGates, `if v.Frozen == "" {`, `if true {`},
	{sysGates, `if !v.Paused {`, `if true {`},
	{sysGates, `if v.Signer == "" {`, `if true {`},
	{sysGates, `if v.Now.Sub(x.Seen) <= seenFor {`, `if true {`},
	{sysGates, `const seenFor = 20 * time.Second`, `const seenFor = 20 * time.Hour`},
	{sysGates, `if x.TrustsBefore && x.TrustsAfter {`, `if x.TrustsAfter {`},
	{sysGates, `if x.TrustsBefore && x.TrustsAfter {`, `if x.TrustsBefore {`},
	{sysGates, `case trusts, s == StepReissue && !x.Connected:`, `case trusts, true:`},
	{sysGates, `case trusts, s == StepReissue && !x.Connected:`, `case trusts, !x.Connected:`},
	{sysGates, `case trusts, s == StepReissue && !x.Connected:`, `case trusts, s == StepReissue:`},
	{sysGates, `		trusts = x.TrustsBefore
`, `		trusts = x.TrustsAfter
`},
	{sysGates, `if x.Leaf == want {`, `if x.Leaf == want || true {`},
	{sysGates, `if x.Leaf == want {`, `if x.Leaf == want || x.Leaf == Unknown {`},
	{sysGates, `if x.Leaf == want {`, `if x.Leaf == want || x.Leaf == Neither {`},
	{sysGates, `if !x.Stray || x.Leaf != v.Phase.want() {`, `if true {`},
	{sysGates, `for _, k := range []Kind{Controller, Agent} {`, `for _, k := range []Kind{Controller} {`},
	{sysGates, `for _, k := range []Kind{Controller, Agent} {`, `for _, k := range []Kind{Agent} {`},
	{sysGates, `if x.Kind != k || x.Named != "" && k != Controller {`, `if x.Kind != k || x.Named != "" {`},
	{sysGates, `if x.Kind != k || x.Named != "" && k != Controller {`, `if x.Kind != k {`},
	{sysGates, `if !holds || x.Named != "" && x.Kind != Controller {`, `if !holds || true {`},
	{sysGates, `if !holds || x.Named != "" && x.Kind != Controller {`, `if !holds || x.Named != "" {`},
	{sysGates, `			holds = x.TrustsAfter
`, `			holds = false
`},
	{sysGates, `{"signer", []Step{StepReissue},`, `{"signer", []Step{},`},
	{sysGates, `{"controller-seen", every,`, `{"controller-seen", []Step{StepReissue},`},
	{sysGates, `{"controller-trusts", []Step{StepReissue, StepTurn, StepReissued, StepRetire, StepWithdraw},`, `{"controller-trusts", []Step{StepReissue},`},
	{sysGates, `{"agent-trusts", []Step{StepReissue, StepRetire, StepWithdraw},`, `{"agent-trusts", []Step{StepReissue, StepWithdraw},`},
	{sysGates, `{"agent-trusts", []Step{StepReissue, StepRetire, StepWithdraw},`, `{"agent-trusts", []Step{StepReissue, StepRetire},`},
	{sysGates, `{"controller-leaf", []Step{StepReissued, StepRetire, StepWithdraw},`, `{"controller-leaf", []Step{StepReissued, StepWithdraw},`},
	{sysGates, `{"agent-leaf", []Step{StepReissued, StepRetire, StepWithdraw},`, `{"agent-leaf", []Step{StepReissued, StepWithdraw},`},
	{sysGates, `{"agent-leaf", []Step{StepReissued, StepRetire, StepWithdraw},`, `{"agent-leaf", []Step{StepReissued, StepRetire},`},
	{sysGates, `{"issued", []Step{StepWithdraw},`, `{"issued", []Step{},`},
	{sysGates, `{"administrator", []Step{StepRetire, StepWithdraw},`, `{"administrator", []Step{StepWithdraw},`},
	{sysGates, `{"administrator", []Step{StepRetire, StepWithdraw},`, `{"administrator", []Step{StepRetire},`},
	{sysGates, `{"used", []Step{StepRetire},`, `{"used", []Step{},`},
	{sysGates, `if x.Leaf != v.Phase.want() || !x.Seen.IsZero() {`, `if true {`},
	{sysView, `a.Certificate == hex.EncodeToString(k.leaf) || a`, `true || a`},
	{sysGates, `{"forgotten", []Step{StepDone, StepUndone},`, `{"forgotten", []Step{StepDone},`},
	{sysGates, `{"forgotten", []Step{StepDone, StepUndone},`, `{"forgotten", []Step{StepUndone},`},

	{sysDecide, `case v.Phase == Reissued:`, `case false:`},
	{sysDecide, `case v.Phase.moves():`, `case false:`},
	{sysDecide, `if reasons := g.Ask(step, v); len(reasons) > 0 {`, `if reasons := g.Ask(step, v); false && len(reasons) > 0 {`},
	{sysDecide, `if reasons := g.Ask(StepTurn, v); len(reasons) > 0 {`, `if reasons := g.Ask(StepTurn, v); false && len(reasons) > 0 {`},
	{sysDecide, `if x.Kind == Controller && (x.Leaf != v.Phase.want() || x.Stray) {`, `if false {`},
	{sysDecide, `if x.Kind == Controller && (x.Leaf != v.Phase.want() || x.Stray) {`, `if x.Kind == Controller && x.Leaf != v.Phase.want() {`},
	{sysDecide, `	if next == v.Turn {`, `	if false {`},
	{sysDecide, `return StepWithdraw, Withdrawing`, `return StepUndone, Withdrawing`},
	{sysDecide, `return StepReissue, Reissue`, `return StepUndone, Reissue`},

	{sysApply, `if len(p.Blockers) > 0 {`, `if false {`},
	{sysApply, `if p.Hash != hex.EncodeToString(c.PlanHash) {`, `if false && p.Hash != hex.EncodeToString(c.PlanHash) {`},
	{sysApply, `if err := crossed(a, p.issuer, c); err != nil {`, `if err := crossed(a, p.issuer, c); false && err != nil {`},
	{sysApply, "if _, err := a.Exec(`DELETE FROM identity_sightings`); err != nil {", `if err := error(nil); err != nil {`},
	{sysApply, `err = r.set(a, r.after, r.before, authority.Trusted)`, `err = r.set(a, r.after, r.before, authority.Retired)`},
	{sysApply, `err = r.set(a, r.before, r.after, authority.Retired)`, `err = r.set(a, r.before, r.after, authority.Trusted)`},
	{sysApply, `if len(c.Exceptions) > 0 && c.Verb != "resume" {`, `if false {`},
	{sysApply, `case r.phase == Retire:`, `case false:`},
	{sysApply, `case r.phase.Undo():`, `case false:`},
	{sysApply, `case reason == "":`, `case false:`},
	{sysApply, `case r.phase != Reissued:`, `case false:`},
	{sysApply, `case c.Reason == "":`, `case false:`},
	{sysApply, `if retirePlan(r, v, m.gates).Hash != hex.EncodeToString(c.PlanHash) {`, `if false && retirePlan(r, v, m.gates).Hash != hex.EncodeToString(c.PlanHash) {`},
	{sysApply, `if reasons := m.gates.Ask(StepRetire, v); len(reasons) > 0 {`, `if reasons := m.gates.Ask(StepRetire, v); false && len(reasons) > 0 {`},
	{sysApply, `case v.Identities[i].Kind == Controller:`, `case false:`},
	{sysApply, `if len(names) > 0 && reason == "" {`, `if false {`},
	{sysApply, `return enter(a, r, Undoing, "turned round: "+reason)`, `return enter(a, r, Withdrawing, "turned round: "+reason)`},
	{sysApply, `id.Path == c.By && others {`, `id.Path == c.By && others && false {`},
	{sysApply, `id.Path == c.By && others {`, `id.Path == c.By && (others || len(all) > 1) {`},

	{sysView, `if m.Trusted() {`, `if m.State == members.Unsealed {`},
	{sysView, `WHERE revision > (SELECT coalesce(max(idx), 0) FROM eras)`, `WHERE true`},
	{sysView, `if r.phase.Undo() {`, `if false {`},
	{sysView, `slices.Contains(k.trusts, s.sums[Before]), slices.Contains(k.trusts, s.sums[After])`, `true, slices.Contains(k.trusts, s.sums[After])`},
	{sysView, `slices.Contains(k.trusts, s.sums[Before]), slices.Contains(k.trusts, s.sums[After])`, `slices.Contains(k.trusts, s.sums[Before]), true`},

	{sysWish, `!leaf.NotAfter.After(w.Stray[id].NotAfter) ||`, `false ||`},
	{sysWish, `|| bytes.Equal(w.Foreign[id], sum[:])`, `|| false && bytes.Equal(w.Foreign[id], sum[:])`},
	{sysApply, `if leaf.Issuer == "" {`, `if false {`},
	{sysView, `s.stray[id] = leaf.Seq < l.Seq`, `s.stray[id] = leaf.Seq < l.Seq-100`},
	{sysWish, `if x.phase.Undo() {`, `if false {`},
	{sysWish, `if len(w.Bundle) > 1 {`, `if false {`},

	{sysPhases, `func (p Phase) Ended() bool { return p == Done || p == RolledBack }`, `func (p Phase) Ended() bool { return p == Done }`},
}
