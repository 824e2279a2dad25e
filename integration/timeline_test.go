package integration

import (
	"bytes"
	"encoding/json"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"google.golang.org/grpc/codes"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/evenkeel/evenkeel/integration/engine"
)

// operation is what the timeline of the verbose status holds.
type operation struct {
	Name, Container, Error string
	TookMs                 float64
	Unfinished             bool
	Steps                  []struct {
		Name         string
		AtMs, TookMs float64
		Error        string
	}
}

// info decodes the verbose status of a container.
func (n *node) info(id string, into any) {
	n.t.Helper()
	r, err := n.Runtime.ContainerStatus(n.ctx(), &cri.ContainerStatusRequest{ContainerId: id, Verbose: true})
	must(n.t, err)
	must(n.t, json.Unmarshal([]byte(r.Info["info"]), into))
}

func (n *node) timeline(pod string) []operation {
	n.t.Helper()
	r, err := n.Runtime.PodSandboxStatus(n.ctx(), &cri.PodSandboxStatusRequest{PodSandboxId: pod, Verbose: true})
	must(n.t, err)
	var info struct{ Timeline []operation }
	must(n.t, json.Unmarshal([]byte(r.Info["info"]), &info))
	return info.Timeline
}

func names(operations []operation) (list []string) {
	for _, o := range operations {
		list = append(list, strings.TrimSpace(o.Name+" "+o.Container))
	}
	return list
}

// tool runs an evenkeel command against the engine.
func (n *node) tool(args ...string) (string, error) {
	c := exec.Command(filepath.Join(n.Bin, "evenkeel"), append(args, "--address", "unix://"+n.Socket())...)
	var out, errOut bytes.Buffer
	c.Stdout, c.Stderr = &out, &errOut
	err := c.Run()
	return out.String() + errOut.String(), err
}

// TestTimeline follows a pod through its life, a failure in it and a daemon that is killed.
func TestTimeline(t *testing.T) {
	n := start(t, "builtin")
	cfg := n.Pod("told")
	pod := n.runPod(cfg)
	id := n.run(pod, cfg, engine.Sleeper("main", busybox))
	bad := engine.Container("bad", busybox, "true")
	bad.Image.Image = "example.org/no/such:image"
	_, err := n.Runtime.CreateContainer(n.ctx(), &cri.CreateContainerRequest{PodSandboxId: pod, Config: bad, SandboxConfig: cfg})
	refused(t, err, codes.NotFound)

	told := n.timeline(pod)
	if want := []string{"RunPodSandbox", "CreateContainer main", "StartContainer main", "CreateContainer bad"}; !slices.Equal(names(told), want) {
		t.Fatalf("the timeline holds %v, want %v", names(told), want)
	}
	if o := told[3]; !strings.Contains(o.Error, "no/such") {
		t.Errorf("the failure reads %+v", o)
	}
	run := told[0]
	for _, step := range []string{"pod.record", "pod.namespaces", "pod.network", "network.builtin.link", "pod.shim", "pod.ready"} {
		if !slices.ContainsFunc(run.Steps, func(s struct {
			Name         string
			AtMs, TookMs float64
			Error        string
		}) bool {
			return s.Name == step && s.AtMs+s.TookMs <= run.TookMs+0.01
		}) {
			t.Errorf("step %s is missing or ends after the whole: %+v", step, run)
		}
	}

	must(t, n.Restart())
	again := n.timeline(pod)
	if want := names(told)[:3]; !slices.Equal(names(again), want) { // the failure has no record of its own and came after the pod's last
		t.Errorf("after a restart the timeline holds %v, want %v", names(again), want)
	}
	if o := again[0]; o.Unfinished || len(o.Steps) != len(run.Steps)-1 || o.Steps[0] != run.Steps[0] {
		t.Errorf("after a restart RunPodSandbox reads %+v, want %+v but for the last record", o, run)
	}
	_, err = n.Runtime.UpdatePodSandboxResources(n.ctx(), &cri.UpdatePodSandboxResourcesRequest{PodSandboxId: pod, Overhead: &cri.LinuxContainerResources{CpuShares: 5}, Resources: &cri.LinuxContainerResources{CpuShares: 77}})
	must(t, err)
	n.stop(id, 5)
	n.stopPod(pod)
	must(t, n.Restart())
	if got := names(n.timeline(pod)); !slices.Contains(got, "UpdatePodSandboxResources") || !slices.Contains(got, "StopPodSandbox") || !slices.Contains(got, "StopContainer main") {
		t.Errorf("the timeline of a stopped pod holds %v", got)
	}
	r, err := n.Runtime.PodSandboxStatus(n.ctx(), &cri.PodSandboxStatusRequest{PodSandboxId: pod, Verbose: true})
	must(t, err)
	if !strings.Contains(r.Info["info"], `"77"`) || !strings.Contains(r.Info["info"], `"5"`) {
		t.Errorf("new resources are not in the verbose status: %s", r.Info["info"])
	}
	_, err = n.Runtime.UpdatePodSandboxResources(n.ctx(), &cri.UpdatePodSandboxResourcesRequest{PodSandboxId: pod})
	refused(t, err, codes.FailedPrecondition, "not ready")
	_, err = n.Runtime.UpdatePodSandboxResources(n.ctx(), &cri.UpdatePodSandboxResourcesRequest{PodSandboxId: "none"})
	refused(t, err, codes.NotFound, "none")
}

// TestExplain asks as an operator does: for a pod that lives, one that never came to be, and one that nobody knows.
func TestExplain(t *testing.T) {
	n := start(t, "builtin")
	pod, id := n.up("living")
	out, err := n.tool("explain", "living")
	must(t, err)
	for _, want := range []string{"pod default/living " + pod[:12] + " is ready", "container main " + id[:12] + " is running", "RunPodSandbox", "pod.network", "StartContainer main"} {
		if !strings.Contains(out, want) {
			t.Errorf("explain lacks %q:\n%s", want, out)
		}
	}
	out, err = n.tool("inspect", "living", "main")
	must(t, err)
	var all []struct {
		Kind   string
		Status struct{ ID string }
		Info   struct {
			Info struct{ Timeline []operation }
		}
	}
	must(t, json.Unmarshal([]byte(out), &all))
	if len(all) != 2 || all[0].Kind != "pod" || all[0].Status.ID != pod || all[1].Status.ID != id || len(all[0].Info.Info.Timeline) != 3 || len(all[1].Info.Info.Timeline) != 2 {
		t.Errorf("inspect printed %s", out)
	}

	cfg := n.Pod("stillborn")
	cfg.Linux.Sysctls = map[string]string{"net.no.such": "1"}
	_, err = n.Runtime.RunPodSandbox(n.ctx(), &cri.RunPodSandboxRequest{Config: cfg})
	refused(t, err, codes.InvalidArgument, "net.no.such")
	out, err = n.tool("explain", "default/stillborn", "--output", "json")
	must(t, err)
	var x struct {
		State    string
		Timeline []operation
	}
	must(t, json.Unmarshal([]byte(out), &x))
	if x.State != "gone" || len(x.Timeline) != 1 || !strings.Contains(x.Timeline[0].Error, "net.no.such") {
		t.Errorf("explain printed %s", out)
	}
	if out, err := n.tool("explain", "nobody"); err == nil || !strings.Contains(out, "nobody") {
		t.Errorf("explain of an unknown pod: %v %s", err, out)
	}
}
