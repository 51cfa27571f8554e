package cli

import (
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"

	ui "github.com/cassandra-security-manager/csm/shared/cli"
	"github.com/cassandra-security-manager/csm/shared/fault"
)

// States of the monitoring plug-ins' interface: its exit codes are the only ones of csm that are not those of the table.
const (
	nagiosOK, nagiosWarning, nagiosCritical, nagiosUnknown = 0, 1, 2, 3
)

var nagiosNames = []string{"OK", "WARNING", "CRITICAL", "UNKNOWN"}

var checkNames = []string{"quorum", "controllers", "expiry", "agents", "freeze"}

func (a *app) checkCommand() *cobra.Command {
	l := defaultLimits
	c := &cobra.Command{Use: "check [quorum|controllers|expiry|agents|freeze ...]", Short: "Check for Nagios and its kin: one line, performance data, exit code 0 to 3", Args: cobra.ArbitraryArgs, ValidArgs: checkNames,
		Long: "check speaks the interface of monitoring plug-ins: 0 OK, 1 WARNING, 2 CRITICAL, 3 UNKNOWN (asked wrongly, or not allowed to ask).\n" +
			"Without arguments it checks everything. No controller that answers is CRITICAL.",
		Example: "  csm check\n  csm check quorum controllers\n  csm check expiry --warning 504h --critical 168h"}
	c.Flags().DurationVarP(&l.leafWarning, "warning", "w", l.leafWarning, "expiry: warn when a node's certificate ends within")
	c.Flags().DurationVar(&l.leafCritical, "critical", l.leafCritical, "expiry: critical when it ends within")
	c.SetFlagErrorFunc(func(cmd *cobra.Command, err error) error { return unknown(ui.Of(cmd), err) })
	c.RunE = func(cmd *cobra.Command, args []string) error {
		for _, x := range args {
			if !slices.Contains(checkNames, x) {
				return unknown(ui.Of(cmd), fmt.Errorf("there is no check %.40q: use %s", x, strings.Join(checkNames, ", ")))
			}
		}
		s, err := a.open(cmd)
		if err != nil {
			return unknown(ui.Of(cmd), err)
		}
		if len(args) == 0 {
			args = checkNames
		}
		code, line := nagios(gather(s, ""), l, args)
		fmt.Fprintln(s.Out, line)
		if code == nagiosOK {
			return nil
		}
		return ui.Exit(code)
	}
	return c
}

func unknown(g *ui.Global, err error) error {
	fmt.Fprintf(g.Out, "CSM UNKNOWN - %s\n", oneLine(fault.From(err).Error()))
	return ui.Exit(nagiosUnknown)
}

// nagios judges the facts. Pure.
func nagios(f facts, l limits, names []string) (int, string) {
	findings := judge(f, l, names...)
	if f.status == nil {
		if !fault.Is(f.err, fault.Unavailable) {
			return nagiosUnknown, "CSM UNKNOWN - " + oneLine(f.err.Error())
		}
		findings = judge(f, l, "quorum")
	}
	code, text := nagiosOK, "all is well"
	for _, x := range findings {
		switch {
		case x.Severity == critical:
			code = nagiosCritical
		case x.Severity == warning && code == nagiosOK:
			code = nagiosWarning
		}
	}
	if code == nagiosOK && len(f.missing) > 0 {
		code, text = nagiosUnknown, f.missing[0].Error()
	}
	if len(findings) > 0 && code != nagiosUnknown {
		text = subjectOf(findings[0]) + findings[0].Message
		if len(findings) > 1 {
			text += fmt.Sprintf(" (and %d more: csm doctor)", len(findings)-1)
		}
	}
	line := "CSM " + nagiosNames[code] + " - " + oneLine(text)
	if p := perfdata(f, l, names); p != "" {
		line += " | " + p
	}
	return code, line
}

// oneLine keeps what would end the text or begin performance data out of it.
func oneLine(s string) string {
	return strings.NewReplacer("\n", " ", "|", "/").Replace(strings.TrimSpace(s))
}

// perfdata is 'label'=value[unit];[warn];[crit];[min];[max], as the plug-in guidelines have it.
func perfdata(f facts, l limits, names []string) string {
	if f.status == nil {
		return ""
	}
	var out []string
	add := func(format string, args ...any) { out = append(out, fmt.Sprintf(format, args...)) }
	has := func(n string) bool { return slices.Contains(names, n) }
	voters, healthy, lag, clock, disk := 0, 0, uint64(0), 0.0, 1.0
	for _, c := range f.status.Controllers {
		if c.Voter {
			voters++
		}
		if !c.Reachable {
			continue
		}
		if c.Voter {
			healthy++
		}
		lag, clock = max(lag, c.Lag), max(clock, c.ClockOffsetMs, -c.ClockOffsetMs)
		if c.DiskFree > 0 {
			disk = min(disk, c.DiskFree)
		}
	}
	if has("quorum") {
		add("voters=%d;%d:;%d:;0;%d", healthy, voters, voters/2+1, voters)
	}
	if has("controllers") {
		add("lag=%d;;;0 clock_offset=%.3fs;;600;0 disk_free=%.0f%%;;5:;0;100", lag, clock/1000, disk*100)
	}
	if has("expiry") {
		if first, any := firstEnd(f); any {
			add("first_expiry=%.0fs;%.0f:;%.0f:", first.Sub(f.now).Seconds(), l.leafWarning.Seconds(), l.leafCritical.Seconds())
		}
	}
	if has("agents") {
		connected := 0
		for _, n := range f.nodes {
			if n.Agent.Connected {
				connected++
			}
		}
		add("agents=%d;;;0;%d", connected, len(f.nodes))
	}
	if has("freeze") {
		add("freezes=%d;;;0", len(f.status.Freezes))
	}
	return strings.Join(out, " ")
}

func firstEnd(f facts) (first time.Time, any bool) {
	for _, n := range f.nodes {
		if _, end := n.worstStore(); !end.IsZero() && (!any || end.Before(first)) {
			first, any = end, true
		}
	}
	return first, any
}
