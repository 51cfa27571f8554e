package cli

import (
	"context"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"net/http"
	"os"
	"slices"
	"strings"
	"sync/atomic"
	"time"

	"github.com/cassandra-security-manager/csm/shared/algorithm"
	"github.com/cassandra-security-manager/csm/shared/certificate"
	ui "github.com/cassandra-security-manager/csm/shared/cli"
	"github.com/cassandra-security-manager/csm/shared/fault"
	"github.com/cassandra-security-manager/csm/shared/resource"
	"github.com/cassandra-security-manager/csm/shared/workload"
)

const (
	// drillOpen is how long the ring may take to answer the first query of a drill at all replicas.
	drillOpen = time.Minute
	// drillReconnect is the least between two times that the load connects anew because a gate waits for clients.
	drillReconnect = time.Minute
	// drillCertificate is the life of the load's certificates.
	drillCertificate = "24h"
)

// drill is a rotation under a load.
type drill struct {
	*session
	ask      drillAsk
	site     drillSite
	plan     rotationPlanView
	base     string
	password string

	conf        atomic.Pointer[tls.Config]
	own         []string // its certificates, by id
	loads       []*workload.Load
	began       []workload.Mark
	reconnected time.Time
	report      drillReport
}

func (d *drill) run() error {
	ctx := d.cmd.Context()
	if d.ask.out != "" { // before anything changes, and with what an earlier drill has left in it
		f, err := os.OpenFile(d.ask.out, os.O_CREATE|os.O_WRONLY, 0o644)
		if err != nil {
			return fault.Wrap(err, fault.Invalid, "no-file", "the report cannot be written").Do("name another file with --out")
		}
		f.Close()
	}
	d.report = drillReport{Cluster: d.plan.Cluster, From: d.plan.AuthorityBefore, To: d.plan.AuthorityAfter, Timeline: []drillMoment{}}
	if err := d.certify(d.plan.AuthorityBefore); err != nil {
		return err
	}
	defer d.forswear()
	err := d.open(ctx)
	if err == nil {
		err = d.rotate(ctx)
		d.measure()
	}
	if end := d.close(); err == nil {
		err = end
	}
	if told := d.tell(); err == nil {
		err = told
	}
	if n := d.report.failed(); err == nil && n > 0 {
		err = fault.New(fault.Internal, "drill-failed", "%d queries and connections failed", n).Do("see the errors in the report (-o json, or --out FILE), and what went on then in its timeline")
	}
	return err
}

func (d *drill) saw(format string, args ...any) {
	m := drillMoment{d.Now().UTC(), fmt.Sprintf(format, args...)}
	d.report.Timeline = append(d.report.Timeline, m)
	d.Say("%s  %s", m.Time.Format("15:04:05"), m.What)
}

// certify gives the load a certificate of a CA, with a key that never leaves this process. It trusts both CAs, as an application must
// before its ring changes.
func (d *drill) certify(authority string) error {
	key, err := algorithm.Generate(algorithm.P384, rand.Reader)
	if err != nil {
		return err
	}
	names, err := certificate.ParseNames([]string{"csm-drill." + resource.Last(d.plan.Cluster)}, nil, nil)
	if err != nil {
		return err
	}
	csr, err := certificate.NewRequest(key, names)
	if err != nil {
		return err
	}
	ans, err := d.post(d.tenantName()+"/certificates:issue", map[string]any{"csr": string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE REQUEST", Bytes: csr})),
		"authority": authority, "validity": drillCertificate})
	if err != nil {
		return err
	}
	var v certificateView
	if err := decode(ans.body, &v); err != nil {
		return err
	}
	d.own = append(d.own, resource.Last(v.Name))
	chain, err := certificate.DecodePEM([]byte(v.Chain))
	if err != nil {
		return err
	}
	roots, err := d.roots()
	if err != nil {
		return err
	}
	d.conf.Store(&tls.Config{MinVersion: tls.VersionTLS12, Certificates: []tls.Certificate{{PrivateKey: key, Certificate: certificate.Raw(chain)}}, RootCAs: roots})
	return nil
}

func (d *drill) roots() (*x509.CertPool, error) {
	pool := x509.NewCertPool()
	for _, name := range []string{d.plan.AuthorityBefore, d.plan.AuthorityAfter} {
		ca, _, err := read[struct {
			Issuers []struct{ Kind, PEM string }
		}](d.session, name, nil)
		if err != nil {
			return nil, err
		}
		for _, i := range ca.Issuers {
			if i.Kind == "root" {
				pool.AppendCertsFromPEM([]byte(i.PEM))
			}
		}
	}
	return pool, nil
}

// open starts the load and lets it run alone.
func (d *drill) open(ctx context.Context) error {
	for i, dc := range d.site.datacenters() {
		within, cancel := context.WithTimeout(ctx, drillOpen)
		l, err := workload.Start(within, workload.Options{Hosts: d.site.hosts[dc], Port: d.site.port, Keyspace: d.ask.named(i), Own: true, Datacenter: dc, Rate: d.ask.rate,
			Replication: map[string]int{dc: d.ask.replication(d.site, dc)}, User: d.ask.user, Password: d.password, TLS: d.conf.Load})
		cancel()
		if errors.Is(err, workload.ErrKeyspace) {
			return fault.Wrap(err, fault.Refused, "keyspace-exists", "the drill takes no keyspace that it has not made").Do("give another beginning: --keyspace; or remove %s, if an earlier drill has left it", d.ask.named(i))
		}
		if err != nil {
			return fault.Wrap(err, fault.Unavailable, "no-load", "data centre %s takes no load of this drill", dc).
				Do("run it where the nodes' CQL ports can be reached, with every node up, and --cql-user where a login is asked for; nothing of the ring's trust was changed")
		}
		d.loads, d.began = append(d.loads, l), append(d.began, l.Mark())
	}
	d.saw("the load runs alone for %s", d.ask.rest)
	if err := pause(ctx, d.ask.rest); err != nil {
		return err
	}
	d.report.Rest = d.since()
	for i, l := range d.loads {
		d.began[i] = l.Mark()
	}
	return nil
}

// since is what each load saw since its mark.
func (d *drill) since() (out []drillLoad) {
	for i, l := range d.loads {
		r := l.Since(d.began[i])
		out = append(out, drillLoad{Datacenter: d.site.datacenters()[i], Queries: r.Queries, Connections: r.Connections, Failed: r.Failed, Wrong: r.Wrong,
			P99Millis: float64(r.P99.Microseconds()) / 1000, Errors: r.Errors})
	}
	return out
}

func (d *drill) measure() {
	if d.report.Rest != nil {
		d.report.During = d.since()
	}
}

func (d *drill) rotate(ctx context.Context) error {
	began := d.Now()
	defer func() { d.report.Seconds = d.Now().Sub(began).Seconds() }()
	hash, err := d.agreed()
	if err != nil {
		return err
	}
	body := d.ask.body(d.session)
	body["planHash"], body["bake"], body["reason"] = hash, d.ask.bake, d.reason
	ans, err := d.post(d.base, body)
	if err != nil {
		return err
	}
	var r rotationView
	if err := decode(ans.body, &r); err != nil {
		return err
	}
	d.report.Rotation = r.Name
	d.saw("%s began", short(r.Name))
	if r, err = d.follow(ctx, r, "reissued"); err != nil {
		return err
	}
	// The load renews as applications do: the retire waits for it.
	if err := d.certify(d.plan.AuthorityAfter); err != nil {
		return err
	}
	if err := d.reconnect("it has a certificate of the new CA"); err != nil {
		return err
	}
	if !d.ask.retire || r.Phase == "done" {
		return nil
	}
	if err := d.retire(ctx, r); err != nil {
		return err
	}
	_, err = d.follow(ctx, r, "done")
	return err
}

// agreed gives the hash of the plan of now, in which the load's own certificate stands too. Anything else that has come since a person
// agreed makes it another plan.
func (d *drill) agreed() (string, error) {
	p, _, _, err := d.planRotation(d.ask.rotationAsk)
	if err != nil {
		return "", err
	}
	if !slices.Equal(d.gist(p), d.gist(d.plan)) {
		return "", fault.New(fault.Stale, "plan-hash", "members, anchors or applications are others now than when the drill was agreed to").Do("look at it again with --dry-run; the ring is as it was")
	}
	return p.Hash, nil
}

// gist is what a person agrees to in a plan.
func (d *drill) gist(p rotationPlanView) []string {
	out := slices.Concat([]string{p.Kind, p.AuthorityBefore, p.AuthorityAfter}, p.AddSha256, p.WithdrawSha256)
	for _, m := range p.Members {
		out = append(out, "member "+m.Name+" "+m.HostID)
	}
	for _, x := range p.Clients {
		mine := slices.ContainsFunc(d.own, func(id string) bool { return strings.HasPrefix(id, x.Name) })
		if !mine && !strings.HasPrefix(x.Name, "seen-") { // who was only seen comes and goes
			out = append(out, "client "+x.Name)
		}
	}
	slices.Sort(out)
	return out
}

// follow waits for a phase. A load whose connections a gate waits for connects anew, as an application is restarted.
func (d *drill) follow(ctx context.Context, r rotationView, want string) (rotationView, error) {
	for {
		if x, _, err := readIn[rotationView](ctx, d.session, r.Name, nil); err == nil {
			if x.Phase != d.report.Phase {
				d.saw("phase %s; %d queries so far, %d failed", x.Phase, d.queries(), d.failures())
			}
			r, d.report.Phase = x, x.Phase
		} else if !fault.Is(err, fault.Unavailable) {
			return r, err
		}
		switch {
		case r.Phase == want || r.Phase == "done":
			return r, nil
		case r.Phase == "rolled-back" || r.State == "paused" || r.State == "halted":
			return r, r.ended(want)
		}
		if err := d.waitedFor(r.Reasons); err != nil {
			return r, err
		}
		if err := pause(ctx, time.Second); err != nil {
			d.Say("the load has ended; the rotation goes on: %s", hand("", "rotation", "status", r.Name, "--wait").Command)
			return r, err
		}
	}
}

// waitedFor lets the load connect anew when clients are waited for.
func (d *drill) waitedFor(reasons []rotationReason) error {
	i := slices.IndexFunc(reasons, func(r rotationReason) bool { return r.Code == "canary" || r.Code == "seen" })
	if i < 0 || d.Now().Sub(d.reconnected) < drillReconnect {
		return nil
	}
	d.reconnected = d.Now()
	return d.reconnect(reasons[i].sentence())
}

func (d *drill) reconnect(why string) error {
	for _, l := range d.loads {
		if err := l.Reconnect(); err != nil {
			return fault.Wrap(err, fault.Unavailable, "no-load", "the load could not connect anew")
		}
	}
	d.saw("the load connects anew: %s", why)
	return nil
}

func (d *drill) queries() (n uint64) {
	for _, l := range d.since() {
		n += l.Queries
	}
	return n
}

func (d *drill) failures() (n uint64) {
	for _, l := range d.since() {
		n += l.Failed
	}
	return n
}

// retire withdraws the old CA as soon as every gate holds.
func (d *drill) retire(ctx context.Context, r rotationView) error {
	told := ""
	for {
		var p retirePlanView
		var raw json.RawMessage
		if err := d.session.ask(r.Name+":planRetire", nil, &raw, &p); err != nil && !fault.Is(err, fault.Unavailable) {
			return err
		} else if err == nil && d.clear(p.Reasons) {
			_, err := d.post(r.Name+":retire", map[string]any{"planHash": p.Hash, "except": d.session.named(d.ask.except), "reason": d.reason})
			if err == nil {
				d.saw("retired")
			}
			if err == nil || !fault.Is(err, fault.Stale) && !fault.Is(err, fault.Refused) {
				return err
			}
		}
		if len(p.Reasons) > 0 && p.Reasons[0].sentence() != told {
			told = p.Reasons[0].sentence()
			d.saw("the retire waits: %s", told)
		}
		if err := d.waitedFor(p.Reasons); err != nil {
			return err
		}
		if err := pause(ctx, 2*time.Second); err != nil {
			d.Say("the load has ended; the retire is yours: %s", hand("", "rotation", "retire", r.Name, "--dry-run").Command)
			return err
		}
	}
}

// clear says whether the retire may be asked for: no gate is closed but, maybe, for what was named. The state asks them all again.
func (d *drill) clear(reasons []rotationReason) bool {
	return !slices.ContainsFunc(reasons, func(r rotationReason) bool {
		return !slices.Contains(d.ask.except, r.Node) && !slices.Contains(d.ask.except, r.Code)
	})
}

// close ends the load and removes its keyspaces, also when the drill was interrupted.
func (d *drill) close() error {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(d.cmd.Context()), drillOpen)
	defer cancel()
	var left []string
	for i, l := range d.loads {
		l.Pause()
		if err := l.Drop(ctx); err != nil {
			left = append(left, d.ask.named(i))
		}
		l.Stop()
	}
	if left != nil {
		return fault.New(fault.Partial, "keyspaces-left", "keyspaces of the drill could not be removed: %s", strings.Join(left, ", ")).Do("remove them by hand: DROP KEYSPACE")
	}
	return nil
}

// forswear revokes the load's certificates, also when the drill was interrupted: a later retire would wait for whoever has one. What
// cannot be revoked ends within a day.
func (d *drill) forswear() {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(d.cmd.Context()), drillOpen)
	defer cancel()
	for _, id := range d.own {
		q := call{method: http.MethodPost, path: "/v1/" + d.tenantName() + "/certificates/" + id + ":revoke", body: map[string]any{"reason": "cessationOfOperation"}}
		if _, err := d.client.do(ctx, q); err != nil {
			d.Say("the drill's certificate %.8s lives on for up to %s: %v", id, drillCertificate, err)
		}
	}
}

// tell prints the report and writes it to its file.
func (d *drill) tell() error {
	if d.report.During == nil {
		return nil
	}
	raw, err := json.MarshalIndent(d.report, "", "  ")
	if err != nil {
		return err
	}
	if d.ask.out != "" {
		if err := os.WriteFile(d.ask.out, append(raw, '\n'), 0o644); err != nil {
			return fault.Wrap(err, fault.Partial, "not-written", "the report could not be written").Do("take it with -o json")
		}
		d.Say("wrote %s", d.ask.out)
	}
	note := "no rotation began"
	if d.report.Rotation != "" {
		note = fmt.Sprintf("%s is in phase %s after %.0f s, with %d failures", short(d.report.Rotation), d.report.Phase, d.report.Seconds, d.report.failed())
	}
	if d.report.Phase == "reissued" {
		note += "\nthe old CA is trusted still; withdraw it: " + hand("", "rotation", "retire", d.report.Rotation, "--dry-run").Command + "\nor turn round: " + hand("", "rotation", "rollback", d.report.Rotation, reasonFlag).Command
	}
	return d.Print(ui.View{Object: raw, Table: d.report.table(), Note: note})
}
