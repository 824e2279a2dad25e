package sandbox

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/evenkeel/evenkeel/internal/cgroup"
)

// MetricDescriptors says what Metrics returns. The kubelet ignores what is not described.
func MetricDescriptors() (list []*cri.MetricDescriptor) {
	for _, m := range podMetrics {
		list = append(list, m.descriptor())
	}
	for _, m := range containerMetrics {
		list = append(list, m.descriptor())
	}
	return list
}

func (m *metric[S]) descriptor() *cri.MetricDescriptor {
	return &cri.MetricDescriptor{Name: m.name, Help: m.help, LabelKeys: slices.Concat(baseLabels, m.labels)}
}

// Metrics reads everything about READY pods and their running containers, as many as ctx leaves time for.
func (p *Pods) Metrics(ctx context.Context) (list []*cri.PodSandboxMetrics) {
	pods := p.readyPods(func(*podRecord) bool { return true })
	members, networks, devices := p.members(), networkCounters(pods), deviceNames{}
	var root fileSystem
	root.read(p.Root, devices)
	for _, pod := range pods {
		if ctx.Err() != nil {
			return list
		}
		m := &cri.PodSandboxMetrics{PodSandboxId: pod.id, Metrics: pod.metrics(networks[pod.id])}
		for _, c := range members[pod.id] {
			if found := c.metrics(pod, &root, devices); found != nil {
				m.ContainerMetrics = append(m.ContainerMetrics, &cri.ContainerMetrics{ContainerId: c.id, Metrics: found})
			}
		}
		list = append(list, m)
	}
	return list
}

func (p *pod) metrics(network []interfaceCounters) (list []*cri.Metric) {
	meta := p.facts().Config.Message.GetMetadata()
	base := []string{meta.GetName(), meta.GetNamespace(), "", p.id, ""}
	for _, m := range podMetrics {
		list = m.appendTo(list, base, network)
	}
	return list
}

// metrics of a container that does not run, or has just ended, are none.
func (c *container) metrics(pod *pod, root *fileSystem, devices deviceNames) (list []*cri.Metric) {
	if !c.runs() {
		return nil
	}
	o := observed{container: c, record: c.facts(), now: time.Now(), root: root, devices: devices}
	var err error
	if o.Details, err = c.Cgroups.Details(o.record.Cgroup); err != nil {
		return nil
	}
	o.countDescriptors(c.Cgroups)
	o.layer = c.layerCount()
	meta, cfg := pod.facts().Config.Message.GetMetadata(), o.record.Config.Message
	image := cfg.GetImage().GetUserSpecifiedImage()
	if image == "" {
		image = cfg.GetImage().GetImage()
	}
	base := []string{meta.GetName(), meta.GetNamespace(), cfg.GetMetadata().GetName(), c.id, image}
	for _, m := range containerMetrics {
		list = m.appendTo(list, base, &o)
	}
	return list
}

// appendTo reads one metric off a source.
func (m *metric[S]) appendTo(list []*cri.Metric, base []string, source S) []*cri.Metric {
	for _, s := range m.read(source) {
		labels := base
		if len(s.labels) > 0 {
			labels = slices.Concat(base, s.labels)
		}
		list = append(list, &cri.Metric{Name: m.name, MetricType: m.kind, LabelValues: labels, Value: number(s.value), Timestamp: s.at})
	}
	return list
}

// observed is all there is to say about one running container.
type observed struct {
	*container
	cgroup.Details
	record               *containerRecord
	now                  time.Time
	layer                layerCount
	root                 *fileSystem
	devices              deviceNames
	processes            []int
	descriptors, sockets uint64
}

// countDescriptors looks at every process of the container. One that ends meanwhile counts as far as it was seen.
func (o *observed) countDescriptors(tree *cgroup.Tree) {
	o.processes, _ = tree.Procs(o.record.Cgroup)
	for _, pid := range o.processes {
		dir := fmt.Sprintf("/proc/%d/fd", pid)
		entries, _ := os.ReadDir(dir)
		o.descriptors += uint64(len(entries))
		for _, entry := range entries {
			if target, err := os.Readlink(filepath.Join(dir, entry.Name())); err == nil && strings.HasPrefix(target, "socket:") {
				o.sockets++
			}
		}
	}
}

// openFilesLimit is the soft limit of the container's first process (proc_pid_limits(5)), the one limit that cAdvisor shows.
func (o *observed) openFilesLimit() []sample {
	data, err := os.ReadFile(fmt.Sprintf("/proc/%d/limits", o.record.Process.PID))
	if err != nil || !o.record.Process.Alive() {
		return nil
	}
	for line := range strings.Lines(string(data)) {
		if rest, ok := strings.CutPrefix(line, "Max open files"); ok {
			if soft, err := strconv.ParseUint(strings.Fields(rest)[0], 10, 64); err == nil {
				return []sample{{value: soft, labels: []string{"max_open_files"}}}
			}
		}
	}
	return nil
}

// fileSystem is the one that writable layers are on.
type fileSystem struct {
	device                    string
	bytes, inodes, inodesFree uint64
}

func (f *fileSystem) read(dir string, devices deviceNames) {
	var space unix.Statfs_t
	var file unix.Stat_t
	if unix.Statfs(dir, &space) != nil || unix.Stat(dir, &file) != nil {
		return
	}
	f.bytes, f.inodes, f.inodesFree = space.Blocks*uint64(space.Bsize), space.Files, space.Ffree
	f.device = devices.name(unix.Major(file.Dev), unix.Minor(file.Dev))
}

// deviceNames remembers the names of block devices for one answer.
type deviceNames map[string]string

// name is what people call a device, /dev/vda, or its numbers where it has no name, as on a network file system.
func (d deviceNames) name(major, minor uint32) string {
	numbers := fmt.Sprintf("%d:%d", major, minor)
	if name, ok := d[numbers]; ok {
		return name
	}
	d[numbers] = numbers
	if target, err := os.Readlink("/sys/dev/block/" + numbers); err == nil {
		d[numbers] = "/dev/" + filepath.Base(target)
	}
	return d[numbers]
}
