package shim

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"
)

// namespaces makes a process whose network, IPC and UTS namespaces are a pod's.
func namespaces(t *testing.T) (files []string) {
	holder := exec.Command("/bin/busybox", "sleep", "1000")
	holder.SysProcAttr = &syscall.SysProcAttr{Cloneflags: unix.CLONE_NEWNET | unix.CLONE_NEWIPC | unix.CLONE_NEWUTS}
	if err := holder.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { holder.Process.Kill(); holder.Wait() })
	for _, kind := range []string{"net", "ipc", "uts"} {
		files = append(files, fmt.Sprintf("/proc/%d/ns/%s", holder.Process.Pid, kind))
	}
	return files
}

// The init changes the credentials of all its threads, which Go refuses in a program with cgo, as -race makes one.
func needsNoCgo(t *testing.T) {
	if cgo == "CGO_ENABLED=1" {
		t.Skip("the init cannot run in a program with cgo")
	}
}

func sandboxCgroups(t *testing.T) (dirs []string) {
	for _, root := range []string{"/sys/fs/cgroup/memory", "/sys/fs/cgroup/pids", "/sys/fs/cgroup"} {
		if _, err := os.Stat(root + "/cgroup.procs"); err != nil {
			continue
		}
		dir := filepath.Join(root, cgroupName(), "sandbox")
		if err := os.MkdirAll(dir, 0o755); err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { eventually(t, dir+" is empty", func() bool { return unix.Rmdir(dir) == nil }) })
		dirs = append(dirs, dir)
	}
	return dirs
}

func TestInit(t *testing.T) {
	needsNoCgo(t)
	files, cgroups := namespaces(t), sandboxCgroups(t)
	p := newPod(t)
	init, err := p.Init(t.Context(), InitRequest{Namespaces: files, Cgroups: cgroups})
	if err != nil || !init.Alive() {
		t.Fatalf("%+v, %v", init, err)
	}
	if again, err := p.Init(t.Context(), InitRequest{}); err != nil || again != init {
		t.Errorf("a second call gave %+v, %v", again, err)
	}
	if state, err := p.State(t.Context()); err != nil || state.Init != init {
		t.Errorf("state is %+v, %v", state, err)
	}
	for _, file := range files {
		want, _ := os.Readlink(file)
		for _, task := range tasks(t, init.PID) {
			if got, _ := os.Readlink(fmt.Sprintf("/proc/%d/task/%s/ns/%s", init.PID, task, filepath.Base(file))); got != want {
				t.Errorf("namespace of thread %s is %s, not %s", task, got, want)
			}
		}
		for _, task := range tasks(t, p.self.PID) {
			if got, _ := os.Readlink(fmt.Sprintf("/proc/%d/task/%s/ns/%s", p.self.PID, task, filepath.Base(file))); got == want {
				t.Errorf("thread %s of the shim has stayed in the pod's namespace %s", task, got)
			}
		}
	}
	for _, dir := range cgroups {
		procs, _ := os.ReadFile(filepath.Join(dir, "cgroup.procs"))
		if strings.TrimSpace(string(procs)) != strconv.Itoa(init.PID) {
			t.Errorf("%s holds %q", dir, procs)
		}
	}
	checkConfined(t, init.PID)
	t.Run("it reaps", func(t *testing.T) { checkReaping(t, p, init) })
	rollup, _ := os.ReadFile(fmt.Sprintf("/proc/%d/smaps_rollup", init.PID))
	_, rest, _ := strings.Cut(string(rollup), "Pss_Anon:")
	t.Logf("init has %s KiB of anonymous memory", strings.Fields(rest)[0])
}

func tasks(t *testing.T, pid int) (names []string) {
	entries, err := os.ReadDir(fmt.Sprintf("/proc/%d/task", pid))
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range entries {
		names = append(names, e.Name())
	}
	return names
}

func checkConfined(t *testing.T, pid int) {
	for _, task := range tasks(t, pid) {
		status, err := os.ReadFile(fmt.Sprintf("/proc/%d/task/%s/status", pid, task))
		if err != nil {
			t.Fatal(err)
		}
		for _, want := range []string{"CapInh:\t0000000000000000\n", "CapPrm:\t0000000000000000\n", "CapEff:\t0000000000000000\n",
			"CapBnd:\t0000000000000000\n", "CapAmb:\t0000000000000000\n", "NoNewPrivs:\t1\n", "\t1\n"} {
			if !strings.Contains(string(status), want) {
				t.Errorf("status of thread %s has no %q:\n%s", task, want, status)
			}
		}
	}
	root := fmt.Sprintf("/proc/%d/root", pid)
	if entries, err := os.ReadDir(root); err != nil || len(entries) != 0 {
		t.Errorf("its root holds %v, %v", entries, err)
	}
	if err := os.Mkdir(root+"/x", 0o755); err == nil {
		t.Error("its root can be written")
	}
	mounts, _ := os.ReadFile(fmt.Sprintf("/proc/%d/mountinfo", pid))
	if n := strings.Count(string(mounts), "\n"); n != 1 {
		t.Errorf("it sees %d mounts:\n%s", n, mounts)
	}
	comm, _ := os.ReadFile(fmt.Sprintf("/proc/%d/comm", pid))
	if string(comm) != "evenkeel-init\n" {
		t.Errorf("it is called %q", comm)
	}
}

// checkReaping lets a container orphan processes into the shared namespace.
func checkReaping(t *testing.T, p *pod, init Process) {
	b := shell("for i in 1 2 3 4 5; do setsid sh -c 'sleep 0.1 & sleep 0.05 & exit' ; done; sleep 0.5; ps -o comm,stat")
	b.change = func(spec map[string]any) {
		linux := spec["linux"].(map[string]any)
		linux["namespaces"] = []any{map[string]any{"type": "mount"}, map[string]any{"type": "pid", "path": fmt.Sprintf("/proc/%d/ns/pid", init.PID)}}
	}
	id := p.run(b)
	p.wait(id)
	out := p.content(id)
	if !strings.Contains(out, "evenkeel") || strings.Contains(out, "sleep") || strings.Contains(out, "defunct") {
		t.Errorf("processes of the pod at the end: %s", out)
	}
	if err := p.Forget(t.Context(), id); err != nil {
		t.Error(err)
	}
}

func TestInitOutlivesItsShim(t *testing.T) {
	needsNoCgo(t)
	p := newPod(t)
	init, err := p.Init(t.Context(), InitRequest{})
	if err != nil {
		t.Fatal(err)
	}
	unix.Kill(p.self.PID, unix.SIGKILL)
	eventually(t, "the shim is gone", func() bool { return !p.self.Alive() })
	unix.Kill(init.PID, unix.SIGHUP)
	unix.Kill(init.PID, unix.SIGUSR1)
	if !init.Alive() {
		t.Error("init died with its shim, or of a signal it should ignore")
	}
	unix.Kill(init.PID, unix.SIGTERM)
	eventually(t, "init obeys SIGTERM", func() bool { return !init.Alive() })
}

func TestInitFailure(t *testing.T) {
	p := newPod(t)
	if _, err := p.Init(t.Context(), InitRequest{Namespaces: []string{"/nonesuch/net"}}); err == nil || !strings.Contains(err.Error(), "/nonesuch/net") {
		t.Errorf("a namespace that is not there: %v", err)
	}
	if _, err := p.Init(t.Context(), InitRequest{Cgroups: []string{"/nonesuch"}}); err == nil || !strings.Contains(err.Error(), "/nonesuch") {
		t.Errorf("a cgroup that is not there: %v", err)
	}
	eventually(t, "nothing is left", func() bool { return len(children(p.self.PID)) == 0 })
	if state, err := p.State(t.Context()); err != nil || state.Init.PID != 0 {
		t.Errorf("state is %+v, %v", state, err)
	}
}
