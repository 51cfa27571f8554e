//go:build !unix

package scan

import (
	"io/fs"
	"os"
)

func openRegular(path string) (*os.File, error) { return os.Open(path) }

func owner(fs.FileInfo) string { return "" }

// worldReadable is not told by mode bits here; access lists are another matter.
func worldReadable(fs.FileMode) bool { return false }
