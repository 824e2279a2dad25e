package integration

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/evenkeel/evenkeel/integration/engine"
)

// A node is an engine under test. Its methods are the kubelet's calls and end the test when a call fails.
type node struct {
	*engine.Engine
	t *testing.T
}

const callLimit = 60 * time.Second

// start runs an engine with the busybox image on board. When the test ends its pods are removed, the daemon stops,
// and nothing may be left.
func start(t *testing.T, network string) *node {
	t.Helper()
	n := prepareNode(t, network)
	must(t, n.Start())
	n.pull(busybox)
	return n
}

// prepareNode is start without starting.
func prepareNode(t *testing.T, network string) *node {
	t.Helper()
	e, err := engine.New(bin, network)
	must(t, err)
	n := &node{e, t}
	t.Cleanup(n.finish)
	must(t, images.Hosts(e.HostsDir()))
	return n
}

// logEnv, when set, prints the daemon's last words after passing tests, too.
const logEnv = "EVENKEEL_TEST_LOG"

func (n *node) finish() {
	t := n.t
	defer func() { // also where a look at what is left ends the test
		if t.Failed() || os.Getenv(logEnv) != "" {
			t.Logf("the daemon's last words (%s):\n%s", n.Base, n.LastWords(40))
		}
		if err := n.Clean(); err != nil {
			t.Errorf("cannot clean up: %v", err)
		}
	}()
	if n.Runtime != nil && !n.Ended() {
		if err := n.RemoveAll(context.Background()); err != nil {
			t.Errorf("cannot remove all pods: %v", err)
		}
		n.noLeftovers()
		if err := n.Stop(); err != nil {
			t.Error(err)
		}
		n.nothingShared()
	}
}

// ctx ends with the call's limit. It outlives t.Context, since pods are removed when that has ended.
func (n *node) ctx() context.Context {
	ctx, cancel := context.WithTimeout(context.Background(), engine.Patience(callLimit))
	n.t.Cleanup(cancel)
	return ctx
}

func (n *node) pull(ref string) string {
	n.t.Helper()
	r, err := n.Images.PullImage(n.ctx(), &cri.PullImageRequest{Image: &cri.ImageSpec{Image: ref}})
	if err != nil {
		n.t.Fatalf("cannot pull %s: %v", ref, err)
	}
	return r.ImageRef
}

func (n *node) runPod(cfg *cri.PodSandboxConfig) string {
	n.t.Helper()
	r, err := n.Runtime.RunPodSandbox(n.ctx(), &cri.RunPodSandboxRequest{Config: cfg})
	if err != nil {
		n.t.Fatalf("cannot run pod %s: %v", cfg.Metadata.Name, err)
	}
	return r.PodSandboxId
}

func (n *node) create(pod string, podConfig *cri.PodSandboxConfig, cfg *cri.ContainerConfig) string {
	n.t.Helper()
	r, err := n.Runtime.CreateContainer(n.ctx(), &cri.CreateContainerRequest{PodSandboxId: pod, Config: cfg, SandboxConfig: podConfig})
	if err != nil {
		n.t.Fatalf("cannot create container %s: %v", cfg.Metadata.Name, err)
	}
	return r.ContainerId
}

func (n *node) startContainer(id string) {
	n.t.Helper()
	if _, err := n.Runtime.StartContainer(n.ctx(), &cri.StartContainerRequest{ContainerId: id}); err != nil {
		n.t.Fatalf("cannot start container: %v", err)
	}
}

// run creates and starts a container.
func (n *node) run(pod string, podConfig *cri.PodSandboxConfig, cfg *cri.ContainerConfig) string {
	n.t.Helper()
	id := n.create(pod, podConfig, cfg)
	n.startContainer(id)
	return id
}

// up makes a pod with one container that stays.
func (n *node) up(name string) (pod, container string) {
	n.t.Helper()
	cfg := n.Pod(name)
	pod = n.runPod(cfg)
	return pod, n.run(pod, cfg, engine.Sleeper("main", busybox))
}

func (n *node) stop(id string, grace int64) {
	n.t.Helper()
	if _, err := n.Runtime.StopContainer(n.ctx(), &cri.StopContainerRequest{ContainerId: id, Timeout: grace}); err != nil {
		n.t.Fatalf("cannot stop container: %v", err)
	}
}

func (n *node) remove(id string) {
	n.t.Helper()
	if _, err := n.Runtime.RemoveContainer(n.ctx(), &cri.RemoveContainerRequest{ContainerId: id}); err != nil {
		n.t.Fatalf("cannot remove container: %v", err)
	}
}

func (n *node) stopPod(id string) {
	n.t.Helper()
	if _, err := n.Runtime.StopPodSandbox(n.ctx(), &cri.StopPodSandboxRequest{PodSandboxId: id}); err != nil {
		n.t.Fatalf("cannot stop pod: %v", err)
	}
}

func (n *node) removePod(id string) {
	n.t.Helper()
	if _, err := n.Runtime.RemovePodSandbox(n.ctx(), &cri.RemovePodSandboxRequest{PodSandboxId: id}); err != nil {
		n.t.Fatalf("cannot remove pod: %v", err)
	}
}

func (n *node) podStatus(id string) *cri.PodSandboxStatus {
	n.t.Helper()
	r, err := n.Runtime.PodSandboxStatus(n.ctx(), &cri.PodSandboxStatusRequest{PodSandboxId: id})
	if err != nil {
		n.t.Fatalf("cannot get pod status: %v", err)
	}
	return r.Status
}

func (n *node) ip(pod string) string {
	n.t.Helper()
	ip := n.podStatus(pod).GetNetwork().GetIp()
	if ip == "" {
		n.t.Fatalf("pod %s has no address", pod)
	}
	return ip
}

func (n *node) status(id string) *cri.ContainerStatus {
	n.t.Helper()
	r, err := n.Runtime.ContainerStatus(n.ctx(), &cri.ContainerStatusRequest{ContainerId: id})
	if err != nil {
		n.t.Fatalf("cannot get container status: %v", err)
	}
	return r.Status
}

// awaitState asks until the container is in the state, as the kubelet's relist does.
func (n *node) awaitState(id string, want cri.ContainerState) *cri.ContainerStatus {
	n.t.Helper()
	var got *cri.ContainerStatus
	n.eventually(20*time.Second, func() error {
		if got = n.status(id); got.State != want {
			return fmt.Errorf("container is %s, want %s", got.State, want)
		}
		return nil
	})
	return got
}

// eventually calls check until it is content or the limit has passed, which is a minute at least: a machine may be busy with
// other things, and a test that passes does not wait for it.
func (n *node) eventually(limit time.Duration, check func() error) {
	n.t.Helper()
	limit = engine.Patience(max(limit, time.Minute))
	deadline := time.Now().Add(limit)
	for {
		err := check()
		if err == nil {
			return
		}
		if time.Now().After(deadline) {
			n.t.Fatalf("after %s: %v", limit, err)
		}
		time.Sleep(5 * time.Millisecond)
	}
}

// output runs a command in a container and returns its standard output; the command must succeed.
func (n *node) output(id string, argv ...string) string {
	n.t.Helper()
	r, err := n.Runtime.ExecSync(n.ctx(), &cri.ExecSyncRequest{ContainerId: id, Cmd: argv, Timeout: engine.Seconds(60)})
	if err != nil {
		n.t.Fatalf("cannot exec %q: %v", argv, err)
	}
	if r.ExitCode != 0 {
		n.t.Fatalf("%q ended with %d: %s%s", argv, r.ExitCode, r.Stdout, r.Stderr)
	}
	return string(r.Stdout)
}

// A logLine is one record of a CRI log.
type logLine struct{ Stream, Tag, Text string }

func (n *node) log(path string) []logLine {
	n.t.Helper()
	data, err := os.ReadFile(path)
	must(n.t, err)
	var lines []logLine
	for _, l := range strings.SplitAfter(string(data), "\n") {
		if l == "" {
			continue
		}
		parts := strings.SplitN(strings.TrimSuffix(l, "\n"), " ", 4)
		if len(parts) != 4 || !strings.HasSuffix(l, "\n") {
			n.t.Fatalf("%s: broken record %q", path, l)
		}
		if _, err := time.Parse(time.RFC3339Nano, parts[0]); err != nil {
			n.t.Fatalf("%s: broken time in %q: %v", path, l, err)
		}
		lines = append(lines, logLine{parts[1], parts[2], parts[3]})
	}
	return lines
}

func (n *node) logPath(pod *cri.PodSandboxConfig, c *cri.ContainerConfig) string {
	return filepath.Join(pod.LogDirectory, c.LogPath)
}

// anyCode is for errors of the machine, about which the CRI says nothing.
const anyCode = codes.Code(1000)

// refused checks the code of an error, and that its message tells what is needed to act on it.
func refused(t *testing.T, err error, code codes.Code, words ...string) {
	t.Helper()
	if err == nil {
		t.Errorf("the call succeeded, want %s", code)
		return
	}
	if got := status.Code(err); got != code && code != anyCode {
		t.Errorf("code %s, want %s: %v", got, code, err)
	}
	for _, w := range words {
		if !strings.Contains(err.Error(), w) {
			t.Errorf("the message lacks %q: %v", w, err)
		}
	}
	complaints := complaint.FindAllString(err.Error(), -1)
	if slices.Sort(complaints); len(slices.Compact(slices.Clone(complaints))) < len(complaints) {
		t.Errorf("the message says the same thing twice: %v", err)
	}
}

var complaint = regexp.MustCompile(`cannot \w+( \w+)? container`)
