// Package watch says at once that somebody has touched one of a few files. It watches their folders, because writers
// replace files by renaming, and it reports only the names that it was given: the agent's own temporary files do not wake it.
//
// It is a hint and no more: who is woken looks at the files, and looks by itself from time to time, because a notification
// can be lost (a full queue, a network file system, a folder made later). It keeps no state.
package watch

import (
	"log/slog"
	"maps"
	"path/filepath"
	"sync"
	"time"

	"github.com/fsnotify/fsnotify"
)

// Quiet is how long a file must be left alone before its change is told: writers write in several steps.
const Quiet = 150 * time.Millisecond

// Watch tells changes of a set of files.
type Watch struct {
	w    *fsnotify.Watcher
	c    chan struct{}
	done chan struct{}
	log  *slog.Logger

	mu      sync.Mutex
	files   map[string]bool
	folders map[string]bool
}

// New makes a watch of nothing. A system without notifications gives one that never tells anything.
func New(log *slog.Logger) *Watch {
	w := None()
	w.log = log
	f, err := fsnotify.NewWatcher()
	if err != nil {
		log.Warn("files are looked at by time only: the system gives no notifications", "error", err)
		return w
	}
	w.w = f
	go w.run()
	return w
}

// None makes a watch that never tells anything.
func None() *Watch {
	return &Watch{c: make(chan struct{}, 1), done: make(chan struct{}), log: slog.New(slog.DiscardHandler), files: map[string]bool{}, folders: map[string]bool{}}
}

// C tells that something changed; several changes may be told once.
func (w *Watch) C() <-chan struct{} { return w.c }

// Set replaces the files that are watched. Folders that do not exist are left out until the next call.
func (w *Watch) Set(paths ...string) {
	w.mu.Lock()
	defer w.mu.Unlock()
	files, folders := map[string]bool{}, map[string]bool{}
	for _, p := range paths {
		if p != "" {
			files[filepath.Clean(p)] = true
			folders[filepath.Dir(filepath.Clean(p))] = true
		}
	}
	w.files = files
	if w.w == nil {
		return
	}
	for d := range w.folders {
		if !folders[d] {
			_ = w.w.Remove(d)
			delete(w.folders, d)
		}
	}
	for d := range maps.Keys(folders) {
		// Adding again is harmless and heals a watch whose folder was replaced.
		if err := w.w.Add(d); err == nil {
			w.folders[d] = true
		} else {
			delete(w.folders, d)
		}
	}
}

// Close ends the watch.
func (w *Watch) Close() {
	close(w.done)
	if w.w != nil {
		_ = w.w.Close()
	}
}

func (w *Watch) ours(name string) bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.files[filepath.Clean(name)] || w.folders[filepath.Clean(name)]
}

func (w *Watch) run() {
	var quiet <-chan time.Time
	var first time.Time
	for {
		select {
		case <-w.done:
			return
		case e, ok := <-w.w.Events:
			if !ok {
				return
			}
			if !w.ours(e.Name) {
				continue
			}
			// A file that never rests is told all the same after ten quiet times.
			if quiet == nil {
				first = time.Now()
			}
			if quiet == nil || time.Since(first) < 10*Quiet {
				quiet = time.After(Quiet)
			}
		case err, ok := <-w.w.Errors:
			if !ok {
				return
			}
			w.log.Warn("notifications were lost; looking now", "error", err)
			quiet = time.After(Quiet)
		case <-quiet:
			quiet = nil
			select {
			case w.c <- struct{}{}:
			default:
			}
		}
	}
}
