//go:build unix

package reload

import (
	"os/exec"
	"syscall"
)

// ownGroup lets a timeout kill the JVM that nodetool's shell script has started, not the script alone. Where the system can, the
// command dies with a helper that is killed; what it has started itself is ended by systemd, with the unit's control group.
func ownGroup(cmd *exec.Cmd) {
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	dieWithUs(cmd.SysProcAttr)
	cmd.Cancel = func() error { return syscall.Kill(-cmd.Process.Pid, syscall.SIGKILL) }
}
