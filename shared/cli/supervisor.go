package cli

import (
	"log/slog"

	"github.com/coreos/go-systemd/v22/daemon"
)

// Ready tells systemd that the program serves (sd_notify(3)); without systemd it does nothing.
func Ready(log *slog.Logger) { notify(log, daemon.SdNotifyReady) }

// Stopping tells systemd that the program has begun to end.
func Stopping(log *slog.Logger) { notify(log, daemon.SdNotifyStopping) }

func notify(log *slog.Logger, state string) {
	if _, err := daemon.SdNotify(false, state); err != nil {
		log.Warn("systemd cannot be told the state of this program", "state", state, "error", err.Error())
	}
}
