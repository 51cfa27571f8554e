package cql

// ParseRows is for the fuzzer.
func ParseRows(b []byte) { _, _, _ = parseRows(b) }
