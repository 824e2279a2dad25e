package sandbox

import (
	"bytes"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
)

// A shim without a record is ended with what it has, also when it is silent; a process that merely has its pid is not.
func TestShimWithoutARecordIsEnded(t *testing.T) {
	p := emptyPods(t)
	p.BootID = "this"
	for _, ours := range []bool{true, false} {
		id := newID()
		state := p.podState(id)
		if err := os.MkdirAll(state, 0o700); err != nil {
			t.Fatal(err)
		}
		silent := exec.Command("sleep", "60")
		if ours {
			silent.Dir = state
		}
		if err := silent.Start(); err != nil {
			t.Fatal(err)
		}
		pid := fmt.Sprintf("%d %s\n", silent.Process.Pid, startOf(t, silent.Process.Pid))
		if err := os.WriteFile(filepath.Join(state, "shim.pid"), []byte(pid), 0o600); err != nil {
			t.Fatal(err)
		}
		if err := p.freePodState(t.Context(), id); err != nil {
			t.Error(err)
		}
		silent.Process.Signal(syscall.SIGTERM)
		silent.Wait()
		if signal := silent.ProcessState.Sys().(syscall.WaitStatus).Signal(); (signal == syscall.SIGKILL) != ours {
			t.Errorf("a process that is the shim of the directory (%v) was ended by signal %d", ours, signal)
		}
		if _, err := os.Stat(state); err == nil {
			t.Error("its directory is left")
		}
	}
}

// startOf is field 22 of /proc/PID/stat.
func startOf(t *testing.T, pid int) string {
	t.Helper()
	stat, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		t.Fatal(err)
	}
	return strings.Fields(string(stat[bytes.LastIndexByte(stat, ')')+1:]))[19]
}
