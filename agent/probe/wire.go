package probe

import (
	"encoding/binary"
	"fmt"
	"hash/crc32"
	"io"
	"net"
	"net/netip"
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

// The CQL binary protocol, version 4: known to every release from 4.0 to 6.0 (native_protocol_v4.spec, sections 2 and 4).
const (
	opOptions   = 0x05
	opSupported = 0x06
	maxAnswer   = 64 << 10
)

var optionsFrame = []byte{0x04, 0, 0, 0, opOptions, 0, 0, 0, 0}

func options(c net.Conn) (string, error) {
	if _, err := c.Write(optionsFrame); err != nil {
		return "", readAlert(c, err)
	}
	h := make([]byte, 9)
	if _, err := io.ReadFull(c, h); err != nil {
		return "", err
	}
	size := binary.BigEndian.Uint32(h[5:])
	if h[0]&0x80 == 0 || h[4] != opSupported || size > maxAnswer {
		return "", fmt.Errorf("OPTIONS was answered by opcode %#02x, not SUPPORTED", h[4])
	}
	if _, err := io.CopyN(io.Discard, c, int64(size)); err != nil {
		return "", err
	}
	return fmt.Sprintf("SUPPORTED, protocol version %d", h[0]&0x7f), nil
}

// readAlert prefers the alert that a peer sent before it closed over our own failed write.
func readAlert(c net.Conn, write error) error {
	if _, err := c.Read(make([]byte, 1)); err != nil && isRemote(err) {
		return err
	}
	return write
}
