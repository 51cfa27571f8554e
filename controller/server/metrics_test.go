package server_test

import (
	"context"
	"io"
	"net/http"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus/testutil/promlint"

	"github.com/cassandra-security-manager/csm/controller/server"
)

func scrape(t *testing.T, cfg server.Config, path string) (int, string) {
	t.Helper()
	client := &http.Client{Timeout: 10 * time.Second}
	defer client.CloseIdleConnections()
	res, err := client.Get("http://" + cfg.Metrics + path)
	if err != nil {
		t.Fatal(err)
	}
	defer res.Body.Close()
	b, _ := io.ReadAll(res.Body)
	return res.StatusCode, string(b)
}

func TestTheMetricsPortTellsHealthWithoutALogin(t *testing.T) {
	cfg := configure(t)
	if _, err := server.Init(context.Background(), cfg, options(cfg), silent()); err != nil {
		t.Fatal(err)
	}
	defer start(t, cfg)()
	deadline := time.Now().Add(20 * time.Second)
	for {
		code, body := scrape(t, cfg, "/readyz?verbose")
		if code == http.StatusOK && strings.Contains(body, `"name":"keys","ok":true`) {
			break
		}
		if time.Now().After(deadline) {
			t.Fatalf("not ready: %d %s", code, body)
		}
		time.Sleep(50 * time.Millisecond)
	}
	if code, _ := scrape(t, cfg, "/livez"); code != http.StatusOK {
		t.Errorf("livez %d", code)
	}
	if code, _ := scrape(t, cfg, "/v1/system"); code != http.StatusNotFound {
		t.Errorf("the metrics port serves the API: %d", code)
	}
	_, body := scrape(t, cfg, "/metrics")
	for _, want := range []string{`csm_raft_has_leader 1`, `csm_raft_healthy_voters 1`, `csm_raft_leader_changes_total [1-9]`, `csm_raft_commit_duration_seconds_count [0-9]`,
		`csm_state_checksum_mismatch 0`, `csm_disk_free_ratio 0\.`, `csm_authority_not_after_timestamp_seconds{authority="tenants/default/authorities/root",issuer="eu-west-1"} \d`,
		`csm_crl_next_update_timestamp_seconds{authority="system/authorities/system",issuer="[^"]+"} \d`, `csm_system_identity_not_after_timestamp_seconds{kind="controller"} \d`,
		`csm_keyring_sealed 0`, `csm_signer_queue_length 0`, `csm_signer_queue_expected 0`, `csm_signer_busy_total 0`, `csm_signer_wait_seconds_count 0`, `csm_state_readable 1`, `csm_agent_identity_conflicts_total 0`} {
		if !regexp.MustCompile(`(?m)^` + want).MatchString(body) {
			t.Errorf("no %s", want)
		}
	}
	problems, err := promlint.New(strings.NewReader(body)).Lint()
	if err != nil {
		t.Fatal(err)
	}
	for _, p := range problems {
		if strings.HasPrefix(p.Metric, "csm_") {
			t.Errorf("%s: %s", p.Metric, p.Text)
		}
	}
}
