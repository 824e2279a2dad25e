package shim

import (
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"syscall"
	"testing"
)

// leader starts a process that leads a session, works in dir and has a child, as a shim has a runtime.
func leader(t *testing.T, dir string) (p Process, child int) {
	t.Helper()
	cmd := exec.Command("sh", "-c", "sleep 1000 & wait", "about-this", "serve")
	cmd.Dir, cmd.SysProcAttr = dir, &syscall.SysProcAttr{Setsid: true}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	p, err := processOf(cmd.Process.Pid)
	if err != nil {
		t.Fatal(err)
	}
	ended := make(chan error, 1)
	go func() { ended <- cmd.Wait() }()
	t.Cleanup(func() { killTree(p.PID); <-ended })
	eventually(t, "it has a child", func() bool { return len(children(p.PID)) == 1 })
	return p, children(p.PID)[0]
}

// A session number can be another session's by the time a shim's remains are looked for.
func TestRemainsOfOthersAreLeftAlone(t *testing.T) {
	state := t.TempDir()
	p, child := leader(t, state)
	for _, c := range []struct {
		name         string
		p            Process
		state, about string
		want         []int
	}{
		{"ours", p, filepath.Dir(state), "", []int{child}},
		{"ours, by what it is about", p, filepath.Dir(state), "1000", []int{child}},
		{"about something else", p, filepath.Dir(state), "2000", nil},
		{"works elsewhere", p, "/elsewhere", "", nil},
		{"its number is another's", Process{p.PID, p.Start - 1}, filepath.Dir(state), "", nil},
		{"no shim is known", Process{}, filepath.Dir(state), "", nil},
	} {
		if got := c.p.commands(c.state, c.about); !slices.Equal(got, c.want) {
			t.Errorf("%s: %v, want %v", c.name, got, c.want)
		}
	}
}

func TestRemainsEndAfterTheShim(t *testing.T) {
	state := t.TempDir()
	p, child := leader(t, state)
	survivor, err := processOf(child)
	if err != nil {
		t.Fatal(err)
	}
	if err := syscall.Kill(p.PID, syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	eventually(t, "the leader is gone", func() bool { return !p.Alive() })
	if !survivor.Alive() {
		t.Fatal("its child went with it")
	}
	if err := p.KillAll(filepath.Dir(state)); err != nil {
		t.Fatal(err)
	}
	eventually(t, "its child is gone", func() bool { return !survivor.Alive() })
}

func TestShimIsFoundBeforeItsFirstWord(t *testing.T) {
	dir := t.TempDir()
	if _, err := Find(dir); !errors.Is(err, os.ErrProcessDone) {
		t.Errorf("where there is none: %v", err)
	}
	p, _ := leader(t, dir)
	if found, err := Find(dir); found != p || err != nil {
		t.Errorf("found %v, %v, want %v", found, err, p)
	}
}
