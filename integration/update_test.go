package integration

import (
	"fmt"
	"os"
	"runtime"
	"strings"
	"testing"
	"time"

	"google.golang.org/grpc/codes"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/evenkeel/evenkeel/integration/engine"
)

func (n *node) update(id string, r *cri.LinuxContainerResources) error {
	_, err := n.Runtime.UpdateContainerResources(n.ctx(), &cri.UpdateContainerResourcesRequest{ContainerId: id, Linux: r})
	return err
}

// limit reads a file of the container's cgroup by its name on v1 or v2.
func (n *node) limit(id, v1, v2 string) string {
	n.t.Helper()
	file := "/sys/fs/cgroup/" + v1
	if cgroupV2() {
		file = "/sys/fs/cgroup/" + v2
	}
	return strings.TrimSpace(n.output(id, "cat", file))
}

func cgroupV2() bool {
	_, err := os.Stat("/sys/fs/cgroup/cgroup.controllers")
	return err == nil
}

// A container can be resized before it runs, while it runs, and not when it is over. What is asked for is what the kernel
// enforces and what the status says.
func TestUpdateThroughALife(t *testing.T) {
	n := start(t, "builtin")
	cfg := n.Pod("p")
	pod := n.runPod(cfg)
	c := engine.Sleeper("main", busybox)
	c.Linux.Resources = &cri.LinuxContainerResources{MemoryLimitInBytes: 64 << 20, MemorySwapLimitInBytes: 64 << 20, CpuShares: 512, OomScoreAdj: 100}
	id := n.create(pod, cfg, c)
	all := "0"
	if runtime.NumCPU() > 1 {
		all = "0-1"
	}
	for step, want := range []*cri.LinuxContainerResources{
		{MemoryLimitInBytes: 256 << 20, MemorySwapLimitInBytes: 256 << 20, CpuShares: 1024, CpuPeriod: 50000, CpuQuota: 25000, CpusetCpus: "0", CpusetMems: "0", OomScoreAdj: 100}, // up
		{MemoryLimitInBytes: 32 << 20, MemorySwapLimitInBytes: 32 << 20, CpuShares: 256, CpuPeriod: 100000, CpuQuota: -1, CpusetCpus: all, CpusetMems: "0", OomScoreAdj: 100},      // down
		{MemoryLimitInBytes: 128 << 20, MemorySwapLimitInBytes: 128 << 20, CpuShares: 256, CpuPeriod: 100000, CpuQuota: 10000, CpusetCpus: "0", CpusetMems: "0", OomScoreAdj: 100},
	} {
		if err := n.update(id, want); err != nil {
			t.Fatalf("update %d: %v", step, err)
		}
		if step == 0 {
			n.startContainer(id) // the first was of a created container
		}
		if got := n.status(id).GetResources().GetLinux(); got.String() != want.String() {
			t.Errorf("update %d: the status says %v, want %v", step, got, want)
		}
		for _, file := range []struct{ v1, v2, want string }{
			{"memory/memory.limit_in_bytes", "memory.max", fmt.Sprint(want.MemoryLimitInBytes)},
			{"cpuset/cpuset.cpus", "cpuset.cpus", want.CpusetCpus},
			{"cpuset/cpuset.mems", "cpuset.mems", want.CpusetMems},
		} {
			if got := n.limit(id, file.v1, file.v2); got != file.want {
				t.Errorf("update %d: %s is %s, want %s", step, file.v2, got, file.want)
			}
		}
		if quota := n.limit(id, "cpu/cpu.cfs_quota_us", "cpu.max"); !strings.HasPrefix(strings.Replace(quota, "max", "-1", 1), fmt.Sprint(want.CpuQuota)) {
			t.Errorf("update %d: quota is %s, want %d", step, quota, want.CpuQuota)
		}
	}
	before := n.status(id).GetResources().GetLinux().String()
	for name, bad := range map[string]*cri.LinuxContainerResources{
		"memory_swap_limit_in_bytes": {MemoryLimitInBytes: 64 << 20, MemorySwapLimitInBytes: 1 << 20},
		"cpu_quota":                  {CpuQuota: -7},
	} {
		if name == "memory_swap_limit_in_bytes" && !n.limitsSwap() {
			continue
		}
		refused(t, n.update(id, bad), codes.InvalidArgument, name)
	}
	if after := n.status(id).GetResources().GetLinux().String(); after != before {
		t.Errorf("a refused update changed the status: %s, before %s", after, before)
	}
	n.stop(id, 2)
	refused(t, n.update(id, &cri.LinuxContainerResources{CpuShares: 2}), codes.FailedPrecondition, "exited")
}

// What the kernel refuses is the client's mistake where it is sure to be one.
func TestUpdateThatTheMachineCannotGrant(t *testing.T) {
	n := start(t, "builtin")
	cfg := n.Pod("p")
	pod := n.runPod(cfg)
	// memory that nothing can take back: its tmpfs holds 40 MiB
	id := n.run(pod, cfg, engine.Container("main", busybox, "sh", "-c", "head -c 41943040 /dev/zero > /dev/shm/held; exec sleep 1000"))
	n.eventually(20*time.Second, func() error {
		if size := n.output(id, "sh", "-c", "stat -c %s /dev/shm/held || true"); size != "41943040\n" {
			return fmt.Errorf("it holds %s", size)
		}
		return nil
	})
	refused(t, n.update(id, &cri.LinuxContainerResources{CpusetCpus: "0,4000-4001"}), codes.InvalidArgument, "cpuset_cpus", "0,4000-4001")
	refused(t, n.update(id, &cri.LinuxContainerResources{CpusetMems: "0-60"}), codes.InvalidArgument, "cpuset_mems", "0-60")
	refused(t, n.update(id, &cri.LinuxContainerResources{CpusetCpus: "zero"}), codes.InvalidArgument, "cpuset_cpus", "zero")
	if !cgroupV2() { // v2 takes the limit, and ends what is above it
		refused(t, n.update(id, &cri.LinuxContainerResources{MemoryLimitInBytes: 8 << 20}), codes.InvalidArgument, "memory_limit_in_bytes", "8388608")
	}
	must(t, n.update(id, &cri.LinuxContainerResources{CpusetCpus: "0", CpusetMems: "0", MemoryLimitInBytes: 256 << 20}))
}

func (n *node) limitsSwap() bool {
	if cgroupV2() {
		return true
	}
	_, err := os.Stat("/sys/fs/cgroup/memory/memory.memsw.limit_in_bytes")
	return err == nil
}

// runc's update forgets v2's own files; the engine must not.
func TestUpdateOfUnifiedFiles(t *testing.T) {
	n := start(t, "builtin")
	cfg := n.Pod("p")
	pod := n.runPod(cfg)
	id := n.run(pod, cfg, engine.Sleeper("main", busybox))
	if !cgroupV2() {
		refused(t, n.update(id, &cri.LinuxContainerResources{Unified: map[string]string{"memory.high": "1"}}), codes.InvalidArgument, "memory.high", "cgroup v2")
		return
	}
	must(t, n.update(id, &cri.LinuxContainerResources{Unified: map[string]string{"memory.high": "67108864"}}))
	must(t, n.update(id, &cri.LinuxContainerResources{CpuShares: 100}))
	if got := n.limit(id, "", "memory.high"); got != "67108864" {
		t.Errorf("memory.high is %s", got)
	}
}
