package cli

import (
	"encoding/json"
	"fmt"
	"math"
	"net/http"
	"net/url"
	"strings"
	"time"

	"github.com/spf13/cobra"

	ui "github.com/cassandra-security-manager/csm/shared/cli"
	"github.com/cassandra-security-manager/csm/shared/fault"
	"github.com/cassandra-security-manager/csm/shared/resource"
)

func (a *app) statusCommand() *cobra.Command {
	var verify bool
	c := &cobra.Command{Use: "status", Short: "Quorum, leader, and each controller's lag, version, region and clock", Args: cobra.NoArgs,
		Long: "Shows the control plane as the controller that answers sees it. Exit code 0 when healthy, 10 when something was found.\n" +
			"--verify lets every controller compute the checksum of its state at one index, and compares.",
		Example: "  csm status\n  csm status --verify\n  csm status -o json | jq .problems"}
	c.Flags().BoolVar(&verify, "verify", false, "compare the state of all controllers")
	return a.run(c, func(s *session, _ []string) error {
		if verify {
			return s.verify()
		}
		st, raw, err := read[statusView](s, "system", nil)
		if err != nil {
			return err
		}
		if err := s.printStatus(st, raw); err != nil {
			return err
		}
		if st.State != "healthy" && st.State != "frozen" {
			return fault.New(fault.Differs, "degraded", "")
		}
		return nil
	})
}

func (s *session) printStatus(st statusView, raw json.RawMessage) error {
	if s.Machine() || s.Format() == "name" {
		return s.Print(ui.View{Object: raw})
	}
	var p ui.Pairs
	p.Add("system", "%s  %s", st.ClusterID, st.State)
	p.Add("leader", "%s", pick(st.Leader, "none"))
	p.Add("answered by", "%s", st.Controller)
	p.Add("applied", "%d in term %d", st.Applied, st.Term)
	if st.AgeMs >= 0 {
		p.Add("age of state", "%s", ui.Span(time.Duration(st.AgeMs*float64(time.Millisecond))))
	}
	p.Add("system CA pin", "%s", st.CAPin)
	for _, f := range st.Freezes {
		p.Add("frozen", "%s", s.freezeText(f))
	}
	if g := st.Grace; g != nil {
		p.Add("grace", "until %s by %s: %s", s.at(g.Until), actorName(g.Actor), g.Reason)
	}
	for _, pr := range st.Problems {
		p.Add("problem", "%s", pr)
	}
	if err := s.Print(ui.View{Pairs: p}); err != nil {
		return err
	}
	fmt.Fprintln(s.Out)
	return s.Print(ui.View{Table: controllerTable(st.Controllers)})
}

// offset is how far a clock is off: in milliseconds, unless that is a figure nobody reads.
func offset(ms float64) string {
	if math.Abs(ms) < 10_000 {
		return fmt.Sprintf("%+.0fms", math.Round(ms)+0)
	}
	sign := "+"
	if ms < 0 {
		sign = "-"
	}
	return sign + time.Duration(math.Abs(ms)*float64(time.Millisecond)).Round(time.Second).String()
}

func controllerTable(cs []controllerView) *ui.Table {
	t := &ui.Table{Columns: []ui.Column{{Name: "CONTROLLER"}, {Name: "STATE", Style: stateStyle}, {Name: "REGION"}, {Name: "ZONE", Wide: true}, {Name: "REACHABLE", Style: stateStyle},
		{Name: "LAG", Right: true}, {Name: "CLOCK", Right: true}, {Name: "DISK FREE", Right: true}, {Name: "VERSION"}, {Name: "ADDRESS"}, {Name: "KEY", Wide: true}}}
	for _, c := range cs {
		clock, disk := "", ""
		if c.Reachable {
			clock = offset(c.ClockOffsetMs)
			if c.DiskFree > 0 {
				disk = fmt.Sprintf("%.0f%%", c.DiskFree*100)
			}
		}
		t.Add(resource.Last(c.Name), c.State, c.Region, c.Zone, yesNo(c.Reachable), fmt.Sprint(c.Lag), clock, disk, c.Version, c.Address, c.KeyFingerprint)
	}
	return t
}

// actorName is the short name of who did something.
func actorName(actor string) string {
	if strings.HasPrefix(actor, "spiffe://") {
		parts := strings.SplitN(actor, "/", 5)
		return strings.Join(parts[3:], "/")
	}
	return actor
}

func (s *session) verify() error {
	type view struct {
		Consistent  bool
		Index       uint64
		Controllers []struct {
			Controller, SHA256, Error string
			Index                     uint64
			Rows                      int64
		}
	}
	a, err := s.post("system:verify", nil)
	if err != nil {
		return err
	}
	var v view
	if err := decode(a.body, &v); err != nil {
		return err
	}
	t := &ui.Table{Columns: []ui.Column{{Name: "CONTROLLER"}, {Name: "INDEX", Right: true}, {Name: "ROWS", Right: true}, {Name: "CHECKSUM OF THE STATE"}, {Name: "ERROR", Style: func(string) ui.Style { return ui.Bad }}}}
	for _, c := range v.Controllers {
		t.Add(resource.Last(c.Controller), fmt.Sprint(c.Index), fmt.Sprint(c.Rows), c.SHA256, c.Error)
	}
	note := "all controllers hold the same state"
	if !v.Consistent {
		note = "NOT all controllers answered with the same state"
	}
	if err := s.Print(ui.View{Object: a.body, Table: t, Note: note}); err != nil || v.Consistent {
		return err
	}
	return fault.New(fault.Differs, "inconsistent", "the states were not proved equal").Do("a controller with an error is not reachable; one with another checksum must be rebuilt: remove it and let it join again")
}

func (a *app) whoamiCommand() *cobra.Command {
	c := &cobra.Command{Use: "whoami", Short: "Who the controllers take you for", Args: cobra.NoArgs, Example: "  csm whoami"}
	return a.run(c, func(s *session, _ []string) error {
		v, raw, err := read[struct {
			Name, Actor         string
			CertificateNotAfter time.Time
		}](s, "whoami", nil)
		if err != nil {
			return err
		}
		var p ui.Pairs
		p.Add("name", "%s", v.Name)
		p.Add("actor", "%s", v.Actor)
		p.Add("certificate ends", "%s", s.at(v.CertificateNotAfter))
		p.Add("context", "%s", s.ctx.Name)
		return s.Print(ui.View{Object: raw, Pairs: p})
	})
}

func (a *app) apiCommand() *cobra.Command {
	var data, file string
	c := &cobra.Command{Use: "api METHOD PATH", Short: "Send any request, print the answer as it is", Args: cobra.ExactArgs(2),
		Example: "  csm api GET /v1/openapi.json\n  csm api GET '/v1/tenants/default/certificates?pageSize=2'\n  csm api POST /v1/system:verify"}
	c.Flags().StringVarP(&data, "data", "d", "", "JSON body")
	c.Flags().StringVarP(&file, "file", "f", "", "file with the JSON body, - for stdin")
	return a.run(c, func(s *session, args []string) error {
		q := call{method: strings.ToUpper(args[0]), path: args[1]}
		if s.dryRun && q.method != http.MethodGet {
			q.query = url.Values{"validateOnly": {"true"}}
		}
		if file != "" {
			b, err := s.readInput(file)
			if err != nil {
				return err
			}
			data = string(b)
		}
		if data != "" {
			q.body = json.RawMessage(data)
		}
		ctx, cancel := s.Global.Context(s.cmd.Context())
		defer cancel()
		if strings.Contains(args[1], "watch=true") {
			return s.copyStream(q)
		}
		ans, err := s.client.do(ctx, q)
		if err != nil {
			return err
		}
		if json.Valid(ans.body) && s.Format() != "jsonl" {
			return s.Print(ui.View{Object: ans.body, Text: indented(ans.body)})
		}
		_, err = s.Out.Write(ans.body)
		return err
	})
}

func indented(b []byte) string {
	var v json.RawMessage = b
	out, err := json.MarshalIndent(v, "", "  ")
	if err != nil {
		return string(b)
	}
	return string(out) + "\n"
}

func (a *app) getCommand() *cobra.Command {
	var watch bool
	c := &cobra.Command{Use: "get NAME", Short: "Get any resource, or list a collection, by its full name", Args: cobra.ExactArgs(1),
		Example: "  csm get tenants/default/clusters/prod-eu/nodes\n  csm get system/controllers/csm1\n  csm get tenants/default/certificates -w"}
	c.Flags().BoolVarP(&watch, "watch", "w", false, "show changes as they come")
	return a.run(c, func(s *session, args []string) error {
		name := strings.TrimPrefix(strings.TrimPrefix(args[0], "/"), "v1/")
		if watch {
			return s.follow(name, s.printEvent)
		}
		ans, err := s.get(name, nil)
		if err != nil {
			return err
		}
		return s.Print(ui.View{Object: ans.body, Text: indented(ans.body)})
	})
}
