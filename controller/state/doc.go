// Package state is the replicated state machine: one SQLite file on each controller, written only by applying the
// entries of the raft log, read by everybody.
//
// It owns the file and its folder, the order of migrations, the transaction of a batch, the state clock, the audit
// entry and the recorded outcome of each command, the list of recent changes, and the checksum of it all. It knows no
// domain: the packages above hand in Modules with tables and handlers.
//
// It keeps these invariants. The applied index stands in the same transaction as what was applied, so a file is the
// result of exactly the entries up to its index. Two controllers at the same index hold the same rows in every table
// but those named local_*. A command is answered only after its transaction is committed. What this machine alone
// suffered (full disk, bad sector, no memory) is never an answer: it ends the process.
package state
