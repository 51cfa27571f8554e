package agenttest

import (
	"flag"
	"testing"
)

// TestMain lets more tests run at once than there are processors: an agent waits for most of a test.
func TestMain(m *testing.M) {
	flag.Parse()
	if err := flag.Set("test.parallel", "6"); err != nil {
		panic(err)
	}
	m.Run()
}
