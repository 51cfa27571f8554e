package node

import (
	"bytes"
	"context"
	"log/slog"

	"github.com/cassandra-security-manager/csm/agent/cassandra"
	"github.com/cassandra-security-manager/csm/shared/fault"
)

// forgetKept removes what was kept of another CA's leaf when the controllers say, of exactly that leaf, that nobody wants it back.
func (n *Node) forgetKept(ctx context.Context, s *cassandra.Store) {
	t := n.targetOf(s.Name)
	if !t.GetKeptDone() {
		return
	}
	k, ok := n.installer.Kept(n.site(s))
	if !ok || !bytes.Equal(k.Leaf[:], t.KeptSha256) {
		return
	}
	if err := n.installer.Forget(ctx, n.site(s), k.Leaf); err != nil {
		level := slog.LevelWarn
		if fault.Is(err, fault.Refused) {
			level = slog.LevelDebug // held or frozen
		}
		n.log.Log(ctx, level, "what was kept of the certificate of before could not be removed; it is tried again", "store", s.Name, "path", k.Path, "reason", fault.From(err).Reason, "error", err)
		return
	}
	n.log.Info("what was kept of the certificate of before is removed: the take-over is at its end, or it is in service again", "store", s.Name, "path", k.Path)
}
