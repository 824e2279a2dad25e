package sandbox

import (
	"context"
	"errors"
	"fmt"
	"path"
	"sync/atomic"
	"time"

	cri "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/evenkeel/evenkeel/internal/cgroup"
)

// Stats reads the kernel's counters for one container.
func (c *Containers) Stats(ctx context.Context, id string) (*cri.ContainerStats, error) {
	found, err := c.pods.index.container(id)
	if err != nil {
		return nil, err
	}
	counted, err := found.counted()
	if err != nil && !errors.Is(err, cgroup.ErrNotExist) {
		return nil, fmt.Errorf("cannot read the statistics of container %s: %w", found.id, err)
	}
	if err != nil {
		return found.stats(nil), nil // it has ended, its layer is still there
	}
	return found.stats(&counted), nil
}

// ListStats reads them for all running containers that the filter lets through. One that ends meanwhile is left out,
// and so are all that are left when ctx ends.
func (c *Containers) ListStats(ctx context.Context, f *cri.ContainerStatsFilter) []*cri.ContainerStats {
	var list []*cri.ContainerStats
	filter := &cri.ContainerFilter{Id: f.GetId(), PodSandboxId: f.GetPodSandboxId(), LabelSelector: f.GetLabelSelector()}
	for _, found := range c.pods.index.allContainers("") {
		if !found.runs() || !found.matches(found.facts(), found.state(), filter) || ctx.Err() != nil {
			continue
		}
		if counted, err := found.counted(); err == nil {
			list = append(list, found.stats(&counted))
		}
	}
	return list
}

func (c *container) runs() bool                     { return c.state() == cri.ContainerState_CONTAINER_RUNNING }
func (c *container) counted() (cgroup.Stats, error) { return c.Cgroups.Stats(c.facts().Cgroup) }

// stats turns what was counted, nil for a container without a cgroup, into the CRI's words.
func (c *container) stats(counted *cgroup.Stats) *cri.ContainerStats {
	r := c.facts()
	cfg := r.Config.Message
	stats := &cri.ContainerStats{Attributes: &cri.ContainerAttributes{
		Id: r.ID, Metadata: cfg.Metadata, Labels: cfg.Labels, Annotations: cfg.Annotations,
	}}
	if counted != nil {
		now := time.Now()
		stats.Cpu, stats.Memory = cpuUsage(counted, now, &c.usage.cpu), memoryUsage(counted, now)
		stats.Swap, stats.Io = swapUsage(counted, now), ioUsage(counted, now)
	}
	stats.WritableLayer = c.writableLayer()
	return stats
}

func cpuUsage(s *cgroup.Stats, now time.Time, rate *cpuRate) *cri.CpuUsage {
	return &cri.CpuUsage{
		Timestamp: now.UnixNano(), UsageCoreNanoSeconds: number(s.CPUUsage), UsageNanoCores: rate.at(now, s.CPUUsage), Psi: pressure(s.CPUPressure),
	}
}

func memoryUsage(s *cgroup.Stats, now time.Time) *cri.MemoryUsage {
	usage := &cri.MemoryUsage{
		Timestamp: now.UnixNano(), WorkingSetBytes: number(s.Memory.WorkingSet), UsageBytes: number(s.Memory.Usage), RssBytes: number(s.Memory.RSS),
		PageFaults: number(s.Memory.PageFaults), MajorPageFaults: number(s.Memory.MajorPageFaults), Psi: pressure(s.MemoryPressure),
	}
	if limit := s.Memory.Limit; limit != nil {
		usage.AvailableBytes = number(*limit - min(*limit, s.Memory.WorkingSet))
	}
	return usage
}

func swapUsage(s *cgroup.Stats, now time.Time) *cri.SwapUsage {
	if s.Memory.SwapUsage == nil {
		return nil
	}
	usage := &cri.SwapUsage{Timestamp: now.UnixNano(), SwapUsageBytes: number(*s.Memory.SwapUsage)}
	if limit := s.Memory.SwapLimit; limit != nil {
		usage.SwapAvailableBytes = number(*limit - min(*limit, *s.Memory.SwapUsage))
	}
	return usage
}

func ioUsage(s *cgroup.Stats, now time.Time) *cri.IoUsage {
	if s.IOPressure == nil {
		return nil
	}
	return &cri.IoUsage{Timestamp: now.UnixNano(), Psi: pressure(s.IOPressure)}
}

// pressure turns the kernel's microseconds into the CRI's nanoseconds.
func pressure(p *cgroup.Pressure) *cri.PsiStats {
	if p == nil {
		return nil
	}
	data := func(s cgroup.Stall) *cri.PsiData {
		return &cri.PsiData{Total: s.Total * 1000, Avg10: s.Avg10, Avg60: s.Avg60, Avg300: s.Avg300}
	}
	return &cri.PsiStats{Full: data(p.Full), Some: data(p.Some)}
}

func number(n uint64) *cri.UInt64Value { return &cri.UInt64Value{Value: n} }

// cpuRate turns a counter that grows into a rate, from the samples that others ask for: nothing is sampled for its sake.
type cpuRate struct{ last atomic.Pointer[cpuSample] }

type cpuSample struct {
	at    time.Time
	usage uint64
	rate  *cri.UInt64Value // nil: there was no earlier sample
}

// cpuWindow is the least time to take an average over. Two clients that ask at once get the same answer.
const cpuWindow = time.Second

// at gives the rate in billionths of a core, or nil before the second sample.
func (r *cpuRate) at(now time.Time, usage uint64) *cri.UInt64Value {
	old := r.last.Load()
	if old != nil && now.Sub(old.at) < cpuWindow {
		return old.rate
	}
	next := &cpuSample{at: now, usage: usage}
	if old != nil && usage >= old.usage {
		next.rate = number(uint64(float64(usage-old.usage) / now.Sub(old.at).Seconds()))
	}
	r.last.CompareAndSwap(old, next)
	return next.rate
}

// Stats reads the counters of a pod: its cgroup as a whole, its network and its containers.
func (p *Pods) Stats(ctx context.Context, id string) (*cri.PodSandboxStats, error) {
	found, err := p.index.pod(id)
	if err != nil {
		return nil, err
	}
	networks := networkCounters([]*pod{found})
	return found.stats(p.index.allContainers(found.id), networks[found.id]), nil
}

// ListStats reads them for all READY pods that the filter lets through, as many as ctx leaves time for.
func (p *Pods) ListStats(ctx context.Context, f *cri.PodSandboxStatsFilter) []*cri.PodSandboxStats {
	filter := &cri.PodSandboxFilter{Id: f.GetId(), LabelSelector: f.GetLabelSelector()}
	pods := p.readyPods(func(r *podRecord) bool { return podMatches(r, filter) })
	members, networks := p.members(), networkCounters(pods)
	var list []*cri.PodSandboxStats
	for _, pod := range pods {
		if ctx.Err() != nil {
			break
		}
		list = append(list, pod.stats(members[pod.id], networks[pod.id]))
	}
	return list
}

func (p *Pods) readyPods(wanted func(*podRecord) bool) (pods []*pod) {
	for _, pod := range p.index.allPods() {
		if r := pod.facts(); r.ready() && wanted(r) {
			pods = append(pods, pod)
		}
	}
	return pods
}

// members lists all containers by their pod.
func (p *Pods) members() map[string][]*container {
	members := map[string][]*container{}
	for _, c := range p.index.allContainers("") {
		members[c.podID] = append(members[c.podID], c)
	}
	return members
}

func (p *pod) stats(members []*container, network []interfaceCounters) *cri.PodSandboxStats {
	r := p.facts()
	cfg := r.Config.Message
	linux := &cri.LinuxPodSandboxStats{}
	var sum cgroup.Stats
	for _, c := range members {
		if !c.runs() {
			continue
		}
		if counted, err := c.counted(); err == nil {
			linux.Containers = append(linux.Containers, c.stats(&counted))
			sum.Add(counted)
		}
	}
	now := time.Now()
	if counted, ok := p.counted(sum); ok {
		linux.Cpu, linux.Memory, linux.Io = cpuUsage(&counted, now, &p.cpu), memoryUsage(&counted, now), ioUsage(&counted, now)
		linux.Process = &cri.ProcessUsage{Timestamp: now.UnixNano(), ProcessCount: number(counted.Processes)}
	}
	linux.Network = networkUsage(network, now)
	return &cri.PodSandboxStats{
		Attributes: &cri.PodSandboxAttributes{Id: r.ID, Metadata: cfg.Metadata, Labels: cfg.Labels, Annotations: cfg.Annotations},
		Linux:      linux,
	}
}

// counted reads the pod's own cgroup, the parent that the kubelet made. Where the request named none the pod has no cgroup
// of its own; the sum over its containers and its init then stands in for it, without pressure, which has no sum.
func (p *pod) counted(containers cgroup.Stats) (cgroup.Stats, bool) {
	r := p.facts()
	if r.Config.Message.GetLinux().GetCgroupParent() != "" {
		s, err := p.Cgroups.Stats(path.Dir(r.Cgroup))
		return s, err == nil
	}
	s, err := p.Cgroups.Stats(r.Cgroup)
	s.Add(containers)
	return s, err == nil
}
