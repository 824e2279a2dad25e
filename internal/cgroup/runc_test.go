package cgroup

import (
	"encoding/json"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/opencontainers/runtime-spec/specs-go"
)

// TestSamePathsAsRunc has runc make a container and looks for it where this room would.
func TestSamePathsAsRunc(t *testing.T) {
	runc, err := filepath.Abs("../../bin/linux-" + runtime.GOARCH + "/runc")
	if err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(runc); err != nil {
		t.Fatalf("no runc; `make build` makes it: %v", err)
	}
	tree := detect(t)
	path := testPath(t, tree) + "/pod"
	bundle := bundleFor(t, path+"/container")
	id, root := strings.Trim(strings.ReplaceAll(path, "/", "-"), "-"), filepath.Join(bundle, "state")
	call := func(args ...string) (string, error) {
		out, err := exec.Command(runc, append([]string{"--root", root}, args...)...).CombinedOutput()
		return string(out), err
	}
	pidFile := filepath.Join(bundle, "pid")
	t.Cleanup(func() { call("delete", "--force", id) })
	create := exec.Command(runc, "--root", root, "create", "--bundle", bundle, "--pid-file", pidFile, id)
	create.Stderr = os.Stderr // without pipes of ours, which the container would keep
	if err := create.Run(); err != nil {
		t.Fatalf("runc create: %v", err)
	}
	text, err := os.ReadFile(pidFile)
	if err != nil {
		t.Fatal(err)
	}
	pid, _ := strconv.Atoi(string(text))
	for _, dir := range tree.Dirs(path + "/container") {
		pids := map[int]bool{}
		if err := processes(dir, pids); err != nil || !pids[pid] {
			t.Errorf("%s holds %v, %v, and should hold the container's process %d", dir, sortedKeys(pids), err, pid)
		}
	}
	if pids, err := tree.Procs(path); err != nil || !slices.Equal(pids, []int{pid}) {
		t.Errorf("processes %v, %v, want %d", pids, err, pid)
	}
	if s, err := tree.Stats(path + "/container"); err != nil || s.CPUUsage == 0 || s.Processes == 0 || s.Memory.Limit == nil || *s.Memory.Limit != 64<<20 {
		t.Errorf("statistics %+v, %v", s, err)
	}
	if out, err := call("pause", id); err != nil {
		t.Errorf("runc pause: %v: %s", err, out)
	}
	if err := tree.Kill(within(t, 10*time.Second), path); err != nil {
		t.Error(err)
	}
	if out, err := call("delete", "--force", id); err != nil {
		t.Errorf("runc delete: %v: %s", err, out)
	}
}

func bundleFor(t *testing.T, cgroup string) string {
	t.Helper()
	dir := t.TempDir()
	limit := int64(64 << 20)
	spec := specs.Spec{
		Version: "1.2.0",
		Root:    &specs.Root{Path: filepath.Join(dir, "rootfs"), Readonly: true},
		Mounts:  []specs.Mount{{Destination: "/proc", Type: "proc", Source: "proc"}},
		Process: &specs.Process{Args: []string{"/never-started"}, Cwd: "/"},
		Linux: &specs.Linux{
			CgroupsPath: cgroup,
			Namespaces:  []specs.LinuxNamespace{{Type: specs.MountNamespace}, {Type: specs.PIDNamespace}},
			Resources:   &specs.LinuxResources{Memory: &specs.LinuxMemory{Limit: &limit}},
		},
	}
	text, err := json.Marshal(spec)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.MkdirAll(filepath.Join(dir, "rootfs", "proc"), 0o755); err != nil {
		t.Fatal(err)
	}
	for name, data := range map[string][]byte{"config.json": text, "rootfs/never-started": []byte("#!")} {
		if err := os.WriteFile(filepath.Join(dir, name), data, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	return dir
}
