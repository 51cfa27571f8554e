package rest_test

import (
	"bufio"
	"context"
	"crypto/tls"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/cassandra-security-manager/csm/controller/api/rest"
	"github.com/cassandra-security-manager/csm/controller/api/rest/resttest"
	"github.com/cassandra-security-manager/csm/controller/state"
	"github.com/cassandra-security-manager/csm/shared/certificate"
	"github.com/cassandra-security-manager/csm/shared/fault"
	"github.com/cassandra-security-manager/csm/shared/identity"
)

type answer struct {
	status int
	header http.Header
	body   []byte
	object map[string]any
}

func (a answer) text(key string) string { s, _ := a.object[key].(string); return s }

func (a answer) items() []any { l, _ := a.object["items"].([]any); return l }

type caller struct {
	t   *testing.T
	w   *resttest.World
	own *tls.Certificate
	c   *http.Client
}

func as(t *testing.T, w *resttest.World, own *tls.Certificate) caller {
	return caller{t, w, own, w.Client(own)}
}

func (c caller) do(method, path, body string, header ...string) answer {
	c.t.Helper()
	var in io.Reader
	if body != "" {
		in = strings.NewReader(body)
	}
	req, err := http.NewRequest(method, c.w.Server.URL+path, in)
	if err != nil {
		c.t.Fatal(err)
	}
	if body != "" {
		req.Header.Set("Content-Type", "application/json")
	}
	for i := 0; i+1 < len(header); i += 2 {
		req.Header.Set(header[i], header[i+1])
	}
	resp, err := c.c.Do(req)
	if err != nil {
		c.t.Fatal(err)
	}
	defer resp.Body.Close()
	a := answer{status: resp.StatusCode, header: resp.Header}
	if a.body, err = io.ReadAll(resp.Body); err != nil {
		c.t.Fatal(err)
	}
	_ = json.Unmarshal(a.body, &a.object)
	return a
}

func (c caller) get(path string) answer { c.t.Helper(); return c.do("GET", path, "") }

func (c caller) ok(status int, a answer) answer {
	c.t.Helper()
	if a.status != status {
		c.t.Fatalf("status %d, want %d: %s", a.status, status, a.body)
	}
	return a
}

func (c caller) refused(status int, reason string, a answer) answer {
	c.t.Helper()
	if a.status != status || a.text("reason") != reason {
		c.t.Fatalf("%d %s, want %d %s: %s", a.status, a.text("reason"), status, reason, a.body)
	}
	return a
}

func TestWithoutACertificateOnlyHealthAndVersionAnswer(t *testing.T) {
	w := resttest.New(t, nil)
	c := as(t, w, nil)
	for _, path := range []string{"/livez", "/readyz", "/readyz?verbose", "/v1/version", "/v1/openapi.json", "/docs"} {
		c.ok(200, c.get(path))
	}
	for _, path := range []string{"/v1/whoami", "/v1/tenants/default/certificates", "/v1/system", "/v1/events?watch=true", "/v1/tenants/default/clusters?watch=true"} {
		a := c.refused(401, "no-certificate", c.get(path))
		if !strings.Contains(a.text("remedy"), "csm-controller admin add") {
			t.Errorf("%s: %s", path, a.body)
		}
	}
	c.refused(401, "no-certificate", c.do("POST", "/v1/system:verify", ""))
}

func TestOnlyActiveAdministratorsComeIn(t *testing.T) {
	w := resttest.New(t, nil)
	ada := as(t, w, &w.Ada)
	a := ada.ok(200, ada.get("/v1/whoami"))
	if a.text("name") != "system/admins/ada" || a.text("actor") != identity.AdminID(resttest.TrustDomain, "ada").String() {
		t.Fatalf("%s", a.body)
	}
	other := w.Identity(identity.ControllerID(resttest.TrustDomain, "csm2"))
	as(t, w, &other).refused(403, "wrong-identity", as(t, w, &other).get("/v1/whoami"))
	eve := w.Identity(identity.AdminID(resttest.TrustDomain, "eve"))
	as(t, w, &eve).refused(401, "unknown-admin", as(t, w, &eve).get("/v1/whoami"))
	stolen := w.Identity(identity.AdminID(resttest.TrustDomain, "ada"))
	as(t, w, &stolen).refused(401, "admin-certificate-replaced", as(t, w, &stolen).get("/v1/whoami"))
	foreign := resttest.New(t, nil)
	as(t, w, &foreign.Ada).refused(401, "untrusted-peer", as(t, w, &foreign.Ada).get("/v1/whoami"))

	if err := w.People.RevokeAdmin(context.Background(), "ada", "test", "left"); err != nil {
		t.Fatal(err)
	}
	ada.refused(403, "admin-revoked", ada.get("/v1/whoami")) // on the connection that was open before
}

func TestAnExpiredCertificateIsRefused(t *testing.T) {
	w := resttest.New(t, nil)
	w.Log.Clock.Advance(40 * 24 * time.Hour)
	chain, err := certificate.ParseAll(w.Ada.Certificate)
	if err != nil {
		t.Fatal(err)
	}
	r := httptest.NewRequest("GET", "/v1/whoami", nil) // without TLS, because the controller's own certificate has expired too
	r.TLS = &tls.ConnectionState{PeerCertificates: chain}
	out := httptest.NewRecorder()
	w.Handler.ServeHTTP(out, r)
	if out.Code != 401 || !strings.Contains(out.Body.String(), "untrusted-peer") {
		t.Fatalf("%d %s", out.Code, out.Body)
	}
}

func TestAnErrorIsAProblemThatSaysWhatToDo(t *testing.T) {
	w := resttest.New(t, nil)
	c := as(t, w, &w.Ada)
	a := c.refused(404, "no-cluster", c.do("GET", "/v1/tenants/default/clusters/nothing", "", rest.HeaderCorrelationID, "ticket-4711"))
	if a.header.Get("Content-Type") != "application/problem+json" || a.text("type") != "urn:csm:problem:no-cluster" || a.object["status"] != 404.0 ||
		a.text("title") != "Not Found" || a.text("remedy") == "" || a.text("instance") != "/v1/tenants/default/clusters/nothing" {
		t.Errorf("%s %s", a.header, a.body)
	}
	if id := a.header.Get(rest.HeaderRequestID); id == "" || a.text("requestId") != id || a.header.Get(rest.HeaderCorrelationID) != "ticket-4711" {
		t.Errorf("ids: %v %s", a.header, a.body)
	}
	for _, h := range []string{"Content-Security-Policy", "X-Content-Type-Options", "Strict-Transport-Security", "X-Frame-Options"} {
		if a.header.Get(h) == "" {
			t.Errorf("no %s", h)
		}
	}
	c.refused(400, "bad-request", c.get("/v1/tenants/default/certificates?fliter=x"))
	c.refused(400, "bad-filter", c.get("/v1/tenants/default/certificates?filter=colour%3Dred"))
	c.refused(400, "bad-order", c.get("/v1/tenants/default/certificates?orderBy=colour"))
	c.refused(400, "bad-request", c.get("/v1/tenants/default/certificates?pageSize=1001"))
	c.refused(400, "bad-request", c.get("/v1/tenants/default/certificates/notahash"))
	c.refused(400, "bad-request", c.do("POST", "/v1/tenants/default/clusters", `{"id":5`))
	c.refused(400, "bad-request", c.do("POST", "/v1/tenants/default/clusters", `{"id":"a","authority":"internal","colour":"red"}`))
	c.refused(404, "no-such-path", c.get("/v1/nothing"))
	c.refused(405, "method-not-allowed", c.do("DELETE", "/v1/system", ""))
	c.refused(413, "too-large", c.do("POST", "/v1/tenants/default/certificates:issue", `{"csr":"`+strings.Repeat("A", 1<<20)+`","authority":"internal"}`))
	c.refused(413, "too-large", c.get("/v1/tenants/default/certificates?filter="+strings.Repeat("a", 9<<10)))
}

func TestARequestWithRubbishIsRefusedAndNotRepeatedBack(t *testing.T) {
	w := resttest.New(t, nil)
	c := as(t, w, &w.Ada)
	for _, csr := range []string{"hunter2-secret", "-----BEGIN CERTIFICATE REQUEST-----\nAAAA\n-----END CERTIFICATE REQUEST-----", strings.Repeat("QUJD", 4000)} {
		b, _ := json.Marshal(map[string]string{"csr": csr, "authority": "internal"})
		a := c.do("POST", "/v1/tenants/default/certificates:issue", string(b))
		if a.status != 400 || strings.Contains(string(a.body), "hunter2") || a.text("remedy") == "" {
			t.Errorf("%d %s", a.status, a.body)
		}
	}
}

func TestNoQuorumIsA503ThatSaysWhatToStart(t *testing.T) {
	w := resttest.New(t, nil)
	c := as(t, w, &w.Ada)
	w.Cluster("prod")
	w.Quorum.Lose()
	w.Log.Fail(fault.New(fault.Unavailable, "no-quorum", "there is no quorum").Do("start csm2 or csm3"))
	a := c.refused(503, "no-quorum", c.do("POST", "/v1/tenants/default/clusters/prod:freeze", `{"reason":"x"}`))
	if a.text("remedy") != "start csm2 or csm3" || a.header.Get("Retry-After") == "" {
		t.Errorf("%v %s", a.header, a.body)
	}
	c.refused(503, "no-quorum", c.get("/v1/tenants/default/clusters?consistency=linearizable"))
	stale := c.ok(200, c.get("/v1/tenants/default/clusters"))
	if stale.header.Get(rest.HeaderAge) != "60.000" {
		t.Errorf("age %q", stale.header.Get(rest.HeaderAge))
	}
	c.refused(503, "not-ready", c.get("/readyz"))
	c.ok(200, c.get("/livez"))
	if st := c.ok(200, c.get("/v1/system")); st.text("state") != "no-quorum" {
		t.Errorf("%s", st.body)
	}
}

func TestWhatIsNotThereYetIsNotSaidToBeMissing(t *testing.T) {
	w := resttest.New(t, nil)
	c := as(t, w, &w.Ada)
	w.Cluster("prod")
	c.refused(404, "no-cluster", c.get("/v1/tenants/default/clusters/none"))
	w.Quorum.Behind()
	if a := c.refused(503, "behind", c.get("/v1/tenants/default/clusters/none")); a.header.Get("Retry-After") == "" {
		t.Errorf("%v", a.header)
	}
	c.ok(200, c.get("/v1/tenants/default/clusters/prod"))
	c.ok(200, c.get("/livez"))
}

// A controller that has just joined knows no administrator: who is unknown to it is asked to come again, or elsewhere, until it knows all.
func TestNobodyIsUnknownBeforeTheStateIsHere(t *testing.T) {
	w := resttest.New(t, nil)
	eve := w.Identity(identity.AdminID(resttest.TrustDomain, "eve"))
	before := w.Quorum.Linearized
	as(t, w, &eve).refused(401, "unknown-admin", as(t, w, &eve).get("/v1/whoami"))
	if w.Quorum.Linearized == before {
		t.Error("the quorum was not asked")
	}
	w.Quorum.Lose()
	as(t, w, &eve).refused(503, "no-quorum", as(t, w, &eve).get("/v1/whoami"))
}

func TestALinearizableReadAsksTheQuorum(t *testing.T) {
	w := resttest.New(t, nil)
	c := as(t, w, &w.Ada)
	before := w.Quorum.Linearized
	c.ok(200, c.get("/v1/tenants/default/clusters"))
	if w.Quorum.Linearized != before {
		t.Fatal("a stale read asked")
	}
	c.ok(200, c.get("/v1/tenants/default/clusters?consistency=linearizable"))
	if w.Quorum.Linearized != before+1 {
		t.Fatal("a linearizable read did not ask")
	}
	c.refused(400, "bad-consistency", c.get("/v1/tenants/default/clusters?consistency=eventual"))
}

func TestACertificateIsIssuedFoundAndRevoked(t *testing.T) {
	w := resttest.New(t, nil)
	c := as(t, w, &w.Ada)
	body, _ := json.Marshal(map[string]any{"csr": w.CSR("app.example"), "authority": "internal"})
	c.ok(201, c.do("POST", "/v1/tenants/default/certificates:issue?validateOnly=true", string(body)))
	if n := len(c.ok(200, c.get("/v1/tenants/default/certificates?filter=template%3Dapplication")).items()); n != 0 {
		t.Fatalf("validateOnly issued %d", n)
	}
	got := c.ok(201, c.do("POST", "/v1/tenants/default/certificates:issue", string(body)))
	name := got.text("name")
	if strings.Count(got.text("chain"), "BEGIN CERTIFICATE") != 2 || got.text("state") != "active" || got.header.Get("ETag") != got.text("etag") {
		t.Fatalf("%s", got.body)
	}
	for path, n := range map[string]int{"certificates:search?query=app.exam": 1, "certificates:search?query=other": 0, "certificates?filter=dns:app.exam+AND+state%3Dactive": 1,
		"certificates?filter=notAfter%3C31d+AND+template%3Dapplication": 1, "certificates?filter=notAfter%3C29d+AND+template%3Dapplication": 0, "certificates?filter=serial%3D" + got.text("serial"): 1} {
		if l := c.ok(200, c.get("/v1/tenants/default/"+path)).items(); len(l) != n {
			t.Errorf("%s: %d", path, len(l))
		}
	}
	one := c.ok(200, c.get("/v1/"+name))
	if !strings.HasPrefix(one.text("pem"), "-----BEGIN CERTIFICATE") || one.text("actor") != identity.AdminID(resttest.TrustDomain, "ada").String() {
		t.Fatalf("%s", one.body)
	}
	renewal := func(of string) answer {
		body, _ := json.Marshal(map[string]any{"csr": w.CSR("app.example"), "authority": "internal", "renews": of})
		return c.do("POST", "/v1/tenants/default/certificates:issue", string(body))
	}
	c.ok(201, renewal(name))
	c.ok(201, renewal(name[strings.LastIndexByte(name, '/')+1:]))
	c.refused(404, "no-certificate", renewal(strings.Repeat("0", 64)))
	root := c.ok(200, c.get("/v1/tenants/default/certificates?filter=template%3Droot")).items()[0].(map[string]any)["name"].(string)
	c.refused(403, "not-an-application", renewal(root))
	rev := c.ok(200, c.do("POST", "/v1/"+name+":revoke", `{"reason":"keyCompromise"}`))
	if !strings.Contains(rev.text("notice"), "Cassandra") || rev.object["certificate"].(map[string]any)["state"] != "revoked" {
		t.Fatalf("%s", rev.body)
	}
	c.refused(400, "bad-reason", c.do("POST", "/v1/"+name+":revoke", `{"reason":"mood"}`))
	c.refused(404, "no-certificate", c.do("POST", "/v1/tenants/default/certificates/"+strings.Repeat("0", 64)+":revoke", `{}`))
}

func TestTheSameIdempotencyKeyIsTheSameRequest(t *testing.T) {
	w := resttest.New(t, nil)
	c := as(t, w, &w.Ada)
	body, _ := json.Marshal(map[string]any{"csr": w.CSR("app.example"), "authority": "internal"})
	issue := func(key string) answer {
		return c.ok(201, c.do("POST", "/v1/tenants/default/certificates:issue", string(body), "Idempotency-Key", key))
	}
	first, again, other := issue("k1"), issue("k1"), issue("k2")
	if first.text("name") != again.text("name") || first.text("name") == other.text("name") {
		t.Fatalf("%s %s %s", first.text("name"), again.text("name"), other.text("name"))
	}
	changed, _ := json.Marshal(map[string]any{"csr": w.CSR("app.example"), "authority": "internal"})
	c.refused(409, "request-id-used", c.do("POST", "/v1/tenants/default/certificates:issue", string(changed), "Idempotency-Key", "k1"))

	create := `{"id":"prod","authority":"internal"}`
	one := c.ok(201, c.do("POST", "/v1/tenants/default/clusters", create, "Idempotency-Key", "c1"))
	two := c.ok(201, c.do("POST", "/v1/tenants/default/clusters", create, "Idempotency-Key", "c1"))
	if one.text("uid") != two.text("uid") {
		t.Fatal("made twice")
	}
	c.refused(409, "cluster-exists", c.do("POST", "/v1/tenants/default/clusters", create, "Idempotency-Key", "c2"))
	c.refused(409, "idempotency-key-used", c.do("POST", "/v1/tenants/default/clusters", `{"id":"other","authority":"internal"}`, "Idempotency-Key", "c1"))

	token := `{"node":"n1","dns":["n1.example"]}`
	c.ok(201, c.do("POST", "/v1/tenants/default/clusters/prod/joinTokens", token, "Idempotency-Key", "t1"))
	c.refused(409, "token-shown", c.do("POST", "/v1/tenants/default/clusters/prod/joinTokens", token, "Idempotency-Key", "t1"))
	if n := len(c.ok(200, c.get("/v1/tenants/default/clusters/prod/joinTokens")).items()); n != 1 {
		t.Fatalf("%d tokens", n)
	}
}

func TestPagesShowEachThingOnce(t *testing.T) {
	w := resttest.New(t, nil)
	c := as(t, w, &w.Ada)
	for i := range 7 {
		w.Cluster(fmt.Sprintf("c%d", i))
	}
	seen, token, pages := map[string]int{}, "", 0
	for {
		a := c.ok(200, c.get("/v1/tenants/default/clusters?pageSize=3&pageToken="+token))
		for _, it := range a.items() {
			seen[it.(map[string]any)["name"].(string)]++
		}
		pages++
		if token = a.text("nextPageToken"); token == "" {
			break
		}
	}
	if len(seen) != 7 || pages != 3 {
		t.Fatalf("%d pages, %v", pages, seen)
	}
	first := c.ok(200, c.get("/v1/tenants/default/certificates?pageSize=1"))
	if first.text("nextPageToken") == "" {
		t.Fatalf("%s", first.body)
	}
	c.refused(400, "bad-page-token", c.get("/v1/tenants/default/certificates?pageSize=1&filter=state%3Dactive&pageToken="+first.text("nextPageToken")))
	c.refused(400, "bad-page-token", c.get("/v1/tenants/default/certificates?pageToken=rubbish"))
}

func TestCallersAreSlowedDownEachForHimself(t *testing.T) {
	w := resttest.New(t, func(d *rest.Deps) { d.Limits = rest.Limits{PerSecond: 1, Burst: 3} })
	ada := as(t, w, &w.Ada)
	for range 3 {
		ada.ok(200, ada.get("/v1/whoami"))
	}
	a := ada.refused(429, "rate-limit", ada.get("/v1/whoami"))
	if a.header.Get("Retry-After") == "" {
		t.Fatal("no Retry-After")
	}
	bob := w.Admin("bob")
	as(t, w, &bob).ok(200, as(t, w, &bob).get("/v1/whoami"))
	w.Log.Clock.Advance(time.Second)
	ada.ok(200, ada.get("/v1/whoami"))
}

func TestAuditEntriesCarryReasonAndCorrelation(t *testing.T) {
	w := resttest.New(t, nil)
	c := as(t, w, &w.Ada)
	c.ok(201, c.do("POST", "/v1/tenants/default/clusters", `{"id":"prod","authority":"internal"}`, rest.HeaderCorrelationID, "ticket-1", rest.HeaderReason, "new ring"))
	a := c.ok(200, c.get("/v1/system/auditEntries?pageSize=1"))
	e := a.items()[0].(map[string]any)
	if e["correlationId"] != "ticket-1" || e["reason"] != "new ring" || e["command"] != "csm.cluster.v1.CreateCluster" {
		t.Fatalf("%s", a.body)
	}
}

func TestNodesClustersAuthoritiesAndControllersCanBeWorkedWith(t *testing.T) {
	w := resttest.New(t, nil)
	c := as(t, w, &w.Ada)
	cluster := w.Cluster("prod")
	agent := w.Join(cluster, "n1")
	node := "/v1/" + agent.Node
	n := c.ok(200, c.get(node))
	if n.text("state") != "active" || n.text("why") == "" || n.text("etag") == "" {
		t.Fatalf("%s", n.body)
	}
	if l := c.ok(200, c.get("/v1/tenants/default/clusters/-/nodes")).items(); len(l) != 1 {
		t.Fatalf("%d nodes", len(l))
	}
	c.refused(412, "etag", c.do("POST", node+":setNames", `{"dns":["x.example"]}`, "If-Match", `"1"`))
	c.ok(200, c.do("POST", node+":setNames", `{"dns":["x.example"]}`, "If-Match", n.text("etag")))
	if r := c.ok(202, c.do("POST", node+":renew", `{"reason":"test"}`)); r.object["generation"].(float64) == 0 {
		t.Fatalf("%s", r.body)
	}
	c.ok(200, c.get(node+"/moves"))
	c.ok(200, c.get(node+"/proofs"))
	if s := c.ok(200, c.do("POST", node+":suspend", `{"reason":"disk"}`)); s.text("state") != "suspended" {
		t.Fatalf("%s", s.body)
	}
	c.ok(200, c.do("POST", node+":resume", `{}`))
	if f := c.ok(200, c.do("POST", "/v1/"+cluster+":freeze", `{"reason":"incident"}`)); f.text("state") != "frozen" {
		t.Fatalf("%s", f.body)
	}
	c.ok(200, c.do("POST", "/v1/"+cluster+":unfreeze", `{"reason":"over"}`))
	c.ok(200, c.do("POST", "/v1/system:freeze", `{"reason":"incident"}`))
	c.ok(200, c.do("POST", "/v1/system:unfreeze", `{"reason":"over"}`))

	c.ok(201, c.do("POST", "/v1/tenants/default/authorities", `{"id":"second","regions":["us","ap"]}`))
	if is := c.ok(200, c.get("/v1/tenants/default/authorities/second/issuers")).items(); len(is) != 3 {
		t.Fatalf("%d issuers", len(is))
	}
	if chain := c.ok(200, c.get("/v1/tenants/default/authorities/second:chain?region=us")); strings.Count(string(chain.body), "BEGIN CERTIFICATE") != 2 {
		t.Fatalf("%s", chain.body)
	}
	if l := c.ok(200, c.get("/v1/system/authorities")).items(); len(l) != 1 {
		t.Fatalf("%d system authorities", len(l))
	}

	w.Quorum.Pending("csm4", strings.Repeat("ab", 32))
	c.refused(403, "wrong-fingerprint", c.do("POST", "/v1/system/controllers/csm4:approve", `{"fingerprint":"`+strings.Repeat("00", 32)+`"}`))
	if a := c.ok(200, c.do("POST", "/v1/system/controllers/csm4:approve", `{"fingerprint":"`+strings.Repeat("ab", 32)+`"}`)); a.text("state") != "approved" {
		t.Fatalf("%s", a.body)
	}
	c.ok(204, c.do("POST", "/v1/system/controllers/csm4:remove", `{"reason":"gone"}`))
	c.refused(404, "no-controller", c.get("/v1/system/controllers/csm4"))
	if tok := c.ok(201, c.do("POST", "/v1/system/controllerJoinTokens", `{}`)); tok.text("token") == "" || tok.text("caPin") != w.Pin {
		t.Fatalf("%s", tok.body)
	}
	if v := c.ok(200, c.do("POST", "/v1/system:verify", "")); v.object["consistent"] != true {
		t.Fatalf("%s", v.body)
	}
	w.Quorum.Differ()
	if v := c.ok(200, c.do("POST", "/v1/system:verify", "")); v.object["consistent"] != false {
		t.Fatalf("%s", v.body)
	}
}

// sse reads events of a stream.
type sse struct {
	t    *testing.T
	in   *bufio.Scanner
	stop context.CancelFunc
}

func (c caller) watch(path string) *sse {
	c.t.Helper()
	ctx, stop := context.WithTimeout(context.Background(), 20*time.Second)
	req, err := http.NewRequestWithContext(ctx, "GET", c.w.Server.URL+path, nil)
	if err != nil {
		c.t.Fatal(err)
	}
	resp, err := c.c.Do(req)
	if err != nil {
		c.t.Fatal(err)
	}
	c.t.Cleanup(func() { stop(); resp.Body.Close() })
	if resp.StatusCode != 200 || resp.Header.Get("Content-Type") != "text/event-stream" {
		b, _ := io.ReadAll(resp.Body)
		c.t.Fatalf("%d %s", resp.StatusCode, b)
	}
	return &sse{c.t, bufio.NewScanner(resp.Body), stop}
}

type event struct {
	Type     string
	Revision uint64
	Object   map[string]any
}

func (s *sse) next() event {
	s.t.Helper()
	for s.in.Scan() {
		if data, ok := strings.CutPrefix(s.in.Text(), "data: "); ok {
			var e event
			if err := json.Unmarshal([]byte(data), &e); err != nil {
				s.t.Fatal(err)
			}
			return e
		}
	}
	s.t.Fatalf("the stream ended: %v", s.in.Err())
	return event{}
}

func TestAWatchTellsEachChangeAndGoesOnWhereItStopped(t *testing.T) {
	w := resttest.New(t, nil)
	c := as(t, w, &w.Ada)
	since := uint64(c.ok(200, c.get("/v1/tenants/default/clusters")).object["revision"].(float64))
	s := c.watch(fmt.Sprintf("/v1/tenants/default/clusters?watch=true&since=%d", since))
	prod := w.Cluster("prod")
	e := s.next()
	if e.Type != "ADDED" || e.Object["name"] != prod || e.Object["etag"] == nil || e.Revision <= since {
		t.Fatalf("%+v", e)
	}
	first := e.Revision
	if e = s.next(); e.Type != "BOOKMARK" || e.Revision < first {
		t.Fatalf("%+v", e)
	}
	w.Join(prod, "n1") // nodes belong to another collection
	if err := w.Fleet.Freeze(context.Background(), prod, "incident", time.Time{}, "test"); err != nil {
		t.Fatal(err)
	}
	for e = s.next(); e.Type == "BOOKMARK" || e.Object["state"] != "frozen"; e = s.next() {
		if e.Object["name"] != nil && e.Object["name"] != prod {
			t.Fatalf("not of this collection: %+v", e)
		}
	}
	again := c.watch(fmt.Sprintf("/v1/tenants/default/clusters?watch=true&since=%d", first))
	if e = again.next(); e.Type != "MODIFIED" || e.Revision <= first {
		t.Fatalf("%+v", e)
	}
	all := c.watch(fmt.Sprintf("/v1/events?watch=true&since=%d", since))
	if e = all.next(); e.Object["name"] != prod {
		t.Fatalf("%+v", e)
	}
	c.refused(400, "bad-since", c.get("/v1/events?watch=true&since=yesterday"))
}

// forgetful answers as a state whose list of changes was cut.
type forgetful struct{ rest.State }

func (f forgetful) Changes(ctx context.Context, prefix string, since uint64, limit int) ([]state.Change, uint64, error) {
	c, _, err := f.State.Changes(ctx, prefix, since, limit)
	return c, 1000, err
}

func TestAWatchFromTooLongAgoIs410(t *testing.T) {
	w := resttest.New(t, func(d *rest.Deps) { d.State = forgetful{d.State} })
	c := as(t, w, &w.Ada)
	a := c.refused(410, "gone", c.get("/v1/tenants/default/clusters?watch=true&since=1"))
	if !strings.Contains(a.text("remedy"), "list again") {
		t.Fatalf("%s", a.body)
	}
}

func TestTheWatchOfARevokedAdministratorEnds(t *testing.T) {
	w := resttest.New(t, nil)
	c := as(t, w, &w.Ada)
	s := c.watch("/v1/events?watch=true")
	if err := w.People.RevokeAdmin(context.Background(), "ada", "test", "left"); err != nil {
		t.Fatal(err)
	}
	e := s.next()
	if e.Type != "ERROR" || e.Object["reason"] != "admin-revoked" {
		t.Fatalf("%+v", e)
	}
}

// meanwhile does something just before a stream reads its first part.
type meanwhile struct {
	rest.State
	do func()
}

func (m meanwhile) Changes(ctx context.Context, prefix string, since uint64, limit int) ([]state.Change, uint64, error) {
	if limit > 1 {
		m.do()
	}
	return m.State.Changes(ctx, prefix, since, limit)
}

func TestAnAdministratorRevokedWhileChangesAreReadIsNotToldThem(t *testing.T) {
	var w *resttest.World
	revoke := sync.OnceFunc(func() {
		if err := w.People.RevokeAdmin(context.Background(), "ada", "test", "left"); err != nil {
			t.Error(err)
		}
	})
	w = resttest.New(t, func(d *rest.Deps) { d.State = meanwhile{d.State, revoke} })
	s := as(t, w, &w.Ada).watch("/v1/events?watch=true")
	if e := s.next(); e.Type != "ERROR" || e.Object["reason"] != "admin-revoked" {
		t.Fatalf("%+v", e)
	}
}

func TestASilentWatchShowsThatItLives(t *testing.T) {
	w := resttest.New(t, nil)
	c := as(t, w, &w.Ada)
	s := c.watch("/v1/events?watch=true")
	if err := w.Log.Clock.BlockUntilContext(context.Background(), 2); err != nil { // the checkpointer's ticker and the watch's
		t.Fatal(err)
	}
	w.Log.Clock.Advance(rest.DefaultLimits().Bookmark)
	if e := s.next(); e.Type != "BOOKMARK" || e.Revision != w.Log.Store.Applied() {
		t.Fatalf("%+v", e)
	}
}

func TestWatchesAreBoundedForEachCaller(t *testing.T) {
	w := resttest.New(t, func(d *rest.Deps) { d.Limits.Watches = 1 })
	c := as(t, w, &w.Ada)
	c.watch("/v1/events?watch=true")
	c.refused(429, "too-many-watches", c.get("/v1/events?watch=true"))
}

func TestTheDocumentationPageLoadsNothingFromElsewhere(t *testing.T) {
	w := resttest.New(t, nil)
	a := as(t, w, nil).get("/docs")
	page := string(a.body)
	if strings.Contains(page, "<script") || strings.Contains(page, "http://") || strings.Contains(page, "https://") || !strings.Contains(page, "/v1/tenants/{tenant}/certificates:issue") {
		t.Fatal(page)
	}
}
