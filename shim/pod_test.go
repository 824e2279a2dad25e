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
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/evenkeel/evenkeel/oci/runc"
)

// What the tests need of the machine: root, runc in bin/ (make build), and busybox-static.
var (
	shimProgram string
	runcProgram string
	rootfs      string

	buildFlags = []string{"-ldflags", "-s -w"}
	cgo        = "CGO_ENABLED=0"
)

const busybox = "/bin/busybox"

func TestMain(m *testing.M) {
	if program := os.Getenv("SHIM_TEST_DAEMON"); program != "" {
		playDaemon(program) // does not return
	}
	dir, err := os.MkdirTemp("", "shim-test-")
	if err == nil {
		err = prepare(dir)
	}
	code := 1
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
	} else {
		code = m.Run()
	}
	removeCgroups()
	os.RemoveAll(dir)
	os.Exit(code)
}

func prepare(dir string) error {
	if os.Geteuid() != 0 {
		return errors.New("these tests start containers: run them as root")
	}
	if runcProgram = os.Getenv("SHIM_TEST_RUNTIME"); runcProgram == "" { // any other takes part by hand
		runcProgram, _ = filepath.Abs("../bin/linux-" + runtime.GOARCH + "/runc")
	}
	if _, err := os.Stat(runcProgram); err != nil {
		return fmt.Errorf("the OCI runtime is missing (run `make build`): %w", err)
	}
	shimProgram = filepath.Join(dir, "evenkeel-shim")
	args := append([]string{"build", "-trimpath", "-o", shimProgram}, buildFlags...)
	build := exec.Command("go", append(args, "../cmd/evenkeel-shim")...)
	build.Env = append(os.Environ(), cgo)
	if out, err := build.CombinedOutput(); err != nil {
		return fmt.Errorf("cannot build the shim: %w\n%s", err, out)
	}
	rootfs = filepath.Join(dir, "rootfs")
	for _, d := range []string{"bin", "proc", "dev", "tmp", "etc"} {
		if err := os.MkdirAll(filepath.Join(rootfs, d), 0o755); err != nil {
			return err
		}
	}
	data, err := os.ReadFile(busybox)
	if err != nil {
		return fmt.Errorf("busybox is missing (apt-get install busybox-static): %w", err)
	}
	for _, applet := range []string{"sh", "tail", "cat", "sleep", "yes", "head", "seq", "true", "dd", "stty", "printf", "wc", "setsid", "grep", "id", "ps"} {
		if err := os.Symlink("busybox", filepath.Join(rootfs, "bin", applet)); err != nil {
			return err
		}
	}
	if err := os.WriteFile(filepath.Join(rootfs, "etc", "plain"), []byte("not a program\n"), 0o644); err != nil {
		return err
	}
	if err := os.WriteFile(filepath.Join(rootfs, "etc", "garbage"), []byte("\x7fELF, but no program\n"), 0o755); err != nil {
		return err
	}
	return os.WriteFile(filepath.Join(rootfs, "bin/busybox"), data, 0o755)
}

func cgroupName() string { return fmt.Sprintf("evenkeel-shimtest-%d", os.Getpid()) }

func removeCgroups() {
	for _, pattern := range []string{"/sys/fs/cgroup/*/" + cgroupName(), "/sys/fs/cgroup/" + cgroupName()} {
		dirs, _ := filepath.Glob(pattern)
		for _, dir := range dirs {
			children, _ := filepath.Glob(dir + "/*")
			for _, child := range children {
				unix.Rmdir(child)
			}
			unix.Rmdir(dir)
		}
	}
}

// pod is a shim under test with its directories.
type pod struct {
	Client
	t      testing.TB
	config Config
	self   Process
	n      int
}

func newPod(t testing.TB) *pod { return newPodIn(t, t.TempDir()) }

func newPodIn(t testing.TB, dir string) *pod {
	t.Helper()
	c := Config{PodID: "pod", Dir: filepath.Join(dir, "state"), Exits: filepath.Join(dir, "exits"), Runtime: runcProgram, RuntimeRoot: filepath.Join(dir, "runc")}
	for _, d := range []string{c.Dir, c.Exits} {
		if err := os.MkdirAll(d, 0o700); err != nil {
			t.Fatal(err)
		}
	}
	p := &pod{Client: Client{Dir: c.Dir}, t: t, config: c}
	t.Cleanup(p.remove)
	var err error
	if p.self, err = Spawn(t.Context(), shimProgram, c); err != nil {
		t.Fatal(err)
	}
	return p
}

// remove ends whatever the test has left, whatever state it is in.
func (p *pod) remove() {
	defer func() {
		log, _ := os.ReadFile(filepath.Join(p.config.Dir, stderrName))
		if strings.Contains(string(log), "DATA RACE") {
			p.t.Error("the race detector has spoken in the shim")
		}
		if p.t.Failed() {
			p.t.Logf("shim.log: %s", log)
		}
	}()
	if !p.self.Alive() {
		p.purge()
		return
	}
	unix.Kill(p.self.PID, unix.SIGCONT)
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
	defer cancel()
	state, err := p.State(ctx)
	if err != nil {
		p.t.Errorf("cannot ask the shim at the end: %v", err)
	}
	for _, c := range state.Containers {
		p.Signal(ctx, c.ID, unix.SIGKILL)
		p.Wait(ctx, c.ID)
		if err := p.Forget(ctx, c.ID); err != nil {
			p.t.Error(err)
		}
	}
	if err := p.Shutdown(ctx); err != nil {
		p.t.Errorf("cannot shut down: %v", err)
		unix.Kill(p.self.PID, unix.SIGKILL)
	}
	eventually(p.t, "the shim ends", func() bool { return !p.self.Alive() })
	p.purge()
}

// purge removes containers that have lost their shim.
func (p *pod) purge() {
	r := runc.Runc{Path: runcProgram, Root: p.config.RuntimeRoot}
	list, err := r.List(context.Background())
	if err != nil {
		p.t.Error(err)
	}
	for _, s := range list {
		if err := r.Delete(context.Background(), s.ID); err != nil {
			p.t.Error(err)
		}
	}
}

// box describes a container of the tests.
type box struct {
	CreateRequest
	args   []string
	change func(spec map[string]any)
	noLog  bool
}

func shell(script string) *box { return &box{args: []string{"/bin/sh", "-c", script}} }

// create makes a container and returns its id; its log is at p.logPath(id).
func (p *pod) create(b *box) string {
	p.t.Helper()
	id, err := p.tryCreate(b)
	if err != nil {
		p.t.Fatal(err)
	}
	return id
}

func (p *pod) tryCreate(b *box) (string, error) {
	p.t.Helper()
	p.n++
	id := fmt.Sprintf("c%d-%s", p.n, filepath.Base(filepath.Dir(p.config.Dir)))
	r := b.CreateRequest
	r.ID = id
	r.Bundle = filepath.Join(filepath.Dir(p.config.Dir), id)
	if r.LogPath == "" && !b.noLog {
		r.LogPath = p.logPath(id)
	}
	r.Cgroup = append(r.Cgroup, "/sys/fs/cgroup/memory/"+cgroupName()+"/"+id, "/sys/fs/cgroup/"+cgroupName()+"/"+id)
	for _, dir := range []string{r.Bundle, filepath.Join(p.config.Exits, id)} {
		if err := os.MkdirAll(dir, 0o700); err != nil {
			p.t.Fatal(err)
		}
	}
	spec := b.spec(id)
	if b.change != nil {
		b.change(spec)
	}
	data, _ := json.Marshal(spec)
	if err := os.WriteFile(filepath.Join(r.Bundle, "config.json"), data, 0o600); err != nil {
		p.t.Fatal(err)
	}
	b.CreateRequest = r
	_, err := p.Create(p.t.Context(), r)
	return id, err
}

func (b *box) spec(id string) map[string]any {
	capabilities := []string{"CAP_KILL", "CAP_CHOWN", "CAP_DAC_OVERRIDE"}
	return map[string]any{
		"ociVersion": "1.0.2",
		"process": map[string]any{
			"terminal": b.TTY, "cwd": "/", "args": b.args, "env": []string{"PATH=/bin", "TERM=xterm"},
			"user":         map[string]any{"uid": 0, "gid": 0},
			"capabilities": map[string]any{"bounding": capabilities, "effective": capabilities, "permitted": capabilities},
		},
		"root": map[string]any{"path": rootfs, "readonly": true},
		"mounts": []any{
			map[string]any{"destination": "/proc", "type": "proc", "source": "proc"},
			map[string]any{"destination": "/dev", "type": "tmpfs", "source": "tmpfs", "options": []string{"nosuid", "mode=755", "size=65536k"}},
			map[string]any{"destination": "/dev/pts", "type": "devpts", "source": "devpts", "options": []string{"newinstance", "ptmxmode=0666", "mode=0620"}},
			map[string]any{"destination": "/tmp", "type": "tmpfs", "source": "tmpfs"},
		},
		"linux": map[string]any{
			"cgroupsPath": "/" + cgroupName() + "/" + id,
			"namespaces":  []any{map[string]any{"type": "pid"}, map[string]any{"type": "mount"}, map[string]any{"type": "ipc"}, map[string]any{"type": "uts"}},
		},
	}
}

func (p *pod) logPath(id string) string { return filepath.Join(filepath.Dir(p.config.Dir), id+".log") }

func (p *pod) start(id string) {
	p.t.Helper()
	if _, err := p.Start(p.t.Context(), id); err != nil {
		p.t.Fatal(err)
	}
}

// run creates and starts.
func (p *pod) run(b *box) string {
	p.t.Helper()
	id := p.create(b)
	p.start(id)
	return id
}

func (p *pod) wait(id string) Exit {
	p.t.Helper()
	ctx, cancel := context.WithTimeout(p.t.Context(), 30*time.Second)
	defer cancel()
	x, err := p.Wait(ctx, id)
	if err != nil {
		p.t.Fatal(err)
	}
	return x
}

func (p *pod) log(id string) string {
	p.t.Helper()
	data, err := os.ReadFile(p.logPath(id))
	if err != nil {
		p.t.Fatal(err)
	}
	return string(data)
}

// content is the log without its times.
func (p *pod) content(id string) string {
	p.t.Helper()
	var b strings.Builder
	for line := range strings.Lines(p.log(id)) {
		at, rest, _ := strings.Cut(line, " ")
		if _, err := time.Parse(time.RFC3339Nano, at); err != nil {
			p.t.Fatalf("log has no time in %q", line)
		}
		b.WriteString(rest)
	}
	return b.String()
}

func (p *pod) exec(script string, id string) (string, Exit, error) {
	p.t.Helper()
	return p.execContext(p.t.Context(), script, id)
}

func (p *pod) execContext(ctx context.Context, script string, id string) (string, Exit, error) {
	p.t.Helper()
	r, w, err := os.Pipe()
	if err != nil {
		p.t.Fatal(err)
	}
	defer r.Close()
	var out strings.Builder
	var wg sync.WaitGroup
	wg.Go(func() { copyAll(&out, r) })
	process, _ := json.Marshal(execProcess(script))
	var x Exit
	done := make(chan struct{})
	go func() {
		defer close(done)
		x, err = p.Exec(ctx, ExecRequest{ID: id, Process: process}, nil, w, w)
	}()
	<-done
	w.Close()
	wg.Wait()
	return out.String(), x, err
}

func execProcess(script string) map[string]any {
	return map[string]any{"cwd": "/", "args": []string{"/bin/sh", "-c", script}, "env": []string{"PATH=/bin"}, "user": map[string]any{"uid": 0, "gid": 0}}
}

func copyAll(out *strings.Builder, r *os.File) {
	buffer := make([]byte, 4096)
	for {
		n, err := r.Read(buffer)
		out.Write(buffer[:n])
		if err != nil {
			return
		}
	}
}

func eventually(t testing.TB, what string, ok func() bool) {
	t.Helper()
	for deadline := time.Now().Add(time.Minute); time.Now().Before(deadline); time.Sleep(5 * time.Millisecond) {
		if ok() {
			return
		}
	}
	t.Errorf("waited in vain until %s", what)
}
