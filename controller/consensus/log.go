package consensus

import (
	"bytes"
	"context"
	"log/slog"

	"github.com/hashicorp/go-hclog"
)

// hclogger sends the raft family's log lines to slog, their levels kept.
func hclogger(l *slog.Logger, name string) hclog.Logger {
	level := hclog.Info
	if l.Enabled(context.Background(), slog.LevelDebug) {
		level = hclog.Debug
	}
	return hclog.New(&hclog.LoggerOptions{Name: name, Level: level, Output: lines{l}, DisableTime: true})
}

type lines struct{ log *slog.Logger }

var levels = []struct {
	prefix string
	level  slog.Level
}{{"[ERROR] ", slog.LevelError}, {"[WARN]  ", slog.LevelWarn}, {"[INFO]  ", slog.LevelInfo}, {"[DEBUG] ", slog.LevelDebug}, {"[TRACE] ", slog.LevelDebug},
	{"[ERR] ", slog.LevelError}, {"[WARN] ", slog.LevelWarn}, {"[INFO] ", slog.LevelInfo}}

// Write takes one line.
func (w lines) Write(b []byte) (int, error) {
	line := bytes.TrimSpace(b)
	for _, l := range levels {
		if rest, ok := bytes.CutPrefix(line, []byte(l.prefix)); ok {
			w.log.Log(context.Background(), l.level, string(rest))
			return len(b), nil
		}
	}
	w.log.Debug(string(line))
	return len(b), nil
}
