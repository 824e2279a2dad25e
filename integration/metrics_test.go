package integration

import (
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	cri "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/evenkeel/evenkeel/integration/engine"
)

// cgroupFile reads a file of a container's cgroup, by its name on v1 or v2, straight from the kernel.
func (n *node) cgroupFile(id, controller, v1, v2 string) string {
	n.t.Helper()
	r, err := n.Runtime.ContainerStatus(n.ctx(), &cri.ContainerStatusRequest{ContainerId: id, Verbose: true})
	must(n.t, err)
	var info struct{ Cgroup string }
	must(n.t, json.Unmarshal([]byte(r.Info["info"]), &info))
	path := filepath.Join("/sys/fs/cgroup", info.Cgroup, v2)
	if _, err := os.Stat("/sys/fs/cgroup/cgroup.controllers"); err != nil {
		path = filepath.Join("/sys/fs/cgroup", controller, info.Cgroup, v1)
	}
	data, err := os.ReadFile(path)
	must(n.t, err)
	return string(data)
}

// keyed finds the number that follows a key, or is the whole file.
func keyed(t *testing.T, text, key string) uint64 {
	t.Helper()
	for line := range strings.Lines(text) {
		if rest, ok := strings.CutPrefix(line, key); ok {
			value, err := strconv.ParseUint(strings.TrimSpace(rest), 10, 64)
			must(t, err)
			return value
		}
	}
	t.Fatalf("no %q in %q", key, text)
	return 0
}

func (n *node) cpu(id string) uint64 {
	n.t.Helper()
	text := n.cgroupFile(id, "cpuacct", "cpuacct.usage", "cpu.stat")
	if strings.HasPrefix(text, "usage_usec") {
		return 1000 * keyed(n.t, text, "usage_usec ")
	}
	return keyed(n.t, text, "")
}

// TestStatsAgreeWithTheKernel: what is told lies between what the kernel says before and after.
func TestStatsAgreeWithTheKernel(t *testing.T) {
	n := start(t, "builtin")
	cfg := n.Pod("agree")
	pod := n.runPod(cfg)
	c := engine.Container("busy", busybox, "sh", "-c", "dd if=/dev/zero of=/tmp/x bs=1M count=3; wget -q -O- http://127.0.0.1:9; touch /tmp/y; while :; do :; done")
	c.Linux.Resources = &cri.LinuxContainerResources{MemoryLimitInBytes: 64 << 20, MemorySwapLimitInBytes: 64 << 20, CpuPeriod: 100000, CpuQuota: 50000, CpuShares: 512}
	id := n.run(pod, cfg, c)
	n.output(id, "sh", "-c", "until test -e /tmp/y; do usleep 10000; done")
	before := n.cpu(id)
	r, err := n.Runtime.ContainerStats(n.ctx(), &cri.ContainerStatsRequest{ContainerId: id})
	must(t, err)
	after, s := n.cpu(id), r.Stats
	if got := s.Cpu.GetUsageCoreNanoSeconds().GetValue(); got < before || got > after {
		t.Errorf("CPU time %d, the kernel says %d to %d", got, before, after)
	}
	usage := keyed(t, n.cgroupFile(id, "memory", "memory.usage_in_bytes", "memory.current"), "")
	if m := s.Memory; difference(m.GetUsageBytes().GetValue(), usage) > 2<<20 || m.GetAvailableBytes().GetValue()+m.GetWorkingSetBytes().GetValue() != 64<<20 || m.GetPageFaults().GetValue() == 0 {
		t.Errorf("memory %v, the kernel says %d in use", m, usage)
	}
	if s.Swap != nil && s.Swap.GetSwapAvailableBytes().GetValue() != 0 {
		t.Errorf("a container without swap may swap: %v", s.Swap)
	}
	n.checkPressure(s)
	n.checkLayerAndRate(id)
}

// checkPressure: a quota that is used up shows as pressure, where the kernel measures it.
func (n *node) checkPressure(s *cri.ContainerStats) {
	n.t.Helper()
	if _, err := os.Stat("/proc/pressure/cpu"); err != nil {
		return
	}
	if s.Cpu.GetPsi() == nil || s.Memory.GetPsi() == nil || s.Io.GetPsi() == nil || s.Io.GetTimestamp() == 0 {
		n.t.Errorf("no pressure in %v", s)
	}
}

func (n *node) checkLayerAndRate(id string) {
	n.t.Helper()
	n.eventually(callLimit, func() error {
		r, err := n.Runtime.ContainerStats(n.ctx(), &cri.ContainerStatsRequest{ContainerId: id})
		must(n.t, err)
		s := r.Stats
		if s.WritableLayer.GetUsedBytes().GetValue() < 3<<20 || s.WritableLayer.GetInodesUsed().GetValue() < 3 {
			return fmt.Errorf("layer %v", s.WritableLayer)
		}
		if cores := s.Cpu.GetUsageNanoCores().GetValue(); cores == 0 || cores > 7e8 {
			return fmt.Errorf("half a core is allowed, %d used", cores)
		}
		return nil
	})
}

func difference(a, b uint64) uint64 { return max(a, b) - min(a, b) }

// TestMetricsHaveTheDescribedLabels reads them as the kubelet does, as a list and as a stream.
func TestMetricsHaveTheDescribedLabels(t *testing.T) {
	n := start(t, "builtin")
	pod, id := n.up("metrics")
	d, err := n.Runtime.ListMetricDescriptors(n.ctx(), &cri.ListMetricDescriptorsRequest{})
	must(t, err)
	keys := map[string][]string{}
	for _, descriptor := range d.Descriptors {
		keys[descriptor.Name] = descriptor.LabelKeys
	}
	stream, err := n.Runtime.StreamPodSandboxMetrics(n.ctx(), &cri.StreamPodSandboxMetricsRequest{})
	must(t, err)
	streamed, err := stream.Recv()
	must(t, err)
	list, err := n.Runtime.ListPodSandboxMetrics(n.ctx(), &cri.ListPodSandboxMetricsRequest{})
	must(t, err)
	for _, pods := range [][]*cri.PodSandboxMetrics{list.PodMetrics, streamed.PodSandboxMetrics} {
		if len(pods) != 1 || pods[0].PodSandboxId != pod || len(pods[0].ContainerMetrics) != 1 || pods[0].ContainerMetrics[0].ContainerId != id {
			t.Fatalf("metrics of %v", pods)
		}
		seen := map[string]bool{}
		for _, m := range slices.Concat(pods[0].Metrics, pods[0].ContainerMetrics[0].Metrics) {
			seen[m.Name] = true
			if len(keys[m.Name]) != len(m.LabelValues) || m.LabelValues[0] != "metrics" || m.LabelValues[1] != "default" {
				t.Errorf("%s has labels %q for %q", m.Name, m.LabelValues, keys[m.Name])
			}
		}
		for _, name := range []string{"container_network_receive_bytes_total", "container_cpu_usage_seconds_total", "container_processes", "container_fs_usage_bytes", "container_ulimits_soft"} {
			if !seen[name] {
				t.Errorf("no %s", name)
			}
		}
	}
}

// TestStatsOfFiftyPods measures what a kubelet asks every ten seconds.
func TestStatsOfFiftyPods(t *testing.T) {
	n := start(t, "builtin")
	many := engine.Rounds(50, 15)
	for i := range many {
		n.up(fmt.Sprint("many", i))
	}
	median := func(call func() int) time.Duration {
		var took []time.Duration
		for range 41 {
			begun := time.Now()
			if got := call(); got != many {
				t.Fatalf("statistics of %d", got)
			}
			took = append(took, time.Since(begun))
		}
		slices.Sort(took)
		return took[20]
	}
	containers := median(func() int {
		r, err := n.Runtime.ListContainerStats(n.ctx(), &cri.ListContainerStatsRequest{})
		must(t, err)
		return len(r.Stats)
	})
	pods := median(func() int {
		r, err := n.Runtime.ListPodSandboxStats(n.ctx(), &cri.ListPodSandboxStatsRequest{})
		must(t, err)
		return len(r.Stats)
	})
	metrics := median(func() int {
		r, err := n.Runtime.ListPodSandboxMetrics(n.ctx(), &cri.ListPodSandboxMetricsRequest{})
		must(t, err)
		return len(r.PodMetrics)
	})
	measured(t, "%d pods: ListContainerStats %s, ListPodSandboxStats %s, ListPodSandboxMetrics %s", many, containers, pods, metrics)
	if containers > engine.Patience(40*time.Millisecond) || pods > engine.Patience(50*time.Millisecond) {
		t.Errorf("the goals are 8 and 10 ms; %s and %s are too much even for a busy machine", containers, pods)
	}
}

// TestVerboseInfo has the keys that agents read from crictl inspect and inspectp.
func TestVerboseInfo(t *testing.T) {
	n := start(t, "builtin")
	pod, id := n.up("verbose")
	container, err := n.Runtime.ContainerStatus(n.ctx(), &cri.ContainerStatusRequest{ContainerId: id, Verbose: true})
	must(t, err)
	sandbox, err := n.Runtime.PodSandboxStatus(n.ctx(), &cri.PodSandboxStatusRequest{PodSandboxId: pod, Verbose: true})
	must(t, err)
	status, err := n.Runtime.Status(n.ctx(), &cri.StatusRequest{Verbose: true})
	must(t, err)
	var inside, around map[string]any
	must(t, json.Unmarshal([]byte(container.Info["info"]), &inside))
	must(t, json.Unmarshal([]byte(sandbox.Info["info"]), &around))
	for _, key := range []string{"sandboxID", "pid", "runtimeSpec", "snapshotKey", "snapshotter", "runtimeType", "privileged", "config", "removing"} {
		if inside[key] == nil {
			t.Errorf("info of a container has no %s", key)
		}
	}
	for _, key := range []string{"pid", "runtimeSpec", "image", "runtimeHandler", "runtimeType", "config"} {
		if around[key] == nil {
			t.Errorf("info of a pod has no %s", key)
		}
	}
	if inside["sandboxID"] != pod || inside["pid"] != around["pid"] || inside["pid"] == 0.0 {
		t.Errorf("pids %v and %v, sandbox %v", inside["pid"], around["pid"], inside["sandboxID"])
	}
	for _, key := range []string{"config", "golang", "cniconfig", "lastCNILoadStatus"} {
		if !json.Valid([]byte(status.Info[key])) {
			t.Errorf("info[%s] of the engine is %q", key, status.Info[key])
		}
	}
}
