package rest_test

import (
	"io"
	"net/http"
	"runtime"
	"sync"
	"testing"
	"time"

	"github.com/cassandra-security-manager/csm/controller/api/rest/resttest"
)

func TestWhoSaysNothingMoreStandsInNobodysWay(t *testing.T) {
	w := resttest.New(t, nil)
	c := as(t, w, &w.Ada)
	var wg sync.WaitGroup
	defer wg.Wait()
	for range 20 * runtime.GOMAXPROCS(0) { // more than there is room for
		body, end := io.Pipe()
		defer end.Close()
		req, err := http.NewRequest(http.MethodPost, w.Server.URL+"/v1/tenants/default/certificates:issue", body)
		if err != nil {
			t.Fatal(err)
		}
		req.Header.Set("Content-Type", "application/json")
		wg.Go(func() {
			resp, err := c.c.Do(req)
			if err != nil {
				t.Error(err)
				return
			}
			defer resp.Body.Close()
			if resp.StatusCode != http.StatusBadRequest {
				t.Errorf("an empty order: %d", resp.StatusCode)
			}
		})
		if _, err := end.Write([]byte(" ")); err != nil { // the request is there, its body does not end
			t.Fatal(err)
		}
	}
	watch, err := http.NewRequestWithContext(t.Context(), http.MethodGet, w.Server.URL+"/v1/events?watch=true", nil)
	if err != nil {
		t.Fatal(err)
	}
	for range 20 * runtime.GOMAXPROCS(0) {
		resp, err := c.c.Do(watch)
		if err != nil {
			t.Fatal(err)
		}
		defer resp.Body.Close()
	}
	began := time.Now()
	c.ok(200, c.get("/v1/whoami"))
	if took := time.Since(began); took > 10*time.Second {
		t.Errorf("it took %s", took)
	}
}
