//go:build linux

package main

// scenarios are what must not happen, each tried for real. Their order spreads the reloads over the nodes: an agent
// reloads its Cassandra at most 6 times an hour.
var scenarios = []scenario{
	{"token", "a join token that was used lets nobody else in", usedToken},
	{"names", "a certificate with a wrong address comes back: refused before writing", wrongNames},
	{"reload", "a reload that fails, while nodetool exits 0: rolled back", failedReload},
	{"truncate", "a keystore cut off after a good reload: noticed and restored", truncated},
	{"agent", "the agent killed in the middle of a write: old or new stores, never a mixture", agentKilled},
	{"leader", "the leader killed while certificates are asked for: none acknowledged is lost", leaderKilled},
	{"minority", "two of three controllers stopped: a clear 503, nothing half done", minority},
	{"hold", "a HOLD file on a node: respected", hold},
}
