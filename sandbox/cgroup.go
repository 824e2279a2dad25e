package sandbox

import (
	"context"
	"fmt"
	"maps"
	"path"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	cri "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/evenkeel/evenkeel/internal/systemd"
	"github.com/evenkeel/evenkeel/shim"
)

// Records hold the paths of cgroups as the kernel shows them, whichever driver made them; statistics, kills and removals
// need nothing else. A pod keeps the driver that it was made with.

// cgroupParent is the cgroup of the kubelet's pod, or the engine's own.
func (p *Pods) cgroupParent(cfg *cri.PodSandboxConfig) string {
	parent := cfg.GetLinux().GetCgroupParent()
	if parent == "" {
		return p.CgroupParent
	}
	if p.Scopes {
		if slice, err := systemd.ParentPath(parent); err == nil { // else checkCgroupParent has refused it
			return slice
		}
	}
	return path.Join("/", parent)
}

func (p *Pods) checkCgroupParent(parent string) error {
	if slices.Contains(strings.Split(parent, "/"), "..") {
		return fmt.Errorf("config.linux.cgroup_parent %q must not contain \"..\": %w", parent, ErrInvalid)
	}
	if !p.Scopes || parent == "" {
		return nil
	}
	if _, err := systemd.ParentPath(parent); err != nil {
		return fmt.Errorf("config.linux.cgroup_parent: the cgroup driver is systemd, and a pod's parent must be a slice: %w: %w", err, ErrInvalid)
	}
	return nil
}

// containerCgroup is where a container of the pod has its cgroup.
func (p *pod) containerCgroup(id string) string {
	parent := path.Dir(p.facts().Cgroup)
	if p.facts().Scopes && p.Systemd != nil {
		return path.Join(parent, p.Systemd.Scope(id))
	}
	return path.Join(parent, id)
}

// specCgroup is how the runtime is told.
func (c *creation) specCgroup() string {
	if c.pod.facts().Scopes && c.Systemd != nil {
		return c.Systemd.SpecPath(c.facts().Cgroup, c.id)
	}
	return c.facts().Cgroup
}

// scope is the container's unit, or empty where it has none.
func (c *container) scope() string {
	unit := path.Base(c.facts().Cgroup)
	if c.Systemd == nil || !strings.HasSuffix(unit, ".scope") {
		return ""
	}
	return unit
}

// How long the processes of a container get between SIGTERM and SIGKILL when the machine is shut down. The kubelet's own
// graceful shutdown comes before and may take longer.
const (
	shutdownGrace    = 10 * time.Second
	shutdownGraceMin = time.Second // none would mean for ever, to systemd
	shutdownGraceMax = 30 * time.Second

	gracePeriodKey = "io.kubernetes.pod.terminationGracePeriod" // seconds; an annotation that the kubelet gives containers
)

func graceAtShutdown(cfg *cri.ContainerConfig) time.Duration {
	seconds, err := strconv.ParseUint(cfg.GetAnnotations()[gracePeriodKey], 10, 32)
	if err != nil {
		return shutdownGrace
	}
	return max(shutdownGraceMin, min(time.Duration(seconds)*time.Second, shutdownGraceMax))
}

// annotate asks the runtime for properties of the container's scope.
func (c *creation) annotate() {
	if c.scope() == "" {
		return
	}
	if c.spec.Annotations == nil {
		c.spec.Annotations = map[string]string{}
	}
	maps.Copy(c.spec.Annotations, c.Systemd.Annotations(graceAtShutdown(c.config)))
}

// oomGroup has the kernel end a container as a whole. systemd sets it to what it thinks of it, 0, whenever it applies properties.
const oomGroup = "memory.oom.group"

// keepLimits writes what systemd has undone behind the runtime's back.
func (c *container) keepLimits(ctx context.Context) error {
	value, wanted := c.facts().Resources.Message.GetUnified()[oomGroup]
	if c.scope() == "" || !wanted {
		return nil
	}
	if err := c.Systemd.Settle(ctx); err != nil {
		return err
	}
	return writeLimit(filepath.Join(c.Cgroups.MemoryDir(c.facts().Cgroup), oomGroup), value)
}

// removeCgroup leaves neither the container's cgroup nor a unit of it. Usually the runtime has removed both.
func (c *container) removeCgroup(ctx context.Context) error {
	if unit := c.scope(); unit != "" {
		if err := c.Systemd.Discard(ctx, unit); err != nil {
			return err
		}
	}
	return c.Cgroups.Remove(ctx, c.facts().Cgroup)
}

// holdShim takes a new shim out of the daemon's own unit. Its cgroup is nobody's pod's either, since a shim's memory is the
// engine's cost.
func (p *pod) holdShim(ctx context.Context, process shim.Process) error {
	if p.Systemd == nil {
		return nil
	}
	return podShimScope.Do(ctx, func() error { return p.Systemd.Hold(ctx, process.PID) })
}
