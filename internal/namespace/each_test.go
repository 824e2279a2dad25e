package namespace

import (
	"os"
	"path/filepath"
	"testing"
)

func TestInEachNetVisitsEachAndStaysInNone(t *testing.T) {
	home, err := os.Readlink("/proc/self/ns/net")
	if err != nil {
		t.Fatal(err)
	}
	var paths []string
	for range 3 {
		dir := pinDir(t)
		if err := Pin(t.Context(), dir, Options{Net: true}); err != nil {
			t.Fatal(err)
		}
		paths = append(paths, filepath.Join(dir, "net"))
	}
	paths = append(paths, filepath.Join(t.TempDir(), "none"))
	seen := map[string]bool{home: true}
	calls := 0
	err = InEachNet(paths, func(i int, err error) {
		calls++
		if (err != nil) != (i == 3) {
			t.Errorf("%s: %v", paths[i], err)
		}
		inside, linkErr := os.Readlink("/proc/thread-self/ns/net")
		if err == nil && (linkErr != nil || seen[inside]) {
			t.Errorf("call %d: in %s, %v", i, inside, linkErr)
		}
		seen[inside] = true
	})
	if err != nil || calls != 4 {
		t.Errorf("%d calls, %v", calls, err)
	}
	if now, err := os.Readlink("/proc/self/ns/net"); err != nil || now != home {
		t.Errorf("the process is in %s, was in %s: %v", now, home, err)
	}
}
