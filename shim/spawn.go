package shim

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"

	"github.com/evenkeel/evenkeel/internal/atomicfile"
)

// Config is what a shim is started with; it is kept as shim.json in Dir, so that a human can start it again by hand.
type Config struct {
	PodID         string
	Dir           string // the pod's state directory; the shim's working directory. The socket is Dir/shim.sock, its pid file Dir/shim.pid
	Exits         string // directory in which Exits/<container id>/exit is written when a container ends; the caller makes Exits/<container id>
	Runtime       string // the OCI runtime's program
	RuntimeRoot   string
	SystemdCgroup bool
}

// listenerFD is where a shim finds its listening socket.
const listenerFD = 3

// Spawn starts the shim program (absolute path) for c and returns when its socket can be connected to: the listening
// socket is made here and handed down as descriptor 3, so there is nothing to wait for. The shim is a session of its own
// and survives the caller. Spawn reaps it if it ends while the caller lives. It refuses to replace a shim that listens.
func Spawn(ctx context.Context, program string, c Config) (Process, error) {
	if err := ctx.Err(); err != nil {
		return Process{}, err
	}
	listener, err := c.prepare()
	if err != nil {
		return Process{}, fmt.Errorf("cannot start shim of pod %s: %w", c.PodID, err)
	}
	defer listener.Close()
	p, err := c.start(program, listener)
	if err != nil {
		os.Remove(filepath.Join(c.Dir, socketName))
		return Process{}, fmt.Errorf("cannot start shim of pod %s: %w", c.PodID, err)
	}
	return p, nil
}

func (c Config) prepare() (*os.File, error) {
	data, err := json.MarshalIndent(c, "", "\t")
	if err != nil {
		return nil, err
	}
	if err := vacate(c.Dir); err != nil {
		return nil, err
	}
	if err := atomicfile.Write(filepath.Join(c.Dir, configName), append(data, '\n'), 0o600); err != nil {
		return nil, err
	}
	fd, err := listen(c.Dir, socketName)
	if err != nil {
		return nil, err
	}
	return os.NewFile(uintptr(fd), socketName), nil
}

// vacate removes the socket of a shim that died. One that listens, even if it does not answer, keeps it.
func vacate(dir string) error {
	fd, err := connect(dir, socketName)
	switch {
	case err == nil:
		unix.Close(fd)
		return errors.New("another shim listens on its socket")
	case errors.Is(err, unix.EAGAIN):
		return errors.New("another shim listens on its socket, and is silent")
	case errors.Is(err, unix.ECONNREFUSED):
		return os.Remove(filepath.Join(dir, socketName))
	case errors.Is(err, unix.ENOENT):
		return nil // nothing there, or no directory, which the next step says better
	}
	return err
}

func (c Config) start(program string, listener *os.File) (Process, error) {
	null, err := os.OpenFile(os.DevNull, os.O_RDWR, 0)
	if err != nil {
		return Process{}, err
	}
	defer null.Close()
	log, err := os.OpenFile(filepath.Join(c.Dir, stderrName), os.O_CREATE|os.O_WRONLY|os.O_APPEND, 0o600)
	if err != nil {
		return Process{}, err
	}
	defer log.Close()
	child, err := os.StartProcess(program, []string{program, "serve"}, &os.ProcAttr{
		Dir:   c.Dir,
		Env:   shimEnvironment(),
		Files: []*os.File{null, null, log, listener},
		Sys:   &syscall.SysProcAttr{Setsid: true},
	})
	if err != nil {
		return Process{}, err
	}
	// Not reaped before its start time is read, so the pid cannot be another's.
	p, err := processOf(child.Pid)
	if err != nil { // nobody would know whom to end
		child.Kill()
	}
	go reap(child.Pid, p)
	child.Release()
	return p, err
}

// reap waits in wait4(2) only when there is nothing to wait for: that call keeps a thread, and a pod lives for long.
func reap(pid int, p Process) {
	p.Await()
	for {
		if _, err := unix.Wait4(pid, nil, 0, nil); !errors.Is(err, unix.EINTR) {
			return
		}
	}
}

// runtimeKnobs keep the shim's Go runtime small from its first instruction on: one P has one cache of free memory, the first
// collection comes at 1 MiB, and no allocation is sampled (about 30 KiB). The collector's own books cost a megabyte once it has
// run a few times, more than the garbage of a quiet pod: so collecting less often is no loss.
// The shim removes them from its environment, so that its children do not inherit them.
var runtimeKnobs = []string{"GOMAXPROCS=1", "GOGC=25", "GODEBUG=memprofilerate=0", "GOTRACEBACK=single"}

func shimEnvironment() []string {
	var env []string
	for _, entry := range os.Environ() {
		if name, _, _ := strings.Cut(entry, "="); !isKnob(name) && name != "GOMEMLIMIT" {
			env = append(env, entry)
		}
	}
	return append(env, runtimeKnobs...)
}

func isKnob(name string) bool {
	for _, knob := range runtimeKnobs {
		if strings.HasPrefix(knob, name+"=") {
			return true
		}
	}
	return false
}
