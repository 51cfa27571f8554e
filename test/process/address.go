//go:build linux

package process

import (
	"fmt"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"syscall"
)

// Range is a piece of the loopback network that only this program uses: hosts 127.0.Third.1 and up.
type Range struct {
	Third byte
	lock  *os.File
}

// Claim finds loopback addresses 127.0.X.1 to 127.0.X.hosts, X from first upwards, on which all ports are free, and
// keeps other tests and demonstrations on this machine away from them until Release.
func Claim(first byte, hosts int, ports ...int) (*Range, error) {
	for x := int(first); x < 255; x++ {
		lock, err := os.OpenFile(filepath.Join(os.TempDir(), fmt.Sprintf("csm-loopback-%d-%d.lock", os.Getuid(), x)), os.O_CREATE|os.O_RDWR, 0o600)
		if err != nil {
			return nil, fmt.Errorf("claiming loopback addresses: %w", err)
		}
		r := &Range{Third: byte(x), lock: lock}
		if syscall.Flock(int(lock.Fd()), syscall.LOCK_EX|syscall.LOCK_NB) == nil && r.free(hosts, ports) {
			return r, nil
		}
		lock.Close()
	}
	return nil, fmt.Errorf("no free loopback range with ports %v: are many rings running?", ports)
}

// Host is 127.0.X.n.
func (r *Range) Host(n int) netip.Addr { return netip.AddrFrom4([4]byte{127, 0, r.Third, byte(n)}) }

// Release lets others use the range.
func (r *Range) Release() { r.lock.Close() }

func (r *Range) free(hosts int, ports []int) bool {
	for n := 1; n <= hosts; n++ {
		for _, port := range ports {
			l, err := net.Listen("tcp", netip.AddrPortFrom(r.Host(n), uint16(port)).String())
			if err != nil {
				return false
			}
			l.Close()
		}
	}
	return true
}
