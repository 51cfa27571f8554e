// Package owner keeps a command that root types from spoiling a folder of a service: files that root makes in it could not
// be read by the service's own user afterwards, and the service would fail at its next start.
package owner

import (
	"github.com/cassandra-security-manager/csm/shared/fault"
)

// Check refuses, with reason "wrong-user", when root is about to write into a folder that belongs to another user. The
// folder need not exist: the nearest one above it that does is looked at. A folder of root's own is root's to use.
func Check(dir string) error {
	name, foreign := ownerOf(dir)
	if !foreign {
		return nil
	}
	return fault.New(fault.Refused, "wrong-user", "%s belongs to the user %s: what root writes there, the service could not read", dir, name).
		Do("run the same command as that user: runuser -u %s -- …", name)
}
