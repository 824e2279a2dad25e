package shim

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/evenkeel/evenkeel/oci/runc"
)

func TestLife(t *testing.T) {
	p := newPod(t)
	before := time.Now()
	id := p.create(shell("echo out; echo err >&2; exit 3"))
	state, err := p.State(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if state.PodID != "pod" || state.Version != Version || state.Process != p.self || len(state.Containers) != 1 {
		t.Fatalf("state is %+v", state)
	}
	c := state.Containers[0]
	if c.ID != id || !c.Process.Alive() || !c.StartedAt.IsZero() || c.Exit != nil || !c.Runtime {
		t.Errorf("created container is %+v", c)
	}
	at, err := p.Start(t.Context(), id)
	if err != nil || at.Before(before) || at.After(time.Now()) {
		t.Errorf("started at %v, %v", at, err)
	}
	x := p.wait(id)
	if !x.Known || x.Code != 3 || x.Signal != 0 || x.OOMKilled || x.At.Before(at) {
		t.Errorf("exit is %+v", x)
	}
	onDisk, err := ReadExit(filepath.Join(p.config.Exits, id))
	if err != nil || onDisk.Code != 3 || !onDisk.At.Equal(x.At) {
		t.Errorf("exit file holds %+v, %v", onDisk, err)
	}
	if again, err := p.Start(t.Context(), id); err != nil || !again.Equal(at) {
		t.Errorf("starting again gives %v, %v, not %v", again, err, at)
	}
	if err := p.Signal(t.Context(), id, unix.SIGTERM); err != nil {
		t.Errorf("signal to an ended container: %v", err)
	}
	if err := p.Forget(t.Context(), id); err != nil {
		t.Error(err)
	}
	if err := p.Forget(t.Context(), id); err != nil {
		t.Errorf("forgetting twice: %v", err)
	}
	if _, err := p.Wait(t.Context(), id); !errors.Is(err, ErrNotFound) {
		t.Errorf("waiting for a forgotten container: %v", err)
	}
	if err := p.Shutdown(t.Context()); err != nil {
		t.Error(err)
	}
	if _, err := p.State(t.Context()); !errors.Is(err, ErrGone) {
		t.Errorf("asking a shim that was shut down: %v", err)
	}
	eventually(t, "the shim ends", func() bool { return !p.self.Alive() })
	for _, name := range []string{socketName, pidName} {
		if _, err := os.Lstat(filepath.Join(p.config.Dir, name)); !errors.Is(err, os.ErrNotExist) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func TestExec(t *testing.T) {
	p := newPod(t)
	id := p.run(shell("exec sleep 1000"))
	out, x, err := p.exec("echo hello; echo world >&2; exit 42", id)
	if err != nil || out != "hello\nworld\n" || x.Code != 42 {
		t.Errorf("exec gave %q, %+v, %v", out, x, err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 500*time.Millisecond)
	defer cancel()
	begin := time.Now()
	_, _, err = p.execContext(ctx, "sleep 777 & sleep 777", id)
	if !errors.Is(err, context.DeadlineExceeded) || time.Since(begin) > 5*time.Second {
		t.Errorf("exec past its deadline gave %v after %v", err, time.Since(begin))
	}
	eventually(t, "the exec's tree is gone", func() bool {
		out, _, err := p.exec("ps | grep -c '[s]leep 777'", id)
		return err == nil && out == "0\n"
	})
}

func TestLivingContainersAreKept(t *testing.T) {
	p := newPod(t)
	id := p.run(shell("trap 'exit 7' TERM; while :; do sleep 0.05; done"))
	if err := p.Forget(t.Context(), id); err == nil || !strings.Contains(err.Error(), "it lives") {
		t.Errorf("forgetting a living container: %v", err)
	}
	if err := p.Shutdown(t.Context()); err == nil || !strings.Contains(err.Error(), id) {
		t.Errorf("shutting down over a living container: %v", err)
	}
	eventually(t, "the trap is set", func() bool {
		out, _, err := p.exec("grep SigCgt /proc/1/status", id)
		return err == nil && !strings.Contains(out, "0000000000000000")
	})
	if err := p.Signal(t.Context(), id, unix.SIGTERM); err != nil {
		t.Error(err)
	}
	if x := p.wait(id); x.Code != 7 {
		t.Errorf("exit is %+v", x)
	}
}

// A container may be removed while its shim does not answer. What the shim then has to say of its end is nobody's.
func TestEndOfARemovedContainer(t *testing.T) {
	p := newPod(t)
	id := p.run(shell("exec sleep 1000"))
	dir := filepath.Join(p.config.Exits, id)
	if err := os.RemoveAll(dir); err != nil {
		t.Fatal(err)
	}
	p.Signal(t.Context(), id, unix.SIGKILL)
	if x := p.wait(id); x.Code != 137 {
		t.Errorf("exit is %+v", x)
	}
	if _, err := os.Lstat(dir); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("the shim has made %s anew: %v", dir, err)
	}
}

func TestExitBySignal(t *testing.T) {
	p := newPod(t)
	id := p.run(shell("exec sleep 1000"))
	p.Signal(t.Context(), id, unix.SIGKILL)
	if x := p.wait(id); x.Code != 137 || x.Signal != 9 || x.OOMKilled {
		t.Errorf("exit is %+v", x)
	}
}

func TestOutOfMemory(t *testing.T) {
	p := newPod(t)
	b := shell("x=xxxxxxxxxxxxxxxx; while :; do x=$x$x; done")
	b.change = func(spec map[string]any) {
		spec["linux"].(map[string]any)["resources"] = map[string]any{"memory": map[string]any{"limit": 32 << 20}}
	}
	id := p.run(b)
	if x := p.wait(id); x.Code != 137 || !x.OOMKilled {
		t.Errorf("exit is %+v", x)
	}
}

// A container must not start with the signals ignored or blocked that the shim deals with.
func TestSignalsAreDefaultInContainer(t *testing.T) {
	p := newPod(t)
	id := p.run(&box{args: []string{"/bin/grep", "-E", "Sig(Ign|Blk)", "/proc/self/status"}})
	p.wait(id)
	const want = "stdout F SigBlk:\t0000000000000000\nstdout F SigIgn:\t0000000000000000\n"
	if got := p.content(id); got != want {
		t.Errorf("signals are %q", got)
	}
}

func TestRuntimeStateIsDeletedAfterExit(t *testing.T) {
	p := newPod(t)
	id := p.run(shell("exit 0"))
	p.wait(id)
	eventually(t, "the runtime's state is gone", func() bool {
		state, err := p.State(t.Context())
		return err == nil && !state.Containers[0].Runtime
	})
	r := runc.Runc{Path: runcProgram, Root: p.config.RuntimeRoot}
	if _, err := r.State(t.Context(), id); !errors.Is(err, runc.ErrNotExist) {
		t.Errorf("runtime still knows the container: %v", err)
	}
}

func TestFailedCreateLeavesNothing(t *testing.T) {
	p := newPod(t)
	for _, test := range []struct {
		name string
		box  *box
		code int
		says string
	}{
		{"missing entrypoint", &box{args: []string{"nonesuch"}}, 127, "nonesuch"},
		{"missing path", &box{args: []string{"/nonesuch"}}, 127, "/nonesuch"},
		{"not executable", &box{args: []string{"/etc/plain"}}, 126, "/etc/plain"},
		{"directory", &box{args: []string{"/etc"}}, 126, "/etc"},
		{"no log directory", &box{args: []string{"true"}, CreateRequest: CreateRequest{LogPath: "/nonesuch/dir/0.log"}}, 0, "/nonesuch/dir is missing"},
		{"bad spec", &box{args: []string{"true"}, change: func(spec map[string]any) { spec["root"] = map[string]any{"path": "/nonesuch"} }}, 0, "/nonesuch"},
	} {
		t.Run(test.name, func(t *testing.T) {
			if _, err := p.State(t.Context()); err != nil { // it has opened what it keeps open
				t.Fatal(err)
			}
			before := descriptors(t, p.self.PID)
			id, err := p.tryCreate(test.box)
			if err == nil || !strings.Contains(err.Error(), test.says) {
				t.Fatalf("error is %v", err)
			}
			if code, ok := runc.ErrExecutable(err); code != test.code || ok != (test.code != 0) {
				t.Errorf("ErrExecutable gives %d, %v for: %v", code, ok, err)
			}
			if state, err := p.State(t.Context()); err != nil || len(state.Containers) != 0 {
				t.Errorf("shim holds %+v, %v", state.Containers, err)
			}
			r := runc.Runc{Path: runcProgram, Root: p.config.RuntimeRoot}
			if _, err := r.State(t.Context(), id); !errors.Is(err, runc.ErrNotExist) {
				t.Errorf("runtime knows it: %v", err)
			}
			if log, err := os.ReadFile(p.logPath(id)); err == nil && len(log) > 0 {
				t.Errorf("the runtime's message is in the container's log: %s", log)
			}
			if after := descriptors(t, p.self.PID); len(after) > len(before) {
				t.Errorf("descriptors before: %v\nand after: %v", before, after)
			}
			if left, _ := filepath.Glob(p.config.Dir + "/create-*"); left != nil {
				t.Errorf("left in the pod's directory: %v", left)
			}
		})
	}
}

func TestCreateIsUndoneWhenItsCallerGoes(t *testing.T) {
	p := newPod(t)
	slow := filepath.Join(t.TempDir(), "slow-runc")
	script := "#!/bin/sh\ncase \"$*\" in *create*) sleep 30 & wait;; esac\nexec " + runcProgram + " \"$@\"\n"
	if err := os.WriteFile(slow, []byte(script), 0o755); err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	q := &pod{t: t, config: p.config}
	q.config.Dir, q.config.Runtime = filepath.Join(dir, "state"), slow
	os.Mkdir(q.config.Dir, 0o700)
	q.Client.Dir = q.config.Dir
	var err error
	if q.self, err = Spawn(t.Context(), shimProgram, q.config); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(q.remove)
	ctx, cancel := context.WithTimeout(t.Context(), 300*time.Millisecond)
	defer cancel()
	_, err = q.Create(ctx, CreateRequest{ID: "slow", Bundle: dir, LogPath: filepath.Join(dir, "log")})
	if !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("create gave %v", err)
	}
	eventually(t, "the shim has undone it, and so lets itself be shut down", func() bool { return q.Shutdown(t.Context()) == nil })
	eventually(t, "the shim is gone", func() bool { return !q.self.Alive() })
}

func descriptors(t testing.TB, pid int) (list []string) {
	entries, err := os.ReadDir(fmt.Sprintf("/proc/%d/fd", pid))
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range entries {
		target, _ := os.Readlink(fmt.Sprintf("/proc/%d/fd/%s", pid, e.Name()))
		list = append(list, target)
	}
	return list
}

func TestExecFailures(t *testing.T) {
	p := newPod(t)
	id := p.run(shell("exec sleep 1000"))
	for _, test := range []struct {
		args []string
		code int
	}{{[]string{"nonesuch"}, 127}, {[]string{"/etc/plain"}, 126}, {[]string{"/etc"}, 126}} {
		process, _ := json.Marshal(map[string]any{"cwd": "/", "args": test.args, "env": []string{"PATH=/bin"}, "user": map[string]any{"uid": 0, "gid": 0}})
		_, err := p.Exec(t.Context(), ExecRequest{ID: id, Process: process}, nil, nil, nil)
		if code, ok := runc.ErrExecutable(err); !ok || code != test.code {
			t.Errorf("exec of %v: %d, %v: %v", test.args, code, ok, err)
		}
	}
	if _, err := p.Exec(t.Context(), ExecRequest{ID: "nonesuch"}, nil, nil, nil); !errors.Is(err, ErrNotFound) {
		t.Errorf("exec in no container: %v", err)
	}
	// More environment than a SOCK_SEQPACKET message could carry.
	env := []string{"PATH=/bin"}
	for i := range 5000 {
		env = append(env, fmt.Sprintf("VARIABLE_%d=%s", i, strings.Repeat("x", 100)))
	}
	process, _ := json.Marshal(map[string]any{"cwd": "/", "args": []string{"sh", "-c", "exit $((${#VARIABLE_4999} / 10))"}, "env": env, "user": map[string]any{"uid": 0, "gid": 0}})
	if x, err := p.Exec(t.Context(), ExecRequest{ID: id, Process: process}, nil, nil, nil); err != nil || x.Code != 10 {
		t.Errorf("exec with a large environment: %+v, %v", x, err)
	}
	if left, _ := filepath.Glob(p.config.Dir + "/exec-*"); left != nil {
		t.Errorf("left in the pod's directory: %v", left)
	}
}

// runc finds out about a wrong binary format when it has nobody left to tell but the container's stderr. The image room
// names such an image before it comes to this.
func TestWrongFormat(t *testing.T) {
	p := newPod(t)
	id := p.run(&box{args: []string{"/etc/garbage"}})
	if x := p.wait(id); x.Code != 255 {
		t.Errorf("exit is %+v", x)
	}
	if got := p.content(id); got != "stderr F exec /etc/garbage: exec format error\n" {
		t.Errorf("log is %q", got)
	}
}
