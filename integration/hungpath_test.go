package integration

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"google.golang.org/grpc/codes"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/evenkeel/evenkeel/integration/engine"
)

func mounting(name, hostPath string) *cri.ContainerConfig {
	c := engine.Sleeper(name, busybox)
	c.Mounts = []*cri.Mount{{HostPath: hostPath, ContainerPath: "/data"}}
	return c
}

// Storage that never answers costs those who use it a clear error, and nobody else anything.
func TestSilentHostPath(t *testing.T) {
	n := start(t, "builtin")
	fuse := serveFuse(t)
	fuse.quieten(false, nil)
	cfg := n.Pod("crowd")
	crowd := n.runPod(cfg)
	before := n.createMany(crowd, cfg, "before", 15)
	const victims = 6
	pods := map[string]*cri.PodSandboxConfig{}
	for i := range victims {
		cfg := n.Pod(fmt.Sprintf("victim%d", i))
		pods[n.runPod(cfg)] = cfg
	}
	threads, files := n.daemonThreads(), n.daemonFiles()
	refusals, i := make(chan error), 0
	for pod, cfg := range pods {
		c := mounting("stuck", fuse.dir+"/dir")
		switch i++; i {
		case 1:
			c = engine.Sleeper("stuck", busybox)
			c.Devices = []*cri.Device{{HostPath: fuse.dir + "/dir", ContainerPath: "/dev/x"}}
		case 2: // the root of a mount can be opened without asking anybody
			c = mounting("stuck", fuse.dir)
		}
		go func() {
			start := time.Now()
			_, err := n.Runtime.CreateContainer(n.ctx(), &cri.CreateContainerRequest{PodSandboxId: pod, Config: c, SandboxConfig: cfg})
			if took := time.Since(start); took > engine.Patience(20*time.Second) {
				err = fmt.Errorf("it took %s: %w", took, err)
			}
			refusals <- err
		}()
	}
	n.eventually(5*time.Second, func() error {
		if fuse.waiting() == 0 {
			return fmt.Errorf("nobody has asked the file system yet")
		}
		return nil
	})
	during := n.createMany(crowd, cfg, "during", engine.Rounds(100, 30))
	for range victims {
		refused(t, <-refusals, codes.DeadlineExceeded, fuse.dir, "fuse.ektest", "does not answer")
	}
	after := n.createMany(crowd, cfg, "after", 15)
	measured(t, "create p50 beside a silent file system: %s (before %s, after %s)", median(during), median(before), median(after))
	if calm := max(median(before), median(after)); median(during) > 2*calm+10*time.Millisecond {
		t.Errorf("creates beside a silent file system take %s, otherwise %s", median(during), calm)
	}

	// Those who asked cannot be killed before the file system goes. There is one for each thing that was asked.
	if stuck := n.helpers(); len(stuck) == 0 || len(stuck) > 3 {
		t.Errorf("%d helpers wait for the file system: %v", len(stuck), stuck)
	}
	fuse.close()
	n.noHelperLeft()
	if now := n.daemonFiles(); now > files+5 {
		t.Errorf("the daemon has %d descriptors, it had %d", now, files)
	}
	if now := n.daemonThreads(); now > threads+10 {
		t.Errorf("the daemon has %d threads, it had %d", now, threads)
	}
	n.noGoroutineIn("internal/hostpath")
}

// Storage can die between the look at it and the mount of it. The runtime hangs then.
func TestRuntimeHangsOnHostPath(t *testing.T) {
	waits(t)
	for name, interruptible := range map[string]bool{"killable": true, "unkillable": false} {
		t.Run(name, func(t *testing.T) {
			n := start(t, "builtin")
			fuse := serveFuse(t)
			fuse.quieten(interruptible, func(command string) bool { return strings.HasPrefix(command, "runc") })
			cfg := n.Pod("p")
			pod := n.runPod(cfg)
			// The caller leaves before the engine gives the runtime up, which is after a minute on any machine.
			patience := min(engine.Patience(8*time.Second), 40*time.Second)
			ctx, stop := context.WithTimeout(n.ctx(), patience)
			defer stop()
			quiet := time.AfterFunc(2*time.Second, func() { fuse.quieten(interruptible, nil) }) // before the engine suspects it, after 3 s, it is silent to everybody
			defer quiet.Stop()
			_, err := n.Runtime.CreateContainer(ctx, &cri.CreateContainerRequest{PodSandboxId: pod, Config: mounting("c", fuse.dir+"/dir"), SandboxConfig: cfg})
			refused(t, err, codes.DeadlineExceeded, fuse.dir+"/dir", "OCI runtime")
			if fuse.waiting() == 0 {
				t.Fatal("the runtime never touched the file system")
			}
			short, end := context.WithTimeout(n.ctx(), engine.Patience(5*time.Second))
			defer end()
			_, err = n.Runtime.RemovePodSandbox(short, &cri.RemovePodSandboxRequest{PodSandboxId: pod})
			if interruptible && err != nil {
				t.Errorf("what can be killed was not: %v", err)
			}
			if !interruptible {
				if err == nil {
					t.Error("the pod was called removed while a process of its lived")
				}
				other := n.Pod("other")
				n.run(n.runPod(other), other, engine.Sleeper("main", busybox))
				fuse.close()
				n.removePod(pod)
			}
			n.noneLeft("runtimes", 10*time.Second, n.runtimes)
		})
	}
}

// A seccomp profile is a file of the node's, on storage like any other.
func TestSilentSeccompProfile(t *testing.T) {
	n := start(t, "builtin")
	fuse := serveFuse(t)
	fuse.quieten(false, nil)
	cfg := n.Pod("p")
	pod := n.runPod(cfg)
	c := engine.Sleeper("c", busybox)
	profile := &cri.SecurityProfile{ProfileType: cri.SecurityProfile_Localhost, LocalhostRef: fuse.dir + "/dir/profile.json"}
	c.Linux.SecurityContext.Seccomp = profile
	_, err := n.Runtime.CreateContainer(n.ctx(), &cri.CreateContainerRequest{PodSandboxId: pod, Config: c, SandboxConfig: cfg})
	refused(t, err, codes.DeadlineExceeded, profile.LocalhostRef, "fuse.ektest", "does not answer")
	fuse.close()
	n.noHelperLeft()
	n.noGoroutineIn("internal/hostpath")

	profile.LocalhostRef = filepath.Join(n.Base, "profile.json")
	must(t, os.WriteFile(profile.LocalhostRef, []byte(`{"defaultAction": "SCMP_ACT_ALLOW", "syscalls": [{"names": ["mkdir", "mkdirat"], "action": "SCMP_ACT_ERRNO"}]}`), 0o644))
	id := n.run(pod, cfg, c)
	if said := n.output(id, "sh", "-c", "mkdir /tmp/x 2>&1; true"); !strings.Contains(said, "not permitted") {
		t.Errorf("mkdir under the profile said %q", said)
	}
}

// Rotation onto storage that does not answer costs the caller a deadline. The log goes on where it was, and other
// containers of the pod notice nothing.
func TestSilentLogDirectory(t *testing.T) {
	waits(t)
	for name, quieten := range map[string]func(*fuseServer){
		"before the look at it": func(f *fuseServer) { f.quieten(false, nil) },
		"after the look at it":  func(f *fuseServer) { f.ignore("main.log") },
	} {
		t.Run(name, func(t *testing.T) {
			n := start(t, "builtin")
			fuse := serveFuse(t)
			cfg := n.Pod("p")
			dir, link := cfg.LogDirectory, cfg.LogDirectory+"-link"
			must(t, os.Symlink(dir, link))
			cfg.LogDirectory = link
			pod := n.runPod(cfg)
			c := engine.Container("main", busybox, "sh", "-c", "trap 'exit 0' TERM; i=0; while :; do echo line $i; i=$((i+1)); sleep 0.05; done")
			id := n.run(pod, cfg, c)
			other := n.run(pod, cfg, engine.Sleeper("other", busybox))
			log := filepath.Join(dir, "main.log")
			n.grows(log)

			must(t, os.Remove(link))
			must(t, os.Symlink(fuse.dir+"/", link))
			quieten(fuse)
			refused(t, n.reopen(id), codes.DeadlineExceeded, link+"/main.log")
			n.grows(log)
			must(t, os.Remove(link))
			must(t, os.Symlink(dir, link))
			n.output(other, "true") // asked of the same shim
			fuse.close()
			n.noHelperLeft()
			must(t, os.Rename(log, log+".1"))
			n.eventually(10*time.Second, func() error { return n.reopen(id) })
			n.grows(log)
		})
	}
}

// grows waits until a file has become longer.
func (n *node) grows(path string) {
	n.t.Helper()
	var first int64 = -1
	n.eventually(10*time.Second, func() error {
		info, err := os.Stat(path)
		if err != nil {
			return err
		}
		if first < 0 {
			first = info.Size()
		}
		if info.Size() == first {
			return fmt.Errorf("%s stays at %d bytes", path, first)
		}
		return nil
	})
}

func (n *node) noHelperLeft() {
	n.t.Helper()
	n.noneLeft("helpers", 5*time.Second, n.helpers)
}

// noneLeft waits until nothing of a kind is found.
func (n *node) noneLeft(what string, patience time.Duration, find func() []string) {
	n.t.Helper()
	n.eventually(patience, func() error {
		if left := find(); len(left) > 0 {
			return fmt.Errorf("%s are left: %v", what, left)
		}
		return nil
	})
}

// createMany creates and removes containers one after the other, and returns how long each create took.
func (n *node) createMany(pod string, cfg *cri.PodSandboxConfig, name string, count int) (took []time.Duration) {
	for i := range count {
		begun := time.Now()
		id := n.create(pod, cfg, mounting(fmt.Sprintf("%s%d", name, i), n.Base))
		took = append(took, time.Since(begun))
		n.remove(id)
	}
	return took
}

func median(all []time.Duration) time.Duration {
	sorted := slices.Sorted(slices.Values(all))
	return sorted[len(sorted)/2]
}

func (n *node) daemonThreads() int { return entries(n.t, fmt.Sprintf("/proc/%d/task", n.PID())) }
func (n *node) daemonFiles() int   { return entries(n.t, fmt.Sprintf("/proc/%d/fd", n.PID())) }

func entries(t *testing.T, dir string) int {
	t.Helper()
	all, err := os.ReadDir(dir)
	must(t, err)
	return len(all)
}

// helpers are the processes that look at paths for this daemon, whose children they are.
func (n *node) helpers() (found []string) {
	tasks, _ := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/children", n.PID()))
	for _, task := range tasks {
		children, _ := os.ReadFile(task)
		for _, pid := range strings.Fields(string(children)) {
			if line := commandLine(filepath.Join("/proc", pid)); strings.Contains(line, "evenkeel-shim hostpath") {
				found = append(found, line)
			}
		}
	}
	return found
}

// runtimes are the commands of the OCI runtime on this engine's containers.
func (n *node) runtimes() (found []string) {
	dirs, _ := filepath.Glob("/proc/[0-9]*")
	for _, dir := range dirs {
		if line := commandLine(dir); strings.Contains(line, "/runc --root "+n.State) {
			found = append(found, line)
		}
	}
	return found
}

func commandLine(dir string) string {
	text, _ := os.ReadFile(filepath.Join(dir, "cmdline"))
	return strings.ReplaceAll(strings.TrimRight(string(text), "\x00"), "\x00", " ")
}

// noGoroutineIn ends the daemon in the way that makes Go print every goroutine, reads them, and starts it again. A helper
// that ends has no command line any more while a goroutine still waits for its last word, hence the second before; one
// that is stuck stays for ever.
func (n *node) noGoroutineIn(room string) {
	n.t.Helper()
	time.Sleep(time.Second)
	must(n.t, syscall.Kill(n.PID(), syscall.SIGQUIT))
	must(n.t, n.AwaitEnd(n.ctx()))
	log, err := os.ReadFile(n.LogFile())
	must(n.t, err)
	_, dump, ok := strings.Cut(string(log), "SIGQUIT: quit")
	if !ok {
		n.t.Fatal("the daemon printed no goroutines")
	}
	for _, g := range strings.Split(dump, "\n\n") {
		if strings.HasPrefix(g, "goroutine ") && strings.Contains(g, room) {
			n.t.Errorf("a goroutine is left:\n%s", g)
		}
	}
	must(n.t, n.Start())
}
