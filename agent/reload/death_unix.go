//go:build unix && !linux

package reload

import "syscall"

func dieWithUs(*syscall.SysProcAttr) {}
