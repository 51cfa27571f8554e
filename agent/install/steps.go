package install

import (
	"fmt"
	"os"
	"strings"

	"github.com/cassandra-security-manager/csm/shared/fault"
)

// Step is one step of a transaction, in the words of logs and tests.
type Step string

// The steps forward, and those of a rollback.
const (
	StepLock         Step = "lock"
	StepCompare      Step = "compare"
	StepPreflightNew Step = "preflight-new"
	StepPreflightOld Step = "preflight-old"
	StepBaseline     Step = "baseline"
	StepKeep         Step = "keep"
	StepStage        Step = "stage"
	StepJournal      Step = "journal"
	StepTruststore   Step = "truststore"
	StepKeystore     Step = "keystore"
	StepReload       Step = "reload"
	StepProve        Step = "prove"
	StepNeighbour    Step = "neighbour"
	StepCommit       Step = "commit"
	StepClean        Step = "clean"

	StepBack           Step = "rollback"
	StepBackKeystore   Step = "rollback-keystore"
	StepBackTruststore Step = "rollback-truststore"
	StepBackReload     Step = "rollback-reload"
	StepBackProve      Step = "rollback-prove"
	StepBackCommit     Step = "rollback-commit"
	StepBackClean      Step = "rollback-clean"
)

// Steps are the steps of a transaction that goes well, in order.
func Steps() []Step {
	return []Step{StepLock, StepCompare, StepPreflightNew, StepPreflightOld, StepBaseline, StepKeep, StepStage, StepJournal,
		StepTruststore, StepKeystore, StepReload, StepProve, StepNeighbour, StepCommit, StepClean}
}

// RollbackSteps are the steps of a rollback, in order.
func RollbackSteps() []Step {
	return []Step{StepBack, StepBackKeystore, StepBackTruststore, StepBackReload, StepBackProve, StepBackCommit, StepBackClean}
}

// Op is one thing that is about to be done: the begin of a step, or an effect within it on a file, on Cassandra or on the
// network. It is what Options.Before sees.
type Op struct {
	Step Step
	// Do is "begin", or the effect: mkdir, create, write, owner, sync, times, rename, sync-folder, remove, reload, probe, ask.
	Do   string
	Path string
}

func (o Op) String() string { return strings.TrimSpace(fmt.Sprintf("%s/%s %s", o.Step, o.Do, o.Path)) }

// Held reads the kill switch: the first line of the HOLD file, and whether it stands. A file that cannot be read holds.
func Held(path string) (reason string, held bool) {
	data, err := os.ReadFile(path)
	if os.IsNotExist(err) {
		return "", false
	}
	if err != nil {
		return "the HOLD file cannot be read: " + err.Error(), true
	}
	line, _, _ := strings.Cut(strings.TrimSpace(string(data)), "\n")
	if len(line) > 200 {
		line = line[:200]
	}
	if line == "" {
		line = "no reason given"
	}
	return line, true
}

func (i *Installer) held() error {
	if reason, held := Held(i.o.Hold); held {
		return fault.New(fault.Refused, "held", "this node is held by %s: %s", i.o.Hold, reason).Do("remove the file, or run `csm-agent release`")
	}
	return nil
}

// stops are the reasons of stopped: nothing is wrong with the store, and the matter waits.
var stops = map[string]bool{"held": true, "frozen": true, "suspended": true, "mode-lowered": true}

// stopped says why no effect may begin: HOLD, or what Options.Frozen says.
func (i *Installer) stopped() error {
	if err := i.held(); err != nil {
		return err
	}
	return i.o.Frozen()
}
