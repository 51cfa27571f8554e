package backup

import "crypto/sha256"

// Resum gives a changed backup a right checksum again, as somebody who wants to deceive would.
func Resum(b []byte) []byte {
	end := len(b) - sha256.Size
	sum := sha256.Sum256(b[:end])
	return append(b[:end:end], sum[:]...)
}
