// Package fleetsim is a fleet of agents in one process: real agents (package node: join, stream, claims, keys,
// certificates, installs into real files, proofs of neighbours, reports), each beside a Cassandra that is not there. README.md says what
// is real and what is not.
package fleetsim
