package cli

import (
	"bufio"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"io"
	"os"
	"strings"

	ui "github.com/cassandra-security-manager/csm/shared/cli"
	"github.com/cassandra-security-manager/csm/shared/fault"
)

// change is what a command is about to do.
type change struct {
	// verb and name of the resource; etag of it as it is now, so that a plan does not outlive what it was made for.
	verb, name, etag string
	// effects in words, one each.
	effects []string
	// grave changes are never done by --yes alone.
	grave bool
}

// hash of the plan, which --dry-run shows and --plan wants.
func (c change) hash() string {
	sum := sha256.Sum256([]byte(strings.Join([]string{c.verb, c.name, c.etag}, "\x00")))
	return hex.EncodeToString(sum[:8])
}

// confirm lets a change go on (nil), or says why not. With --dry-run it shows the plan and lets the request go on too: the
// controller then checks it and changes nothing.
func (s *session) confirm(c change) error {
	if s.dryRun {
		s.Say("plan %s: %s %s", c.hash(), c.verb, c.name)
		for _, e := range c.effects {
			s.Say("  - %s", e)
		}
		if c.grave || s.ctx.Protected {
			s.Say("to do it: the same command with --plan %s instead of --dry-run", c.hash())
		}
		return nil
	}
	if s.plan != "" {
		if s.plan != c.hash() {
			return fault.New(fault.Stale, "plan-hash", "the plan %s is not what would be done now (%s)", s.plan, c.hash()).Do("look at it again with --dry-run")
		}
		return nil
	}
	if !c.grave && !s.ctx.Protected && s.yes {
		return nil
	}
	if f, ok := s.In.(*os.File); !ok || !ui.Terminal(f) || !ui.Terminal(s.Err) {
		if c.grave || s.ctx.Protected {
			return fault.New(fault.Refused, "plan-needed", "%s %s needs the hash of its plan", c.verb, c.name).Do("run it with --dry-run, then with --plan HASH")
		}
		return fault.New(fault.Refused, "not-confirmed", "%s %s was not confirmed", c.verb, c.name).Do("add --yes")
	}
	return s.askBack(c)
}

func (s *session) askBack(c change) error {
	fmt.Fprintf(s.Err, "%s %s\n", c.verb, c.name)
	for _, e := range c.effects {
		fmt.Fprintf(s.Err, "  - %s\n", e)
	}
	want := "yes"
	if c.grave || s.ctx.Protected {
		want = short(c.name)
	}
	fmt.Fprintf(s.Err, "type %q to go on: ", want)
	line, err := bufio.NewReader(io.LimitReader(s.In, 4096)).ReadString('\n')
	if err != nil && line == "" {
		return fault.New(fault.Refused, "not-confirmed", "nothing was typed; nothing was changed")
	}
	if strings.TrimSpace(line) != want {
		return fault.New(fault.Refused, "not-confirmed", "%q was typed; nothing was changed", strings.TrimSpace(line))
	}
	return nil
}

// readInput reads a file, or stdin for "-".
func (s *session) readInput(path string) ([]byte, error) {
	r := s.In
	if path != "-" {
		f, err := os.Open(path)
		if err != nil {
			return nil, fault.Wrap(err, fault.Invalid, "no-file", "the file cannot be read").Do("check its name and mode")
		}
		defer f.Close()
		r = f
	}
	b, err := io.ReadAll(io.LimitReader(r, 1<<20))
	if err != nil {
		return nil, fault.Wrap(err, fault.Invalid, "no-file", "%s cannot be read", path)
	}
	return b, nil
}
