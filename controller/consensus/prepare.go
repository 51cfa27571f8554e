package consensus

import (
	"context"
	"log/slog"

	"github.com/cassandra-security-manager/csm/controller/consensus/startup"
)

// Prepare runs the rules of package startup over a data folder: call it before state.Open, and with an error do not go on.
// Of cfg it reads DataDir, ClusterID, NodeID and Logger. The state it leaves was read whole if need be: state.Options.Checked.
func Prepare(ctx context.Context, cfg Config) (startup.Report, error) {
	if cfg.Logger == nil {
		cfg.Logger = slog.New(slog.DiscardHandler)
	}
	return startup.Prepare(ctx, cfg.DataDir, cfg.ClusterID, cfg.NodeID, cfg.Logger)
}
