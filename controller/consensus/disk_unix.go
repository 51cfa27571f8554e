//go:build unix

package consensus

import "golang.org/x/sys/unix"

// diskFree is the share of the file system of dir that this process may still fill.
func diskFree(dir string) (float64, error) {
	var s unix.Statfs_t
	if err := unix.Statfs(dir, &s); err != nil {
		return 0, err
	}
	if s.Blocks == 0 {
		return 1, nil
	}
	used := s.Blocks - s.Bfree
	return float64(s.Bavail) / float64(used+uint64(s.Bavail)), nil
}
