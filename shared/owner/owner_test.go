//go:build unix

package owner_test

import (
	"os"
	"path/filepath"
	"testing"

	"github.com/cassandra-security-manager/csm/shared/fault"
	"github.com/cassandra-security-manager/csm/shared/owner"
)

func TestAFolderOfOnesOwnIsFine(t *testing.T) {
	dir := t.TempDir()
	for _, d := range []string{dir, filepath.Join(dir, "not", "yet")} {
		if err := owner.Check(d); err != nil {
			t.Error(err)
		}
	}
}

func TestRootIsKeptOutOfTheFolderOfAService(t *testing.T) {
	if os.Geteuid() != 0 {
		// Any folder of another user: only root is refused.
		if err := owner.Check("/"); err != nil {
			t.Error(err)
		}
		return
	}
	dir := t.TempDir()
	if err := os.Chown(dir, 1, 1); err != nil {
		t.Fatal(err)
	}
	for _, d := range []string{dir, filepath.Join(dir, "cassandra")} {
		if err := owner.Check(d); !fault.HasReason(err, "wrong-user") || fault.From(err).Remedy == "" {
			t.Error(d, err)
		}
	}
}
