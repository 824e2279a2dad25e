package sandbox

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"strconv"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	"google.golang.org/protobuf/proto"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/evenkeel/evenkeel/internal/effect"
	"github.com/evenkeel/evenkeel/oci"
)

// containerUpdate is not undone on failure: the runtime applies an update wholly or reports what it could not.
var (
	containerUpdate  = effect.New("container.update")
	containerUpdated = effect.New("container.updated")
)

// Update changes a container's resources. Fields that are zero are left as they are (CRI, UpdateContainerResources).
func (c *Containers) Update(ctx context.Context, id string, want *cri.LinuxContainerResources) error {
	found, err := c.pods.index.container(id)
	if err != nil {
		return err
	}
	return found.timeline.during(ctx, "UpdateContainerResources", containerUpdated, func(ctx context.Context) error {
		return found.update(ctx, want)
	})
}

func (c *container) update(ctx context.Context, want *cri.LinuxContainerResources) error {
	if err := c.updatable(); err != nil {
		return err // before plugins are asked
	}
	want, err := c.consultUpdate(ctx, want)
	if err != nil {
		return err
	}
	if err := c.change(ctx, want); err != nil || c.Plugins == nil {
		return err
	}
	if err := c.askPlugins(ctx, ContainerUpdated); err != nil {
		c.Log.Error("plugins cannot be told of a container", "container", c.id, "error", err)
	}
	return nil
}

func (c *container) updatable() error {
	switch state := c.state(); state {
	case cri.ContainerState_CONTAINER_RUNNING, cri.ContainerState_CONTAINER_CREATED:
		return nil
	case cri.ContainerState_CONTAINER_UNKNOWN:
		return fmt.Errorf("cannot update container %s: its shim does not answer: %w", c.id, ErrUnknownState)
	default:
		return fmt.Errorf("cannot update container %s: it is %s: %w", c.id, stateName(state), ErrState)
	}
}

// change makes an update, whoever asks for it.
func (c *container) change(ctx context.Context, want *cri.LinuxContainerResources) error {
	if err := c.turn.take(ctx); err != nil {
		return fmt.Errorf("cannot update container %s yet, another operation on it is running: %w", c.id, err)
	}
	defer c.turn.give()
	if err := c.updatable(); err != nil {
		return err
	}
	if c.gone || !c.facts().listed() {
		return fmt.Errorf("container %q: %w", c.id, ErrNotFound)
	}
	pod, err := c.pod()
	if err != nil {
		return err
	}
	old := c.facts().Resources.Message
	want = completed(old, want)
	resources, err := oci.Resources(want, pod.host())
	if err != nil {
		return fmt.Errorf("cannot update container %s: %w: %w", c.id, err, ErrInvalid)
	}
	if c.facts().StartFault == "" { // else the runtime has no container, and nothing will ever run
		if err := containerUpdate.Do(ctx, func() error { return c.apply(ctx, resources, merged(old, want)) }); err != nil {
			return fmt.Errorf("cannot update container %s: %w", c.id, c.explained(ctx, err, want))
		}
	}
	return c.note(ctx, containerUpdated, func(r *containerRecord) { r.Resources.Message = merged(old, want) })
}

// explained puts the client's mistake before the kernel's words.
func (c *container) explained(ctx context.Context, err error, want *cri.LinuxContainerResources) error {
	if ctx.Err() != nil {
		return err
	}
	if mistake := c.mistakes(want); mistake != nil {
		return fmt.Errorf("%w (%w)", mistake, err)
	}
	return err
}

// apply has the runtime write what it knows of. runc's update leaves hugepages and v2's own files out, and puts back those
// that the container was created with: so all of them, as they are to be from now on, are written after it.
func (c *container) apply(ctx context.Context, change *specs.LinuxResources, whole *cri.LinuxContainerResources) error {
	known := *change
	known.HugepageLimits, known.Unified = nil, nil
	document, err := json.Marshal(known)
	if err != nil {
		return err
	}
	if err := c.runtime().Update(ctx, c.id, document); err != nil {
		return err
	}
	var errs []error
	files := limitFiles(whole, c.Host)
	if scope := c.scope(); scope != "" {
		errs = append(errs, c.Systemd.SetLimits(ctx, scope, files))
	}
	for name, value := range files {
		for _, dir := range c.Cgroups.Dirs(c.facts().Cgroup) {
			err := writeLimit(filepath.Join(dir, name), value)
			if err != nil && (c.Host.CgroupV2 || !errors.Is(err, fs.ErrNotExist)) { // v1 has a file in one of many directories
				errs = append(errs, err)
			}
		}
	}
	return errors.Join(errs...)
}

// writeLimit does not create: a controller that is missing must not look like a permission that is.
func writeLimit(file, value string) error {
	f, err := os.OpenFile(file, os.O_WRONLY, 0)
	if err != nil {
		return err
	}
	defer f.Close()
	_, err = f.WriteString(value)
	return err
}

// limitFiles are the cgroup files with the limits that runc's update does not write.
func limitFiles(r *cri.LinuxContainerResources, h oci.Host) map[string]string {
	files := map[string]string{}
	if h.CgroupV2 {
		maps.Copy(files, r.GetUnified())
	}
	suffix := "limit_in_bytes"
	if h.CgroupV2 {
		suffix = "max"
	}
	for _, l := range r.GetHugepageLimits() {
		if h.Hugetlb {
			files["hugetlb."+l.GetPageSize()+"."+suffix] = strconv.FormatUint(l.GetLimit(), 10)
		}
	}
	return files
}

// completed fills in the other half where a request changes memory or memory+swap alone: the kernel knows them as one
// sum, and a field that is zero stays what it was. Without swap before, there is none after.
func completed(old, want *cri.LinuxContainerResources) *cri.LinuxContainerResources {
	next := proto.CloneOf(want)
	switch {
	case want.GetMemoryLimitInBytes() == 0 && want.GetMemorySwapLimitInBytes() != 0:
		next.MemoryLimitInBytes = old.GetMemoryLimitInBytes()
	case want.GetMemoryLimitInBytes() > 0 && want.GetMemorySwapLimitInBytes() == 0:
		next.MemorySwapLimitInBytes = want.GetMemoryLimitInBytes()
		if swap := old.GetMemorySwapLimitInBytes(); swap == -1 || (swap > old.GetMemoryLimitInBytes() && swap > want.GetMemoryLimitInBytes()) {
			next.MemorySwapLimitInBytes = swap
		}
	}
	next.OomScoreAdj = 0 // of processes, not of a cgroup: it stays as it was when they were started
	return next
}

// merged is old with what want sets.
func merged(old, want *cri.LinuxContainerResources) *cri.LinuxContainerResources {
	if old == nil {
		return want
	}
	next := proto.CloneOf(old)
	if len(want.GetHugepageLimits()) > 0 {
		next.HugepageLimits = nil // proto.Merge appends to lists
	}
	proto.Merge(next, want)
	return next
}
