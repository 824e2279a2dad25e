package sandbox

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"path/filepath"
	"time"

	cri "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/evenkeel/evenkeel/internal/effect"
	"github.com/evenkeel/evenkeel/internal/hostpath"
)

var containerRelabel = effect.New("container.relabel")

// What the storage of one pod may cost that pod, and nobody else.
const (
	hostPathLimit = 10 * time.Second // to look up the host paths of one container
	relabelLimit  = time.Minute      // to label the files below one host path
	createLimit   = time.Minute      // for the runtime's create, unless configured; half of the kubelet's patience, the rest is for undoing it
	suspectAfter  = 3 * time.Second  // a runtime that is quiet for so long may be waiting for a host path
	suspectLimit  = time.Second      // which then has so long to show that it lives
)

// findHostPaths resolves the symlinks of every host path, makes a missing one a directory, which is what the kubelet
// expects, and checks that mounts can travel as the request wants. The log's directory is looked up as well: the shim
// opens the log, and nothing ends a shim's open of a file that never answers.
func (c *creation) findHostPaths(ctx context.Context) (map[string]string, error) {
	c.doing.set("looking up its host paths")
	ctx, stop := context.WithTimeoutCause(ctx, hostPathLimit, fmt.Errorf("no answer within %s: %w", hostPathLimit, ErrTimeout))
	defer stop()
	if dir := filepath.Dir(c.facts().LogPath); c.facts().LogPath != "" {
		if _, err := c.paths.Resolve(ctx, dir); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return nil, fmt.Errorf("cannot use the log directory %s: %w", dir, err)
		}
	}
	resolved := map[string]string{}
	for _, m := range c.config.GetMounts() {
		if m.GetHostPath() == "" {
			continue
		}
		found, err := c.hostPath(ctx, m)
		if err == nil {
			err = travels(m, found)
		}
		if err != nil {
			return nil, fmt.Errorf("cannot mount host path %s at %s: %w", m.GetHostPath(), m.GetContainerPath(), err)
		}
		resolved[m.GetHostPath()] = found.Real
	}
	return resolved, nil
}

func (c *creation) hostPath(ctx context.Context, m *cri.Mount) (found hostpath.Path, err error) {
	if !filepath.IsAbs(m.GetHostPath()) {
		return found, fmt.Errorf("the path is not absolute: %w", ErrInvalid)
	}
	err = containerHostPaths.Do(ctx, func() (err error) {
		found, err = c.paths.Make(ctx, m.GetHostPath())
		return err
	})
	return found, err
}

// readProfile reads a seccomp profile of the node's.
func (c *creation) readProfile(ctx context.Context, path string) ([]byte, error) {
	c.doing.set("reading the seccomp profile %s", path)
	ctx, stop := context.WithTimeoutCause(ctx, hostPathLimit, fmt.Errorf("no answer within %s: %w", hostPathLimit, ErrTimeout))
	defer stop()
	return c.paths.Read(ctx, path)
}

// travels checks what the kernel does not: a bind mount of a private mount is private in silence, whatever propagation
// was asked for, and the mounts that the pod waits for never come.
func travels(m *cri.Mount, found hostpath.Path) error {
	switch at := found.Mount; {
	case m.GetPropagation() == cri.MountPropagation_PROPAGATION_BIDIRECTIONAL && !at.Shared:
		return fmt.Errorf("%s is on the mount %s, which is not shared, so mounts made in the container could not reach the node; run `mount --make-rshared %s`: %w", found.Real, at.Point, at.Point, ErrInvalid)
	case m.GetPropagation() == cri.MountPropagation_PROPAGATION_HOST_TO_CONTAINER && !at.Shared && !at.Slave:
		return fmt.Errorf("%s is on the mount %s, which is neither shared nor a slave, so mounts made on the node could not reach the container; run `mount --make-rshared %s`: %w", found.Real, at.Point, at.Point, ErrInvalid)
	}
	return nil
}

// relabel lets the container's label reach what its volumes hold, where the request asks for it and SELinux is on.
func (c *creation) relabel(ctx context.Context) error {
	label := c.spec.Linux.MountLabel
	if label == "" {
		return nil
	}
	wanted, err := toRelabel(c.config, c.hostPaths)
	if err != nil {
		return err
	}
	for _, path := range wanted {
		limited, stop := context.WithTimeoutCause(ctx, relabelLimit, fmt.Errorf("not done within %s: %w", relabelLimit, ErrTimeout))
		err := containerRelabel.Do(limited, func() error { return c.paths.Relabel(limited, path, label) })
		stop()
		if err != nil {
			return fmt.Errorf("cannot give host path %s the label %s: %w", path, label, err)
		}
	}
	return nil
}

// toRelabel lists the host paths that the request wants to have the container's label, with symlinks resolved.
func toRelabel(cfg *cri.ContainerConfig, paths map[string]string) (list []string, err error) {
	for _, m := range cfg.GetMounts() {
		path := paths[m.GetHostPath()]
		if !m.GetSelinuxRelabel() || path == "" {
			continue
		}
		if unlabelled(path) {
			return nil, fmt.Errorf("mounts: %s: selinux_relabel: the label of %s belongs to the node, and giving it to a container would lock the node out: %w", m.GetContainerPath(), path, ErrInvalid)
		}
		list = append(list, path)
	}
	return list, nil
}

// unlabelled are the directories that podman, CRI-O and containerd refuse to relabel as well (opencontainers/selinux).
func unlabelled(path string) bool {
	switch filepath.Clean(path) {
	case "/", "/bin", "/boot", "/dev", "/etc", "/etc/passwd", "/etc/pki", "/etc/shadow", "/home", "/lib", "/lib64", "/media", "/opt",
		"/proc", "/root", "/run", "/sbin", "/srv", "/sys", "/tmp", "/usr", "/var", "/var/lib", "/var/log":
		return true
	}
	return false
}

// runtimeCreate bounds the runtime's create: the shim kills the runtime and all its children when the call ends. A mount
// whose storage died after it was looked up is what can make it hang, so the error says which one is silent.
func (c *creation) runtimeCreate(ctx context.Context, create func(context.Context) error) error {
	c.doing.set("waiting for the OCI runtime")
	limit := c.createLimit()
	ctx, stop := context.WithTimeoutCause(ctx, limit, fmt.Errorf("the OCI runtime has not made it within %s: %w", limit, ErrTimeout))
	defer stop()
	defer c.suspect(ctx)()
	err := containerCreate.Do(ctx, func() error { return create(ctx) })
	if err != nil && ctx.Err() != nil {
		return fmt.Errorf("%s%s: %w", &c.doing, c.silence(context.WithoutCancel(ctx)), context.Cause(ctx))
	}
	return err
}

func (c *container) createLimit() time.Duration { return cmp.Or(c.runtime().CreateLimit, createLimit) }

// suspect asks the storage behind the container's mounts whether it still answers, while the runtime is quiet. What it
// finds is told to whoever asks what the container is waiting for.
func (c *creation) suspect(ctx context.Context) (stop func()) {
	ctx, cancel := context.WithCancel(ctx)
	timer := time.AfterFunc(suspectAfter, func() {
		for _, m := range c.config.GetMounts() {
			if m.GetHostPath() != "" && ctx.Err() == nil && !c.answers(ctx, m.GetHostPath()) {
				c.doing.set("waiting for the OCI runtime, which uses the host path %s, and its file system does not answer", m.GetHostPath())
				return
			}
		}
	})
	return func() { timer.Stop(); cancel() }
}

func (c *creation) answers(ctx context.Context, path string) bool {
	limited, stop := context.WithTimeout(ctx, suspectLimit)
	defer stop()
	err := c.paths.Probe(limited, path)
	return ctx.Err() != nil || !errors.Is(err, hostpath.ErrSilent)
}

// invalidIfMissing blames the request for naming what is not there.
func invalidIfMissing(err error) error {
	if errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("%w: %w", err, ErrInvalid)
	}
	return err
}
