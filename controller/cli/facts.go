package cli

import (
	"net/http"
	"net/url"
	"time"

	"github.com/cassandra-security-manager/csm/shared/fault"
	"github.com/cassandra-security-manager/csm/shared/resource"
)

// facts are what doctor and check judge: asked once, with what could not be had noted beside it. Rules read nothing else.
type facts struct {
	now time.Time
	// servers of the context, each with what it said when it was asked alone; nil means ready.
	servers []serverFact
	// status is nil when no controller told it; err says why.
	status *statusView
	err    error
	// pin of the context.
	pin string
	// ends of the caller's own client certificate.
	own         time.Time
	authorities []authorityView
	nodes       []nodeView
	// missing says what could not be asked although a controller answers.
	missing []error
}

type serverFact struct {
	host string
	err  error
}

// nodesOf are the nodes of one cluster, or of all when it is empty.
func gather(s *session, cluster string) facts {
	f := facts{now: s.Now(), pin: s.ctx.CAPin}
	for _, u := range s.client.servers {
		f.servers = append(f.servers, serverFact{u.Host, s.ready(u)})
	}
	st, _, err := read[statusView](s, "system", nil)
	if err != nil {
		f.err = err
		return f
	}
	f.status = &st
	note := func(err error) {
		if err != nil {
			f.missing = append(f.missing, err)
		}
	}
	me, _, err := read[struct{ CertificateNotAfter time.Time }](s, "whoami", nil)
	f.own = me.CertificateNotAfter
	note(err)
	sys, _, err := read[authorityView](s, "system/authorities/system", nil)
	note(err)
	f.authorities = append(f.authorities, sys)
	tenant, _, _, err := list[authorityView](s, s.tenantName()+"/authorities", nil, 0)
	note(err)
	f.authorities = append(f.authorities, tenant...)
	if cluster == "" {
		cluster = resource.Cluster(s.ctx.Tenant, "-")
	}
	f.nodes, _, _, err = list[nodeView](s, cluster+"/nodes", nil, 0)
	note(err)
	return f
}

// ready asks one controller alone whether it can take requests; it needs no login.
func (s *session) ready(u *url.URL) error {
	ctx, cancel := s.Global.Context(s.cmd.Context())
	defer cancel()
	_, err := s.client.ask(ctx, u, call{method: http.MethodGet, path: "/readyz", header: http.Header{}}, nil)
	return err
}

// Severities, the worst first.
const (
	critical = "critical"
	warning  = "warning"
	info     = "info"
)

var severities = map[string]int{critical: 0, warning: 1, info: 2}

// finding is one thing that a person should know, with the command to run next.
type finding struct {
	Severity string `json:"severity"`
	Code     string `json:"code"`
	Subject  string `json:"subject,omitempty"`
	Message  string `json:"message"`
	Next     string `json:"next,omitempty"`
	Runbook  string `json:"runbook,omitempty"`
}

// RunbookURL is the folder of the runbooks, which alert rules name too.
const RunbookURL = "https://github.com/cassandra-security-manager/csm/blob/main/docs/runbooks/"

func (f finding) book(name string) finding {
	f.Runbook = RunbookURL + name + ".md"
	return f
}

func found(severity, code, subject, next, message string) finding {
	return finding{Severity: severity, Code: code, Subject: subject, Message: message, Next: next}
}

// remedyOf is what an error tells to do.
func remedyOf(err error) string { return fault.From(err).Remedy }
