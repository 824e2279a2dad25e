package main

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"
	v1 "k8s.io/api/core/v1"
)

// bindSubPaths binds what the sub paths of a container's mounts lead to, as they are at its start: init containers may have
// made them. The engine is told where it is bound, below the pod's own directory. The name below the volume would be looked up
// once more, and a container that writes to the volume could meanwhile make a symbolic link of it, to any place of the machine.
func bindSubPaths(pod *v1.Pod, c *v1.Container, dir podDir) error {
	for i, m := range c.VolumeMounts {
		if m.SubPath == "" {
			continue
		}
		both := m.MountPropagation != nil && *m.MountPropagation == v1.MountPropagationBidirectional
		if err := bindSubPath(volumePath(pod, dir, m.Name), m.SubPath, dir.subPath(c.Name, i), both); err != nil {
			return fmt.Errorf("cannot use sub path %s of volume %s in container %s: %w", m.SubPath, m.Name, c.Name, err)
		}
	}
	return nil
}

func bindSubPath(volume, sub, at string, bothWays bool) error {
	if err := unmountAll(at); err != nil { // of the attempt before
		return err
	}
	source, err := openSubPath(volume, filepath.Clean(sub))
	if err != nil {
		return err
	}
	defer source.Close()
	if err := makePlace(source, at); err != nil {
		return err
	}
	if err := unix.Mount(fmt.Sprintf("/proc/self/fd/%d", source.Fd()), at, "", unix.MS_BIND, ""); err != nil {
		return fmt.Errorf("cannot bind it to %s: %w", at, err)
	}
	if bothWays {
		return nil
	}
	// What somebody mounts below the same place of the machine must not go with this mount.
	if err := unix.Mount("", at, "", unix.MS_SLAVE, ""); err != nil {
		return fmt.Errorf("cannot part %s from its peers: %w", at, err)
	}
	return nil
}

// openSubPath makes a missing directory, and refuses what a symbolic link leads out of the volume.
func openSubPath(volume, sub string) (*os.File, error) {
	root, err := os.OpenRoot(volume)
	if err != nil {
		return nil, err
	}
	defer root.Close()
	_, err = root.Stat(sub)
	if errors.Is(err, fs.ErrNotExist) {
		err = root.MkdirAll(sub, 0o755)
	}
	if err != nil {
		return nil, err
	}
	dir, err := root.Open(".")
	if err != nil {
		return nil, err
	}
	defer dir.Close()
	fd, err := unix.Openat2(int(dir.Fd()), sub, &unix.OpenHow{
		Flags: unix.O_PATH | unix.O_CLOEXEC, Resolve: unix.RESOLVE_BENEATH | unix.RESOLVE_NO_MAGICLINKS,
	})
	if err != nil {
		return nil, &fs.PathError{Op: "open", Path: filepath.Join(volume, sub), Err: err}
	}
	return os.NewFile(uintptr(fd), sub), nil
}

// makePlace makes something of the source's kind to bind it to.
func makePlace(source *os.File, at string) error {
	info, err := source.Stat()
	if err != nil {
		return err
	}
	if err := os.MkdirAll(filepath.Dir(at), 0o711); err != nil {
		return err
	}
	if err := os.Remove(at); err != nil && !errors.Is(err, fs.ErrNotExist) { // it may have been of another kind
		return err
	}
	if info.IsDir() {
		return os.Mkdir(at, 0o755)
	}
	f, err := os.OpenFile(at, os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o600)
	if err != nil {
		return err
	}
	return f.Close()
}
