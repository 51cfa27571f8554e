//go:build unix

package reload

import (
	"os/exec"
	"syscall"
)

// ownGroup lets a timeout kill the JVM that nodetool's shell script has started, not the script alone.
func ownGroup(cmd *exec.Cmd) {
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	cmd.Cancel = func() error { return syscall.Kill(-cmd.Process.Pid, syscall.SIGKILL) }
}
