package integration

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"google.golang.org/protobuf/reflect/protoreflect"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/evenkeel/evenkeel/integration/engine"
)

// unset lists the fields of a message, and of those in it, that nobody set. A list counts by its first element.
func unset(prefix string, m protoreflect.Message) (names []string) {
	fields := m.Descriptor().Fields()
	for i := range fields.Len() {
		f := fields.Get(i)
		name := strings.TrimPrefix(prefix+"."+string(f.Name()), ".")
		switch {
		case f.HasPresence() && !m.Has(f), (f.IsList() || f.IsMap()) && !m.Has(f):
			names = append(names, name)
		case f.IsMap(), f.Kind() != protoreflect.MessageKind:
		case f.IsList():
			names = append(names, unset(name, m.Get(f).List().Get(0).Message())...)
		default:
			names = append(names, unset(name, m.Get(f).Message())...)
		}
	}
	return names
}

// Every field of the stats that this kernel can fill is filled: a new one in the CRI fails here.
func TestEveryFieldOfTheStats(t *testing.T) {
	n := start(t, "builtin")
	cfg := n.Pod("fields")
	cfg.Linux.CgroupParent = n.PodCgroup() // a pod has pressure and a limit where the kubelet made it a cgroup
	if parent := cfg.Linux.CgroupParent; cgroupV2() {
		must(t, limitedCgroup(t, parent, 256<<20))
	} else {
		t.Cleanup(func() { engine.RemoveCgroup(filepath.Dir(parent)) })
		must(t, engine.MakeCgroup(parent))
		must(t, os.WriteFile("/sys/fs/cgroup/memory"+parent+"/memory.limit_in_bytes", []byte("256M"), 0))
	}
	pod := n.runPod(cfg)
	c := engine.Sleeper("main", busybox)
	c.Annotations = map[string]string{"example.org/a": "b"}
	c.Linux.Resources = &cri.LinuxContainerResources{MemoryLimitInBytes: 64 << 20}
	id := n.run(pod, cfg, c)
	absent := []string{"network.interfaces"} // beside the default one; see TestNetworkOfSeveralInterfaces
	if _, err := os.Stat("/sys/fs/cgroup/memory/memory.usage_in_bytes"); err == nil {
		if _, err := os.Stat("/sys/fs/cgroup/memory/memory.memsw.usage_in_bytes"); err != nil {
			absent = append(absent, "swap") // the kernel counts none
		}
	}
	if _, err := os.Stat("/proc/pressure/cpu"); err != nil {
		absent = append(absent, "cpu.psi", "memory.psi", "io")
	}
	left := func(all []string) (extra []string) {
		for _, name := range all {
			short := strings.TrimPrefix(strings.TrimPrefix(name, "linux."), "containers.")
			if name != "windows" && !slices.Contains(absent, short) {
				extra = append(extra, name)
			}
		}
		return extra
	}
	n.eventually(callLimit, func() error { // rates need two samples, and a walked layer its walk
		r, err := n.Runtime.ContainerStats(n.ctx(), &cri.ContainerStatsRequest{ContainerId: id})
		must(t, err)
		if missing := left(unset("", r.Stats.ProtoReflect())); len(missing) > 0 {
			return fmt.Errorf("ContainerStats lacks %q", missing)
		}
		p, err := n.Runtime.PodSandboxStats(n.ctx(), &cri.PodSandboxStatsRequest{PodSandboxId: pod})
		must(t, err)
		if missing := left(unset("", p.Stats.ProtoReflect())); len(missing) > 0 {
			return fmt.Errorf("PodSandboxStats lacks %q", missing)
		}
		return nil
	})
}

// The pod's default interface is told apart from the others, and each has the kernel's own numbers.
func TestNetworkOfSeveralInterfaces(t *testing.T) {
	n := start(t, "builtin")
	pod, id := n.up("interfaces")
	pid := n.containerPID(id)
	inside := func(args ...string) {
		t.Helper()
		if out, err := exec.Command("nsenter", append([]string{"-t", strconv.Itoa(pid), "-n"}, args...)...).CombinedOutput(); err != nil {
			t.Fatalf("%q: %v: %s", args, err, out)
		}
	}
	inside("ip", "link", "add", "extra0", "type", "veth") // the kernel names the other end; busybox cannot
	var others []string
	for name := range countersOf(t, pid) {
		if name != "lo" && name != "eth0" {
			others = append(others, name)
		}
	}
	slices.Sort(others)
	inside("ip", "addr", "add", "10.254.254.1/30", "dev", "extra0")
	for _, name := range others {
		inside("ip", "link", "set", name, "up")
	}
	n.output(id, "sh", "-c", "ping -c 3 -w 2 10.254.254.2; ping -c 1 -w 2 $(ip route | sed -n 's/default via \\([^ ]*\\).*/\\1/p'); true")

	n.eventually(10*time.Second, func() error { // neighbours still ask for each other meanwhile
		before := countersOf(t, pid)
		r, err := n.Runtime.PodSandboxStats(n.ctx(), &cri.PodSandboxStatsRequest{PodSandboxId: pod})
		must(t, err)
		net := r.Stats.GetLinux().GetNetwork()
		var names []string
		for _, i := range net.GetInterfaces() {
			names = append(names, i.Name)
		}
		if slices.Sort(names); net.GetDefaultInterface().GetName() != "eth0" || len(names) != 2 || !slices.Equal(names, others) {
			t.Fatalf("interfaces: %v", net)
		}
		if net.Interfaces[0].GetTxBytes().GetValue() == 0 || net.DefaultInterface.GetRxBytes().GetValue() == 0 {
			return fmt.Errorf("nothing is counted: %v", net)
		}
		after := countersOf(t, pid)
		for _, i := range []*cri.NetworkInterfaceUsage{net.DefaultInterface, net.Interfaces[0], net.Interfaces[1]} {
			got := []uint64{i.RxBytes.GetValue(), i.RxErrors.GetValue(), i.TxBytes.GetValue(), i.TxErrors.GetValue()}
			for k, value := range got {
				if value < before[i.Name][k] || value > after[i.Name][k] {
					return fmt.Errorf("%s: %v, the kernel says %v to %v", i.Name, got, before[i.Name], after[i.Name])
				}
			}
		}
		return nil
	})
}

// countersOf reads /proc/PID/net/dev: bytes and errors received, bytes and errors sent.
func countersOf(t *testing.T, pid int) map[string][]uint64 {
	t.Helper()
	data, err := os.ReadFile(filepath.Join("/proc", strconv.Itoa(pid), "net/dev"))
	must(t, err)
	all := map[string][]uint64{}
	for line := range strings.Lines(string(data)) {
		name, rest, ok := strings.Cut(line, ":")
		if !ok {
			continue
		}
		var numbers []uint64
		for _, column := range []int{0, 2, 8, 10} {
			value, err := strconv.ParseUint(strings.Fields(rest)[column], 10, 64)
			must(t, err)
			numbers = append(numbers, value)
		}
		all[strings.TrimSpace(name)] = numbers
	}
	return all
}
