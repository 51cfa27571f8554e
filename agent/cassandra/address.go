package cassandra

import (
	"bufio"
	"bytes"
	"context"
	"fmt"
	"net"
	"net/netip"
	"path/filepath"
	"strconv"
	"strings"
	"time"
)

// addresses computes where the node listens and what it tells others, in Cassandra's order of precedence
// (DatabaseDescriptor.applyAddressConfig).
func (r *reader) addresses(top *mapping) {
	i := r.inst
	i.StoragePort = r.port(top, "storage_port", 7000)
	i.NativePort = r.port(top, "native_transport_port", 9042)
	var ok bool
	if i.NativeTransport, ok = top.boolean("start_native_transport", true); !ok {
		r.notUnderstood(top, "start_native_transport", "")
	}
	i.Listen = r.address(top, "listen_address", "listen_interface", r.local)
	if i.Listen.IsUnspecified() && i.Listen.IsValid() {
		r.add(Finding{Code: "listen-wildcard", Severity: Error, Blocks: true, Line: top.at("listen_address"),
			Message: "listen_address is a wildcard, which Cassandra refuses", Remedy: "set the address that peers connect to"})
	}
	i.Broadcast = r.address(top, "broadcast_address", "", func() (netip.Addr, error) { return i.Listen, nil })
	i.RPC = r.address(top, "rpc_address", "rpc_interface", func() (netip.Addr, error) { return i.Listen, nil })
	i.BroadcastRPC = r.address(top, "broadcast_rpc_address", "", func() (netip.Addr, error) { return i.RPC, nil })
	if i.BroadcastRPC.IsValid() && i.BroadcastRPC.IsUnspecified() {
		r.add(Finding{Code: "no-broadcast-rpc-address", Severity: Error, Line: top.at("rpc_address"),
			Message: "rpc_address is a wildcard and broadcast_rpc_address is not set, which Cassandra refuses",
			Remedy:  "set broadcast_rpc_address to the address that drivers connect to"})
	}
	if i.Broadcast != i.Listen {
		r.add(Finding{Code: "broadcast-differs", Severity: Info, Line: top.at("broadcast_address"),
			Message: fmt.Sprintf("peers know this node as %s while it listens on %s: certificates carry both", i.Broadcast, i.Listen)})
	}
}

func (r *reader) port(top *mapping, key string, absent uint16) uint16 {
	s, ok := top.scalar(key)
	if !ok {
		if top.has(key) {
			r.notUnderstood(top, key, "")
		}
		return absent
	}
	n, err := strconv.ParseUint(s, 10, 16)
	if err != nil || n == 0 {
		r.notUnderstood(top, key, "")
		return absent
	}
	return uint16(n)
}

func (r *reader) notUnderstood(m *mapping, key, store string) {
	r.add(Finding{Code: "not-understood", Severity: Error, Line: m.at(key), Store: store, Blocks: true,
		Message: "the value of " + key + " is not understood", Remedy: "write it as Cassandra's documentation does, or report the line"})
}

func (r *reader) address(top *mapping, key, ifKey string, absent func() (netip.Addr, error)) netip.Addr {
	bad := func(k, why string) netip.Addr {
		r.add(Finding{Code: "address-unknown", Severity: Error, Line: top.at(k), Blocks: true,
			Message: k + " gives no address: " + why, Remedy: "set " + key + " to an IP address"})
		return netip.Addr{}
	}
	host, ok := top.scalar(key)
	if !ok && top.has(key) {
		return bad(key, "it is not a single value")
	}
	if ifKey != "" && top.has(ifKey) {
		if host != "" {
			return bad(key, ifKey+" is set as well, which Cassandra refuses")
		}
		name, _ := top.scalar(ifKey)
		six, _ := top.boolean(ifKey+"_prefer_ipv6", false)
		addrs, err := r.o.Interface(name)
		if err != nil {
			return bad(ifKey, err.Error())
		}
		if a, found := pick(fromNet(addrs), six); found {
			return a
		}
		return bad(ifKey, "the interface "+name+" has none")
	}
	if host == "" {
		a, err := absent()
		if err != nil {
			return bad(key, err.Error())
		}
		return a
	}
	a, err := r.lookup(strings.TrimSpace(host))
	if err != nil {
		return bad(key, err.Error())
	}
	return a
}

// local is Java's InetAddress.getLocalHost: the address of this host's own name.
func (r *reader) local() (netip.Addr, error) {
	name, err := r.o.Hostname()
	if err != nil {
		return netip.Addr{}, err
	}
	return r.lookup(name)
}

func (r *reader) lookup(host string) (netip.Addr, error) {
	if a, err := netip.ParseAddr(strings.Trim(host, "[]")); err == nil {
		return a.WithZone("").Unmap(), nil
	}
	ctx, cancel := context.WithTimeout(context.Background(), 3*time.Second)
	defer cancel()
	all, err := r.o.Resolve(ctx, host)
	if err != nil {
		return netip.Addr{}, err
	}
	if a, found := pick(all, false); found {
		return a, nil
	}
	return netip.Addr{}, fmt.Errorf("%s has no address", host)
}

// pick takes the first address of the preferred family, else the first (java.net prefers IPv4).
func pick(all []netip.Addr, six bool) (netip.Addr, bool) {
	for _, a := range all {
		if a.Unmap().Is4() != six {
			return a.Unmap().WithZone(""), true
		}
	}
	if len(all) > 0 {
		return all[0].Unmap().WithZone(""), true
	}
	return netip.Addr{}, false
}

func fromNet(addrs []net.Addr) (out []netip.Addr) {
	for _, a := range addrs {
		if p, err := netip.ParsePrefix(a.String()); err == nil {
			out = append(out, p.Addr())
		}
	}
	return out
}

// snitch reads datacenter and rack where they stand in a file: GossipingPropertyFileSnitch and its 6.0 successor.
func (r *reader) snitch(top *mapping) {
	i := r.inst
	i.Snitch = lastPart(top.text("endpoint_snitch", top.text("initial_location_provider", "")))
	switch i.Snitch {
	case "SimpleSnitch", "SimpleLocationProvider":
		i.Datacenter, i.Rack = "datacenter1", "rack1"
		return
	case "GossipingPropertyFileSnitch", "RackDCFileLocationProvider":
	default:
		return
	}
	path := filepath.Join(r.dir, "cassandra-rackdc.properties")
	data, err := readBounded(path)
	if err != nil {
		r.add(Finding{Code: "no-rackdc", Severity: Info, Line: top.at("endpoint_snitch"),
			Message: "datacenter and rack are not known: " + clip(err.Error(), 1000),
			Remedy:  "put cassandra-rackdc.properties beside cassandra.yaml, readable by the agent"})
		return
	}
	p := properties(data)
	i.Datacenter, i.Rack = p["dc"], p["rack"]
}

// properties reads Java's properties as far as these files use it: one key and value a line, # and ! begin a comment.
func properties(data []byte) map[string]string {
	out := map[string]string{}
	sc := bufio.NewScanner(bytes.NewReader(data))
	for sc.Scan() {
		line := strings.TrimSpace(sc.Text())
		if line == "" || line[0] == '#' || line[0] == '!' {
			continue
		}
		if at := strings.IndexAny(line, "=:"); at > 0 {
			out[strings.TrimSpace(line[:at])] = strings.TrimSpace(line[at+1:])
		}
	}
	return out
}

func lastPart(class string) string {
	return class[strings.LastIndexByte(class, '.')+1:]
}
