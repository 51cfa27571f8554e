package rotation_test

import (
	"errors"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/cassandra-security-manager/csm/controller/fleet/rotation"
	"github.com/cassandra-security-manager/csm/controller/state"
	agentv1 "github.com/cassandra-security-manager/csm/protocol/agent/v1"
	clusterv1 "github.com/cassandra-security-manager/csm/protocol/cluster/v1"
	"github.com/cassandra-security-manager/csm/shared/fault"
)

// replay lives a trace of test/model/rotation.pml through on the real state machine: what the model calls a step of a machine
// happens, what it calls a step of the control plane is asked for. The files of a node and what its Cassandra has loaded
// are two things here, as there.
type replay struct {
	*world
	rotation string
	claims   map[*member]string
	moves    map[*member]agentv1.MoveKind
	written  map[*member]loaded // on disk and not loaded; absent: what is loaded
	// late are steps of a node that wait for another's move: the model lets all move at once. On the way to a goal a node that
	// is refused waits too, and asks again; on the way to an outage a refusal is the end.
	late map[*member][]string
	goal bool
}

// loaded is what a Cassandra serves and trusts once it has read its files.
type loaded struct {
	leaf    string
	trusted map[string]bool
	served  []byte
}

func (m *member) inForce() loaded { return loaded{m.leaf, maps.Clone(m.trusted), m.served} }

func (m *member) load(l loaded) {
	m.leaf, m.trusted, m.served = l.leaf, maps.Clone(l.trusted), l.served
}

// errRefused is what the control plane says to a step that it does not allow.
var errRefused = errors.New("refused")

func refused(err error) error {
	if err == nil {
		return nil
	}
	return fmt.Errorf("%w: %w", errRefused, err)
}

var modelPhases = []rotation.Phase{0: "", 1: rotation.Distribute, 2: rotation.Reissue, 3: rotation.Retire, 4: rotation.Done, 5: rotation.Undoing, 6: rotation.Withdrawing, 7: rotation.RolledBack}

// step does what one line of a trace says.
func (r *replay) step(event, who string) error {
	if event == "phase" {
		return r.enter(modelPhases[r.number(who)])
	}
	if do := map[string]func() error{
		"rollback": func() error {
			_, err := r.rotations.Control(ctx, r.rotation, "rollback", "replay", ann)
			return refused(err)
		},
		"propose": func() error { return nil }, // a leader's thought
		"late":    r.applyLate,
	}[event]; do != nil {
		return do()
	}
	i := r.number(who)
	if i >= len(r.nodes) {
		return fmt.Errorf("node %s is not in this replay", who)
	}
	m := r.nodes[i]
	r.late[m] = append(r.late[m], event)
	for range r.nodes {
		for _, m := range r.nodes {
			if err := r.catchUp(m); err != nil {
				return err
			}
		}
	}
	return nil
}

// catchUp lets a node do what it was to do, until it has to wait for another.
func (r *replay) catchUp(m *member) error {
	for len(r.late[m]) > 0 {
		err := r.node(r.late[m][0], m)
		if fault.HasReason(err, "wave-busy") || r.goal && errors.Is(err, errRefused) {
			return nil
		}
		r.late[m] = r.late[m][1:]
		if err != nil {
			return err
		}
	}
	return nil
}

func (r *replay) number(s string) int {
	n, err := strconv.Atoi(s)
	r.must(err)
	return n
}

// node is a step of one node. What its machine does cannot be refused.
func (r *replay) node(event string, m *member) error {
	switch event {
	case "crash":
		r.stop(m)
	case "start":
		r.loadFiles(m)
		r.startCassandra(m)
	case "reload":
		r.loadFiles(m)
	case "cycle": // links that a node has dialled are not told here
	case "claim":
		return r.claim(m)
	case "install", "resume":
		r.install(m)
	case "end":
		return r.end(m)
	case "prove":
		return r.prove(m)
	case "aside":
		_, err := r.rotations.SetAside(ctx, r.rotation, m.name, m.incarnation, "replay", ann)
		return refused(err)
	case "ensure":
		if r.tick(); m.pending() {
			return refused(m.move())
		}
	case "restore":
		now := m.inForce()
		delete(now.trusted, young)
		r.written[m] = now
	case "lapse":
		r.log.Clock.Advance(time.Hour)
		r.tick()
	case "stale": // a message of an older phase is a claim of an older generation
		_, err := m.claim(renew)
		return refused(err)
	default:
		return fmt.Errorf("the replay knows no event %q", event)
	}
	return nil
}

func (r *replay) loadFiles(m *member) {
	if l, ok := r.written[m]; ok {
		m.load(l)
		delete(r.written, m)
		m.files()
	}
}

// claim asks for the move of the target, as soon as the leader has raised it.
func (r *replay) claim(m *member) error {
	r.tick()
	kind := m.target().Stores[0].Move
	if !m.behind() {
		return refused(fault.New(fault.Refused, "nothing-to-move", "the target is what it was"))
	}
	if kind == agentv1.MoveKind_MOVE_KIND_UNSPECIFIED {
		kind = renew
	}
	c, err := m.claim(kind)
	if err == nil {
		r.claims[m], r.moves[m] = c, kind
	}
	return refused(err)
}

// install writes the files. Cassandra has loaded what it had.
func (r *replay) install(m *member) {
	before := m.inForce()
	m.trusts(r.moves[m] == agentv1.MoveKind_MOVE_KIND_SHRINK)
	if r.moves[m] == renew {
		m.leaf = m.issue(r.claims[m])
	}
	r.written[m] = m.inForce()
	m.load(before)
	m.store.State = agentv1.InstallState_INSTALL_STATE_INSTALLED_UNPROVEN
}

// end reports the move: written and not proved yet, or nothing.
func (r *replay) end(m *member) error {
	outcome := agentv1.MoveOutcome_MOVE_OUTCOME_REFUSED
	if m.store.State == agentv1.InstallState_INSTALL_STATE_INSTALLED_UNPROVEN {
		outcome = unproven
	}
	err := m.done(r.claims[m], outcome)
	delete(r.claims, m)
	return refused(err)
}

// prove has the neighbours look at a move that was reported as unproved.
func (r *replay) prove(m *member) error {
	if !m.pending() {
		return nil
	}
	c, err := m.claim(agentv1.MoveKind_MOVE_KIND_TRUST)
	if err != nil {
		return refused(err)
	}
	return refused(m.finish(c))
}

// enter lets the leader go on, or a person, where it takes one.
func (r *replay) enter(to rotation.Phase) error {
	if r.rotation == "" {
		r.rotation = r.start(young).Name
	}
	if to == rotation.Retire {
		r.tick()
		if err := r.retire(r.rotation); err != nil {
			return refused(err)
		}
	}
	back := r.goal && slices.Index(modelPhases, to) > slices.Index(modelPhases, rotation.Undoing)
	for range 3 {
		if r.get(r.rotation).Phase == to {
			return nil
		}
		if r.tick(); back { // each node answers for its files on the way back, also one that never got what is taken back
			r.run(2)
		}
	}
	if now := r.get(r.rotation); now.Phase != to {
		return fmt.Errorf("%w: in %s, waits for %v", errRefused, now.Phase, codes(now))
	}
	return nil
}

func codes(r rotation.Rotation) (out []string) {
	for _, x := range r.Reasons {
		out = append(out, x.Code)
	}
	return out
}

// late applies a proposal of a former leader, who saw the gate open.
func (r *replay) applyLate() error {
	was := r.get(r.rotation).Phase
	_, err := r.log.Propose(ctx, state.Proposal{Command: &clusterv1.AdvanceRotation{Name: r.rotation}, Actor: "a former leader"})
	if err == nil && r.get(r.rotation).Phase == was {
		err = fault.New(fault.Refused, "not-now", "the gates are asked again")
	}
	return refused(err)
}

// The traces are those that the checker finds (test/model keeps them fresh): the shortest way to each phase, and for each gate
// the shortest way to an outage without it. The real machine goes the first whole; it refuses a step of each of the second,
// and at no step are two live members cut off from each other.
func TestTracesOfTheModelOnTheRealMachine(t *testing.T) {
	files, err := filepath.Glob("testdata/traces/*.trace")
	if err != nil || len(files) < 15 {
		t.Fatalf("%d traces: %v", len(files), err)
	}
	for _, file := range files {
		name := strings.TrimSuffix(filepath.Base(file), ".trace")
		t.Run(name, func(t *testing.T) {
			text, err := os.ReadFile(file)
			if err != nil {
				t.Fatal(err)
			}
			r := &replay{world: newWorldWith(t, 3, "", eager{}), claims: map[*member]string{}, moves: map[*member]agentv1.MoveKind{}, written: map[*member]loaded{},
				late: map[*member][]string{}, goal: strings.HasPrefix(name, "to-")}
			steps := strings.Split(strings.TrimSpace(string(text)), "\n")
			for i, line := range steps {
				head, words, _ := strings.Cut(line, " | ")
				fields := strings.Fields(head)
				if fields[0] == "OUTAGE" {
					t.Fatalf("the real machine went all the way to an outage of the model:\n%s", text)
				}
				err := r.step(fields[0], fields[1])
				r.unbroken(line)
				switch {
				case errors.Is(err, errRefused) && !r.goal:
					t.Logf("step %d of %d, %q: %v", i+1, len(steps), words, err)
					return
				case err != nil:
					t.Fatalf("step %d of %d, %q: %v\n%s", i+1, len(steps), words, err, text)
				}
			}
		})
	}
}
