package cgroup

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

func detect(t testing.TB) *Tree {
	t.Helper()
	tree, err := Detect()
	if err != nil {
		t.Fatal(err)
	}
	return tree
}

// machines are the real hierarchies, and those of a machine with v2 alone as far as a hybrid one can play it.
func machines(t *testing.T, test func(t *testing.T, tree *Tree)) {
	tree := detect(t)
	t.Run("this machine", func(t *testing.T) { test(t, tree) })
	if dir := tree.unifiedDir("/"); dir != "" && !tree.V2 {
		t.Run("its v2 part", func(t *testing.T) {
			test(t, &Tree{V2: true, hierarchies: []hierarchy{{mount: filepath.Clean(dir), unified: true}}})
		})
	}
}

var tests atomic.Int64

// testPath is a cgroup of this test's own. It is emptied and removed at the end.
func testPath(t testing.TB, tree *Tree) string {
	t.Helper()
	path := fmt.Sprintf("/evenkeel-test-%d-%d", os.Getpid(), tests.Add(1))
	t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
		defer cancel()
		if err := tree.Kill(ctx, path); err != nil {
			t.Error(err)
		}
		if err := tree.Remove(ctx, path); err != nil {
			t.Error(err)
		}
		for _, dir := range tree.Dirs(path) {
			if _, err := os.Lstat(dir); err == nil {
				t.Errorf("%s is left", dir)
			}
		}
	})
	return path
}

// run starts a shell script inside the cgroup. It is reaped as soon as it ends.
func run(t testing.TB, tree *Tree, path, script string) *exec.Cmd {
	t.Helper()
	cmd := exec.Command("sh", "-c", "read go; "+script)
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	input, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	go cmd.Wait()
	if err := tree.Add(path, cmd.Process.Pid); err != nil {
		t.Fatal(err)
	}
	fmt.Fprintln(input, "go")
	return cmd
}

func within(t testing.TB, d time.Duration) context.Context {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), d)
	t.Cleanup(cancel)
	return ctx
}

// eventually waits for what another process does.
func eventually(t testing.TB, what string, done func() bool) {
	t.Helper()
	for end := time.Now().Add(time.Minute); !done(); time.Sleep(5 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("not within a minute: %s", what)
		}
	}
}

func TestLife(t *testing.T) { machines(t, life) }

func life(t *testing.T, tree *Tree) {
	path := testPath(t, tree)
	for range 2 { // an existing one is kept
		if err := tree.Create(path + "/a/b"); err != nil {
			t.Fatal(err)
		}
	}
	if err := tree.Create(path + "/a/c"); err != nil {
		t.Fatal(err)
	}
	for _, dir := range tree.Dirs(path + "/a/b") {
		if _, err := os.Stat(dir); err != nil {
			t.Error(err)
		}
	}
	if names, err := tree.Children(path + "/a"); err != nil || !slices.Equal(names, []string{"b", "c"}) {
		t.Errorf("children %v, %v, want b and c", names, err)
	}
	if names, err := tree.Children("/"); err != nil || !slices.Contains(names, path[1:]) {
		t.Errorf("children of the root %v, %v, want %s among them", names, err, path[1:])
	}
	first, second := run(t, tree, path+"/a/b", "sleep 1000"), run(t, tree, path+"/a/c", "exec sleep 1000")
	eventually(t, "three processes are there", func() bool {
		pids, err := tree.Procs(path)
		return err == nil && len(pids) == 3 && slices.Contains(pids, first.Process.Pid) && slices.Contains(pids, second.Process.Pid)
	})
	if err := tree.Kill(within(t, 10*time.Second), path); err != nil {
		t.Error(err)
	}
	if pids, err := tree.Procs(path); err != nil || len(pids) != 0 {
		t.Errorf("processes %v, %v are left", pids, err)
	}
	for range 2 {
		if err := tree.Remove(within(t, 10*time.Second), path); err != nil {
			t.Error(err)
		}
	}
}

func TestNotThere(t *testing.T) { machines(t, notThere) }

func notThere(t *testing.T, tree *Tree) {
	path := "/evenkeel-test-nowhere"
	if _, err := tree.Procs(path); !errors.Is(err, ErrNotExist) || !strings.Contains(err.Error(), path) {
		t.Errorf("Procs: %v", err)
	}
	if _, err := tree.Children(path); !errors.Is(err, ErrNotExist) || !strings.Contains(err.Error(), path) {
		t.Errorf("Children: %v", err)
	}
	if _, err := tree.Stats(path); !errors.Is(err, ErrNotExist) || !strings.Contains(err.Error(), path) {
		t.Errorf("Stats: %v", err)
	}
	if err := tree.Add(path, os.Getpid()); !errors.Is(err, ErrNotExist) || !strings.Contains(err.Error(), path) {
		t.Errorf("Add: %v", err)
	}
	if err := tree.Kill(t.Context(), path); err != nil {
		t.Errorf("Kill: %v", err)
	}
	if err := tree.Remove(t.Context(), path); err != nil {
		t.Errorf("Remove: %v", err)
	}
}

func TestRootIsRefused(t *testing.T) { machines(t, rootIsRefused) }

func rootIsRefused(t *testing.T, tree *Tree) {
	for _, path := range []string{"", "/", "//", ".", "..", "/..", "/a/../..", "/a/../b", "/./a", "a/./b", "/a\x00b"} {
		for name, err := range map[string]error{
			"Create": tree.Create(path), "Kill": tree.Kill(t.Context(), path), "Remove": tree.Remove(t.Context(), path),
			"Add": tree.Add(path, os.Getpid()),
		} {
			if !errors.Is(err, ErrPath) {
				t.Errorf("%s(%q): %v, want ErrPath", name, path, err)
			}
		}
		if _, err := tree.Procs(path); !errors.Is(err, ErrPath) {
			t.Errorf("Procs(%q): %v, want ErrPath", path, err)
		}
		if _, err := tree.Stats(path); !errors.Is(err, ErrPath) {
			t.Errorf("Stats(%q): %v, want ErrPath", path, err)
		}
		if dirs := tree.Dirs(path); len(dirs) != 0 || tree.MemoryDir(path) != "" {
			t.Errorf("Dirs(%q): %v", path, dirs)
		}
	}
}

func TestRemoveWaits(t *testing.T) { machines(t, removeWaits) }

func removeWaits(t *testing.T, tree *Tree) {
	path := testPath(t, tree)
	if err := tree.Create(path); err != nil {
		t.Fatal(err)
	}
	cmd := run(t, tree, path, "exec sleep 1000")
	pid := fmt.Sprintf("pid %d (", cmd.Process.Pid)
	err := tree.Remove(within(t, 50*time.Millisecond), path)
	if !errors.Is(err, ErrBusy) || !errors.Is(err, context.DeadlineExceeded) || !strings.Contains(err.Error(), path) || !strings.Contains(err.Error(), pid) {
		t.Errorf("got %v, want ErrBusy with the path and %s", err, pid)
	}
	time.AfterFunc(50*time.Millisecond, func() { cmd.Process.Kill() })
	if err := tree.Remove(within(t, 10*time.Second), path); err != nil {
		t.Error(err)
	}
}

func TestKillForkBomb(t *testing.T) {
	tree := detect(t)
	for _, c := range []struct {
		name string
		kill func(context.Context, string) error
	}{
		{"as anywhere", tree.Kill},
		{"as on a machine without any v2", tree.killEach},
	} {
		t.Run(c.name, func(t *testing.T) {
			path := testPath(t, tree)
			if err := tree.Create(path + "/in"); err != nil {
				t.Fatal(err)
			}
			if err := write(filepath.Join(tree.dir("pids", path), "pids.max"), "200"); err != nil {
				t.Fatal(err)
			}
			eventually(t, "the bomb goes off", func() bool {
				pids, _ := tree.Procs(path)
				if len(pids) == 0 { // a shell that cannot fork gives up, and sometimes all do
					run(t, tree, path+"/in", `bomb() { bomb & bomb & wait; }; bomb 2>/dev/null`)
				}
				return len(pids) > 100
			})
			if err := c.kill(within(t, 20*time.Second), path); err != nil {
				t.Error(err)
			}
		})
	}
}

func TestKillFrozen(t *testing.T) { machines(t, killFrozen) }

func killFrozen(t *testing.T, tree *Tree) {
	path := testPath(t, tree)
	if err := tree.Create(path + "/in"); err != nil {
		t.Fatal(err)
	}
	run(t, tree, path+"/in", "sleep 1000")
	if tree.V2 {
		if err := write(filepath.Join(tree.unifiedDir(path+"/in"), "cgroup.freeze"), "1"); err != nil {
			t.Fatal(err)
		}
	} else {
		tree.freeze(path + "/in")
	}
	if err := tree.Kill(within(t, 10*time.Second), path); err != nil {
		t.Error(err)
	}
}

// TestKillSparesWhoIsNotInTheCgroup: between a look and the kill, a pid can become a stranger's.
func TestKillSparesWhoIsNotInTheCgroup(t *testing.T) { machines(t, killSparesWhoIsNotInTheCgroup) }

func killSparesWhoIsNotInTheCgroup(t *testing.T, tree *Tree) {
	path := testPath(t, tree)
	if err := tree.Create(path + "/in"); err != nil {
		t.Fatal(err)
	}
	member := run(t, tree, path+"/in", "exec sleep 1000")
	stranger := exec.Command("sleep", "1000")
	if err := stranger.Start(); err != nil {
		t.Fatal(err)
	}
	defer stranger.Wait()
	defer stranger.Process.Kill()
	if err := tree.killListed(path, []int{1 << 30, stranger.Process.Pid, member.Process.Pid}); err != nil {
		t.Fatal(err)
	}
	eventually(t, "the member is gone", func() bool {
		pids, err := tree.Procs(path)
		return err == nil && len(pids) == 0
	})
	if id, _, state := command(fmt.Sprintf("/proc/%d", stranger.Process.Pid)); id == 0 || state == 'Z' {
		t.Error("a process that is not in the cgroup was killed")
	}
}

// TestKillSparesItself: a path taken wrong must not end the engine.
func TestKillSparesItself(t *testing.T) {
	tree := detect(t)
	pids, err := tree.victims("/evenkeel-test-none")
	if err != nil || len(pids) != 0 {
		t.Errorf("victims of nothing: %v, %v", pids, err)
	}
	if err := sparesUs("/x", []int{1 << 30, os.Getpid()}); err == nil || !strings.Contains(err.Error(), "this process") {
		t.Errorf("got %v, want a refusal", err)
	}
}

func TestStuckNames(t *testing.T) {
	cmd := exec.Command("sleep", "1000")
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	defer func() { cmd.Process.Kill(); cmd.Wait() }()
	eventually(t, "sleep sleeps", func() bool { return strings.Contains(describe(cmd.Process.Pid), "(sleep, state S") })
	text := stuck("/x", []int{cmd.Process.Pid, 1 << 30, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1}).Error()
	for _, want := range []string{"/x", fmt.Sprintf("pid %d (sleep, state S", cmd.Process.Pid), "just gone", "and 2 more"} {
		if !strings.Contains(text, want) {
			t.Errorf("%q does not say %q", text, want)
		}
	}
}

func TestStats(t *testing.T) {
	tree := detect(t)
	path := testPath(t, tree)
	if err := tree.Create(path + "/in"); err != nil {
		t.Fatal(err)
	}
	const limit = 64 << 20
	name := map[bool]string{true: "memory.max", false: "memory.limit_in_bytes"}[tree.V2]
	if before, err := tree.Stats(path + "/in"); err != nil || before.Memory.Limit != nil || before.Processes != 0 {
		t.Errorf("before: %+v, %v", before, err)
	}
	if err := write(filepath.Join(tree.MemoryDir(path+"/in"), name), fmt.Sprint(limit)); err != nil {
		t.Fatal(err)
	}
	started := time.Now()
	run(t, tree, path+"/in", "x=$(head -c 8000000 /dev/zero | tr '\\0' x); while :; do :; done")
	eventually(t, "8 MB and some CPU are used", func() bool {
		s, err := tree.Stats(path + "/in")
		return err == nil && s.Memory.RSS > 8_000_000 && s.CPUUsage > 20_000_000
	})
	s, err := tree.Stats(path) // the counters of a parent include its children's
	if err != nil {
		t.Fatal(err)
	}
	if s.CPUUsage < 20_000_000 || s.CPUUsage > uint64(4*time.Since(started)) || s.Processes == 0 {
		t.Errorf("CPU time and processes: %+v", s)
	}
	if m := s.Memory; m.WorkingSet > m.Usage || m.WorkingSet < 8_000_000 || m.PageFaults == 0 || m.RSS < 8_000_000 || m.Limit != nil {
		t.Errorf("memory: %+v", s.Memory)
	}
	if s, err := tree.Stats(path + "/in"); err != nil || s.Memory.Limit == nil || *s.Memory.Limit != limit {
		t.Errorf("limit: %+v, %v", s.Memory, err)
	}
}

func TestWaitEmptyEndsWithContext(t *testing.T) { machines(t, waitEmptyEndsWithContext) }

func waitEmptyEndsWithContext(t *testing.T, tree *Tree) {
	path := testPath(t, tree)
	if err := tree.Create(path); err != nil {
		t.Fatal(err)
	}
	dir := tree.unifiedDir(path)
	if dir == "" {
		t.Log("this machine has no v2 hierarchy, not even a hybrid one: nothing to wait on")
		return
	}
	cmd := run(t, tree, path, "exec sleep 1000")
	if err := waitEmpty(within(t, 30*time.Millisecond), dir); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("got %v, want the deadline", err)
	}
	time.AfterFunc(30*time.Millisecond, func() { unix.Kill(cmd.Process.Pid, unix.SIGKILL) })
	if err := waitEmpty(within(t, 10*time.Second), dir); err != nil {
		t.Error(err)
	}
}

// Somebody else may remove the cgroup as soon as it is empty, before the kernel has told us that it is.
func TestWaitEmptyBesideRemoval(t *testing.T) {
	tree := detect(t)
	path := testPath(t, tree)
	for i := range 150 {
		each := fmt.Sprintf("%s/%d", path, i)
		if err := tree.Create(each); err != nil {
			t.Fatal(err)
		}
		dir := tree.unifiedDir(each)
		if dir == "" {
			t.Log("this machine has no v2 hierarchy, not even a hybrid one: nothing to wait on")
			return
		}
		cmd := run(t, tree, each, "exec sleep 1000")
		waited := make(chan error, 1)
		go func() { waited <- waitEmpty(within(t, 5*time.Second), dir) }()
		time.Sleep(time.Millisecond) // let it wait
		unix.Kill(cmd.Process.Pid, unix.SIGKILL)
		for unix.Rmdir(dir) == unix.EBUSY {
		}
		if err := <-waited; err != nil {
			t.Fatalf("round %d: %v", i, err)
		}
	}
}

func BenchmarkStats(b *testing.B) {
	tree := detect(b)
	path := testPath(b, tree)
	if err := tree.Create(path); err != nil {
		b.Fatal(err)
	}
	run(b, tree, path, "exec sleep 1000")
	for b.Loop() {
		if _, err := tree.Stats(path); err != nil {
			b.Fatal(err)
		}
	}
}

func BenchmarkCreateKillRemove(b *testing.B) {
	tree := detect(b)
	path := testPath(b, tree)
	for b.Loop() {
		if err := errors.Join(tree.Create(path), tree.Kill(b.Context(), path), tree.Remove(b.Context(), path)); err != nil {
			b.Fatal(err)
		}
	}
}
