package image

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"

	"golang.org/x/sys/unix"

	"github.com/evenkeel/evenkeel/internal/namespace"
)

// IDMap shows an image to a user namespace: what root owns in a layer belongs to the namespace's root, and so on.
//
// The layers on disk stay as they are and are shared with everybody; what the container writes lands on disk with the
// ids that it has outside the namespace, so nothing of it is ever the host root's.
type IDMap struct {
	UserNS   string // path of the user namespace
	UID, GID int    // its root, seen from outside
}

// ErrNoIDMap matches errors about a kernel or file system that cannot map the owners of a mount.
var ErrNoIDMap = errors.New("idmapped mounts are not possible")

// own gives the writable layer's root directory, which is the container's, to the root of the user namespace.
func (r Rootfs) own() error {
	if r.IDMap == nil || r.Upper == "" {
		return nil
	}
	if err := os.Chown(r.Upper, r.IDMap.UID, r.IDMap.GID); err != nil {
		return fmt.Errorf("cannot give the writable layer to the user namespace: %w", err)
	}
	return nil
}

// mountMapped stacks clones of the layers' mounts, each with the mapping. They are attached nowhere, and the kernel frees
// them with the overlay. Kernels before 6.15 take attached mounts only: there they are attached in a mount namespace that
// ends with the thread that mounts the overlay, so that nothing can be left behind either.
func (r Rootfs) mountMapped(lower []string) error {
	clones := descriptors{}
	defer clones.close()
	names, err := r.mapped(lower, &clones)
	if err != nil {
		return err
	}
	err = r.mountNew(names)
	if !wantsAttached(err) {
		return err
	}
	// The failed attempt may have left the mark of a volatile mount, which the next one would take for an old one's.
	if lower, err = r.prepare(); err != nil {
		return err
	}
	overlay, err := r.overlayElsewhere(lower)
	if err != nil {
		return err
	}
	defer unix.Close(overlay)
	return r.attach(overlay)
}

// wantsAttached reports whether the kernel may have refused layers because they are attached nowhere. From 6.5 on it takes
// them with lowerdir+, and fails with EINVAL when the overlay is created.
func wantsAttached(err error) bool {
	return errors.Is(err, errNoLowerdirPlus) || errors.Is(err, unix.EINVAL)
}

// mapped clones the mount of each directory and maps it. The clones' names are valid while they are open.
func (r Rootfs) mapped(lower []string, clones *descriptors) (names []string, err error) {
	userNS, err := unix.Open(r.IDMap.UserNS, unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, fmt.Errorf("open user namespace %s: %w", r.IDMap.UserNS, err)
	}
	defer unix.Close(userNS)
	for _, dir := range lower {
		clone, err := mapMount(dir, userNS)
		if err != nil {
			return nil, err
		}
		*clones = append(*clones, clone)
		names = append(names, "/proc/self/fd/"+strconv.Itoa(clone))
	}
	return names, nil
}

func mapMount(dir string, userNS int) (int, error) {
	clone, err := unix.OpenTree(unix.AT_FDCWD, dir, unix.OPEN_TREE_CLONE|unix.OPEN_TREE_CLOEXEC|unix.AT_NO_AUTOMOUNT)
	if err != nil {
		return -1, fmt.Errorf("open_tree %s: %w", dir, err)
	}
	err = unix.MountSetattr(clone, "", unix.AT_EMPTY_PATH, &unix.MountAttr{Attr_set: unix.MOUNT_ATTR_IDMAP, Userns_fd: uint64(userNS)})
	if err != nil {
		unix.Close(clone)
		return -1, fmt.Errorf("%w: mount_setattr(MOUNT_ATTR_IDMAP) on %s: %w", ErrNoIDMap, dir, err)
	}
	return clone, nil
}

// overlayElsewhere makes the overlay in a private copy of the mount namespace and returns it, attached nowhere. The
// target, which is empty yet, serves there as the place for the layers.
func (r Rootfs) overlayElsewhere(lower []string) (overlay int, err error) {
	overlay = -1
	err = namespace.OnThrowawayThread(func() error {
		if err := unix.Unshare(unix.CLONE_NEWNS); err != nil {
			return fmt.Errorf("unshare mounts: %w", err)
		}
		if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""); err != nil {
			return fmt.Errorf("make the copied mounts private: %w", err)
		}
		clones := descriptors{}
		defer clones.close()
		if _, err := r.mapped(lower, &clones); err != nil {
			return err
		}
		names, err := r.attachLayers(clones)
		if err != nil {
			return err
		}
		overlay, err = r.overlay(names)
		return err
	})
	return overlay, err
}

func (r Rootfs) attachLayers(clones descriptors) (names []string, err error) {
	if err := unix.Mount("tmpfs", r.Target, "tmpfs", 0, "mode=700"); err != nil {
		return nil, fmt.Errorf("mount tmpfs for the layers: %w", err)
	}
	for i, clone := range clones {
		name := filepath.Join(r.Target, strconv.Itoa(i))
		if err := os.Mkdir(name, 0o700); err != nil {
			return nil, err
		}
		if err := unix.MoveMount(clone, "", unix.AT_FDCWD, name, unix.MOVE_MOUNT_F_EMPTY_PATH); err != nil {
			return nil, fmt.Errorf("move_mount of a mapped layer: %w", err)
		}
		names = append(names, name)
	}
	return names, nil
}

// ProbeIDMap tries to stack a mapped layer below dir, and leaves nothing there. A nil error means that images on dir's
// file system can be shown to user namespaces.
func ProbeIDMap(dir string, ids IDMap) error {
	temp, err := os.MkdirTemp(dir, ".idmap-")
	if err != nil {
		return fmt.Errorf("cannot make a directory to try idmapped layers in: %w", err)
	}
	defer os.RemoveAll(temp)
	r := Rootfs{
		Layers: []Layer{{Dir: filepath.Join(temp, "layer")}}, Upper: filepath.Join(temp, "upper"), Work: filepath.Join(temp, "work"),
		Target: filepath.Join(temp, "target"), IDMap: &ids,
	}
	if err := os.Mkdir(r.Layers[0].Dir, 0o755); err != nil {
		return fmt.Errorf("cannot make a directory to try idmapped layers in: %w", err)
	}
	lower, err := r.prepare()
	if err != nil {
		return err
	}
	clones := descriptors{}
	defer clones.close()
	names, err := r.mapped(lower, &clones)
	if err != nil {
		return err
	}
	overlay, err := r.overlay(names)
	if wantsAttached(err) {
		overlay, err = r.overlayElsewhere(lower)
	}
	if err != nil {
		return fmt.Errorf("%w: overlay of mapped layers: %w", ErrNoIDMap, err)
	}
	return unix.Close(overlay)
}
