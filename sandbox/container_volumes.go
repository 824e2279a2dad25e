package sandbox

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"

	"google.golang.org/protobuf/proto"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/evenkeel/evenkeel/image"
	"github.com/evenkeel/evenkeel/internal/effect"
)

var (
	containerVolumes   = effect.New("container.volumes")
	containerUnvolumes = effect.New("container.volumes.unmount")
)

// imageVolume is a mount of the request that shows an image.
type imageVolume struct {
	ContainerPath string
	ImageID       string
	Layers        []image.Layer // in use as long as the record stands
}

// volumeDir is where the request's nth mount shows its image.
func (c *container) volumeDir(n int) string {
	return filepath.Join(c.stateDir(), "volumes", strconv.Itoa(n))
}

// findVolumes enters the images of the request's volumes into the record, which protects their layers from removal.
func (c *creation) findVolumes(ctx context.Context) error {
	c.volumes = map[int]image.Volume{}
	next := *c.facts()
	for n, m := range c.config.GetMounts() {
		if m.GetImage() == nil {
			continue
		}
		v, err := c.Images.Volume(ctx, m.GetImage().GetImage())
		if err != nil {
			return volumeFailed(m, err)
		}
		c.volumes[n] = v
		next.Volumes = append(next.Volumes, imageVolume{ContainerPath: m.GetContainerPath(), ImageID: v.ID.String(), Layers: v.Layers})
	}
	c.record.Store(&next)
	return nil
}

// mountVolumes shows each image read-only in the container's state directory.
func (c *creation) mountVolumes(ctx context.Context) error {
	c.shown = map[string]string{}
	for n, v := range c.volumes {
		m := c.config.GetMounts()[n]
		v.IDMap, v.Label = c.pod.idMap(), c.label
		err := containerVolumes.Do(ctx, func() error { return v.Mount(ctx, c.volumeDir(n)) })
		if err != nil {
			return volumeFailed(m, err)
		}
		path, err := v.Inside(c.volumeDir(n), m.GetImageSubPath())
		if err != nil {
			return volumeFailed(m, err)
		}
		c.shown[m.GetContainerPath()] = path
	}
	return nil
}

// volumeFailed begins with the word by which the kubelet counts failures (k8s.io/cri-api/pkg/errors).
func volumeFailed(m *cri.Mount, err error) error {
	return fmt.Errorf("ImageVolumeMountFailed: cannot mount image %s at %s: %w", m.GetImage().GetImage(), m.GetContainerPath(), err)
}

// unmountVolumes leaves no image mounted for the container, whatever was asked for.
func (c *container) unmountVolumes(context.Context) error {
	dir := filepath.Dir(c.volumeDir(0))
	entries, err := os.ReadDir(dir)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	} else if err != nil {
		return err
	}
	var errs []error
	for _, entry := range entries {
		errs = append(errs, image.Unmount(filepath.Join(dir, entry.Name())))
	}
	return errors.Join(errs...)
}

// mountStatus is the request's mounts with the ids of the images that were found.
func (r *containerRecord) mountStatus() []*cri.Mount {
	if len(r.Volumes) == 0 {
		return r.Config.Message.GetMounts()
	}
	ids := map[string]string{}
	for _, v := range r.Volumes {
		ids[v.ContainerPath] = v.ImageID
	}
	var mounts []*cri.Mount
	for _, m := range r.Config.Message.GetMounts() {
		if m.GetImage() != nil {
			m = proto.CloneOf(m)
			m.Image.ImageRef = ids[m.GetContainerPath()]
		}
		mounts = append(mounts, m)
	}
	return mounts
}
