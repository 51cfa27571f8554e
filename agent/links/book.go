package links

import (
	"encoding/json"
	"errors"
	"io/fs"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"time"

	"github.com/jonboulle/clockwork"

	"github.com/cassandra-security-manager/csm/shared/atomicfile"
	"github.com/cassandra-security-manager/csm/shared/fault"
)

// MaxOld bounds what is remembered: six connections to each of some thousand peers.
const MaxOld = 8192

// Old is a connection that was there when the stores were last reloaded, or an earlier time.
type Old struct {
	Link
	// Since is the end of the first reload that it has outlived.
	Since time.Time `json:"since"`
}

// Cut is a peer whose connections were ended and that has to come back.
type Cut struct {
	Wish  uint64     `json:"wish"`
	Peer  netip.Addr `json:"peer"`
	Links []Link     `json:"links"`
	At    time.Time  `json:"at"`
}

// Memory is what a Book keeps.
type Memory struct {
	// Recorded is the end of the newest reload at which connections were looked at; Unseen why that failed.
	Recorded time.Time `json:"recorded,omitzero"`
	Unseen   string    `json:"unseen,omitempty"`
	Old      []Old     `json:"old,omitempty"`
	// Done is the newest wish that came to its end, Result a stable word, Detail for people.
	Done   uint64 `json:"done,omitempty"`
	Result string `json:"result,omitempty"`
	Detail string `json:"detail,omitempty"`
	Cut    *Cut   `json:"cut,omitempty"`
}

// Book remembers old connections over restarts of the agent. It is safe for concurrent use.
type Book struct {
	path  string
	table Table
	clock clockwork.Clock

	mu sync.Mutex
	m  Memory
}

// Open reads the book of a file, which need not be there. One that cannot be read says so until the next reload.
func Open(path string, table Table, clock clockwork.Clock) *Book {
	b := &Book{path: path, table: table, clock: clock}
	data, err := os.ReadFile(path)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return b
	case err == nil:
		err = json.Unmarshal(data, &b.m)
	}
	if err != nil {
		b.m = Memory{Unseen: "the record of connections could not be read: " + err.Error()}
	}
	return b
}

// Memory is a copy of what is remembered.
func (b *Book) Memory() Memory {
	b.mu.Lock()
	defer b.mu.Unlock()
	m := b.m
	m.Old = slices.Clone(m.Old)
	return m
}

// Record notes every connection that is there now: it is on certificates from before. It is called before a reload, so that a kill
// leaves no gap, and again when its command has ended, for what came in between may be of either kind.
func (b *Book) Record(p Port) error {
	now := b.clock.Now().UTC()
	present, err := b.table.Links(p)
	b.mu.Lock()
	defer b.mu.Unlock()
	if err != nil {
		b.m.Unseen = fault.From(err).Error()
		return errors.Join(err, b.save())
	}
	since := map[uint64]Old{}
	for _, o := range b.m.Old {
		since[o.Cookie] = o
	}
	b.m.Recorded, b.m.Unseen, b.m.Old = now, "", nil
	for _, l := range present {
		o := Old{l, now}
		if known, is := since[l.Cookie]; is && known.same(l) {
			o.Since = known.Since
		}
		b.m.Old = append(b.m.Old, o)
	}
	if len(b.m.Old) > MaxOld {
		b.m.Old, b.m.Unseen = b.m.Old[:MaxOld], "there are more connections than can be remembered"
	}
	return b.save()
}

// Look forgets what is there no more, and gives what is there now. With nothing to forget it asks nobody unless asked to by always.
func (b *Book) Look(p Port, always bool) ([]Link, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if len(b.m.Old) == 0 && !always {
		return nil, nil
	}
	present, err := b.table.Links(p)
	if err != nil {
		return nil, err
	}
	there := map[uint64]Link{}
	for _, l := range present {
		there[l.Cookie] = l
	}
	before := len(b.m.Old)
	b.m.Old = slices.DeleteFunc(b.m.Old, func(o Old) bool { l, is := there[o.Cookie]; return !is || !o.same(l) })
	if len(b.m.Old) == before {
		return present, nil
	}
	return present, b.save()
}

// Begin notes that connections of a peer are about to be ended. It is on disk before they are.
func (b *Book) Begin(c Cut) error { return b.change(func(m *Memory) { m.Cut = &c }) }

// Back notes that the peer has come back.
func (b *Book) Back() error { return b.change(func(m *Memory) { m.Cut = nil }) }

// Finish notes how a wish ended.
func (b *Book) Finish(wish uint64, result, detail string) error {
	return b.change(func(m *Memory) { m.Cut, m.Done, m.Result, m.Detail = nil, wish, result, detail })
}

func (b *Book) change(do func(*Memory)) error {
	b.mu.Lock()
	defer b.mu.Unlock()
	do(&b.m)
	return b.save()
}

func (b *Book) save() error {
	data, err := json.Marshal(b.m)
	if err == nil {
		err = atomicfile.Replace(b.path, data, 0o600)
	}
	if err != nil {
		return fault.Wrap(err, fault.Unavailable, "state-unwritable", "the record of connections cannot be kept").Do("free space in %s", filepath.Dir(b.path))
	}
	return nil
}
