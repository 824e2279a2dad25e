package main

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"

	"google.golang.org/grpc"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/evenkeel/evenkeel/integration/engine"
	"github.com/evenkeel/evenkeel/integration/registry"
)

// A subject is an engine that runs.
type subject interface {
	Client() (cri.RuntimeServiceClient, cri.ImageServiceClient)
	Ready() time.Duration // of the last start, from exec to the first answer
	PID() int             // of the daemon
	Helpers() []int       // processes of the engine that are neither the daemon nor workload
	LogDir() string       // where pods may log
	LastWords(int) string // of the daemon's log
	Leftovers() error     // that an engine without pods still has; it may stop the daemon
	Restart() error       // by SIGKILL
	Clean() error         // ends it and removes what it left
	Pod(name string) *cri.PodSandboxConfig
}

// evenkeel measures the engine of this repository.
type evenkeel struct {
	*engine.Engine
	ready time.Duration
}

func startEvenkeel(bin, network string, images *registry.Registry) (subject, error) {
	e, err := engine.New(bin, network)
	if err != nil {
		return nil, err
	}
	e.LogLevel = "info"
	subject := &evenkeel{Engine: e}
	if err := errors.Join(images.Hosts(e.HostsDir()), subject.start()); err != nil {
		return nil, errors.Join(err, e.Clean())
	}
	return subject, nil
}

func (e *evenkeel) start() error {
	begin := time.Now()
	if err := e.Engine.Start(); err != nil {
		return err
	}
	_, err := e.Runtime.Version(context.Background(), &cri.VersionRequest{})
	e.ready = time.Since(begin)
	return err
}

func (e *evenkeel) Restart() error { return errors.Join(e.Kill(), e.start()) }

func (e *evenkeel) Client() (cri.RuntimeServiceClient, cri.ImageServiceClient) {
	return e.Runtime, e.Images
}
func (e *evenkeel) Ready() time.Duration { return e.ready }

func (e *evenkeel) Helpers() (pids []int) {
	for _, pid := range e.Processes() {
		if pid != e.PID() {
			pids = append(pids, pid)
		}
	}
	return pids
}

// containerd runs in directories of its own, with the same runc and the same CNI plugins, as its CRI plugin's
// documentation says (docs/cri/config.md, version 3).
type containerd struct {
	*engine.Engine // for directories, conflist and requests; its daemon is never started
	program        string
	cmd            *exec.Cmd
	conn           *grpc.ClientConn
	ready          time.Duration
}

func startContainerd(bin, program string, images *registry.Registry) (subject, error) {
	e, err := engine.New(bin, "cni")
	if err != nil {
		return nil, err
	}
	c := &containerd{Engine: e, program: program}
	err = errors.Join(images.Hosts(e.HostsDir()), e.WriteConflist(), c.configure(images.Host+"/pause:latest"))
	if err == nil {
		err = c.start()
	}
	if err != nil {
		return nil, errors.Join(err, c.Clean())
	}
	return c, nil
}

func (c *containerd) configure(pause string) error {
	text := fmt.Sprintf(`version = 3
root = %[1]q
state = %[2]q
disabled_plugins = ["io.containerd.nri.v1.nri", "io.containerd.tracing.processor.v1.otlp", "io.containerd.internal.v1.tracing"]
[grpc]
  address = %[3]q
[plugins."io.containerd.cri.v1.images".pinned_images]
  sandbox = %[4]q
[plugins."io.containerd.cri.v1.images".registry]
  config_path = %[5]q
[plugins."io.containerd.cri.v1.runtime"]
  netns_mounts_under_state_dir = true
  restrict_oom_score_adj = %[9]t
[plugins."io.containerd.cri.v1.runtime".cni]
  bin_dirs = [%[6]q]
  conf_dir = %[7]q
[plugins."io.containerd.cri.v1.runtime".containerd.runtimes.runc]
  runtime_type = "io.containerd.runc.v2"
  [plugins."io.containerd.cri.v1.runtime".containerd.runtimes.runc.options]
    BinaryName = %[8]q
`, c.Root(), filepath.Join(c.State, "c"), c.Socket(), pause, c.HostsDir(), c.Bin, c.ConfDir(), filepath.Join(c.Bin, "runc"), !mayLowerOOMScore())
	return os.WriteFile(filepath.Join(c.Base, "containerd.toml"), []byte(text), 0o644)
}

// mayLowerOOMScore: without CAP_SYS_RESOURCE runc cannot give a sandbox the score that containerd wants for it.
func mayLowerOOMScore() bool {
	const sysResource = 24
	data, _ := os.ReadFile("/proc/self/status")
	_, rest, _ := strings.Cut(string(data), "CapEff:")
	effective, err := strconv.ParseUint(strings.TrimSpace(strings.SplitN(rest, "\n", 2)[0]), 16, 64)
	return err == nil && effective&(1<<sysResource) != 0
}

func (c *containerd) start() error {
	log, err := os.OpenFile(c.LogFile(), os.O_APPEND|os.O_CREATE|os.O_WRONLY, 0o644)
	if err != nil {
		return err
	}
	defer log.Close()
	c.cmd = exec.Command(c.program, "--config", filepath.Join(c.Base, "containerd.toml"))
	c.cmd.Stdout, c.cmd.Stderr = log, log
	c.cmd.Env = append(os.Environ(), "PATH="+filepath.Dir(c.program)+":"+os.Getenv("PATH"))
	begin := time.Now()
	if err := c.cmd.Start(); err != nil {
		return err
	}
	if c.conn, err = engine.Dial(c.Socket()); err != nil {
		return err
	}
	return c.await(begin)
}

// await asks Version until it is answered, as a kubelet does: containerd listens before its CRI plugin is there.
func (c *containerd) await(begin time.Time) error {
	for time.Since(begin) < 30*time.Second {
		conn, err := net.Dial("unix", c.Socket())
		if err == nil {
			conn.Close()
			ctx, cancel := context.WithTimeout(context.Background(), time.Second)
			_, err = cri.NewRuntimeServiceClient(c.conn).Version(ctx, &cri.VersionRequest{}, grpc.WaitForReady(true))
			cancel()
			if err == nil {
				c.ready = time.Since(begin)
				return nil
			}
		}
		time.Sleep(time.Millisecond)
	}
	return fmt.Errorf("containerd does not answer:\n%s", c.LastWords(10))
}

func (c *containerd) Client() (cri.RuntimeServiceClient, cri.ImageServiceClient) {
	return cri.NewRuntimeServiceClient(c.conn), cri.NewImageServiceClient(c.conn)
}

func (c *containerd) Ready() time.Duration { return c.ready }
func (c *containerd) PID() int             { return c.cmd.Process.Pid }

func (c *containerd) Restart() error {
	c.kill()
	return c.start()
}

func (c *containerd) kill() {
	if c.cmd == nil || c.cmd.Process == nil {
		return
	}
	if c.conn != nil {
		c.conn.Close()
	}
	c.cmd.Process.Signal(syscall.SIGKILL)
	c.cmd.Wait()
}

// Helpers are the shims, one per pod, and the pause containers.
func (c *containerd) Helpers() (pids []int) {
	dirs, _ := filepath.Glob("/proc/[0-9]*")
	for _, dir := range dirs {
		var pid int
		fmt.Sscanf(filepath.Base(dir), "%d", &pid)
		cmdline, _ := os.ReadFile(dir + "/cmdline")
		if pid != c.PID() && (containsAll(cmdline, "containerd-shim", c.Socket()) || containsAll(cmdline, pauseProgram)) {
			pids = append(pids, pid)
		}
	}
	return pids
}

// Leftovers of containerd are its own affair; Clean removes them.
func (c *containerd) Leftovers() error { return nil }

func (c *containerd) Clean() error {
	c.kill()
	for _, pid := range c.Helpers() {
		syscall.Kill(pid, syscall.SIGKILL)
	}
	return c.Engine.Clean()
}
