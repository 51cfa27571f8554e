package rest

import (
	"bytes"
	"flag"
	"os"
	"path/filepath"
	"testing"
)

var update = flag.Bool("update", false, "write protocol/rest/openapi.yaml")

// The document is written by: go test ./controller/api/rest -run OpenAPI -update
func TestTheCheckedInOpenAPIDocumentIsWhatIsServed(t *testing.T) {
	got, err := OpenAPI()
	if err != nil {
		t.Fatal(err)
	}
	path := filepath.Join("..", "..", "..", "protocol", "rest", "openapi.yaml")
	if *update {
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, got, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(got, want) {
		t.Fatal("protocol/rest/openapi.yaml is old; write it with: go test ./controller/api/rest -run OpenAPI -update")
	}
}
