package reload

import (
	"encoding/json"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"sync"
	"time"

	"github.com/jonboulle/clockwork"

	"github.com/cassandra-security-manager/csm/shared/atomicfile"
	"github.com/cassandra-security-manager/csm/shared/fault"
)

// The most reloads of one node, rollbacks not counted.
const (
	BudgetReloads = 6
	BudgetWindow  = time.Hour
)

// Budget limits how often a node is reloaded. It is kept in a file, so that a restart of the agent does not renew it.
// Rollbacks do not ask.
type Budget struct {
	path  string
	clock clockwork.Clock
	mu    sync.Mutex
}

// NewBudget keeps the budget in the file path.
func NewBudget(path string, clock clockwork.Clock) *Budget {
	return &Budget{path: path, clock: clock}
}

// Left is how many reloads are free now, and when the next one becomes so if there is none.
func (b *Budget) Left() (int, time.Time) {
	b.mu.Lock()
	defer b.mu.Unlock()
	used := within(b.load(), b.clock.Now())
	if len(used) < BudgetReloads {
		return BudgetReloads - len(used), time.Time{}
	}
	return 0, used[len(used)-BudgetReloads].Add(BudgetWindow)
}

// Take uses one reload up, or refuses with reason "reload-budget". It is asked before anything is written.
func (b *Budget) Take() error {
	b.mu.Lock()
	defer b.mu.Unlock()
	now := b.clock.Now()
	used := within(b.load(), now)
	if len(used) >= BudgetReloads {
		next := used[len(used)-BudgetReloads].Add(BudgetWindow)
		return fault.New(fault.Exhausted, "reload-budget", "this node was reloaded %d times within %s", len(used), BudgetWindow).
			Do("the next one is free at %s", next.UTC().Format(time.RFC3339)).After(next.Sub(now))
	}
	data, err := json.Marshal(append(used, now))
	if err == nil {
		err = os.MkdirAll(filepath.Dir(b.path), 0o700)
	}
	if err == nil {
		err = atomicfile.Replace(b.path, data, 0o600)
	}
	if err != nil {
		return fault.Wrap(err, fault.Unavailable, "state-unwritable", "the reload budget cannot be kept").Do("free space in %s", filepath.Dir(b.path))
	}
	return nil
}

// within drops what is older than the window. A clock that is set back a little frees nothing early; what lies further ahead than the
// window was written by a clock that was wrong, and would block the node until that time comes.
func within(times []time.Time, now time.Time) []time.Time {
	out := times[:0]
	for _, t := range times {
		if now.Sub(t).Abs() < BudgetWindow {
			out = append(out, t)
		}
	}
	return out
}

// load reads the file. One that cannot be read counts as used up for the window of its own age, for the limit protects a
// node: it is treated as full from the time it was written.
func (b *Budget) load() []time.Time {
	data, err := os.ReadFile(b.path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	var times []time.Time
	if err == nil && json.Unmarshal(data, &times) == nil {
		return times
	}
	since := b.clock.Now()
	if st, err := os.Stat(b.path); err == nil {
		since = st.ModTime()
	}
	for range BudgetReloads {
		times = append(times, since)
	}
	return times
}
