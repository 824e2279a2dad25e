package shim

import (
	"os"
	"path/filepath"
	"testing"
)

// TestFollowedCountersOutliveTheCgroup plays the kernel and systemd with plain files, which inotify watches as well.
func TestFollowedCountersOutliveTheCgroup(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "container.scope")
	file := filepath.Join(dir, "memory.events")
	must := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	must(os.Mkdir(dir, 0o755))
	must(os.WriteFile(filepath.Join(dir, "memory.max"), []byte("4096\n"), 0o644))
	must(os.WriteFile(file, []byte("oom_kill 0\noom_group_kill 0\n"), 0o644))
	above := filepath.Join(filepath.Dir(dir), "memory.events")
	must(os.WriteFile(above, []byte("oom_kill 5\n"), 0o644))
	w := watchOOM([]string{dir})
	w.follow()
	if w.followed == nil {
		t.Fatal("nothing is followed")
	}
	defer w.followed.stop()
	f, err := os.OpenFile(file, os.O_WRONLY, 0)
	must(err)
	_, err = f.WriteString("oom_kill 2\noom_group_kill 1\n")
	must(err)
	f.Close()
	eventually(t, "the change is seen", func() bool { kills, _, _ := w.followed.last(); return kills == 2 })
	must(os.RemoveAll(dir))
	if _, _, known := w.count(); known {
		t.Error("a cgroup that is gone has counters")
	}
	kills, groups, all := w.followed.last()
	if kills != 2 || groups != 1 || !all || w.followed.lastLimit() != 4096 {
		t.Errorf("after the end: %d kills, %d groups, limit %d, all of them: %v", kills, groups, w.followed.lastLimit(), all)
	}
	must(os.WriteFile(above, []byte("oom_kill 8\n"), 0o644))
	if _, _, all := w.followed.last(); all {
		t.Error("more was killed in the pod than was seen, and nothing is said to be missing")
	}
}
