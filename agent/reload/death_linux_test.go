package reload_test

import (
	"fmt"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"testing"
	"time"
)

// The helper is killed while its command runs: nothing goes on without it.
func TestAKilledHelperTakesItsCommandAlong(t *testing.T) {
	self, _ := os.Executable()
	program := exec.Command(self, "helper", self)
	in, err := program.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := program.Start(); err != nil {
		t.Fatal(err)
	}
	request := `{"id":1,"body":{"do":"reload","instance":"stuck"}}`
	fmt.Fprintf(in, "\x00\x00\x00%c%s", len(request), request)
	command := ""
	soon(t, "the command starts", func() bool {
		children, _ := os.ReadFile(fmt.Sprintf("/proc/%d/task/%[1]d/children", program.Process.Pid))
		threads, _ := os.ReadDir(fmt.Sprintf("/proc/%d/task", program.Process.Pid))
		for _, thread := range threads {
			more, _ := os.ReadFile(fmt.Sprintf("/proc/%d/task/%s/children", program.Process.Pid, thread.Name()))
			children = append(children, more...)
		}
		if f := strings.Fields(string(children)); len(f) > 0 {
			command = f[0]
		}
		return command != ""
	})
	program.Process.Kill()
	program.Wait()
	pid, _ := strconv.Atoi(command)
	soon(t, "the command ends", func() bool {
		stat, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
		return err != nil || strings.Contains(string(stat), ") Z ")
	})
}

func soon(t *testing.T, what string, is func() bool) {
	t.Helper()
	for deadline := time.Now().Add(20 * time.Second); !is(); time.Sleep(20 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatal("not within 20 s: ", what)
		}
	}
}
