package sandbox

import (
	"os"
	"path/filepath"
	"testing"
)

func TestBaseRlimits(t *testing.T) {
	file := filepath.Join(t.TempDir(), "base.json")
	for text, want := range map[string]int{
		`{"ociVersion": "1.2.0", "process": {"rlimits": [{"type": "RLIMIT_NOFILE", "soft": 1024, "hard": 4096}]}}`: 1,
		`{}`: 0,
		`{"process": {"rlimits": [{"type": "RLIMIT_NOFILE", "soft": 2, "hard": 1}]}}`: -1,
		`{"process": {"rlimits": [{"type": "nofile", "soft": 1, "hard": 1}]}}`:        -1,
		`no`: -1,
	} {
		if err := os.WriteFile(file, []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
		limits, err := BaseRlimits(file)
		if (err != nil) != (want < 0) || err == nil && len(limits) != want {
			t.Errorf("%s: %v, %v", text, limits, err)
		}
	}
}
