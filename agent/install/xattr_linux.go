package install

import (
	"bytes"

	"golang.org/x/sys/unix"
)

// xattrs reads the extended attributes that an unprivileged owner can pass on; what cannot be read is left out.
func xattrs(path string) map[string][]byte {
	buf := make([]byte, 16<<10)
	n, err := unix.Listxattr(path, buf)
	if err != nil || n <= 0 {
		return nil
	}
	out := map[string][]byte{}
	for _, name := range bytes.Split(bytes.TrimRight(buf[:n], "\x00"), []byte{0}) {
		value := make([]byte, 64<<10)
		if size, err := unix.Getxattr(path, string(name), value); err == nil {
			out[string(name)] = value[:size]
		}
	}
	return out
}

// setXattr sets one attribute where the value differs: security labels are mostly inherited and may not be written.
func setXattr(path, name string, value []byte) error {
	have := make([]byte, 64<<10)
	if n, err := unix.Getxattr(path, name, have); err == nil && bytes.Equal(have[:n], value) {
		return nil
	}
	return unix.Setxattr(path, name, value, 0)
}
