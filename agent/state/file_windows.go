package state

import (
	"crypto/sha256"
	"os"

	"golang.org/x/sys/windows"
	"golang.org/x/sys/windows/registry"
)

func lock(path string) (func(), error) {
	f, err := os.OpenFile(path, os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		return nil, err
	}
	var o windows.Overlapped
	if err := windows.LockFileEx(windows.Handle(f.Fd()), windows.LOCKFILE_EXCLUSIVE_LOCK|windows.LOCKFILE_FAIL_IMMEDIATELY, 0, 1, 0, &o); err != nil {
		f.Close()
		return nil, err
	}
	return func() { f.Close() }, nil
}

// Machine is a hash of the host's MachineGuid; zero without one.
func Machine() [32]byte {
	k, err := registry.OpenKey(registry.LOCAL_MACHINE, `SOFTWARE\Microsoft\Cryptography`, registry.QUERY_VALUE|registry.WOW64_64KEY)
	if err != nil {
		return [32]byte{}
	}
	defer k.Close()
	id, _, err := k.GetStringValue("MachineGuid")
	if err != nil || len(id) < 16 {
		return [32]byte{}
	}
	return sha256.Sum256([]byte("csm-agent machine\x00" + id))
}
