//go:build unix

package atomicfile

import (
	"errors"
	"os"
)

// SyncFolder makes the names in a folder durable: what was made, renamed and removed there.
func SyncFolder(dir string) error {
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	return errors.Join(d.Sync(), d.Close())
}
