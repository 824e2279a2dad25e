package leftovers

import (
	"strings"
	"testing"
)

func TestStrayUnits(t *testing.T) {
	alive, dead := newID(), newID()
	usual := Instance{NFTable: "evenkeel", CgroupRoot: "/evenkeel.slice"}
	second := Instance{NFTable: "evenkeel-0123abcd", CgroupRoot: "/evenkeel.slice/evenkeel-0123abcd.slice"}
	chosen := Instance{NFTable: "evenkeel", CgroupRoot: "/machine.slice"}
	plain := Instance{NFTable: "evenkeel", CgroupRoot: "/evenkeel"} // the cgroupfs driver: there are only shims
	for _, c := range []struct {
		instance Instance
		name     string
		state    string
		want     string // part of what is said; empty: not stray
	}{
		{usual, "evenkeel-" + dead + ".scope", "active", "`systemctl stop evenkeel-" + dead + ".scope`"},
		{usual, "evenkeel-" + dead + ".scope", "failed", "`systemctl reset-failed evenkeel-" + dead + ".scope`"},
		{usual, "evenkeel-" + dead + ".scope", "inactive", "`systemctl stop"},
		{usual, "evenkeel-" + alive + ".scope", "active", ""},
		{usual, "evenkeel-" + alive + ".scope", "failed", ""}, // goes with its container
		{usual, "evenkeel-0123abcd-" + dead + ".scope", "failed", ""},
		{usual, "evenkeel-restore.scope", "active", ""},
		{usual, "evenkeel-shims.scope", "active", ""},
		{usual, "evenkeel-shims.scope", "failed", "in the way"},
		{usual, "evenkeel-0123abcd-shims.scope", "failed", ""},
		{usual, "evenkeel.slice", "active", ""},
		{usual, "evenkeel.slice", "failed", "in the way"},
		{usual, "evenkeel-pods.slice", "active", "a slice without a pod"},
		{usual, "evenkeel-busy.slice", "active", ""},
		{usual, "evenkeel-0123abcd.slice", "active", ""},
		{usual, "evenkeel-0123abcd-pods.slice", "failed", ""},
		{second, "evenkeel-0123abcd-" + dead + ".scope", "active", "a scope of no container"},
		{second, "evenkeel-" + dead + ".scope", "active", ""},
		{second, "evenkeel-0123abcd-pods.slice", "active", "a slice without a pod"},
		{second, "evenkeel.slice", "failed", ""},
		{chosen, "machine-others.slice", "failed", ""},
		{chosen, "machine.slice", "failed", "in the way"},
		{chosen, "evenkeel-" + dead + ".scope", "active", "a scope of no container"},
		{plain, "evenkeel-shims.scope", "failed", "in the way"},
		{plain, "evenkeel.slice", "failed", ""},
	} {
		s := &search{Instance: c.instance, live: func(id string) bool { return id == alive }}
		s.groups = map[string][]string{
			"/evenkeel.slice/evenkeel-busy.slice/" + alive: {"/sys/fs/cgroup"},
			"/evenkeel.slice/evenkeel-pods.slice/" + dead:  {"/sys/fs/cgroup"},
		}
		u := loadedUnit{c.name, c.state}
		said := s.stray(u)
		if said != "" {
			said += " " + u.cure()
		}
		if (said == "") != (c.want == "") || !strings.Contains(said, c.want) {
			t.Errorf("%s of %s: %s says %q, want %q", c.state, c.instance.NFTable, c.name, said, c.want)
		}
	}
}

// TestInstancesBelowTheUsualOne: systemd puts the slice of a second engine below that of the first.
func TestInstancesBelowTheUsualOne(t *testing.T) {
	usual := Instance{NFTable: "evenkeel", CgroupRoot: "/evenkeel.slice"}
	second := Instance{NFTable: "evenkeel-0123abcd", CgroupRoot: "/evenkeel.slice/evenkeel-0123abcd.slice"}
	if !usual.another("evenkeel-0123abcd.slice") || usual.another("evenkeel-pods.slice") || second.another("evenkeel-0123abcd-deadbeef.slice") {
		t.Error("an instance's slice is not told from a pod's")
	}
}
