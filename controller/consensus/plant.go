package consensus

import (
	"errors"
	"fmt"
	"io"

	"github.com/hashicorp/raft"

	"github.com/cassandra-security-manager/csm/controller/consensus/startup"
	"github.com/cassandra-security-manager/csm/controller/consensus/wal"
)

// Seed is a state from which a quorum of one controller goes on.
type Seed struct {
	DataDir, NodeID, Advertise string
	// Index and Term of the newest entry in the state.
	Index, Term uint64
	// Write streams the state in the form of a snapshot.
	Write func(io.Writer) error
}

// Plant puts a state into the data folder of a controller that is not running, as a raft snapshot whose only voter it is. The
// rename of the snapshot is the moment at which it counts: a crash before it leaves everything as it was, after it the rules
// of the next start empty the log and take the state out of the snapshot. Prepare does that at once.
func Plant(s Seed) (err error) {
	log, err := wal.Open(startup.LogDir(s.DataDir), nil)
	if err != nil {
		return err
	}
	// A term that nobody voted in: votes of before do not count, and terms in the log go up.
	term, err := log.GetUint64(termKey)
	if err == nil && term < s.Term {
		err = log.SetUint64(termKey, s.Term)
	}
	if err = errors.Join(err, log.Close()); err != nil {
		return fmt.Errorf("plant a state: %w", err)
	}
	snaps, err := startup.Snapshots(s.DataDir, nil)
	if err != nil {
		return err
	}
	_, codec := raft.NewInmemTransport("") // only its encoding of addresses is asked for
	conf := raft.Configuration{Servers: []raft.Server{{Suffrage: raft.Voter, ID: raft.ServerID(s.NodeID), Address: raft.ServerAddress(s.Advertise)}}}
	sink, err := snaps.Create(raft.SnapshotVersionMax, s.Index, s.Term, conf, s.Index, codec)
	if err != nil {
		return fmt.Errorf("plant a state: %w", err)
	}
	if err := s.Write(sink); err != nil {
		return errors.Join(err, sink.Cancel())
	}
	return sink.Close()
}

var termKey = []byte("CurrentTerm")

// Term is the newest term that the log or the votes of a controller that is not running know.
func Term(dataDir string) (uint64, error) {
	log, err := wal.Open(startup.LogDir(dataDir), nil)
	if err != nil {
		return 0, err
	}
	defer log.Close()
	return log.GetUint64(termKey)
}

// Tail hands over the entries of a log after an index, in order, with the newest snapshot's and the log's last index: what a
// controller that is not running holds beyond its state.
func Tail(dataDir string, after uint64, take func(*raft.Log) error) (last uint64, err error) {
	log, err := wal.Open(startup.LogDir(dataDir), nil)
	if err != nil {
		return 0, err
	}
	defer log.Close()
	if last, err = log.LastIndex(); err != nil {
		return last, err
	}
	first, err := log.FirstIndex()
	if err != nil {
		return last, err
	}
	for i := max(after+1, first); i <= last && last > 0; i++ {
		var l raft.Log
		if err := log.GetLog(i, &l); err != nil {
			return last, err
		}
		if err := take(&l); err != nil {
			return last, err
		}
	}
	return last, nil
}
