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
	"strings"
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
	timeout time.Duration
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
		out, err := runPlugin(ctx, path, stdin, env)
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

// runPlugin keeps its thread until the plugin has ended: the kernel sends Pdeathsig when the thread that started the
// process ends, which must mean the daemon. A plugin that outlived its daemon would work on while the next daemon's
// DEL takes down what it builds.
func runPlugin(ctx context.Context, path string, stdin []byte, env []string) ([]byte, error) {
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	stdout, stderr := &limited{max: 4 << 20}, &limited{max: 4 << 10, tail: true}
	cmd := exec.CommandContext(ctx, path)
	cmd.Env, cmd.Stdin, cmd.Stdout, cmd.Stderr = env, bytes.NewReader(stdin), stdout, stderr
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true, Pdeathsig: syscall.SIGKILL}
	cmd.Cancel = func() error { return syscall.Kill(-cmd.Process.Pid, syscall.SIGKILL) }
	cmd.WaitDelay = time.Second // for a grandchild in a group of its own that keeps the pipes open
	err := cmd.Run()
	if err != nil && ctx.Err() != nil {
		err = context.Cause(ctx)
	}
	verb := envValue(env, "CNI_COMMAND")
	if err == nil {
		return stdout.buf, checkAnswer(filepath.Base(path), verb, stdout.buf, stderr)
	}
	return nil, failure(filepath.Base(path), verb, err, stdout, stderr)
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
