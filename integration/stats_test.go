package integration

import (
	"bufio"
	"fmt"
	"os"
	"strings"
	"testing"

	cri "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/evenkeel/evenkeel/integration/engine"
)

func TestStats(t *testing.T) {
	n := start(t, "builtin")
	cfg := n.Pod("stats")
	pod := n.runPod(cfg)
	id := n.run(pod, cfg, engine.Container("busy", busybox, "sh", "-c", "dd if=/dev/zero of=/tmp/x bs=1M count=3; touch /tmp/written; while :; do :; done"))
	n.output(id, "sh", "-c", "until test -e /tmp/written; do usleep 10000; done") // the layer is measured at most twice a minute
	n.eventually(callLimit, func() error {
		r, err := n.Runtime.ContainerStats(n.ctx(), &cri.ContainerStatsRequest{ContainerId: id})
		must(t, err)
		s := r.Stats
		if s.GetAttributes().GetId() != id || s.GetAttributes().GetMetadata().GetName() != "busy" {
			t.Fatalf("attributes %v", s.GetAttributes())
		}
		if s.Cpu.GetUsageCoreNanoSeconds().GetValue() == 0 || s.Memory.GetWorkingSetBytes().GetValue() == 0 || s.WritableLayer.GetUsedBytes().GetValue() < 3<<20 {
			return fmt.Errorf("stats %v", s)
		}
		return nil
	})
	list, err := n.Runtime.ListContainerStats(n.ctx(), &cri.ListContainerStatsRequest{})
	must(t, err)
	if len(list.Stats) != 1 {
		t.Errorf("%d stats of one running container", len(list.Stats))
	}
	pods, err := n.Runtime.PodSandboxStats(n.ctx(), &cri.PodSandboxStatsRequest{PodSandboxId: pod})
	must(t, err)
	if l := pods.Stats.GetLinux(); l.GetCpu().GetUsageCoreNanoSeconds().GetValue() == 0 || l.GetNetwork().GetDefaultInterface().GetName() != "eth0" || len(l.GetContainers()) != 1 {
		t.Errorf("pod stats: %v", pods.Stats)
	}
}

// TestMemoryOfTwentyPods prints what docs/ARCHITECTURE.md states beside the budget.
func TestMemoryOfTwentyPods(t *testing.T) {
	n := start(t, "builtin")
	var shims []int
	for i := range 20 {
		pod, _ := n.up(fmt.Sprintf("mem%d", i))
		shims = append(shims, n.shim(pod))
	}
	total, anonymous := 0, 0
	for _, pid := range shims {
		p := rollup(t, pid)
		total, anonymous = total+p["Pss"], anonymous+p["Pss_Anon"]
	}
	daemon := rollup(t, n.PID())
	measured(t, "20 pods: a shim with one idle container takes %d KiB PSS (%d KiB anonymous); the daemon %d KiB PSS (%d KiB anonymous)",
		total/20, anonymous/20, daemon["Pss"], daemon["Pss_Anon"])
	if total/20 > 4096 {
		t.Errorf("a shim takes %d KiB, the budget is 1024", total/20)
	}
}

// rollup reads /proc/PID/smaps_rollup in KiB.
func rollup(t *testing.T, pid int) map[string]int {
	t.Helper()
	f, err := os.Open(fmt.Sprintf("/proc/%d/smaps_rollup", pid))
	must(t, err)
	defer f.Close()
	values := map[string]int{}
	for s := bufio.NewScanner(f); s.Scan(); {
		name, rest, _ := strings.Cut(s.Text(), ":")
		var kib int
		if _, err := fmt.Sscanf(strings.TrimSpace(rest), "%d kB", &kib); err == nil {
			values[name] = kib
		}
	}
	return values
}
