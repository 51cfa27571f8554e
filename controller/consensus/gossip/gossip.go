// Package gossip runs hashicorp/memberlist over our TLS streams: no UDP, no key of its own. What it says is a hint (who was
// heard of, under which id, with which epoch), never an authority: the members table and raft decide.
package gossip

import (
	"context"
	"encoding/json"
	"io"
	"log"
	"log/slog"
	"net"
	"strconv"
	"sync"
	"time"

	"github.com/hashicorp/memberlist"
)

// MaxMeta bounds what a controller says of itself.
const MaxMeta = 512

// Meta is what a controller says of itself.
type Meta struct {
	ID string `json:"id"`
	// Epoch is when it started, unix milliseconds: two of one id show a copied data folder.
	Epoch uint64 `json:"epoch"`
	// Hash of the members table as it has it.
	Hash string `json:"hash,omitempty"`
}

// Config of a Gossip.
type Config struct {
	Name, ID, Advertise string
	Epoch               uint64
	WAN                 bool
	Logger              *slog.Logger
	// Listener gives connections of members; Dial makes one to a member by name.
	Listener net.Listener
	Dial     func(ctx context.Context, name string) (net.Conn, error)
}

// Gossip is this controller's ear.
type Gossip struct {
	list  *memberlist.Memberlist
	trans *wire
	stop  context.CancelFunc
	done  chan struct{}
	// changed has room for one word.
	changed chan struct{}

	mu    sync.Mutex
	peers map[string]string
	meta  Meta
}

// Start begins to listen and to talk.
func Start(c Config) (*Gossip, error) {
	g := &Gossip{meta: Meta{ID: c.ID, Epoch: c.Epoch}, done: make(chan struct{}), changed: make(chan struct{}, 1)}
	host, port, err := net.SplitHostPort(c.Advertise)
	if err != nil {
		return nil, err
	}
	number, err := strconv.Atoi(port)
	if err != nil {
		return nil, err
	}
	ctx, stop := context.WithCancel(context.Background())
	g.stop = stop
	g.trans = newWire(ctx, c, resolve(ctx, host), number)
	conf := memberlist.DefaultLANConfig()
	if c.WAN {
		conf = memberlist.DefaultWANConfig()
	}
	conf.Name, conf.Transport, conf.Delegate, conf.Events = c.Name, g.trans, g, g
	conf.BindAddr, conf.BindPort, conf.AdvertisePort = "127.0.0.1", number, number
	conf.AdvertiseAddr = g.trans.ip.String()
	conf.EnableCompression = false
	conf.GossipInterval = time.Second
	conf.DisableTcpPings = true // packets are streams already
	conf.DeadNodeReclaimTime = time.Second
	conf.RequireNodeNames = true
	conf.Logger = log.New(lines{c.Logger}, "", 0)
	if g.list, err = memberlist.Create(conf); err != nil {
		stop()
		return nil, err
	}
	go g.meet(ctx)
	return g, nil
}

// resolve gives memberlist the address it insists on; connections are dialled by name through the members table.
func resolve(ctx context.Context, host string) net.IP {
	if ip := net.ParseIP(host); ip != nil {
		return ip
	}
	ctx, cancel := context.WithTimeout(ctx, 2*time.Second)
	defer cancel()
	if ips, err := net.DefaultResolver.LookupIPAddr(ctx, host); err == nil && len(ips) > 0 {
		return ips[0].IP
	}
	return net.IPv4(127, 0, 0, 1)
}

// Peers says who the other members are and where.
func (g *Gossip) Peers(addresses map[string]string) {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.peers = addresses
}

// meet joins members that gossip has not heard of.
func (g *Gossip) meet(ctx context.Context) {
	defer close(g.done)
	every := time.NewTicker(2 * time.Second)
	defer every.Stop()
	for {
		heard := map[string]bool{}
		for _, m := range g.list.Members() {
			heard[m.Name] = true
		}
		g.mu.Lock()
		peers := g.peers
		g.mu.Unlock()
		for name := range peers {
			if !heard[name] && ctx.Err() == nil {
				// The address only has to be one: the transport dials by name.
				g.list.Join([]string{name + "/" + net.JoinHostPort(g.trans.ip.String(), strconv.Itoa(g.trans.port))})
			}
		}
		select {
		case <-every.C:
		case <-ctx.Done():
			return
		}
	}
}

// Heard is who gossip believes alive, with what they say of themselves.
func (g *Gossip) Heard() map[string]Meta {
	out := map[string]Meta{}
	for _, m := range g.list.Members() {
		var meta Meta
		if json.Unmarshal(m.Meta, &meta) == nil {
			out[m.Name] = meta
		}
	}
	return out
}

// Changed gets a word when what Heard tells has changed; one word may stand for many changes.
func (g *Gossip) Changed() <-chan struct{} { return g.changed }

func (g *Gossip) tell() {
	select {
	case g.changed <- struct{}{}:
	default:
	}
}

// NotifyJoin implements memberlist.EventDelegate.
func (g *Gossip) NotifyJoin(*memberlist.Node) { g.tell() }

// NotifyLeave implements memberlist.EventDelegate.
func (g *Gossip) NotifyLeave(*memberlist.Node) { g.tell() }

// NotifyUpdate implements memberlist.EventDelegate.
func (g *Gossip) NotifyUpdate(*memberlist.Node) { g.tell() }

// Close leaves without waiting and stops.
func (g *Gossip) Close() error {
	g.stop()
	<-g.done
	return g.list.Shutdown()
}

// NodeMeta implements memberlist.Delegate.
func (g *Gossip) NodeMeta(limit int) []byte {
	b, err := json.Marshal(g.meta)
	if err != nil || len(b) > min(limit, MaxMeta) {
		return nil
	}
	return b
}

// The rest of memberlist.Delegate: nothing rides on gossip.
func (*Gossip) NotifyMsg([]byte)                {}
func (*Gossip) GetBroadcasts(int, int) [][]byte { return nil }
func (*Gossip) LocalState(bool) []byte          { return nil }
func (*Gossip) MergeRemoteState([]byte, bool)   {}

type lines struct{ log *slog.Logger }

func (w lines) Write(b []byte) (int, error) {
	w.log.Debug("gossip: " + string(b))
	return len(b), nil
}

var _ io.Writer = lines{}
