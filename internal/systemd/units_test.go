package systemd

import (
	"context"
	"fmt"
	"math"
	"os"
	"os/exec"
	"path"
	"strings"
	"testing"
	"time"
)

func TestLimitsOfFiles(t *testing.T) {
	list, err := properties(map[string]string{"memory.high": "4096", "memory.oom.group": "1"})
	if err != nil || len(list) != 1 || list[0].Name != "MemoryHigh" || list[0].Value.Value() != uint64(4096) {
		t.Errorf("%v, %v", list, err)
	}
	list, err = properties(map[string]string{"pids.max": "max"})
	if err != nil || len(list) != 1 || list[0].Name != "TasksMax" || list[0].Value.Value() != uint64(math.MaxUint64) {
		t.Errorf("%v, %v", list, err)
	}
	if list, err := properties(map[string]string{"memory.low": "much"}); err == nil {
		t.Errorf("%v", list)
	}
}

// managed skips, with the reason, on machines whose init is another one; `make vm-test INIT=systemd` has the right one.
func managed(t *testing.T) (context.Context, *Units) {
	if !Booted() {
		t.Skip("systemd is not this machine's init (/run/systemd/system is missing)")
	}
	ctx, end := context.WithTimeout(context.Background(), time.Minute)
	t.Cleanup(end)
	return ctx, &Units{Prefix: fmt.Sprintf("evenkeel-%08x", os.Getpid())}
}

func sleeper(t *testing.T) *exec.Cmd {
	c := exec.Command("sleep", "600")
	if err := c.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Process.Kill(); c.Wait() })
	return c
}

func unitOf(t *testing.T, pid int) string {
	data, err := os.ReadFile(fmt.Sprintf("/proc/%d/cgroup", pid))
	if err != nil {
		t.Fatal(err)
	}
	return path.Base(strings.TrimSpace(string(data)))
}

func TestShimsShareAScope(t *testing.T) {
	ctx, u := managed(t)
	t.Cleanup(func() { u.Discard(context.Background(), u.Shims()) })
	shims := make([]*exec.Cmd, 5)
	errs := make(chan error, len(shims))
	for i := range shims {
		shims[i] = sleeper(t)
		go func() { errs <- u.Hold(ctx, shims[i].Process.Pid) }()
	}
	for range shims {
		if err := <-errs; err != nil {
			t.Error(err)
		}
	}
	for _, s := range shims {
		if unit := unitOf(t, s.Process.Pid); unit != u.Shims() {
			t.Errorf("a shim is in %s, not in %s", unit, u.Shims())
		}
	}
	begun := time.Now()
	if err := u.Discard(ctx, u.Shims()); err != nil {
		t.Error(err)
	}
	for _, s := range shims {
		s.Wait()
	}
	t.Logf("the scope was stopped in %s", time.Since(begun))
	if err := u.Discard(ctx, u.Shims()); err != nil {
		t.Errorf("a scope that is not there cannot be discarded: %v", err)
	}
	if err := u.Hold(ctx, sleeper(t).Process.Pid); err != nil {
		t.Errorf("the scope does not begin anew: %v", err)
	}
}

func TestFailedScopeIsForgotten(t *testing.T) {
	ctx, u := managed(t)
	id := strings.Repeat("ab", 32)
	victim := sleeper(t)
	// --collect is left out: the scope of a runtime that does not know CollectMode stays when it fails.
	out, err := exec.CommandContext(ctx, "busctl", "call", "org.freedesktop.systemd1", "/org/freedesktop/systemd1", "org.freedesktop.systemd1.Manager",
		"StartTransientUnit", "ssa(sv)a(sa(sv))", u.Scope(id), "fail", "2", "PIDs", "au", "1", fmt.Sprint(victim.Process.Pid),
		"RuntimeMaxUSec", "t", "200000", "0").CombinedOutput()
	if err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	victim.Wait() // the time limit makes the scope fail
	found, err := u.Scopes(ctx)
	if err != nil {
		t.Fatal(err)
	}
	if _, there := found[id]; !there {
		t.Fatalf("the failed scope is not listed: %v", found)
	}
	if err := u.Discard(ctx, u.Scope(id)); err != nil {
		t.Error(err)
	}
	if found, err := u.Scopes(ctx); err != nil || len(found) > 0 {
		t.Errorf("still there: %v, %v", found, err)
	}
}
