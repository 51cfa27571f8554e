package node

import (
	"bytes"
	"context"
	"crypto/sha256"
	"path/filepath"
	"slices"
	"time"

	"github.com/cassandra-security-manager/csm/agent/join"
	agentv1 "github.com/cassandra-security-manager/csm/protocol/agent/v1"
	"github.com/cassandra-security-manager/csm/shared/scan"
)

// renewIdentity renews the agent's own identity when its drawn time has come.
func (n *Node) renewIdentity(ctx context.Context) {
	id, now := n.folder.Identity(), n.o.Clock.Now()
	n.mu.Lock()
	connected := n.online.Connected
	n.mu.Unlock()
	if id == nil || !connected || now.Before(id.RenewAt) || now.Before(n.renewAt) {
		return
	}
	n.renewAt = now.Add(time.Minute + time.Duration(float64(4*time.Minute)*jitter()))
	next, err := join.Renew(ctx, n.folder, n.client, now, jitter())
	if err != nil {
		n.log.Warn("the agent's identity was not renewed", "expires", id.Chain[0].NotAfter, "error", err)
		return
	}
	n.log.Info("identity renewed", "expires", next.Chain[0].NotAfter, "next", next.RenewAt)
	n.client.Reconnect()
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
	roots := slices.Clone(n.o.Config.Scan.Roots)
	roots = append(roots, filepath.Dir(n.o.Instance.Config))
	o := scan.Options{Now: n.o.Clock.Now(), Skip: n.skip}
	if n.inst != nil {
		for _, s := range n.inst.Stores {
			roots = append(roots, s.KeystorePath, s.TruststorePath)
			o.Passwords = append(o.Passwords, s.KeystorePassword, s.TruststorePassword)
		}
	}
	roots = slices.DeleteFunc(roots, func(s string) bool { return s == "" })
	slices.Sort(roots)
	r, err := scan.Files(ctx, slices.Compact(roots), o)
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

// skip leaves out our own state folder, whose copies of old stores are nobody's certificates in use.
func (n *Node) skip(path string) bool {
	return path == n.o.Config.StateDir || bytes.HasPrefix([]byte(path), []byte(n.o.Config.StateDir+string(filepath.Separator)))
}
