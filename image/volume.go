package image

import (
	"context"
	"errors"
	"fmt"
	"os"
	"strings"

	"github.com/opencontainers/go-digest"
	"golang.org/x/sys/unix"
)

// Volume is what a pod's image volume shows: the merged file system of an image, or the files of an OCI artifact. It is
// never written to.
type Volume struct {
	ID     digest.Digest // of the image; for ImageSpec.image_ref
	Layers []Layer       // lowest first; record their DiffIDs where InUse looks, as a container's own
	IDMap  *IDMap        // for a pod with a user namespace; the caller's to set
	Label  string        // as Rootfs.Label; the caller's to set
}

// Volume finds the image or artifact that ref names, as Find does, and leases its layers: no collection takes them for
// the next two minutes. By then the caller has recorded them where InUse looks, which protects them from then on.
// What was not pulled yet is ErrNotFound; the kubelet pulls before it asks.
func (s *Store) Volume(ctx context.Context, ref string) (Volume, error) {
	if err := ctx.Err(); err != nil {
		return Volume{}, context.Cause(ctx)
	}
	e, err := s.leased(ref)
	if err != nil {
		return Volume{}, err
	}
	return Volume{ID: e.ID, Layers: e.image.Layers}, nil
}

// Mount shows the volume read-only on target, which is made if missing. A target that is mounted already is kept.
// Unmount undoes it.
func (v Volume) Mount(ctx context.Context, target string) error {
	if len(v.Layers) > 0 {
		return Rootfs{Layers: v.Layers, Target: target, IDMap: v.IDMap, Label: v.Label}.Mount(ctx)
	}
	if mounted, err := isMountPoint(target); err != nil || mounted {
		return err
	}
	if err := makeDir(target, 0o755); err != nil {
		return err
	}
	options := "mode=755,size=4k"
	if v.Label != "" {
		options += "," + ContextOption(v.Label)
	}
	if err := unix.Mount("tmpfs", target, "tmpfs", unix.MS_RDONLY, options); err != nil {
		return fmt.Errorf("cannot mount an empty volume on %s: %w", target, err)
	}
	return nil
}

// Inside returns the real path of sub in a volume that is mounted on target: "" is the volume itself. Links in the volume
// are followed as if target were the root directory, so that none leads out of it. A path that is not there, or is neither a directory nor a regular file, is ErrSubPath.
// What is mounted in the container should be the returned path; it is a directory or a regular file.
func (v Volume) Inside(target, sub string) (string, error) {
	root, err := unix.Open(target, unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return "", fmt.Errorf("cannot open image volume %s: %w", target, err)
	}
	defer unix.Close(root)
	how := unix.OpenHow{Flags: unix.O_PATH | unix.O_CLOEXEC, Resolve: unix.RESOLVE_IN_ROOT | unix.RESOLVE_NO_MAGICLINKS}
	fd, err := unix.Openat2(root, first(strings.Trim(sub, "/"), "."), &how)
	if errors.Is(err, unix.ENOENT) || errors.Is(err, unix.ENOTDIR) || errors.Is(err, unix.ELOOP) {
		return "", fmt.Errorf("%w: image %s has no path %q, so the volume's subPath must be another, or the image one that has it", ErrSubPath, v.ID, sub)
	}
	if err != nil {
		return "", fmt.Errorf("cannot open %q in image volume %s: %w", sub, v.ID, err)
	}
	f := os.NewFile(uintptr(fd), sub)
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		return "", fmt.Errorf("cannot examine %q in image volume %s: %w", sub, v.ID, err)
	}
	if !info.IsDir() && !info.Mode().IsRegular() {
		return "", fmt.Errorf("%w: %q in image %s is neither a directory nor a regular file, so it cannot be a volume", ErrSubPath, sub, v.ID)
	}
	return os.Readlink(fmt.Sprintf("/proc/self/fd/%d", fd))
}
