package cli

import (
	"crypto/fips140"
	"runtime"
	"runtime/debug"

	"github.com/spf13/cobra"
)

// Version is set by the linker: -X github.com/cassandra-security-manager/csm/shared/cli.Version=v1.2.3.
var Version = "dev"

// Build says what program this is.
type Build struct {
	Version string `json:"version"`
	Commit  string `json:"commit,omitempty"`
	Go      string `json:"go"`
	OS      string `json:"os"`
	Arch    string `json:"arch"`
	// FIPS is whether the FIPS 140-3 module of Go is in use (GODEBUG=fips140=on).
	FIPS bool `json:"fips140"`
}

// BuildInfo of this program.
func BuildInfo() Build {
	b := Build{Version: Version, Go: runtime.Version(), OS: runtime.GOOS, Arch: runtime.GOARCH, FIPS: fips140.Enabled()}
	if info, ok := debug.ReadBuildInfo(); ok {
		for _, s := range info.Settings {
			switch {
			case s.Key == "vcs.revision":
				b.Commit = s.Value[:min(12, len(s.Value))] + b.Commit
			case s.Key == "vcs.modified" && s.Value == "true":
				b.Commit += "+changes"
			}
		}
	}
	return b
}

func versionCommand() *cobra.Command {
	c := &cobra.Command{
		Use: "version", Short: "Show the version of this program", Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			b := BuildInfo()
			var p Pairs
			p.Add("version", "%s", b.Version)
			p.Add("commit", "%s", b.Commit)
			p.Add("go", "%s", b.Go)
			p.Add("platform", "%s/%s", b.OS, b.Arch)
			p.Add("FIPS 140-3", "%s", map[bool]string{true: "on", false: "off"}[b.FIPS])
			return Of(cmd).Print(View{Object: b, Pairs: p, Name: func(any) string { return b.Version }})
		},
	}
	return c
}
