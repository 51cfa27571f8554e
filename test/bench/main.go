//go:build linux

// Command bench measures the figures of this project and prints them as a table and as JSON. Each figure names the command
// and the load that made it; where there is a peer it is measured in the same run, turn by turn.
package main

import (
	"context"
	"encoding/json"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"syscall"
	"text/tabwriter"
	"time"
)

// figure is one line of the table.
type figure struct {
	Name      string   `json:"name"`
	Value     float64  `json:"value"`
	Unit      string   `json:"unit"`
	Goal      string   `json:"goal,omitempty"`
	Holds     *bool    `json:"holds,omitempty"`
	Peer      string   `json:"peer,omitempty"`
	PeerValue *float64 `json:"peer_value,omitempty"`
	Command   string   `json:"command"`
	Load      string   `json:"load"`
}

type bench struct {
	bin, work string
	short     bool
	// command is what makes the figures.
	command string
	// agents of the simulated fleet; 0 is all of them.
	agents  int
	figures []figure
}

func (b *bench) add(f figure) {
	f.Command = b.command
	b.figures = append(b.figures, f)
	fmt.Fprintf(os.Stderr, "  %s: %.4g %s\n", f.Name, f.Value, f.Unit)
}

func yes(ok bool) *bool      { return &ok }
func num(v float64) *float64 { return &v }

func main() {
	b := &bench{}
	out := flag.String("out", "build/bench.json", "file for the figures")
	flag.StringVar(&b.bin, "bin", "build/bin", "folder of the programs")
	flag.BoolVar(&b.short, "short", false, "a tenth of the time: to see that it works, not to quote")
	only := flag.String("only", "", "issue, failover, agent, backup (or start: its first figures), report, observe, rotation, fleet or storm, several with commas; all but start and storm when empty")
	flag.IntVar(&b.agents, "agents", 0, fmt.Sprintf("agents of the simulated fleet, in rings of %d (default %d)", ringNodes, fleetAgents))
	bare := flag.String("bare", "", "be the server of bare streams that another of these measures, on this host:port")
	flag.Parse()
	if *bare != "" {
		fmt.Fprintln(os.Stderr, "bench:", serveBare(*bare))
		os.Exit(1)
	}
	if b.command = "make bench"; flag.NFlag() > 0 && (*only != "" || b.short || b.agents > 0) {
		b.command = strings.Join(append([]string{"bench"}, os.Args[1:]...), " ")
	}
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	if err := b.run(ctx, *only, *out); err != nil {
		fmt.Fprintln(os.Stderr, "bench:", err)
		os.Exit(1)
	}
}

func (b *bench) run(ctx context.Context, only, out string) (err error) {
	if b.bin, err = filepath.Abs(b.bin); err != nil {
		return err
	}
	if b.work, err = os.MkdirTemp("", "csm-bench-"); err != nil {
		return err
	}
	defer os.RemoveAll(b.work)
	type part struct {
		name string
		run  func(context.Context) error
	}
	parts := []part{{"issue", b.issuing}, {"failover", b.failover}, {"agent", b.agent}, {"backup", b.backup}, {"start", b.starts}, {"report", b.report}, {"observe", b.observe}, {"rotation", b.rotation}, {"fleet", b.fleet}, {"storm", b.storm}}
	var wanted []string
	if only != "" {
		wanted = strings.Split(only, ",")
	}
	for _, name := range wanted {
		if !slices.ContainsFunc(parts, func(p part) bool { return p.name == name }) {
			return fmt.Errorf("there is nothing called %q to measure; see -help", name)
		}
	}
	for _, p := range parts {
		if slices.Contains(wanted, p.name) || only == "" && p.name != "start" && p.name != "storm" {
			fmt.Fprintf(os.Stderr, "%s ...\n", p.name)
			if err := p.run(ctx); err != nil {
				return fmt.Errorf("%s: %w", p.name, err)
			}
		}
	}
	b.print()
	j, err := json.MarshalIndent(b.figures, "", "  ")
	if err != nil {
		return err
	}
	return os.WriteFile(out, append(j, '\n'), 0o644)
}

func (b *bench) print() {
	fmt.Printf("%s, %d cores, %s, %s\n", runtime.GOARCH, runtime.NumCPU(), runtime.Version(), time.Now().UTC().Format(time.RFC3339))
	w := tabwriter.NewWriter(os.Stdout, 0, 4, 2, ' ', 0)
	fmt.Fprintln(w, "FIGURE\tVALUE\tUNIT\tGOAL\tHOLDS\tPEER\tLOAD")
	for _, f := range b.figures {
		holds, peer := "-", "-"
		if f.Holds != nil {
			holds = map[bool]string{true: "yes", false: "NO"}[*f.Holds]
		}
		if f.PeerValue != nil {
			peer = fmt.Sprintf("%.4g (%s)", *f.PeerValue, f.Peer)
		}
		goal := f.Goal
		if goal == "" {
			goal = "-"
		}
		fmt.Fprintln(w, strings.Join([]string{f.Name, fmt.Sprintf("%.4g", f.Value), f.Unit, goal, holds, peer, f.Load}, "\t"))
	}
	w.Flush()
}
