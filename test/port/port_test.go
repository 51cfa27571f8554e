package port_test

import (
	"net"
	"testing"

	"github.com/cassandra-security-manager/csm/test/port"
)

func TestAPortIsGivenOnceAndOpensAgain(t *testing.T) {
	seen := map[string]bool{}
	for range 50 {
		l, err := port.Listen()
		if err != nil {
			t.Fatal(err)
		}
		address := l.Addr().String()
		if seen[address] {
			t.Fatalf("%s was given twice", address)
		}
		seen[address] = true
		l.Close()
		again, err := net.Listen("tcp", address)
		if err != nil {
			t.Fatal(err)
		}
		again.Close()
	}
}
