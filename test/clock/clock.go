// Package clock builds our programs with another wall clock, for tests of long absences. The programs that are shipped have no
// switch for that, and need none: the standard library's time.Now is replaced at build time (go build -overlay), so that each
// reading of the wall clock in the whole program is shifted, that of TLS and of libraries too. Timers go on as they were.
package clock

import (
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"time"
)

// Variable holds the shift, in whole seconds, of a program that Build made; negative is the past.
const Variable = "CSM_TEST_CLOCK_SHIFT"

// Shift is the environment entry for a shift.
func Shift(d time.Duration) string { return fmt.Sprintf("%s=%d", Variable, int64(d/time.Second)) }

const (
	now      = "func Now() Time {\n\tsec, nsec, mono := runtimeNow()\n"
	shifted  = now + "\tsec += testShift\n"
	variable = `
var testShift = func() (n int64) {
	s, _ := syscall.Getenv("` + Variable + `")
	sign := int64(1)
	for i := 0; i < len(s); i++ {
		if s[i] == '-' {
			sign = -1
		} else {
			n = n*10 + int64(s[i]-'0')
		}
	}
	return sign * n
}()
`
)

// Build builds packages into a folder. The first build compiles everything anew; the cache keeps it.
func Build(dir string, packages ...string) error {
	root, err := exec.Command("go", "env", "GOROOT").Output()
	if err != nil {
		return err
	}
	file := filepath.Join(strings.TrimSpace(string(root)), "src", "time", "time.go")
	source, err := os.ReadFile(file)
	if err != nil {
		return err
	}
	text := strings.Replace(string(source), now, shifted, 1)
	text = strings.Replace(text, "import (\n", "import (\n\t\"syscall\"\n", 1) + variable
	if !strings.Contains(text, shifted) {
		return fmt.Errorf("time.Now of this Go is not the one that test/clock knows")
	}
	// The overlay's files have the same names each time, so that the build cache knows them again.
	work := filepath.Join(os.TempDir(), fmt.Sprintf("csm-test-clock-%d", os.Getuid()))
	if err := os.MkdirAll(work, 0o700); err != nil {
		return err
	}
	overlay, patched := filepath.Join(work, "overlay.json"), filepath.Join(work, "time.go")
	doc, err := json.Marshal(map[string]any{"Replace": map[string]string{file: patched}})
	if err != nil {
		return err
	}
	for path, content := range map[string][]byte{patched: []byte(text), overlay: doc} {
		if err := os.WriteFile(path, content, 0o600); err != nil {
			return err
		}
	}
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return err
	}
	cmd := exec.Command("go", append([]string{"build", "-overlay", overlay, "-o", dir + string(filepath.Separator)}, packages...)...)
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0", "GOFLAGS=-trimpath")
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("build with a shifted clock: %w: %s", err, out)
	}
	return nil
}
