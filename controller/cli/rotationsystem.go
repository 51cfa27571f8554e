package cli

import (
	"encoding/json"
	"fmt"
	"strings"

	ui "github.com/cassandra-security-manager/csm/shared/cli"
	"github.com/cassandra-security-manager/csm/shared/fault"
	"github.com/cassandra-security-manager/csm/shared/resource"
)

// systemRotations is the collection of the rotations of the system CA.
const systemRotations = "system/authorities/system/rotations"

// systemFlag is what tells them from those of rings on the command line.
func (s *session) systemFlag() string {
	if s.system {
		return " --system"
	}
	return ""
}

// systemEffects are what a person is told before a verb.
var systemEffects = map[string][]string{
	"resume":   {"controllers and agents go on when the gates hold"},
	"rollback": {"controllers, then agents, take identities of the root before again", "when all are proved, the new root leaves every verifier"},
}

type identityView struct {
	Name, Leaf, Named         string
	TrustsBefore, TrustsAfter bool
}

type agentsTally struct{ Total, Connected, Trusting, Moved, Named int }

type systemPlanView struct {
	AuthorityBefore, CAPin, Hash        string
	Phases, Controllers, Administrators []string
	Agents, AwayTotal                   int
	Away, Notes                         []string
	Blockers                            []rotationReason
}

func (p systemPlanView) text() string {
	var b strings.Builder
	fmt.Fprintf(&b, "system CA: a new root after %s; %d controllers, %d agents (%d away), %d administrators\n", resource.Last(p.AuthorityBefore), len(p.Controllers), p.Agents, p.AwayTotal, len(p.Administrators))
	for _, x := range p.Phases {
		fmt.Fprintf(&b, "  %s\n", x)
	}
	for _, x := range p.Away {
		fmt.Fprintf(&b, "away:    %s: the retire waits for it, or names it\n", x)
	}
	for _, x := range p.Notes {
		fmt.Fprintf(&b, "note:    %s\n", x)
	}
	b.WriteString(reasonLines("refused", p.Blockers))
	fmt.Fprintf(&b, "plan %s\n", p.Hash[:16])
	if len(p.Blockers) == 0 {
		fmt.Fprintf(&b, "to do it: csm rotation start --system --reason '…' --plan %s\n", p.Hash[:16])
	}
	return b.String()
}

func (s *session) planSystem(q rotationAsk) (p systemPlanView, raw json.RawMessage, err error) {
	if q.to != "" || q.emergency || len(q.keep) > 0 {
		return p, nil, fault.New(fault.Invalid, "not-a-ring", "the root of the system CA is made by the start: there is nothing to choose").Do("leave --to, --emergency and --keep out")
	}
	return p, raw, s.ask(systemRotations+":plan", nil, &raw, &p)
}

func (s *session) showSystemPlan(q rotationAsk) error {
	p, raw, err := s.planSystem(q)
	if err != nil {
		return err
	}
	if err := s.Print(ui.View{Object: raw, Text: p.text()}); err != nil || len(p.Blockers) == 0 {
		return err
	}
	return fault.New(fault.Refused, "rotation-blocked", "it would be refused: %s", p.Blockers[0].Message).Do("%s", p.Blockers[0].Remedy)
}

func (s *session) startSystem(q rotationAsk, bake string, except []string) error {
	if bake != "" || len(except) > 0 {
		return fault.New(fault.Invalid, "not-a-ring", "there are no waves and no clients").Do("leave --bake and --except out")
	}
	p, _, err := s.planSystem(q)
	if err != nil {
		return err
	}
	if err := s.planned(p.Hash, "csm rotation plan --system"); err != nil {
		return err
	}
	ans, err := s.post(systemRotations, map[string]any{"planHash": p.Hash, "reason": s.reason})
	if err != nil || s.dryRun {
		return err
	}
	return s.afterRotation(ans.body, "done")
}

// named are who is not waited for, by full name: a node as cluster/node, an administrator by name. In a ring's rotation they are names of clients.
func (s *session) named(names []string) []string {
	out := append([]string{}, names...)
	for i, n := range out {
		switch {
		case !s.system || strings.HasPrefix(n, "tenants/") || strings.HasPrefix(n, "system/"):
		case strings.Contains(n, "/"):
			c, node, _ := strings.Cut(n, "/")
			out[i] = resource.Node(s.ctx.Tenant, c, node)
		default:
			out[i] = resource.Admin(n)
		}
	}
	return out
}

// identities is who stands how in a rotation of the system CA.
func (r rotationView) identities() string {
	if r.Kind != "system" {
		return ""
	}
	var b strings.Builder
	for _, x := range append(append([]identityView{}, r.Controllers...), r.Administrators...) {
		trusts := ""
		if strings.HasPrefix(x.Name, "system/controllers/") {
			trusts = " trusts"
			for _, t := range []struct {
				name string
				held bool
			}{{"before", x.TrustsBefore}, {"after", x.TrustsAfter}} {
				if t.held {
					trusts += " " + t.name
				}
			}
		}
		fmt.Fprintf(&b, "  %-28s identity %-8s%s\n", strings.TrimPrefix(x.Name, "system/"), x.Leaf, trusts)
	}
	if t := r.Agents; t.Total > 0 {
		fmt.Fprintf(&b, "  agents: %d of %d moved, %d hold the root that stays, %d connected, %d not waited for\n", t.Moved, t.Total, t.Trusting, t.Connected, t.Named)
	}
	return b.String()
}

func (p retirePlanView) systemText() string {
	var b strings.Builder
	fmt.Fprintf(&b, "retire of %s: %s leaves every verifier\n", resource.Last(p.Rotation), strings.Join(p.WithdrawSha256, ", "))
	b.WriteString(reasonLines("refused", p.Reasons))
	fmt.Fprintf(&b, "plan %s\n", p.Hash[:16])
	if len(p.Reasons) == 0 {
		fmt.Fprintf(&b, "to do it: csm rotation retire --system --reason '…' --plan %s\n", p.Hash[:16])
	}
	return b.String()
}
