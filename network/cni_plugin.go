package network

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/containernetworking/cni/libcni"
	"github.com/containernetworking/cni/pkg/invoke"
	"github.com/containernetworking/cni/pkg/types"
	"github.com/containernetworking/cni/pkg/version"
)

// A PluginError is what a plugin said when it failed.
type PluginError struct {
	Plugin, Verb string
	Code         uint   // of the CNI specification, section Error; 0: the plugin gave none
	Message      string // with details
	Stderr       string // the end of it
	Err          error  // why the call ended, when the plugin said nothing: exit status, deadline
}

func (e *PluginError) Error() string {
	var b strings.Builder
	fmt.Fprintf(&b, "CNI plugin %s failed in %s", e.Plugin, e.Verb)
	if e.Message != "" {
		fmt.Fprintf(&b, ": %s", e.Message)
	}
	if e.Code != 0 {
		fmt.Fprintf(&b, " (CNI code %d)", e.Code)
	}
	if e.Err != nil {
		fmt.Fprintf(&b, ": %v", e.Err)
	}
	if e.Stderr != "" {
		fmt.Fprintf(&b, "; it wrote: %s", e.Stderr)
	}
	return b.String()
}

func (e *PluginError) Unwrap() error { return e.Err }

// pluginError names the network; the plugin names itself. What libcni wraps around that says nothing more.
func pluginError(network string, err error) error {
	if err == nil {
		return nil
	}
	var plugin *PluginError
	if errors.As(err, &plugin) {
		err = plugin
	}
	return fmt.Errorf("network %s: %w", network, err)
}

// A runner runs plugins for libcni: each with a deadline of its own and in a process group of its own, so that the
// address plugin which a plugin started dies with it.
type runner struct {
	timeout   time.Duration
	abandoned *abandoned
	version.PluginDecoder
}

var _ invoke.Exec = (*runner)(nil)

func (r *runner) FindInPath(plugin string, dirs []string) (string, error) {
	return findPlugin(plugin, dirs)
}

func findPlugin(plugin string, dirs []string) (string, error) {
	path, err := invoke.FindInPath(plugin, dirs)
	if err != nil {
		return "", fmt.Errorf("CNI plugin %q is missing: it is not in %s", plugin, strings.Join(dirs, " or "))
	}
	return path, nil
}

// findPlugins tells what is missing before anything is recorded or run.
func (c *CNI) findPlugins(list *libcni.NetworkConfigList) error {
	for _, p := range list.Plugins {
		if _, err := findPlugin(p.Network.Type, c.BinDirs); err != nil {
			return err
		}
	}
	return nil
}

// busyRetries is for an installer that is copying the plugin over the old one at this moment (ETXTBSY).
const busyRetries, busyPause = 5, 200 * time.Millisecond

func (r *runner) ExecPlugin(ctx context.Context, path string, stdin []byte, env []string) ([]byte, error) {
	ctx, cancel := context.WithTimeoutCause(ctx, r.timeout, fmt.Errorf("no answer within %s: %w", r.timeout, context.DeadlineExceeded))
	defer cancel()
	for try := 0; ; try++ {
		out, err := r.runPlugin(ctx, path, stdin, env)
		if try == busyRetries || !errors.Is(err, syscall.ETXTBSY) {
			return out, err
		}
		select {
		case <-time.After(busyPause):
		case <-ctx.Done():
			return out, err
		}
	}
}

// killPatience is how long a plugin may take to die: longer than pipeDelay, after which one that has died is done with.
const killPatience, pipeDelay = 5 * time.Second, time.Second

// runPlugin gives a plugin up that does not die when it is killed: a process that waits for a disk or a server (state D) is reached by
// no signal. Nothing else is run for that pod while it is there, since the specification allows no two calls at once.
func (r *runner) runPlugin(ctx context.Context, path string, stdin []byte, env []string) ([]byte, error) {
	c := newPluginCall(ctx, path, stdin, env)
	if earlier := r.abandoned.of(c); earlier != nil {
		return nil, &PluginError{Plugin: c.plugin, Verb: c.verb, Err: fmt.Errorf("not run: an earlier call is not over: %w", earlier.undead())}
	}
	go c.run()
	select {
	case <-c.ended:
		return c.answer(ctx)
	case <-ctx.Done():
	}
	select {
	case <-c.ended:
		return c.answer(ctx)
	case <-time.After(killPatience):
		r.abandoned.add(c)
		return nil, &PluginError{Plugin: c.plugin, Verb: c.verb, Err: fmt.Errorf("%w: %w", context.Cause(ctx), c.undead())}
	}
}

// A pluginCall is one run of a plugin.
type pluginCall struct {
	plugin, verb   string
	container      string // empty for calls that are about no pod
	cmd            *exec.Cmd
	stdout, stderr *limited
	pid            atomic.Int64 // 0: it has not started
	ended          chan struct{}
	err            error // valid once ended is closed, as is what was written
}

func newPluginCall(ctx context.Context, path string, stdin []byte, env []string) *pluginCall {
	c := &pluginCall{plugin: filepath.Base(path), verb: envValue(env, "CNI_COMMAND"), container: envValue(env, "CNI_CONTAINERID"),
		cmd: exec.CommandContext(ctx, path), stdout: &limited{max: 4 << 20}, stderr: &limited{max: 4 << 10, tail: true}, ended: make(chan struct{})}
	c.cmd.Env, c.cmd.Stdin, c.cmd.Stdout, c.cmd.Stderr = env, bytes.NewReader(stdin), c.stdout, c.stderr
	c.cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true, Pdeathsig: syscall.SIGKILL}
	c.cmd.Cancel = func() error {
		syscall.Kill(-c.cmd.Process.Pid, syscall.SIGKILL)
		return c.cmd.Process.Kill() // it may have left its group
	}
	c.cmd.WaitDelay = pipeDelay // for a grandchild in a group of its own that keeps the pipes open
	return c
}

// run keeps its thread until the plugin has ended: the kernel sends Pdeathsig when the thread that started the
// process ends, which must mean the daemon. A plugin that outlived its daemon would work on while the next daemon's
// DEL takes down what it builds.
func (c *pluginCall) run() {
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	defer close(c.ended)
	if c.err = c.cmd.Start(); c.err != nil {
		return
	}
	c.pid.Store(int64(c.cmd.Process.Pid))
	c.err = c.cmd.Wait()
	if errors.Is(c.err, exec.ErrWaitDelay) {
		c.err = nil // a child that stays can hold the pipes, but the plugin has said all that it will say
	}
}

func (c *pluginCall) answer(ctx context.Context) ([]byte, error) {
	if c.err == nil {
		return c.stdout.buf, checkAnswer(c.plugin, c.verb, c.stdout.buf, c.stderr)
	}
	err := c.err
	if ctx.Err() != nil {
		err = context.Cause(ctx)
	}
	return nil, failure(c.plugin, c.verb, err, c.stdout, c.stderr)
}

// undead says who is in the way.
func (c *pluginCall) undead() error {
	if c.pid.Load() == 0 {
		return fmt.Errorf("plugin %s has been starting since %s", c.plugin, c.verb)
	}
	return fmt.Errorf("pid %d (%s %s) was killed and does not end", c.pid.Load(), c.plugin, c.verb)
}

// Abandoned are the calls that were given up, until their processes end. Each holds a thread, so there is one at a time for a pod, or
// for a plugin and verb where it is about no pod.
type abandoned struct {
	mu    sync.Mutex // guards calls
	calls []*pluginCall
}

func (a *abandoned) add(c *pluginCall) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.calls = append(a.calls, c)
}

// of finds one that bars the way of another.
func (a *abandoned) of(c *pluginCall) *pluginCall {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.calls = slices.DeleteFunc(a.calls, (*pluginCall).over)
	for _, earlier := range a.calls {
		if earlier.container == c.container && (c.container != "" || earlier.plugin == c.plugin && earlier.verb == c.verb) {
			return earlier
		}
	}
	return nil
}

func (c *pluginCall) over() bool {
	select {
	case <-c.ended:
		return true
	default:
		return false
	}
}

// checkAnswer finds garbage where a result is due, while the plugin's name is at hand.
func checkAnswer(plugin, verb string, stdout []byte, stderr *limited) error {
	if verb != "ADD" || json.Valid(stdout) {
		return nil
	}
	return &PluginError{Plugin: plugin, Verb: verb, Message: fmt.Sprintf("its result is not JSON: %.200q", stdout), Stderr: stderr.String()}
}

// failure reads the error object that a plugin prints on stdout. A plugin that crashed or was killed prints none.
func failure(plugin, verb string, err error, stdout, stderr *limited) error {
	e := &PluginError{Plugin: plugin, Verb: verb, Stderr: stderr.String(), Err: err}
	var said types.Error
	if json.Unmarshal(stdout.buf, &said) == nil && said.Msg != "" {
		e.Code, e.Message = said.Code, said.Error()
		if isExit(err) {
			e.Err = nil // exit status 1 says nothing more
		}
		return e
	}
	if len(stdout.buf) > 0 {
		e.Message = fmt.Sprintf("it printed %.200q", stdout.buf)
	}
	return e
}

func isExit(err error) bool {
	var exit *exec.ExitError
	return errors.As(err, &exit) && exit.Exited()
}

func envValue(env []string, name string) string {
	for _, v := range env {
		if value, ok := strings.CutPrefix(v, name+"="); ok {
			return value
		}
	}
	return os.Getenv(name)
}

// Limited keeps the beginning of what is written to it, or the end.
type limited struct {
	buf  []byte
	max  int
	tail bool
}

func (l *limited) Write(p []byte) (int, error) {
	l.buf = append(l.buf, p...)
	if over := len(l.buf) - l.max; over > 0 {
		if l.tail {
			l.buf = l.buf[over:]
		} else {
			l.buf = l.buf[:l.max]
		}
	}
	return len(p), nil
}

func (l *limited) String() string { return strings.TrimSpace(string(l.buf)) }
