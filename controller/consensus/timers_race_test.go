//go:build race

package consensus

// timers of the controllers of a test: the race detector slows them tenfold, so that those of a LAN would elect again and
// again.
const timers = WAN
