// Package backup writes the replicated state into encrypted files, reads them back, and knows which there are.
//
// It owns the form of a backup, the folder that the configuration names, the schedule (on the leader) and the list of
// backups in the state. It refuses a file that is foreign, cut off, changed, of another system or of a newer program, and says
// which. Its invariants: a file with the name of a backup is whole and on disk; a backup that fails leaves every earlier one
// as it was; what is said to be verified was decrypted, restored and read to its last page.
package backup
