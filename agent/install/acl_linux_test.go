package install_test

import (
	"bytes"
	"context"
	"encoding/binary"
	"os"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/cassandra-security-manager/csm/shared/keystore"
)

// accessList lets one more user read: owner rw-, user 12345 r--, group ---, mask r--, others --- (acl(5), version 2).
func accessList() []byte {
	b := binary.LittleEndian.AppendUint32(nil, 2)
	for _, e := range [][3]uint32{{1, 6, 1<<32 - 1}, {2, 4, 12345}, {4, 0, 1<<32 - 1}, {0x10, 4, 1<<32 - 1}, {0x20, 0, 1<<32 - 1}} {
		b = binary.LittleEndian.AppendUint16(b, uint16(e[0]))
		b = binary.LittleEndian.AppendUint16(b, uint16(e[1]))
		b = binary.LittleEndian.AppendUint32(b, e[2])
	}
	return b
}

func TestAnAccessListIsKept(t *testing.T) {
	const name = "system.posix_acl_access"
	w := running(t, keystore.PKCS12)
	want := accessList()
	for _, path := range []string{w.store.KeystorePath, w.store.TruststorePath} {
		if err := unix.Setxattr(path, name, want, 0); err != nil {
			t.Fatalf("the file system of %s takes no access lists, so this test proves nothing: %v", os.TempDir(), err)
		}
	}
	if _, err := w.installer().Run(context.Background(), w.plan(2)); err != nil {
		t.Fatal(err)
	}
	for _, path := range []string{w.store.KeystorePath, w.store.TruststorePath} {
		have := make([]byte, 256)
		n, err := unix.Getxattr(path, name, have)
		if err != nil || !bytes.Equal(have[:max(n, 0)], want) {
			t.Errorf("the access list of %s is %x now: %v", path, have[:max(n, 0)], err)
		}
	}
}
