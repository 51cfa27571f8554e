package probe

import (
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"net"
	"net/netip"

	"github.com/cassandra-security-manager/csm/agent/cql"
)

// The internode handshake (org.apache.cassandra.net.HandshakeProtocol, messaging versions 12 and later).
const (
	magic = 0xCA552DFA
	// A messaging connection for small messages, CRC framing. The version asked for is 12 (4.0), the accepted range starts
	// and ends at 200, which no release knows: Cassandra answers with the versions it has and closes without
	// registering a link.
	flags = uint32(2 | 2<<4 | 12<<8 | 200<<16 | 200<<24)
	// AcceptSize is the length of Cassandra's answer: max version, version used, CRC.
	acceptSize = 12
)

// crcSeed is what Cassandra feeds its CRC32 first (org.apache.cassandra.net.Crc.CRC32_INIT_BYTES...).
var crcSeed = crc32.ChecksumIEEE([]byte{0xFA, 0x2D, 0x55, 0xCA})

func checksum(b []byte) uint32 { return crc32.Update(crcSeed, crc32.IEEETable, b) }

// initiateFrame is the first message of an internode connection that comes from own.
func initiateFrame(own netip.AddrPort) []byte {
	addr := own.Addr().Unmap().AsSlice()
	b := binary.BigEndian.AppendUint32(nil, magic)
	b = binary.BigEndian.AppendUint32(b, flags)
	b = append(b, byte(len(addr)+2))
	b = append(b, addr...)
	b = binary.BigEndian.AppendUint16(b, own.Port())
	return binary.BigEndian.AppendUint32(b, checksum(b))
}

// parseAccept checks Cassandra's answer and returns the two versions it names.
func parseAccept(b []byte) (maximum, use int32, err error) {
	if len(b) != acceptSize {
		return 0, 0, fmt.Errorf("an Accept frame has %d bytes, not %d", acceptSize, len(b))
	}
	if got, want := binary.BigEndian.Uint32(b[8:]), checksum(b[:8]); got != want {
		return 0, 0, fmt.Errorf("not an Accept frame: checksum %08x, expected %08x", got, want)
	}
	return int32(binary.BigEndian.Uint32(b)), int32(binary.BigEndian.Uint32(b[4:])), nil
}

func initiate(c net.Conn) (string, error) {
	own, ok := c.LocalAddr().(*net.TCPAddr)
	if !ok {
		return "", fmt.Errorf("no TCP address: %v", c.LocalAddr())
	}
	if _, err := c.Write(initiateFrame(own.AddrPort())); err != nil {
		return "", readAlert(c, err)
	}
	b := make([]byte, acceptSize)
	if _, err := io.ReadFull(c, b); err != nil {
		return "", err
	}
	maximum, use, err := parseAccept(b)
	if err != nil {
		return "", err
	}
	return fmt.Sprintf("Accept frame, messaging version %d of at most %d", use, maximum), nil
}

// options asks the CQL port what it speaks.
func options(c net.Conn) (string, error) {
	answer, err := cql.Ask(c)
	var op *net.OpError
	if errors.As(err, &op) && op.Op == "write" {
		err = readAlert(c, err)
	}
	return answer, err
}

// readAlert prefers the alert that a peer sent before it closed over our own failed write.
func readAlert(c net.Conn, write error) error {
	if _, err := c.Read(make([]byte, 1)); err != nil && isRemote(err) {
		return err
	}
	return write
}
