package sandbox

import "testing"

func TestProfileIn(t *testing.T) {
	const list = "docker-default (enforce)\n/usr/bin/man (complain)\nodd (name) (enforce)\n"
	for profile, want := range map[string]bool{"docker-default": true, "/usr/bin/man": true, "odd (name)": true, "docker": false, "odd": false, "": false} {
		if profileIn(list, profile) != want {
			t.Errorf("%q: want %v", profile, want)
		}
	}
}
