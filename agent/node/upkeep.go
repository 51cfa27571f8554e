package node

import (
	"context"
	"crypto/sha256"
	"log/slog"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/cassandra-security-manager/csm/agent/cassandra"
	"github.com/cassandra-security-manager/csm/agent/config"
	"github.com/cassandra-security-manager/csm/agent/join"
	"github.com/cassandra-security-manager/csm/agent/state"
	"github.com/cassandra-security-manager/csm/agent/sync"
	agentv1 "github.com/cassandra-security-manager/csm/protocol/agent/v1"
	"github.com/cassandra-security-manager/csm/shared/resource"
	"github.com/cassandra-security-manager/csm/shared/scan"
)

// renewIdentity renews the agent's own identity when its drawn time has come.
func (n *Node) renewIdentity(ctx context.Context) {
	id, now, own := n.folder.Identity(), n.now(), n.o.Clock.Now()
	n.mu.Lock()
	connected := n.online.Connected
	n.mu.Unlock()
	if id == nil || now.Before(id.RenewAt) && !n.renewalAsked(id) || own.Before(n.renewAt) {
		return
	}
	expired := now.After(id.Chain[0].NotAfter)
	if !connected && !expired {
		return
	}
	n.renewAt = own.Add(identityPause(n.renewTries, n.o.Jitter()))
	n.renewTries++
	var caller join.Caller = n.client
	if expired { // no stream opens for it, but within the grace it may still be renewed
		caller = sync.Apart{Controllers: n.o.Config.Controllers, TLS: sync.IdentityTLS(n.folder.Identity, n.now), Dialer: n.o.Dialer}
	}
	next, err := join.Renew(ctx, n.folder, caller, now, n.o.Jitter())
	if err != nil {
		n.notRenewed(id, expired, err)
		return
	}
	n.renewTries, n.renewSaid = 0, ""
	n.log.Info("identity renewed", "expires", next.Chain[0].NotAfter, "next", next.RenewAt)
	n.client.Reconnect()
}

// notRenewed says once why the identity is not renewed; what is said each few minutes for months is read by nobody.
func (n *Node) notRenewed(id *state.Identity, expired bool, err error) {
	level, said := slog.LevelDebug, sync.Kind(err)
	if said != n.renewSaid {
		level, n.renewSaid = slog.LevelWarn, said
		if expired {
			level = slog.LevelError
		}
	}
	if expired {
		n.log.Log(context.Background(), level, "the agent's identity has expired and was not renewed; it is asked for again every few minutes", "expired", id.Chain[0].NotAfter, "error", err, "do", expiredRemedy(id.Node))
		return
	}
	n.log.Log(context.Background(), level, "the agent's identity was not renewed", "expires", id.Chain[0].NotAfter, "error", err)
}

// expired says whether the agent's identity is over: then no stream opens, and only a renewal can help.
func (n *Node) expired() bool {
	id := n.folder.Identity()
	return id != nil && n.now().After(id.Chain[0].NotAfter)
}

const (
	firstIdentityPause = 10 * time.Second
	lastIdentityPause  = 5 * time.Minute
)

// identityPause is how long to wait after the given number of fruitless renewals of the identity. The first ones follow soon: a site that
// comes back is given its grace while its agents already ask. jitter is drawn from [0, 1).
func identityPause(tries int, jitter float64) time.Duration {
	p := min(firstIdentityPause<<min(tries, 16), lastIdentityPause)
	return time.Duration(float64(p) * (0.5 + 0.5*jitter))
}

// expiredRemedy is what brings an agent back whose identity has expired.
func expiredRemedy(node string) string {
	return "it is renewed by itself for 180 days after its end; later, `csm system grace --until 24h --reason '...'` lets every agent renew for a day; when that is refused: " +
		"`csm cluster join-command " + resource.Last(resource.Parent(node)) + "/" + resource.Last(node) +
		" --rejoin`, put the token into the file of join.file, remove identity.json from the state folder, and start csm-agent"
}

// inventory is when to scan, and what was told last.
type inventory struct {
	every time.Duration
	next  time.Time
	seen  [sha256.Size]byte
	told  bool
	// files is what the watched files looked like at the last scan.
	files [sha256.Size]byte
}

// maxInventory bounds one message, in certificates and in bytes (grpc refuses 4 MiB).
const (
	maxInventory      = 2000
	maxInventoryBytes = 3 << 20
)

// scan looks for certificates when it is time, when a store changed, or when a controller asks, and tells what is there if
// that has changed. It reads only.
func (n *Node) scan(ctx context.Context) {
	now := n.o.Clock.Now()
	n.mu.Lock()
	connected, asked := n.online.Connected, n.wantScan
	n.mu.Unlock()
	files := n.filesHash()
	if !connected || !asked && now.Before(n.inventory.next) && files == n.inventory.files {
		return
	}
	found, err := n.Scan(ctx)
	if err != nil {
		return
	}
	n.inventory.next, n.inventory.files = now.Add(n.inventory.every), files
	sum := inventorySum(found)
	if n.inventory.told && sum == n.inventory.seen && !asked {
		return
	}
	err = n.call(ctx, callFor, func(ctx context.Context, c agentv1.AgentServiceClient) error {
		_, err := c.ReportInventory(ctx, &agentv1.ReportInventoryRequest{Found: found})
		return err
	})
	if err != nil {
		n.log.Warn("the inventory was not taken", "error", err)
		n.inventory.next = now.Add(time.Minute)
		return
	}
	n.inventory.seen, n.inventory.told = sum, true
	n.mu.Lock()
	n.wantScan = false
	n.mu.Unlock()
	n.log.Info("inventory told", "certificates", len(found))
}

func (n *Node) filesHash() [sha256.Size]byte {
	h := sha256.New()
	for _, f := range n.stores {
		h.Write(f.KeystoreSha256)
		h.Write(f.TruststoreSha256)
		h.Write([]byte{0})
	}
	return [sha256.Size]byte(h.Sum(nil))
}

func inventorySum(found []*agentv1.FoundCertificate) [sha256.Size]byte {
	h := sha256.New()
	for _, f := range found {
		h.Write([]byte(f.Path + "\x00" + f.Entry + "\x00" + f.Format + "\x00" + f.Owner + "\x00" + itoa(int64(f.Mode))))
		h.Write(f.Der)
	}
	return [sha256.Size]byte(h.Sum(nil))
}

// Scan finds the certificates in the store folders, beside cassandra.yaml, and under the configured roots.
func (n *Node) Scan(ctx context.Context) ([]*agentv1.FoundCertificate, error) {
	r, err := scan.Files(ctx, ScanRoots(n.o.Config, n.o.Instance, n.inst), ScanOptions(n.o.Config, n.inst, n.o.Clock.Now()))
	if err != nil {
		return nil, err
	}
	var out []*agentv1.FoundCertificate
	size := 0
	for _, f := range r.Found {
		if size += len(f.DER) + len(f.Path) + 256; len(out) >= maxInventory || size > maxInventoryBytes {
			n.log.Warn("the inventory is cut off", "found", len(r.Found), "told", len(out))
			break
		}
		out = append(out, &agentv1.FoundCertificate{Der: f.DER, Path: clip(f.Path, 1024), Entry: clip(f.Entry, 256), Format: f.Format,
			HasPrivateKey: f.HasPrivateKey, Mode: uint32(f.Mode), Owner: clip(f.Owner, 128)})
	}
	for _, u := range r.Unread {
		n.log.Debug("a file was not read by the scan", "path", u.Path, "reason", u.Reason)
	}
	return out, nil
}

// ScanRoots are the files and folders in which certificates are looked for; inst may be nil.
func ScanRoots(conf config.Config, in config.Instance, inst *cassandra.Instance) []string {
	roots := append(slices.Clone(conf.Scan.Roots), filepath.Dir(in.Config))
	if inst != nil {
		for _, s := range inst.Stores {
			roots = append(roots, s.KeystorePath, s.TruststorePath)
		}
	}
	roots = slices.DeleteFunc(roots, func(s string) bool { return s == "" })
	slices.Sort(roots)
	return slices.Compact(roots)
}

// ScanOptions open the stores that cassandra.yaml names. Our own state folder is left out: its copies of old stores are
// nobody's certificates in use.
func ScanOptions(conf config.Config, inst *cassandra.Instance, now time.Time) scan.Options {
	o := scan.Options{Now: now, Skip: func(path string) bool {
		return path == conf.StateDir || strings.HasPrefix(path, conf.StateDir+string(filepath.Separator))
	}}
	if inst != nil {
		for _, s := range inst.Stores {
			o.Passwords = append(o.Passwords, s.KeystorePassword, s.TruststorePassword)
		}
	}
	return o
}
