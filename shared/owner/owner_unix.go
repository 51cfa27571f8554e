//go:build unix

package owner

import (
	"os"
	"os/user"
	"path/filepath"
	"strconv"
	"syscall"
)

func ownerOf(dir string) (name string, foreign bool) {
	if os.Geteuid() != 0 {
		return "", false
	}
	for {
		st, err := os.Stat(dir)
		if err != nil {
			if up := filepath.Dir(dir); up != dir {
				dir = up
				continue
			}
			return "", false
		}
		s, ok := st.Sys().(*syscall.Stat_t)
		if !ok || s.Uid == 0 {
			return "", false
		}
		id := strconv.Itoa(int(s.Uid))
		if u, err := user.LookupId(id); err == nil {
			id = u.Username
		}
		return id, true
	}
}
