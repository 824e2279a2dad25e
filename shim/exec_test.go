package shim

import (
	"context"
	"encoding/json"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// daemonise forks twice and makes a session of its own, so that nothing of the exec's process tree leads to it.
const daemonise = "(setsid sleep 778 </dev/null >/dev/null 2>&1 &)"

// counts of sleeping daemons in a container; its first process reaps what it adopts.
func (p *pod) daemons(id string) string {
	out, _, err := p.exec("ps | grep -c '[s]leep 778'", id)
	if err != nil {
		p.t.Error(err)
	}
	return strings.TrimSpace(out)
}

func (p *pod) noLeaves() {
	p.t.Helper()
	for _, pattern := range leafPatterns() {
		if left, _ := filepath.Glob(pattern); left != nil {
			p.t.Errorf("cgroups of execs are left: %v", left)
		}
	}
}

func leafPatterns() []string {
	return []string{"/sys/fs/cgroup/*/" + cgroupName() + "/*/exec-*", "/sys/fs/cgroup/" + cgroupName() + "/*/exec-*"}
}

const reapingInit = "while :; do sleep 3600 & wait $!; done"

func TestDeadlineOfAnExecReachesDaemons(t *testing.T) {
	p := newPod(t)
	id := p.run(shell(reapingInit))
	ctx, cancel := context.WithTimeout(t.Context(), 300*time.Millisecond)
	defer cancel()
	if _, _, err := p.execContext(ctx, daemonise+"; "+daemonise+"; sleep 779", id); err != context.DeadlineExceeded {
		t.Errorf("exec past its deadline gave %v", err)
	}
	if n := p.daemons(id); n != "0" {
		t.Errorf("%s daemons outlive the deadline of their exec", n)
	}
	p.noLeaves()
}

// A leaf that cannot be removed when its exec ends, here because of a cgroup inside, goes before the next exec.
func TestLateLeaf(t *testing.T) {
	p := newPod(t)
	id := p.run(shell(reapingInit))
	var inside string
	ctx, cancel := context.WithTimeout(t.Context(), time.Second)
	defer cancel()
	go eventually(t, "the exec has a cgroup", func() bool {
		for _, pattern := range leafPatterns() {
			if leaves, _ := filepath.Glob(pattern); leaves != nil {
				inside = leaves[0] + "/inside"
				return os.Mkdir(inside, 0o755) == nil
			}
		}
		return false
	})
	if _, _, err := p.execContext(ctx, "sleep 779", id); err != context.DeadlineExceeded {
		t.Errorf("exec past its deadline gave %v", err)
	}
	eventually(t, "the shim has given the leaf up", func() bool {
		log, err := os.ReadFile(filepath.Join(p.config.Dir, stderrName))
		return err == nil && strings.Contains(string(log), filepath.Dir(inside))
	})
	if err := os.Remove(inside); err != nil {
		t.Fatal(err)
	}
	if _, _, err := p.exec("true", id); err != nil {
		t.Error(err)
	}
	p.noLeaves()
}

func TestRestOfAnExec(t *testing.T) {
	p := newPod(t)
	id := p.run(shell(reapingInit))
	for _, test := range []struct {
		name string
		kill bool
		want string
	}{{"killed", true, "0"}, {"kept", false, "1"}} {
		t.Run(test.name, func(t *testing.T) {
			process, _ := json.Marshal(execProcess(daemonise + "; exit 3"))
			x, err := p.Exec(t.Context(), ExecRequest{ID: id, Process: process, KillRest: test.kill}, nil, nil, nil)
			if err != nil || x.Code != 3 {
				t.Errorf("exec gave %+v, %v", x, err)
			}
			if n := p.daemons(id); n != test.want {
				t.Errorf("%s daemons are there, not %s", n, test.want)
			}
			p.noLeaves()
		})
	}
}

// A runtime that does not know --cgroup still executes, and the deadline still reaches what has kept its session.
func TestExecWithoutLeaf(t *testing.T) {
	wrapper := filepath.Join(t.TempDir(), "runtime")
	script := "#!/bin/sh\ncase \"$*\" in *--help) echo --exec; exit 0;; *--cgroup*) echo 'flag provided but not defined: -cgroup' >&2; exit 1;; esac\nexec " + runcProgram + " \"$@\"\n"
	if err := os.WriteFile(wrapper, []byte(script), 0o755); err != nil {
		t.Fatal(err)
	}
	old := runcProgram
	runcProgram = wrapper
	defer func() { runcProgram = old }()
	p := newPod(t)
	id := p.run(shell(reapingInit))
	if out, x, err := p.exec("echo hello; exit 7", id); out != "hello\n" || x.Code != 7 || err != nil {
		t.Errorf("exec gave %q, %+v, %v", out, x, err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 300*time.Millisecond)
	defer cancel()
	p.execContext(ctx, "(sleep 778 >/dev/null 2>&1 &); sleep 779", id)
	if n := p.daemons(id); n != "0" {
		t.Errorf("%s orphans of the session outlive the deadline of their exec", n)
	}
	p.noLeaves()
}

func TestManyExecsAtOnce(t *testing.T) {
	const at = 100 // the whole number, 500, is tried through the daemon
	p := newPod(t)
	id := p.run(shell(reapingInit))
	process, _ := json.Marshal(execProcess("exit 4"))
	var all sync.WaitGroup
	for range at {
		all.Go(func() {
			if x, err := p.Exec(t.Context(), ExecRequest{ID: id, Process: process, KillRest: true}, nil, nil, nil); err != nil || x.Code != 4 {
				t.Errorf("exec gave %+v, %v", x, err)
			}
		})
	}
	all.Wait()
	p.noLeaves()
}

func TestLeafBelow(t *testing.T) {
	for _, test := range []struct{ name, membership, parent, flag string }{
		{"v2", "0::/kubepods/pod1/c1\n", "/sys/fs/cgroup/kubepods/pod1/c1", "/"},
		{"v1", "5:memory:/k/c1\n4:freezer:/k/c1\n1:name=systemd:/k/c1\n", "/sys/fs/cgroup/freezer/k/c1", "freezer:/"},
		{"hybrid", "4:freezer:/k/c1\n0::/\n", "/sys/fs/cgroup/freezer/k/c1", "freezer:/"},
		{"v1 without freezer", "4:memory:/k/c1\n0::/k/c1\n", "", ""},
		{"v2 with an empty named hierarchy", "1:name=openrc:/\n0::/k/c1\n", "/sys/fs/cgroup/k/c1", "/"},
		{"in the root", "0::/\n", "", ""},
	} {
		t.Run(test.name, func(t *testing.T) {
			if l := leafBelow([]byte(test.membership)); l.parent != test.parent || l.flag != test.flag {
				t.Errorf("got %+v", l)
			}
		})
	}
}

// A runtime that has waited for the process itself leaves nobody to wait for, and a pid that may be anybody's.
func TestExecThatTheRuntimeHasReaped(t *testing.T) {
	wrapper := filepath.Join(t.TempDir(), "runtime")
	script := "#!/bin/sh\ncase \" $* \" in *' exec --help '*) ;; *' exec '*)\n" +
		"while [ \"$1\" != --pid-file ]; do shift; done\ntrue & echo $! >\"$2\"; wait; exit 0;;\nesac\nexec " + runcProgram + " \"$@\"\n"
	if err := os.WriteFile(wrapper, []byte(script), 0o755); err != nil {
		t.Fatal(err)
	}
	old := runcProgram
	runcProgram = wrapper
	defer func() { runcProgram = old }()
	p := newPod(t)
	id := p.run(shell(reapingInit))
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
	defer cancel()
	process, _ := json.Marshal(execProcess("true"))
	if x, err := p.Exec(ctx, ExecRequest{ID: id, Process: process}, nil, nil, nil); err == nil || ctx.Err() != nil {
		t.Errorf("exec gave %+v, %v", x, err)
	}
	p.noLeaves()
}

// The end of one container is no reason to run the execs of others without cgroups.
func TestLeavesAreKeptWhenAContainerEnds(t *testing.T) {
	for _, cause := range []error{unix.ENOENT, unix.ENODEV} {
		s := &server{}
		s.giveUpLeaves(&os.PathError{Op: "mkdir", Path: "/leaf", Err: cause})
		if s.noLeaves.Load() {
			t.Errorf("leaves are given up for %v", cause)
		}
	}
}
