package shim

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// playDaemon is the test binary in the role of a daemon that starts a shim and is then killed.
func playDaemon(program string) {
	var c Config
	if err := json.Unmarshal([]byte(os.Getenv("SHIM_TEST_CONFIG")), &c); err != nil {
		panic(err)
	}
	p, err := Spawn(context.Background(), program, c)
	if err != nil {
		panic(err)
	}
	fmt.Println(p.PID, p.Start)
	select {}
}

// TestShimsKeepNoThreads: with hundreds of pods, a thread for each would be a daemon of hundreds of threads.
func TestShimsKeepNoThreads(t *testing.T) {
	newPod(t)
	eventually(t, "the goroutine that reaps the shim waits in the poller", func() bool {
		stacks := make([]byte, 1<<20)
		for _, stack := range strings.Split(string(stacks[:runtime.Stack(stacks, true)]), "\n\n") {
			if strings.Contains(stack, "shim.reap(") && strings.Contains(stack, "[IO wait") {
				return true
			}
		}
		return false
	})
}

func TestShimSurvivesItsDaemon(t *testing.T) {
	p := newPod(t)
	if err := p.Shutdown(t.Context()); err != nil { // this one is our child; the one to test is another's
		t.Fatal(err)
	}
	eventually(t, "the first shim ends", func() bool { return !p.self.Alive() })
	config, _ := json.Marshal(p.config)
	daemon := exec.Command(os.Args[0])
	daemon.Env = append(os.Environ(), "SHIM_TEST_DAEMON="+shimProgram, "SHIM_TEST_CONFIG="+string(config))
	secret, err := os.CreateTemp(t.TempDir(), "the-daemons-own")
	if err != nil {
		t.Fatal(err)
	}
	daemon.ExtraFiles = []*os.File{secret, secret, secret} // not close-on-exec in the daemon
	out, err := daemon.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := daemon.Start(); err != nil {
		t.Fatal(err)
	}
	if _, err := fmt.Fscan(out, &p.self.PID, &p.self.Start); err != nil {
		t.Fatal(err)
	}
	id := p.run(shell("i=0; while [ $i -lt 100 ]; do echo $i; i=$((i+1)); sleep 0.01; done; exit 5"))
	daemon.Process.Kill()
	daemon.Wait()
	if !p.self.Alive() {
		t.Fatal("shim died with its daemon")
	}
	if got, err := ReadProcess(p.config.Dir); err != nil || got != p.self {
		t.Errorf("pid file holds %+v, %v, not %+v", got, err, p.self)
	}
	for _, d := range descriptors(t, p.self.PID) {
		if strings.Contains(d, "the-daemons-own") {
			t.Errorf("shim has inherited %s", d)
		}
	}
	if sid, err := unix.Getsid(p.self.PID); err != nil || sid != p.self.PID {
		t.Errorf("shim is in session %d, %v", sid, err)
	}
	if x := p.wait(id); x.Code != 5 {
		t.Errorf("exit is %+v", x)
	}
	var want strings.Builder
	for i := range 100 {
		fmt.Fprintf(&want, "stdout F %d\n", i)
	}
	if got := p.content(id); got != want.String() {
		t.Errorf("log is %q", got)
	}
}

func TestSilentShim(t *testing.T) {
	p := newPod(t)
	id := p.run(shell("exec sleep 1000"))
	freeze(t, p.self.PID)
	ctx, cancel := context.WithTimeout(t.Context(), 200*time.Millisecond)
	defer cancel()
	if _, err := p.State(ctx); !errors.Is(err, context.DeadlineExceeded) || errors.Is(err, ErrGone) {
		t.Errorf("a stopped shim gave %v", err)
	}
	if !p.self.Alive() {
		t.Error("a stopped shim counts as dead")
	}
	if _, err := Spawn(t.Context(), shimProgram, p.config); err == nil || !strings.Contains(err.Error(), "another shim") {
		t.Errorf("a second shim was started over a stopped one: %v", err)
	}
	unix.Kill(p.self.PID, unix.SIGCONT)
	if state, err := p.State(t.Context()); err != nil || len(state.Containers) != 1 || state.Containers[0].ID != id {
		t.Errorf("after SIGCONT: %+v, %v", state, err)
	}
}

// freeze stops a process and waits for its last thread, which may still answer a call after kill(2) has returned.
func freeze(t *testing.T, pid int) {
	t.Helper()
	unix.Kill(pid, unix.SIGSTOP)
	eventually(t, "every thread has stopped", func() bool {
		threads, _ := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/stat", pid))
		for _, thread := range threads {
			stat, err := os.ReadFile(thread)
			if err == nil && !strings.Contains(string(stat), ") T ") {
				return false
			}
		}
		return true
	})
}

func TestKilledShim(t *testing.T) {
	p := newPod(t)
	id := p.run(shell("exec sleep 1000"))
	waiting := make(chan error, 1)
	go func() { _, err := p.Wait(t.Context(), id); waiting <- err }()
	eventually(t, "somebody waits", func() bool { return len(connections(t, p.self.PID)) > 1 })
	unix.Kill(p.self.PID, unix.SIGKILL)
	if err := <-waiting; !errors.Is(err, ErrGone) {
		t.Errorf("a call that was running gave %v", err)
	}
	eventually(t, "the shim is reaped", func() bool { return !p.self.Alive() })
	if _, err := p.State(t.Context()); !errors.Is(err, ErrGone) {
		t.Errorf("a call after its death gave %v", err)
	}
	if _, err := ReadExit(filepath.Join(p.config.Exits, id)); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("an exit nobody saw reads %v", err)
	}
	// A new shim takes the place of the dead one's socket.
	var err error
	if p.self, err = Spawn(t.Context(), shimProgram, p.config); err != nil {
		t.Fatal(err)
	}
	if _, err := p.State(t.Context()); err != nil {
		t.Error(err)
	}
}

func connections(t *testing.T, pid int) (sockets []string) {
	for _, d := range descriptors(t, pid) {
		if strings.HasPrefix(d, "socket:") {
			sockets = append(sockets, d)
		}
	}
	return sockets
}

func TestLongStatePath(t *testing.T) {
	dir := filepath.Join(t.TempDir(), strings.Repeat("long/", 40))
	p := newPodIn(t, dir)
	b := shell("exec stty size")
	b.TTY = true
	id := p.create(b)
	if err := p.Resize(t.Context(), id, 100, 30); err != nil {
		t.Error(err)
	}
	p.start(id)
	p.wait(id)
	if got := p.content(id); got != "stdout F 30 100\r\n" {
		t.Errorf("terminal says %q", got)
	}
}

func TestSpawnFailures(t *testing.T) {
	dir := t.TempDir()
	c := Config{PodID: "pod", Dir: dir, Exits: dir, Runtime: runcProgram, RuntimeRoot: dir}
	_, err := Spawn(t.Context(), "/nonesuch/evenkeel-shim", c)
	if !errors.Is(err, os.ErrNotExist) || !strings.Contains(err.Error(), "/nonesuch/evenkeel-shim") {
		t.Errorf("missing program: %v", err)
	}
	if _, err := os.Lstat(filepath.Join(dir, socketName)); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("socket of a shim that never was: %v", err)
	}
	c.Dir = "/nonesuch"
	if _, err := Spawn(t.Context(), shimProgram, c); !errors.Is(err, os.ErrNotExist) || !strings.Contains(err.Error(), "/nonesuch") {
		t.Errorf("missing directory: %v", err)
	}
}

// say sends what a Client of today would not.
func (p *pod) say(message request, files ...*os.File) reply {
	p.t.Helper()
	fd, err := connect(p.config.Dir, socketName)
	if err != nil {
		p.t.Fatal(err)
	}
	conn := os.NewFile(uintptr(fd), "conn")
	defer conn.Close()
	if err := send(conn, message, files...); err != nil {
		p.t.Fatal(err)
	}
	var r reply
	if _, err := receive(conn, &r); err != nil {
		p.t.Fatal(err)
	}
	return r
}

// The next two daemons find the shims of this one and adopt them.
func TestDaemonsOfLaterVersions(t *testing.T) {
	p := newPod(t)
	for version := Version; version <= Version+2; version++ {
		if r := p.say(request{Version: version, Call: "state"}); r.Version != Version || r.Error != nil || r.State == nil {
			t.Errorf("a daemon of version %d gets %+v", version, r)
		}
	}
	if r := p.say(request{Version: Version + 3, Call: "state"}); r.Version != Version || r.Error == nil || !strings.Contains(r.Error.Message, "version 1") {
		t.Errorf("answer is %+v", r)
	}
}

func TestUnknownCall(t *testing.T) {
	p := newPod(t)
	_, err := p.call(t.Context(), request{Call: "dance", ID: "nonesuch"})
	if err == nil || errors.Is(err, ErrNotFound) || !strings.Contains(err.Error(), `"dance"`) {
		t.Errorf("an unknown call gives %v", err)
	}
}

// A call that finds the backlog full is made when there is room again.
func TestFullBacklog(t *testing.T) {
	c := Client{Dir: t.TempDir()}
	fd, err := listen(c.Dir, socketName)
	if err != nil {
		t.Fatal(err)
	}
	listener := os.NewFile(uintptr(fd), socketName)
	defer listener.Close()
	unix.Listen(fd, 0)
	waiting := 0
	for ; ; waiting++ {
		other, err := connect(c.Dir, socketName)
		if errors.Is(err, unix.EAGAIN) {
			break
		} else if err != nil {
			t.Fatal(err)
		}
		defer unix.Close(other)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	if _, err := c.State(ctx); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("without room: %v", err)
	}
	ctx, cancel = context.WithTimeout(t.Context(), 10*time.Second)
	defer cancel()
	asked := make(chan error, 1)
	go func() { _, err := c.State(ctx); asked <- err }()
	time.Sleep(10 * time.Millisecond) // it has met the full backlog
	listener.SetDeadline(time.Now().Add(5 * time.Second))
	for range waiting + 1 {
		conn, err := accept(listener)
		if err != nil {
			t.Error(err)
			break
		}
		go func() {
			defer conn.Close()
			if _, err := receive(conn, &request{}); err == nil { // the others say nothing
				send(conn, reply{Version: Version, State: &State{}})
			}
		}()
	}
	if err := <-asked; err != nil {
		t.Errorf("with room: %v", err)
	}
}

// A call that could not be made is not the word of a dead shim.
func TestCallsThatCannotBeMade(t *testing.T) {
	p := newPod(t)
	id := p.run(shell("exec sleep 1000"))
	closed, err := os.Open(os.DevNull)
	if err != nil {
		t.Fatal(err)
	}
	closed.Close()
	for name, call := range map[string]func() error{
		"a descriptor that is closed": func() error { return p.Attach(t.Context(), id, nil, closed, nil) },
		"a message that is too long": func() error {
			_, err := p.Exec(t.Context(), ExecRequest{ID: id, Process: make([]byte, messageLimit)}, nil, nil, nil)
			return err
		},
	} {
		if err := call(); err == nil || errors.Is(err, ErrGone) {
			t.Errorf("%s gives %v", name, err)
		}
	}
}

// The kernel passes on only as many descriptors as the receiver may have. A stream that got lost is not one that nobody wants:
// a probe's output would vanish, and the probe succeed.
func TestLostDescriptors(t *testing.T) {
	p := newPod(t)
	id := p.run(shell("exec sleep 1000"))
	process, _ := json.Marshal(execProcess("echo said"))
	r := p.say(request{Version: Version, Call: "exec", ID: id, Process: process, Files: [3]bool{false, true, true}}, os.Stderr)
	if r.Error == nil || !strings.Contains(r.Error.Message, "descriptors") {
		t.Errorf("answer is %+v", r)
	}
}

func TestStartedByHand(t *testing.T) {
	p := newPod(t)
	if err := p.Shutdown(t.Context()); err != nil {
		t.Fatal(err)
	}
	eventually(t, "the first shim ends", func() bool { return !p.self.Alive() })
	cmd := exec.Command(shimProgram)
	cmd.Dir = p.config.Dir
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	go cmd.Wait()
	eventually(t, "it serves", func() bool {
		state, err := p.State(t.Context())
		p.self = state.Process
		return err == nil
	})
	id := p.run(shell("exit 9"))
	if x := p.wait(id); x.Code != 9 {
		t.Errorf("exit is %+v", x)
	}
}
