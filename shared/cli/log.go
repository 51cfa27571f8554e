package cli

import (
	"io"
	"log/slog"

	"github.com/cassandra-security-manager/csm/shared/fault"
)

// Log is the `log:` group of a configuration.
type Log struct {
	// Level is debug, info, warn or error; Format is json or text.
	Level  string `yaml:"level"`
	Format string `yaml:"format"`
}

// Logger makes the logger of a program. Empty fields are info and json.
func (l Log) Logger(w io.Writer) (*slog.Logger, error) {
	level := slog.LevelInfo
	if l.Level != "" {
		if err := level.UnmarshalText([]byte(l.Level)); err != nil {
			return nil, fault.New(fault.Invalid, "bad-config", "there is no log level %.40q", l.Level).Do("use debug, info, warn or error")
		}
	}
	o := &slog.HandlerOptions{Level: level}
	switch l.Format {
	case "", "json":
		return slog.New(slog.NewJSONHandler(w, o)), nil
	case "text":
		return slog.New(slog.NewTextHandler(w, o)), nil
	}
	return nil, fault.New(fault.Invalid, "bad-config", "there is no log format %.40q", l.Format).Do("use json or text")
}
