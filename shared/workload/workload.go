// Package workload keeps a Cassandra ring busy as applications do, and counts every failure that they would see.
//
// It writes and reads at QUORUM over TLS with a client certificate, checks each read against what was written, keeps
// long-lived connections, and opens new ones all the time, because a certificate is only looked at when a connection
// begins. Nothing is retried: an error that a retry would hide is an error.
package workload

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"sync"
	"time"

	gocql "github.com/apache/cassandra-gocql-driver/v2"
)

// Options of a load.
type Options struct {
	// Hosts are the addresses of the nodes that are asked: all of a ring, or those of one data centre.
	Hosts []string
	// Keyspace is the load's own; two loads on a ring have two. Default "load".
	Keyspace string
	// Own refuses a keyspace that is there already: it is made by this load, so that it may Drop it.
	Own bool
	// Replication is how many replicas each data centre has. Default: one on each host, all of them in dc1.
	Replication map[string]int
	// Datacenter is that of an application that keeps to its own: LOCAL_QUORUM there instead of QUORUM everywhere.
	Datacenter string
	// Port of CQL on each of the hosts. Default 9042.
	Port int
	// User and Password, where the ring asks for a login.
	User, Password string
	// TLS holds the client certificate and the roots; it is asked at each new connection, so that both may change.
	TLS func() *tls.Config
	// Workers share one long-lived session; each does a write and a read in turn. Default 8.
	Workers int
	// Rate is the number of queries a second over all workers. Default 200.
	Rate int
	// NewSessions is how many sessions a second are opened anew, used for a write and a read, and closed. Each makes
	// two connections. Default 2.
	NewSessions int
}

// Load is a running workload.
type Load struct {
	o      Options
	cancel context.CancelFunc
	done   sync.WaitGroup

	// long guards the long-lived session: who uses it holds it for reading.
	long    sync.RWMutex
	session *gocql.Session

	// made: the keyspace is there because this load asked for it.
	made bool

	// run ends when the load does: what fails because of that is no failure of the ring.
	run context.Context

	mu    sync.Mutex
	now   counts
	begin time.Time
}

type counts struct {
	at                                      time.Time
	reads, writes, connections, failed, bad uint64
	latency                                 histogram
	errors                                  map[string]uint64
}

// Mark is a moment of a load, for Since.
type Mark struct{ counts }

// Report is what happened in a time.
type Report struct {
	Took time.Duration
	// Queries are reads and writes that were sent; Connections those opened in this time.
	Queries, Reads, Writes, Connections uint64
	// Failed counts errors of queries and connections, and reads that did not give what was written (Wrong).
	Failed, Wrong uint64
	P50, P99, Max time.Duration
	// Errors counts by text.
	Errors map[string]uint64
}

// Start makes the keyspace and begins. It fails if the ring does not take a first write and read within ctx.
func Start(ctx context.Context, o Options) (*Load, error) {
	if o.Workers == 0 {
		o.Workers = 8
	}
	if o.Rate == 0 {
		o.Rate = 200
	}
	if o.NewSessions == 0 {
		o.NewSessions = 2
	}
	if o.Keyspace == "" {
		o.Keyspace = "load"
	}
	if o.Replication == nil {
		o.Replication = map[string]int{"dc1": len(o.Hosts)}
	}
	l := &Load{o: o, now: counts{errors: map[string]uint64{}}}
	l.run, l.cancel = context.WithCancel(context.WithoutCancel(ctx))
	if err := l.open(ctx); err != nil {
		l.cancel()
		return nil, errors.Join(err, l.unmake(ctx))
	}
	for w := range o.Workers {
		l.done.Go(func() { l.worker(w) })
	}
	l.done.Go(l.newcomers)
	return l, nil
}

// unmake removes a keyspace of the load's own that a start has made in vain.
func (l *Load) unmake(ctx context.Context) error {
	if !l.o.Own || !l.made {
		return nil
	}
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), 10*time.Second)
	defer cancel()
	s, err := l.cluster(l.o.Hosts).CreateSession()
	if err != nil {
		return fmt.Errorf("keyspace %s is left: %w", l.o.Keyspace, err)
	}
	l.session = s
	defer hangUp(s)
	return l.Drop(ctx)
}

// open waits for a ring that has just started: all replicas must answer before the load may count errors.
func (l *Load) open(ctx context.Context) error {
	var last error
	for ctx.Err() == nil {
		last = l.tryOpen(ctx)
		if errors.Is(last, ErrKeyspace) {
			return last
		}
		if last == nil {
			l.mu.Lock()
			l.now, l.begin = counts{errors: map[string]uint64{}}, time.Now()
			l.mu.Unlock()
			return nil
		}
		select {
		case <-ctx.Done():
		case <-time.After(300 * time.Millisecond):
		}
	}
	return fmt.Errorf("the ring takes no load: %w", last)
}

func (l *Load) tryOpen(ctx context.Context) error {
	s, err := l.cluster(l.o.Hosts).CreateSession()
	if err != nil {
		return err
	}
	if err := l.schema(ctx, s); err != nil {
		hangUp(s)
		return err
	}
	k := &key{keyspace: l.o.Keyspace, worker: -1}
	if err := k.write(ctx, s, gocql.All); err != nil {
		hangUp(s)
		return err
	}
	if _, err := k.read(ctx, s, gocql.All); err != nil {
		hangUp(s)
		return err
	}
	l.session = s
	return nil
}

// ErrKeyspace says that a keyspace of that name is there, and may be anybody's.
var ErrKeyspace = errors.New("a keyspace of this name is there already")

// schema makes keyspace and table.
func (l *Load) schema(ctx context.Context, s *gocql.Session) error {
	unless := "IF NOT EXISTS "
	if l.o.Own && !l.made {
		unless = ""
	}
	err := s.Query(fmt.Sprintf(`CREATE KEYSPACE %s%s WITH replication = {'class': 'NetworkTopologyStrategy'%s}`, unless, l.o.Keyspace, replicas(l.o.Replication))).Consistency(gocql.All).ExecContext(ctx)
	if exists := (*gocql.RequestErrAlreadyExists)(nil); errors.As(err, &exists) {
		return fmt.Errorf("%w: %s", ErrKeyspace, l.o.Keyspace)
	}
	if err != nil {
		return err
	}
	l.made = true
	return s.Query(fmt.Sprintf(`CREATE TABLE IF NOT EXISTS %s.kv (worker int, slot int, seq bigint, body blob, PRIMARY KEY ((worker, slot)))`, l.o.Keyspace)).Consistency(gocql.All).ExecContext(ctx)
}

// replicas is the part of a replication's map that names the data centres, in their order.
func replicas(of map[string]int) string {
	var b strings.Builder
	for _, dc := range slices.Sorted(maps.Keys(of)) {
		fmt.Fprintf(&b, ", '%s': %d", dc, of[dc])
	}
	return b.String()
}

// quorum is what the load reads and writes at.
func (l *Load) quorum() gocql.Consistency {
	if l.o.Datacenter != "" {
		return gocql.LocalQuorum
	}
	return gocql.Quorum
}

func (l *Load) cluster(hosts []string) *gocql.ClusterConfig {
	c := gocql.NewCluster(hosts...)
	c.ProtoVersion = 5
	c.Consistency = l.quorum()
	c.NumConns = 2
	c.Timeout, c.ConnectTimeout = 5*time.Second, 5*time.Second
	c.RetryPolicy = nil
	c.ReconnectInterval = time.Second
	c.Metadata.CacheMode = gocql.Disabled
	c.PoolConfig.HostSelectionPolicy = gocql.RoundRobinHostPolicy()
	if l.o.Datacenter != "" { // the driver would else connect to every host that it hears of
		c.HostFilter = gocql.WhiteListHostFilter(hosts...)
	}
	if l.o.Port != 0 {
		c.Port = l.o.Port
	}
	if l.o.User != "" {
		c.Authenticator = gocql.PasswordAuthenticator{Username: l.o.User, Password: l.o.Password}
	}
	c.Logger = silent{}
	c.HostDialer = dialer{l}
	return c
}

// Mark remembers this moment.
func (l *Load) Mark() Mark {
	l.mu.Lock()
	defer l.mu.Unlock()
	m := Mark{l.now}
	m.at, m.errors = time.Now(), maps.Clone(l.now.errors)
	return m
}

// Since reports what happened after a mark.
func (l *Load) Since(m Mark) Report { return l.Mark().Sub(m) }

// Sub reports what happened between an earlier mark and this one.
func (m Mark) Sub(earlier Mark) Report {
	h := m.latency.minus(&earlier.latency)
	r := Report{
		Took: m.at.Sub(earlier.at), Reads: m.reads - earlier.reads, Writes: m.writes - earlier.writes,
		Connections: m.connections - earlier.connections, Failed: m.failed - earlier.failed, Wrong: m.bad - earlier.bad,
		P50: h.quantile(0.5), P99: h.quantile(0.99), Max: h.quantile(1), Errors: map[string]uint64{},
	}
	r.Queries = r.Reads + r.Writes
	for text, n := range m.errors {
		if n -= earlier.errors[text]; n > 0 {
			r.Errors[text] = n
		}
	}
	return r
}

// Begin is the mark of the load's start.
func (l *Load) Begin() Mark { return Mark{counts{at: l.begin, errors: map[string]uint64{}}} }

// Reconnect makes the long-lived connections anew, as an application does whose instances are restarted one by one: queries under
// way end over the old ones.
func (l *Load) Reconnect() error {
	s, err := l.cluster(l.o.Hosts).CreateSession()
	if err != nil {
		return err
	}
	l.long.Lock()
	old := l.session
	l.session = s
	l.long.Unlock()
	hangUp(old)
	return nil
}

// Drop removes the keyspace; the load must have been paused.
func (l *Load) Drop(ctx context.Context) error {
	l.long.RLock()
	defer l.long.RUnlock()
	return l.session.Query(`DROP KEYSPACE IF EXISTS ` + l.o.Keyspace).Consistency(gocql.All).ExecContext(ctx)
}

// Pause lets the load send nothing more; its connections stay until Stop.
func (l *Load) Pause() {
	l.cancel()
	l.done.Wait()
}

// Stop ends the load and closes its connections.
func (l *Load) Stop() {
	l.cancel()
	l.done.Wait()
	hangUp(l.session)
}

// hangUp closes a session, and stops waiting for that after a while: Close of gocql 2.1.2 never returns if the control
// connection is just then made anew, for it waits for an answer of the schema refresher that Close has stopped.
func hangUp(s *gocql.Session) {
	closed := make(chan struct{})
	go func() {
		s.Close()
		close(closed)
	}()
	select {
	case <-closed:
	case <-time.After(5 * time.Second):
	}
}
