//go:build linux

// Command prepare fetches the Cassandra of the tests and archives its classes, so that no test's time holds either.
package main

import (
	"context"
	"fmt"
	"os"
	"time"

	"github.com/cassandra-security-manager/csm/test/ring"
)

func main() {
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Minute)
	defer cancel()
	if _, err := ring.Prepare(ctx, "build/cassandra/"+ring.Version, false, func(s string) { fmt.Println(s) }); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}
