package node

import (
	"os"
	"path/filepath"
	"time"

	"github.com/cassandra-security-manager/csm/shared/fault"
)

// wordFile in the state folder is an operator's word that an install may go on although there is no way back.
const wordFile = "no-way-back"

// wordFor is how long that word holds.
const wordFor = time.Hour

// AllowNoWayBack gives the word for the node of a state folder.
func AllowNoWayBack(folder string) error {
	if err := os.WriteFile(filepath.Join(folder, wordFile), []byte("an operator's word: csm-agent renew --no-way-back\n"), 0o600); err != nil {
		return fault.Wrap(err, fault.Internal, "no-way-back", "the word could not be written to %s", folder).Do("run this as the user of the agent, where it has run before")
	}
	return nil
}

// noWayBack says whether an operator's word covers an install over a leaf that ends at notAfter: it was given within the
// hour, and the leaf has expired. What is still valid keeps its way back, whatever was said.
func noWayBack(folder string, notAfter, now time.Time) bool {
	if notAfter.IsZero() || now.Before(notAfter) {
		return false
	}
	info, err := os.Stat(filepath.Join(folder, wordFile))
	return err == nil && info.Mode().IsRegular() && now.Sub(info.ModTime()).Abs() < wordFor
}
