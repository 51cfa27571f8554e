// Package consensus is the quorum of controllers: raft and its log, the one TLS port between controllers, who belongs, who
// leads, how a write reaches the leader and how a read knows that it is current.
//
// It owns the data folder's raft/ and snapshots/, the members table and the join tokens. It knows nothing of PKI or of the
// commands it carries. It refuses to start on a log that lost or changed entries which had been acknowledged, to speak to a
// controller whose key is not in the members table, and to let a leader stamp writes with a clock that the majority
// does not share.
//
// Order of a start: Prepare (the rules of package startup, before the state is opened), state.Open, Open. The very first
// controller uses BootstrapSingle in place of Open; others call Join first.
package consensus
