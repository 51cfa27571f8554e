package readiness

import (
	"fmt"
	"strings"
	"time"

	agentv1 "github.com/cassandra-security-manager/csm/protocol/agent/v1"
)

// membership says whether an agent speaks for the node at all.
func (j *judge) membership() {
	n := j.node
	switch n.State {
	case "pending":
		j.add(Concern{Severity: Blocker, Code: "not-joined", Message: "no agent has joined for this node",
			Remedy: "run the line of `csm cluster join-command` there"})
	case "suspended", "revoked":
		j.add(Concern{Severity: Blocker, Code: "agent-" + n.State, Message: "the agent's identity is " + n.State, Evidence: n.StateReason,
			Remedy: "`csm node get` says more; a host that was replaced joins anew: `csm cluster join-command --rejoin`"})
	case "active":
		if !n.Connected {
			j.add(Concern{Severity: Warning, Code: "agent-away", Message: "the agent is not connected: what follows is what it knew then",
				Evidence: since(n.Since), Remedy: "see `csm-agent status` on the host"})
		}
	}
	if n.Agent == nil {
		return
	}
	j.report.Mode = strings.ToLower(strings.TrimPrefix(n.Agent.Mode.String(), "MODE_"))
	if n.Agent.Mode == agentv1.Mode_MODE_OBSERVE {
		j.add(Concern{Severity: Info, Code: "mode-observe", Message: "the agent observes and changes nothing", Remedy: "set mode: manage in agent.yaml once this report is clean"})
	}
	if n.Agent.Hold != "" {
		j.add(Concern{Severity: Warning, Code: "held", Message: "a HOLD file stops the agent", Evidence: n.Agent.Hold, Remedy: "`csm-agent release` on the host"})
	}
}

func since(t time.Time) string {
	if t.IsZero() {
		return "never seen"
	}
	return "since " + t.UTC().Format(time.RFC3339)
}

// configuration passes on what the agent found in cassandra.yaml.
func (j *judge) configuration() {
	if j.node.Instance == nil {
		return
	}
	for _, f := range j.node.Instance.Findings {
		s := Severity(f.Severity)
		if f.Blocks {
			s = Blocker
		}
		if _, known := rank[s]; !known {
			s = Warning
		}
		evidence := j.node.Instance.ConfigPath
		if f.Line > 0 {
			evidence = fmt.Sprintf("%s:%d", evidence, f.Line)
		}
		j.add(Concern{Severity: s, Code: f.Code, Store: f.Store, Message: f.Message, Evidence: evidence, Remedy: f.Remedy})
	}
}

// jmx says whether somebody can listen to, or command, the node over JMX. Cassandra never reads JMX's stores again.
func (j *judge) jmx() {
	x := j.node.Instance.GetJmx()
	if x == nil || !x.Seen {
		j.unseen("JMX", "the command line of the running Cassandra cannot be seen by the agent", "start Cassandra, and run the agent as its user")
		return
	}
	where := fmt.Sprintf("port %d", x.Port)
	if !x.Remote {
		return // bound to loopback: who is on the host is in already
	}
	if !x.Authenticated {
		j.add(Concern{Severity: Error, Code: "jmx-open", Message: "anyone who reaches the JMX port commands the node", Evidence: where, Remedy: "set LOCAL_JMX=yes, or com.sun.management.jmxremote.authenticate=true, in cassandra-env.sh: a password file alone asks nobody for a password"})
	}
	if !x.Tls {
		j.add(Concern{Severity: Error, Code: "jmx-plaintext", Message: "remote JMX is not encrypted: passwords cross the network in clear", Evidence: where, Remedy: "set com.sun.management.jmxremote.ssl=true, or LOCAL_JMX=yes without TLS"})
		return
	}
	j.add(Concern{Severity: Warning, Code: "jmx-not-reloaded", Message: "the certificate of JMX is read once: a renewed one needs a restart of Cassandra", Evidence: where,
		Remedy: "plan it with the next rolling restart, or keep JMX on loopback"})
}

// clients reports who speaks plaintext CQL.
func (j *judge) clients() {
	i := j.node.Instance
	if i == nil {
		return
	}
	if s := i.Client; s != nil && s.Enabled && !s.Optional {
		return // the port takes TLS only
	}
	c := i.Clients
	if c == nil || c.Unseen != "" {
		why := "the agent has no CQL login"
		if c != nil {
			why = c.Unseen
		}
		j.unseen("plaintext clients", why, "ask Cassandra: SELECT address, username, driver_name FROM system_views.clients WHERE ssl_enabled = false ALLOW FILTERING")
		return
	}
	if c.Plaintext == 0 {
		return
	}
	var who []string
	for _, p := range c.PlaintextClients {
		who = append(who, strings.TrimSpace(p.Address+" "+strings.Trim(p.User+" "+p.Driver, " ")))
	}
	j.add(Concern{Severity: Warning, Code: "plaintext-clients", Message: fmt.Sprintf("%d CQL connections are not encrypted; they break when TLS is made mandatory", c.Plaintext),
		Evidence: some(who), Remedy: "move these clients to TLS before optional: false"})
}

// some shows at most five.
func some(all []string) string {
	if len(all) > 5 {
		return strings.Join(all[:5], ", ") + fmt.Sprintf(" and %d more", len(all)-5)
	}
	return strings.Join(all, ", ")
}
