package integration

import (
	"os"
	"path/filepath"
	"testing"
)

func TestRlimitsOfBaseSpec(t *testing.T) {
	n := prepareNode(t, "builtin")
	file := filepath.Join(n.Base, "base.json")
	must(t, os.WriteFile(file, []byte(`{"process": {"rlimits": [{"type": "RLIMIT_NOFILE", "soft": 321, "hard": 654}]}}`), 0o644))
	n.Config = "[runtimes.runc]\nbase_spec = \"" + file + "\"\n"
	must(t, n.Start())
	n.pull(busybox)
	_, id := n.up("p")
	if got := n.output(id, "sh", "-c", "ulimit -Sn; ulimit -Hn"); got != "321\n654\n" {
		t.Errorf("an exec has %q", got)
	}
	if got := n.output(id, "grep", "open files", "/proc/1/limits"); got == "" {
		t.Error("no limits")
	}
}
