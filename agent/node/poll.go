package node

import (
	"context"
	"time"

	"google.golang.org/protobuf/types/known/durationpb"
	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/cassandra-security-manager/csm/agent/install"
	"github.com/cassandra-security-manager/csm/agent/reload"
	agentv1 "github.com/cassandra-security-manager/csm/protocol/agent/v1"
)

// polled is the Reloader where nothing reloads but Cassandra's own poll.
type polled struct{}

func (polled) Reload(context.Context) (reload.Output, error) { return reload.Output{}, nil }

// pollWait is a move that waits for Cassandra's poll.
type pollWait struct {
	store string
	until time.Time
}

// reloader is what the installer reloads by.
func (n *Node) reloader() noting {
	if n.o.Instance.Reload.Polls() {
		return noting{polled{}, n}
	}
	return noting{n.o.Reloader, n}
}

// awaitsPoll is told by the installer, in the deciding goroutine, at the begin of a wait, at each look and at its end.
func (n *Node) awaitsPoll(store string, until time.Time) {
	n.waits = pollWait{store, until}
	if store != "" {
		n.note(store, Action{Do: Wait, Wants: Install, Reason: "poll-awaited",
			Message: "the files are written; waits for Cassandra's own look at its files, at most until " + until.UTC().Format(time.RFC3339), Again: until})
	}
	n.prepareHello()
	n.tell()
	n.publish()
}

// reloadFacts are for the controllers, which give a node that waits for its Cassandra more time.
func (n *Node) reloadFacts() *agentv1.ReloadFacts {
	r := n.o.Instance.Reload
	f := &agentv1.ReloadFacts{Way: r.Way}
	switch {
	case len(r.Command) > 0:
		f.Way = "command"
	case r.Way == "":
		f.Way = string(reload.Auto)
	}
	if r.Polls() {
		f.Within = durationpb.New(install.PollBound)
	}
	if n.waits.store != "" {
		f.Waits, f.Until = n.waits.store, timestamppb.New(n.waits.until)
	}
	return f
}
