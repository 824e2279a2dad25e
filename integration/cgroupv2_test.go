package integration

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	cri "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/evenkeel/evenkeel/integration/engine"
)

// needV2 skips where limits are set in v1's hierarchies.
func needV2(t *testing.T) {
	t.Helper()
	if !cgroupV2() {
		t.Skip("this machine's controllers are in cgroup v1; make vm-test")
	}
}

// ownCgroup is where a container's first process is.
func (n *node) ownCgroup(id string) string {
	return filepath.Join("/sys/fs/cgroup", cgroupOf(n.t, n.pid(id)))
}

// TestLimitsOnV2 looks for each limit in the kernel's file, and under systemd in the scope's properties too, after a reload:
// what systemd does not know of, it overwrites.
func TestLimitsOnV2(t *testing.T) {
	needV2(t)
	n := start(t, "builtin")
	cfg := n.Pod("limits")
	c := engine.Sleeper("main", busybox)
	c.Linux.Resources = &cri.LinuxContainerResources{
		CpuShares: 512, CpuPeriod: 100000, CpuQuota: 50000, CpusetCpus: "0", CpusetMems: "0",
		MemoryLimitInBytes: 64 << 20, MemorySwapLimitInBytes: 96 << 20,
		Unified: map[string]string{"memory.high": "50331648", "memory.low": "4194304", "memory.min": "1048576", "memory.oom.group": "1"},
	}
	want := map[string]string{
		"cpu.max": "50000 100000", "cpuset.cpus": "0", "cpuset.mems": "0", "memory.max": "67108864", "memory.swap.max": "33554432",
		"memory.high": "50331648", "memory.low": "4194304", "memory.min": "1048576", "memory.oom.group": "1",
	}
	if hasHugetlb() {
		c.Linux.Resources.HugepageLimits = []*cri.HugepageLimit{{PageSize: "2MB", Limit: 4 << 20}}
		want["hugetlb.2MB.max"] = "4194304"
	}
	id := n.run(n.runPod(cfg), cfg, c)
	group := n.ownCgroup(id)
	n.wantFiles(group, want)
	if engine.Systemd() {
		scope := filepath.Base(group)
		delete(want, "memory.oom.group") // systemd before 253 knows no property for it and resets it at a reload
		must(t, exec.Command("systemctl", "daemon-reload").Run())
		n.wantFiles(group, want)
		must(t, n.update(id, &cri.LinuxContainerResources{Unified: map[string]string{"memory.high": "41943040"}}))
		must(t, exec.Command("systemctl", "daemon-reload").Run())
		want["memory.high"] = "41943040"
		n.wantFiles(group, want)
		out, err := exec.Command("systemctl", "show", "-p", "MemoryHigh,Delegate,CollectMode,TimeoutStopUSec", scope).Output()
		must(t, err)
		for _, line := range []string{"MemoryHigh=41943040", "Delegate=yes", "CollectMode=inactive-or-failed", "TimeoutStopUSec=10s"} {
			if !strings.Contains(string(out), line+"\n") {
				t.Errorf("%s has not %s:\n%s", scope, line, out)
			}
		}
	}
	if at := n.output(id, "cat", "/proc/self/cgroup"); !strings.Contains(at, "/exec-") {
		t.Errorf("an exec has no cgroup of its own: %s", at)
	}
	for _, name := range []string{"cpu.stat", "io.stat", "cpu.pressure", "memory.pressure", "io.pressure", "cgroup.kill"} {
		if _, err := os.Stat(filepath.Join(group, name)); err != nil {
			t.Errorf("what the engine reads or writes is missing: %v", err)
		}
	}
}

func hasHugetlb() bool {
	data, _ := os.ReadFile("/sys/fs/cgroup/cgroup.controllers")
	_, err := os.Stat("/sys/kernel/mm/hugepages/hugepages-2048kB")
	return err == nil && strings.Contains(" "+strings.TrimSpace(string(data))+" ", " hugetlb ")
}

func (n *node) wantFiles(group string, want map[string]string) {
	n.t.Helper()
	for name, value := range want {
		data, err := os.ReadFile(filepath.Join(group, name))
		if got := strings.TrimSpace(string(data)); err != nil || got != value {
			n.t.Errorf("%s is %q (%v), want %q", name, got, err, value)
		}
	}
}

// TestOOMGroup: with memory.oom.group, which the kubelet asks for, a container that is out of memory ends as a whole.
func TestOOMGroup(t *testing.T) {
	needV2(t)
	n := start(t, "builtin")
	cfg := n.Pod("group")
	c := engine.Container("main", busybox, "sh", "-c", hog+"; exec sleep 1000")
	c.Linux.Resources = &cri.LinuxContainerResources{MemoryLimitInBytes: oomLimit, Unified: map[string]string{"memory.oom.group": "1"}}
	id := n.run(n.runPod(cfg), cfg, c)
	s := n.awaitState(id, cri.ContainerState_CONTAINER_EXITED)
	if s.Reason != "OOMKilled" || s.ExitCode != 137 {
		t.Errorf("it ended with %d, %s: %s", s.ExitCode, s.Reason, s.Message)
	}
}

// TestPodLevelLimit: the limit is the pod's, as the kubelet sets it for pod-level resources, and the container has none.
func TestPodLevelLimit(t *testing.T) {
	needV2(t)
	n := start(t, "builtin")
	parent := n.PodCgroup()
	must(t, limitedCgroup(t, parent, oomLimit))
	cfg := n.Pod("level")
	cfg.Linux.CgroupParent = parent
	pod := n.runPod(cfg)
	id := n.run(pod, cfg, engine.Container("main", busybox, "sh", "-c", execHog))
	stats, err := n.Runtime.PodSandboxStats(n.ctx(), &cri.PodSandboxStatsRequest{PodSandboxId: pod})
	must(t, err)
	if m := stats.GetStats().GetLinux().GetMemory(); m.GetUsageBytes() == nil || m.GetAvailableBytes().GetValue() > oomLimit {
		t.Errorf("the pod's memory is %v, of a limit of %d", m, oomLimit)
	}
	s := n.awaitState(id, cri.ContainerState_CONTAINER_EXITED)
	if s.Reason != "OOMKilled" || !strings.Contains(s.Message, fmt.Sprint(oomLimit)) || !strings.Contains(s.Message, filepath.Base(parent)) {
		t.Errorf("it ended with %s: %s", s.Reason, s.Message)
	}
}

// limitedCgroup makes a pod's cgroup as the kubelet does with either driver.
func limitedCgroup(t *testing.T, path string, limit int) error {
	t.Cleanup(func() { engine.RemoveCgroup(filepath.Dir(path)) })
	if !engine.Systemd() {
		for _, dir := range []string{"", filepath.Dir(path)} {
			must(t, os.MkdirAll("/sys/fs/cgroup"+dir, 0o755))
			must(t, os.WriteFile("/sys/fs/cgroup"+dir+"/cgroup.subtree_control", []byte("+memory"), 0))
		}
		must(t, engine.MakeCgroup(path))
		return os.WriteFile("/sys/fs/cgroup"+path+"/memory.max", []byte(fmt.Sprint(limit)), 0)
	}
	unit := "/run/systemd/system/" + filepath.Base(path)
	must(t, os.WriteFile(unit, []byte(fmt.Sprintf("[Slice]\nMemoryMax=%d\n", limit)), 0o644))
	t.Cleanup(func() {
		os.Remove(unit)
		exec.Command("systemctl", "daemon-reload").Run()
	})
	must(t, exec.Command("systemctl", "daemon-reload").Run())
	return exec.Command("systemctl", "start", filepath.Base(path)).Run()
}
