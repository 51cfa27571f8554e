// Package port gives tests loopback ports that can be closed and opened again: they lie below the range from which the kernel
// takes ports for outgoing connections, so none of those can take one in between.
package port

import (
	"fmt"
	"net"
	"os"
	"sync/atomic"
)

// first and last bound the ports given; Linux takes outgoing ports from 32768 upwards.
const first, last = 12000, 32000

// next differs between the test programs that run at the same time.
var next atomic.Uint32

func init() { next.Store(uint32(os.Getpid()*37) % (last - first)) }

// Listen opens a port of 127.0.0.1 that nobody uses and that this process has not been given before.
func Listen() (net.Listener, error) {
	var err error
	for range last - first {
		var l net.Listener
		n := first + next.Add(1)%(last-first)
		if l, err = net.Listen("tcp", fmt.Sprintf("127.0.0.1:%d", n)); err == nil {
			return l, nil
		}
	}
	return nil, fmt.Errorf("no free port from %d to %d: %w", first, last, err)
}

// Free gives the number of such a port, closed.
func Free() (int, error) {
	l, err := Listen()
	if err != nil {
		return 0, err
	}
	return l.Addr().(*net.TCPAddr).Port, l.Close()
}
