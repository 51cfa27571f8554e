// Package clock builds our programs with another wall clock, for tests of long absences. The programs that are shipped have no
// switch for that, and need none: the standard library's time.Now is replaced at build time (go build -overlay), so that each
// reading of the wall clock in the whole program is shifted, that of TLS and of libraries too. Timers go on as they were, as they do
// when a machine's clock is set. A Hand sets the clock of a program that runs.
package clock

import (
	"encoding/binary"
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

// HandVariable names the file of a Hand.
const HandVariable = "CSM_TEST_CLOCK_HAND"

// Hand sets the clocks of all programs that were started with its environment entry and that Build made, while they run.
type Hand struct{ path string }

// NewHand makes the file of a hand, which stands at the real time.
func NewHand(path string) (Hand, error) {
	h := Hand{path}
	return h, h.Set(0)
}

// Entry is the environment entry for programs that follow this hand.
func (h Hand) Entry() string { return HandVariable + "=" + h.path }

// Set moves the clock to d from the real time, in whole seconds; negative is the past. It counts from the next reading on.
func (h Hand) Set(d time.Duration) error {
	f, err := os.OpenFile(h.path, os.O_CREATE|os.O_WRONLY, 0o600)
	if err != nil {
		return err
	}
	defer f.Close()
	_, err = f.WriteAt(binary.NativeEndian.AppendUint64(nil, uint64(int64(d/time.Second))), 0)
	return err
}

// Shift is the environment entry for a shift.
func Shift(d time.Duration) string { return fmt.Sprintf("%s=%d", Variable, int64(d/time.Second)) }

const (
	now      = "func Now() Time {\n\tsec, nsec, mono := runtimeNow()\n"
	shifted  = now + "\tsec += testShift + atomic.LoadInt64(testHand)\n"
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

// testHand lies in a file that others write.
var testHand = func() *int64 {
	path, set := syscall.Getenv("` + HandVariable + `")
	if !set {
		return new(int64)
	}
	fd, err := syscall.Open(path, syscall.O_RDONLY, 0)
	if err != nil {
		panic(err)
	}
	b, err := syscall.Mmap(fd, 0, 8, syscall.PROT_READ, syscall.MAP_SHARED)
	if err != nil {
		panic(err)
	}
	return (*int64)(unsafe.Pointer(&b[0]))
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
	text = strings.Replace(text, "\t_ \"unsafe\" // for go:linkname\n", "", 1)
	text = strings.Replace(text, "import (\n", "import (\n\t\"sync/atomic\"\n\t\"syscall\"\n\t\"unsafe\"\n", 1) + variable
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
