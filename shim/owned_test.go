package shim

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"
)

// A pod's init in a user namespace is root there and nobody of importance outside.
func TestInitInUserNamespace(t *testing.T) {
	needsNoCgo(t)
	p := newPod(t)
	for dir := p.config.Dir; dir != os.TempDir(); dir = filepath.Dir(dir) { // the init enters it as nobody of importance
		if err := os.Chmod(dir, 0o711); err != nil {
			t.Fatal(err)
		}
	}
	process, err := p.Init(t.Context(), InitRequest{Owned: &OwnedNamespaces{FirstID: 70000, IDs: 100, Flags: unix.CLONE_NEWNET | unix.CLONE_NEWUTS}})
	if err != nil {
		t.Fatal(err)
	}
	status, err := os.ReadFile(proc(process, "status"))
	if err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{"Uid:\t70000\t70000\t70000\t70000", fmt.Sprintf("NSpid:\t%d\t1", process.PID), "CapEff:\t0000000000000000"} {
		if !strings.Contains(string(status), want) {
			t.Errorf("status of the init lacks %q:\n%s", want, status)
		}
	}
	for _, kind := range []string{"user", "net", "uts", "pid", "mnt"} {
		if same(t, proc(process, "ns/"+kind), "/proc/self/ns/"+kind) {
			t.Errorf("the init shares the %s namespace with us", kind)
		}
	}
	if !same(t, proc(process, "ns/ipc"), "/proc/self/ns/ipc") {
		t.Error("the init has an IPC namespace nobody asked for")
	}
	if entries, err := os.ReadDir(proc(process, "root")); err != nil || len(entries) > 0 {
		t.Errorf("the init sees %v (%v)", entries, err)
	}
}

func proc(p Process, name string) string { return fmt.Sprintf("/proc/%d/%s", p.PID, name) }

func same(t *testing.T, a, b string) bool {
	t.Helper()
	first, err := os.Readlink(a)
	if err != nil {
		t.Fatal(err)
	}
	second, err := os.Readlink(b)
	if err != nil {
		t.Fatal(err)
	}
	return first == second
}

func TestPipesGoToTheirOwner(t *testing.T) {
	read, write, err := pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer read.Close()
	defer write.Close()
	null, err := os.Open(os.DevNull)
	if err != nil {
		t.Fatal(err)
	}
	defer null.Close()
	if err := (Owner{70000, 70001}).give(nil, write, null); err != nil {
		t.Fatal(err)
	}
	if info, err := write.Stat(); err != nil || info.Sys().(*syscall.Stat_t).Uid != 70000 || info.Sys().(*syscall.Stat_t).Gid != 70001 {
		t.Errorf("the pipe belongs to %v (%v)", info.Sys(), err)
	}
	if info, err := null.Stat(); err != nil || info.Sys().(*syscall.Stat_t).Uid != 0 {
		t.Errorf("/dev/null was given away (%v)", err)
	}
}
