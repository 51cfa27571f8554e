package server

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"io"
	"log/slog"
	"net"
	"os"
	"slices"
	"sync"
	"time"

	"github.com/hashicorp/raft"

	"github.com/cassandra-security-manager/csm/controller/consensus"
	"github.com/cassandra-security-manager/csm/controller/consensus/members"
	"github.com/cassandra-security-manager/csm/controller/keyring"
	"github.com/cassandra-security-manager/csm/controller/state"
	clusterv1 "github.com/cassandra-security-manager/csm/protocol/cluster/v1"
	"github.com/cassandra-security-manager/csm/shared/fault"
	"github.com/cassandra-security-manager/csm/shared/owner"
)

// RecoverPlan says what a recovery would do and what may be lost by it.
type RecoverPlan struct {
	SystemID   string `json:"systemId"`
	Controller string `json:"controller"`
	// Applied is the newest entry in the state of this controller; Last is the newest in its log. Entries between were not
	// yet known to be acknowledged here: they are kept.
	Applied uint64 `json:"applied"`
	Last    uint64 `json:"last"`
	// Newest is when the newest applied entry was written. Whatever the others acknowledged after Last is lost.
	Newest time.Time `json:"newestTime"`
	// ShutOut are the controllers that may never come back with the keys they have.
	ShutOut []string `json:"shutOut"`
	// Answering are those of them that take connections.
	Answering []string `json:"answering"`
	Hash      string   `json:"plan"`
}

func (p RecoverPlan) hash() string {
	p.Hash, p.Answering = "", nil
	b, _ := json.Marshal(p) // of strings and numbers: cannot fail
	sum := sha256.Sum256(b)
	return hex.EncodeToString(sum[:8])
}

const recoverer = "recover"

// salvage is a stopped controller, opened for a recovery.
type salvage struct {
	cfg  Config
	dir  dataDir
	in   installation
	ccfg consensus.Config
	kek  *keyring.KEK
	log  *slog.Logger
}

func openSalvage(ctx context.Context, cfg Config, log *slog.Logger) (*salvage, error) {
	if err := owner.Check(cfg.DataDir); err != nil {
		return nil, err
	}
	s := &salvage{cfg: cfg, dir: dataDir(cfg.DataDir), log: log}
	var err error
	if s.in, err = s.dir.installation(); err != nil {
		return nil, err
	}
	if conn, err := net.DialTimeout("unix", s.dir.socket(), time.Second); err == nil {
		conn.Close()
		return nil, fault.New(fault.Refused, "still-running", "the controller of %s runs", s.dir).Do("stop it first: systemctl stop csm-controller")
	}
	id, err := openIdentity(s.dir)
	if err != nil {
		return nil, err
	}
	sealer, err := cfg.sealer()
	if err != nil {
		return nil, err
	}
	if s.kek, err = keyring.LoadKEK(s.dir.path("kek"), sealer); err != nil {
		return nil, err
	}
	if s.ccfg, err = consensusConfig(cfg, s.in, id, s.kek, nil, log); err != nil {
		return nil, err
	}
	// The start-up rules decide whether this log and this state can be trusted at all.
	_, err = consensus.Prepare(ctx, s.ccfg)
	return s, err
}

// PlanRecover says what Recover would do. It changes nothing that a start would not change.
func PlanRecover(ctx context.Context, cfg Config, log *slog.Logger) (RecoverPlan, error) {
	s, err := openSalvage(ctx, cfg, log)
	if err != nil {
		return RecoverPlan{}, err
	}
	_, plan, err := s.plan(ctx)
	return plan, err
}

func (s *salvage) plan(ctx context.Context) (self *members.Member, p RecoverPlan, err error) {
	p = RecoverPlan{SystemID: s.in.SystemID, Controller: s.in.Name, ShutOut: []string{}, Answering: []string{}}
	store, err := openStore(ctx, s.cfg, s.in, nil, s.log)
	if err != nil {
		return nil, p, err
	}
	defer func() { err = errors.Join(err, store.Close()) }()
	p.Applied, p.Newest = store.Applied(), store.Now()
	if p.Last, err = consensus.Tail(string(s.dir), p.Applied, func(*raft.Log) error { return nil }); err != nil {
		return nil, p, err
	}
	p.Last = max(p.Last, p.Applied)
	var all []members.Member
	err = store.View(ctx, func(ctx context.Context, q state.Querier) (err error) {
		all, err = members.List(ctx, q)
		return err
	})
	if err != nil {
		return nil, p, err
	}
	voters := 0
	var others []members.Member
	for _, m := range all {
		if m.State == members.Unsealed {
			voters++
		}
		if m.ID == s.in.NodeID {
			self = &m
		} else {
			others = append(others, m)
			p.ShutOut = append(p.ShutOut, m.Name)
		}
	}
	if self == nil || self.State != members.Unsealed {
		return nil, p, fault.New(fault.Refused, "not-a-member", "%s does not hold the keys of the system", s.in.Name).Do("recover on another controller, or restore a backup: csm-controller snapshot restore")
	}
	if len(others) == 0 {
		return nil, p, fault.New(fault.Refused, "nothing-to-recover", "%s is the only controller and needs nobody else", s.in.Name).Do("start it: csm-controller run")
	}
	p.Answering = answering(ctx, others)
	if 1+len(p.Answering) > voters/2 {
		return nil, p, fault.New(fault.Refused, "majority-answers", "%v take connections: with this one they are a majority, and nothing is lost", p.Answering).
			Do("start this controller: csm-controller run. If they are really to be given up, stop them first")
	}
	p.Hash = p.hash()
	return self, p, nil
}

// answering are those members whose cluster port takes a connection.
func answering(ctx context.Context, others []members.Member) []string {
	var mu sync.Mutex
	var wg sync.WaitGroup
	out := []string{}
	for _, m := range others {
		wg.Add(1)
		go func() {
			defer wg.Done()
			conn, err := (&net.Dialer{Timeout: 2 * time.Second}).DialContext(ctx, "tcp", m.Address)
			if err != nil {
				return
			}
			conn.Close()
			mu.Lock()
			defer mu.Unlock()
			out = append(out, m.Name)
		}()
	}
	wg.Wait()
	slices.Sort(out)
	return out
}

// RecoverResult says what came of a recovery.
type RecoverResult struct {
	RecoverPlan
	Era uint64 `json:"era"`
}

// Recover makes this controller go on alone with the state it has, when the majority is gone for good. hash is that of the plan
// it was shown. Until its last step, which is one rename, everything is as it was: interrupted, it is simply run again.
func Recover(ctx context.Context, cfg Config, hash string, log *slog.Logger) (res RecoverResult, err error) {
	s, err := openSalvage(ctx, cfg, log)
	if err != nil {
		return res, err
	}
	self, plan, err := s.plan(ctx)
	res.RecoverPlan = plan
	if err != nil {
		return res, err
	}
	if hash != plan.Hash {
		return res, fault.New(fault.Stale, "plan-hash", "the plan %.40q is not what would be done now (%s)", hash, plan.Hash).Do("look at it again: csm-controller recover --dry-run")
	}
	scratch, err := s.copyState(ctx)
	if err != nil {
		return res, err
	}
	term, err := consensus.Term(string(s.dir))
	if err != nil {
		return res, err
	}
	r, err := beget(ctx, cfg, s.in, scratch, s.kek, s.in.Name, term, log)
	if err != nil {
		return res, err
	}
	defer r.store.Close()
	if err := s.replay(r.store); err != nil {
		return res, err
	}
	p := self.Proto()
	p.Address, p.Region, p.Zone = cfg.ClusterAddress(), cfg.Region, cfg.Zone
	era, err := r.begin(ctx, []*clusterv1.Member{p}, "recover", nil, recoverer)
	if err != nil {
		return res, err
	}
	res.Era = era.Era
	if err := r.plant(ctx, s.dir, s.ccfg); err != nil {
		return res, err
	}
	return res, os.RemoveAll(scratch)
}

// copyState copies the state of this controller into an empty folder.
func (s *salvage) copyState(ctx context.Context) (scratch string, err error) {
	if scratch, err = s.dir.scratch(); err != nil {
		return "", err
	}
	store, err := openStore(ctx, s.cfg, s.in, nil, s.log)
	if err != nil {
		return "", err
	}
	defer func() { err = errors.Join(err, store.Close()) }()
	pinned, err := store.Pin()
	if err != nil {
		return "", err
	}
	defer pinned.Release()
	in, out := io.Pipe()
	go func() {
		_, err := pinned.Write(out)
		out.CloseWithError(err)
	}()
	_, err = state.RestoreFile(ctx, scratch, in)
	in.CloseWithError(err)
	return scratch, err
}

// replay applies what the log holds beyond the state: an entry that a majority acknowledged may be among them.
func (s *salvage) replay(store *state.Store) error {
	var batch []*raft.Log
	flush := func() {
		if len(batch) > 0 {
			store.ApplyBatch(batch)
			batch = nil
		}
	}
	_, err := consensus.Tail(string(s.dir), store.Applied(), func(l *raft.Log) error {
		e := *l
		if batch = append(batch, &e); len(batch) == 512 {
			flush()
		}
		return nil
	})
	flush()
	return err
}
