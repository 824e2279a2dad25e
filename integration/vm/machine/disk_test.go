package machine

import (
	"os"
	"os/exec"
	"path/filepath"
	"testing"
)

func TestExtract(t *testing.T) {
	dir := t.TempDir()
	disk, to := filepath.Join(dir, "disk"), filepath.Join(dir, "to")
	if err := Format(t.Context(), disk, 64<<20); err != nil {
		t.Fatal(err)
	}
	content := filepath.Join(dir, "content")
	if err := os.WriteFile(content, []byte("hello"), 0o644); err != nil {
		t.Fatal(err)
	}
	for _, request := range []string{"mkdir /out", "mkdir /out/deep", "write " + content + " /out/deep/file", "write " + content + " /elsewhere"} {
		if out, err := exec.Command("debugfs", "-w", "-R", request, disk).CombinedOutput(); err != nil {
			t.Fatalf("%s: %v: %s", request, err, out)
		}
	}
	if err := os.Mkdir(to, 0o755); err != nil {
		t.Fatal(err)
	}
	if err := Extract(t.Context(), disk, "/out", to); err != nil {
		t.Fatal(err)
	}
	if data, err := os.ReadFile(filepath.Join(to, "deep", "file")); err != nil || string(data) != "hello" {
		t.Errorf("read %q, %v", data, err)
	}
	if entries, err := os.ReadDir(to); err != nil || len(entries) != 1 {
		t.Errorf("found %v, %v; want deep alone", entries, err)
	}
	if err := Extract(t.Context(), disk, "/nowhere", to); err == nil {
		t.Error("a directory that is not there was extracted")
	}
}
