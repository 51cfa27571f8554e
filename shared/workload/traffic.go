package workload

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"time"

	gocql "github.com/apache/cassandra-gocql-driver/v2"
)

// key is one row and what it must hold.
type key struct {
	keyspace     string
	worker, slot int
	seq          int64
	// doubtful is set when a write failed: it may or may not have been applied, so either value is right.
	doubtful bool
}

func (k *key) body() []byte {
	return bytes.Repeat(binary.BigEndian.AppendUint64(nil, uint64(k.seq)*uint64(k.slot+1)), 16)
}

func (k *key) write(ctx context.Context, s *gocql.Session, c gocql.Consistency) error {
	k.seq++
	err := s.Query(`INSERT INTO `+k.keyspace+`.kv (worker, slot, seq, body) VALUES (?, ?, ?, ?)`, k.worker, k.slot, k.seq, k.body()).
		Consistency(c).ExecContext(ctx)
	k.doubtful = err != nil
	return err
}

var errWrong = errors.New("the row does not hold what was written last")

func (k *key) read(ctx context.Context, s *gocql.Session, c gocql.Consistency) (wrong bool, err error) {
	var seq int64
	var body []byte
	err = s.Query(`SELECT seq, body FROM `+k.keyspace+`.kv WHERE worker = ? AND slot = ?`, k.worker, k.slot).Consistency(c).ScanContext(ctx, &seq, &body)
	if err != nil || k.doubtful {
		return false, err
	}
	if seq != k.seq || !bytes.Equal(body, k.body()) {
		return true, fmt.Errorf("%w: row %d of worker %d holds write %d instead of %d", errWrong, k.slot, k.worker, seq, k.seq)
	}
	return false, nil
}

const slots = 64

// worker writes a row and reads it back, over long-lived connections.
func (l *Load) worker(w int) {
	pair := time.NewTicker(2 * time.Second * time.Duration(l.o.Workers) / time.Duration(l.o.Rate))
	defer pair.Stop()
	var keys [slots]key
	for i := 0; ; i++ {
		select {
		case <-l.run.Done():
			return
		case <-pair.C:
		}
		k := &keys[i%slots]
		k.keyspace, k.worker, k.slot = l.o.Keyspace, w, i%slots
		l.long.RLock()
		l.pair(l.session, k)
		l.long.RUnlock()
	}
}

// pair counts a write and a read.
func (l *Load) pair(s *gocql.Session, k *key) {
	began := time.Now()
	err := k.write(l.run, s, l.quorum())
	l.count(&l.now.writes, time.Since(began), false, err)
	began = time.Now()
	wrong, err := k.read(l.run, s, l.quorum())
	if k.doubtful && errors.Is(err, gocql.ErrNotFound) {
		err = nil
	}
	l.count(&l.now.reads, time.Since(began), wrong, err)
}

// newcomers open a session to one node after the other, use it and close it.
func (l *Load) newcomers() {
	tick := time.NewTicker(time.Second / time.Duration(l.o.NewSessions))
	defer tick.Stop()
	// As many workers as hosts, behind those with long-lived connections, so that no two share a row.
	keys := make([]key, len(l.o.Hosts))
	for i := 0; ; i++ {
		select {
		case <-l.run.Done():
			return
		case <-tick.C:
		}
		k := &keys[i%len(keys)]
		k.keyspace, k.worker, k.slot = l.o.Keyspace, 1000+i%len(keys), 0
		l.newcomer(l.o.Hosts[i%len(keys)], k)
	}
}

func (l *Load) newcomer(host string, k *key) {
	c := l.cluster([]string{host})
	c.HostFilter = gocql.WhiteListHostFilter(host)
	c.NumConns = 1
	c.ReconnectInterval = 0
	s, err := c.CreateSession()
	if err != nil {
		l.fail(fmt.Errorf("new session to %s: %w", host, err))
		return
	}
	defer hangUp(s)
	l.pair(s, k)
}

func (l *Load) count(kind *uint64, took time.Duration, wrong bool, err error) {
	if l.run.Err() != nil {
		return
	}
	l.mu.Lock()
	*kind++
	l.now.latency.add(took)
	if wrong {
		l.now.bad++
	}
	l.mu.Unlock()
	if err != nil {
		l.fail(err)
	}
}

func (l *Load) fail(err error) {
	if l.run.Err() != nil {
		return
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	l.now.failed++
	text := err.Error()
	if _, known := l.now.errors[text]; !known && len(l.now.errors) >= 200 {
		text = "other errors"
	}
	l.now.errors[text]++
}

// dialer builds the TLS configuration anew for each connection, so that a renewed client certificate and a changed
// bundle are used at once. A connection that cannot be opened is a failure, also one that the driver opens by itself.
type dialer struct{ l *Load }

func (d dialer) DialHost(ctx context.Context, h *gocql.HostInfo) (*gocql.DialedHost, error) {
	var host *gocql.DialedHost
	conn, err := (&net.Dialer{Timeout: 5 * time.Second}).DialContext(ctx, "tcp", h.ConnectAddressAndPort())
	if err == nil {
		host, err = gocql.WrapTLS(ctx, conn, h.ConnectAddressAndPort(), d.l.o.TLS())
	}
	if err != nil {
		if !errors.Is(ctx.Err(), context.Canceled) { // the session that wanted it was closed by us meanwhile: nobody's failure
			d.l.fail(fmt.Errorf("connection to %s: %w", h.ConnectAddress(), err))
		}
		return nil, err
	}
	d.l.mu.Lock()
	d.l.now.connections++
	d.l.mu.Unlock()
	return host, nil
}

// silent keeps the driver's own log out: what matters is counted.
type silent struct{}

func (silent) Error(string, ...gocql.LogField)   {}
func (silent) Warning(string, ...gocql.LogField) {}
func (silent) Info(string, ...gocql.LogField)    {}
func (silent) Debug(string, ...gocql.LogField)   {}
