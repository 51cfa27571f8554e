package release_test

import (
	"strings"
	"testing"

	"github.com/cassandra-security-manager/csm/shared/fault"
	"github.com/cassandra-security-manager/csm/shared/release"
)

func TestEachReleaseReloadsAsItsSourcesSay(t *testing.T) {
	for version, want := range map[string]release.Reload{
		"3.11.19": release.None, "4.0.0": release.Joint, "4.0.20": release.Joint, "4.1.0": release.Apart, "4.1.3": release.Apart,
		"4.1.4": release.Forced, "4.1.10": release.Forced, "5.0.8": release.Forced, "5.0-rc1": release.Forced, "6.0-alpha2": release.Forced, "7.1": release.Forced,
	} {
		r, ok := release.Parse(version)
		if !ok || r.Reload() != want {
			t.Errorf("%s: %s, %v, want %s", version, r.Reload(), ok, want)
		}
	}
	for _, s := range []string{"", "5", "five.zero", "5.0.8.1.2", "-5.0", "5.-1", "5..0"} {
		if r, ok := release.Parse(s); ok {
			t.Errorf("%q was read as %s", s, r)
		}
	}
	if release.Forced.Tells() || !release.Apart.Tells() || !release.Joint.ByTime() || release.None.Tells() {
		t.Error("only 4.0 to 4.1.3 fail on a store that cannot be loaded, and look at times")
	}
}

func TestARingOfMixedReleasesIsNotRotated(t *testing.T) {
	for _, c := range []struct {
		versions map[string]string
		reason   string
	}{
		{map[string]string{"n1": "5.0.8", "n2": "5.0.8"}, ""},
		{map[string]string{"n1": "4.0.20"}, ""},
		{map[string]string{}, ""},
		{map[string]string{"n1": "5.0.8", "n2": "4.1.3"}, "releases-mixed"},
		{map[string]string{"n1": "5.0.8", "n2": "5.0.9"}, ""},
		{map[string]string{"n1": "4.1.4", "n2": "4.1.10"}, ""},
		{map[string]string{"n1": "4.1.3", "n2": "4.1.4"}, "releases-mixed"},
		{map[string]string{"n1": "4.1.10", "n2": "5.0.8"}, "releases-mixed"},
		{map[string]string{"n1": "6.0-alpha2", "n2": "5.0.8"}, "releases-mixed"},
		{map[string]string{"n1": "5.0.8", "n2": ""}, "release-unknown"},
		{map[string]string{"n1": "3.11.9", "n2": "3.11.9"}, "no-hot-reload"},
	} {
		err := release.OneReload(c.versions)
		if c.reason == "" && err != nil || c.reason != "" && (!fault.HasReason(err, c.reason) || fault.From(err).Remedy == "") {
			t.Errorf("%v: %v, want %q", c.versions, err, c.reason)
		}
	}
}

func FuzzParse(f *testing.F) {
	for _, s := range []string{"5.0.8", "6.0-alpha2", "4.1", "", "....", "5.0.8-SNAPSHOT-x", "99999999999999999999.1"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		r, ok := release.Parse(s)
		if !ok && r != (release.Release{}) {
			t.Errorf("%q is no release, yet %v", s, r)
		}
		if again, fine := release.Parse(r.String()); ok && (!fine || again != r) {
			t.Errorf("%q reads as %v, which reads as %v", s, r, again)
		}
		if r.Before(r) || strings.TrimSpace(string(r.Reload())) == "" {
			t.Errorf("%q: %v", s, r)
		}
	})
}
