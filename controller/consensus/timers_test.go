//go:build !race

package consensus

// timers of the controllers of a test.
const timers = LAN
