package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"

	"github.com/moby/sys/mountinfo"
	"golang.org/x/sys/unix"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// podDir is what `run` keeps of one pod on disk: volumes, logs and hosts file. Its name is the pod's uid, and its sandbox
// carries the path as an annotation.
type podDir struct{ Path string }

func (d podDir) logs() string              { return filepath.Join(d.Path, "logs") }
func (d podDir) hosts() string             { return filepath.Join(d.Path, "hosts") }
func (d podDir) volumes() string           { return filepath.Join(d.Path, "volumes") }
func (d podDir) volume(name string) string { return filepath.Join(d.volumes(), name) }
func (d podDir) subPaths() string          { return filepath.Join(d.Path, "subpaths") }
func (d podDir) owner() string             { return filepath.Join(d.Path, ownerFile) }

// subPath is where the sub path of one of a container's mounts is bound.
func (d podDir) subPath(container string, mount int) string {
	return filepath.Join(d.subPaths(), container, strconv.Itoa(mount))
}

// ownerFile proves that a directory was made by `run` for a pod. An annotation alone does not: anyone who may create pods
// through the kubelet writes those.
const ownerFile = "evenkeel-run.json"

type dirOwner struct {
	UID  string `json:"uid"`
	Name string `json:"name"` // namespace/name
}

// podDirOf finds the directory of a pod that `run` started, below base. Whoever may create pods through the kubelet writes
// annotations, too, and any other place could be one where he exchanges directories while they are being removed.
func podDirOf(p *cri.PodSandbox, base string) (podDir, bool) {
	path, uid := p.Annotations[directoryAnnotation], p.GetMetadata().GetUid()
	return podDir{path}, path != "" && path == filepath.Join(base, uid) && filepath.Base(path) == uid
}

// create makes the directory and returns the lock on it, which tells sweepPodDirs that somebody is about to use it. The lock
// falls with the process.
func (d podDir) create(owner dirOwner) (lock *os.File, err error) {
	base := filepath.Dir(d.Path)
	if err := os.MkdirAll(base, 0o711); err != nil {
		return nil, fmt.Errorf("cannot make the directory of pod %s: %w", owner.Name, err)
	}
	// Between the making of a directory and its own lock, a sweep must not see it.
	shared, err := lockBase(base, unix.LOCK_SH)
	if err != nil {
		return nil, err
	}
	defer shared.Close()
	if err := os.Mkdir(d.Path, 0o755); err != nil {
		return nil, fmt.Errorf("cannot make the directory of pod %s: %w", owner.Name, err)
	}
	lock, err = d.fill(owner)
	if err != nil {
		return nil, errors.Join(fmt.Errorf("cannot fill the directory of pod %s: %w", owner.Name, err), os.RemoveAll(d.Path))
	}
	return lock, nil
}

func lockBase(base string, how int) (*os.File, error) {
	f, err := os.Open(base)
	if err != nil {
		return nil, fmt.Errorf("cannot open the directory of pods: %w", err)
	}
	if err := unix.Flock(int(f.Fd()), how); err != nil {
		f.Close()
		return nil, fmt.Errorf("cannot lock %s: %w", base, err)
	}
	return f, nil
}

func (d podDir) fill(owner dirOwner) (*os.File, error) {
	raw, err := json.Marshal(owner)
	if err != nil {
		return nil, err
	}
	lock, err := os.OpenFile(d.owner(), os.O_CREATE|os.O_EXCL|os.O_RDWR, 0o600)
	if err != nil {
		return nil, err
	}
	_, err = lock.Write(raw)
	err = errors.Join(err, unix.Flock(int(lock.Fd()), unix.LOCK_EX), os.Mkdir(d.logs(), 0o755), os.Mkdir(d.volumes(), 0o711))
	if err != nil {
		lock.Close()
		return nil, err
	}
	return lock, nil
}

// remove unmounts and deletes all of it. A nil error means it is gone, whoever removed it. A directory that is not of this
// pod is left alone, with an error.
func (d podDir) remove() error {
	if _, err := os.Lstat(d.Path); errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err := d.checkOwner(); err != nil {
		return fmt.Errorf("cannot remove %s: %w", d.Path, err)
	}
	if err := d.unmount(); err != nil {
		return fmt.Errorf("cannot remove %s: %w", d.Path, err)
	}
	if err := d.nothingMounted(); err != nil {
		return fmt.Errorf("cannot remove %s: %w", d.Path, err)
	}
	// The proof of ownership goes last, so that an interrupted removal can be taken up again.
	list, err := entries(d.Path)
	if err != nil {
		return fmt.Errorf("cannot remove the pod's directory: %w", err)
	}
	for _, path := range list {
		if path != d.owner() {
			err = errors.Join(err, os.RemoveAll(path))
		}
	}
	if err != nil {
		return fmt.Errorf("cannot remove the pod's directory: %w", err)
	}
	return os.RemoveAll(d.Path)
}

// nothingMounted guards what is not the pod's from its removal: a privileged container may have mounted a disk in a volume with
// mountPropagation Bidirectional, and it stays when the container has gone.
func (d podDir) nothingMounted() error {
	path, err := filepath.EvalSymlinks(d.Path)
	if err != nil {
		return err
	}
	left, err := mountinfo.GetMounts(mountinfo.PrefixFilter(path))
	if err != nil {
		return fmt.Errorf("cannot tell whether anything is mounted in it: %w", err)
	}
	if len(left) > 0 {
		return fmt.Errorf("%s (%s) is still mounted in it: unmount that first", left[0].Mountpoint, left[0].Source)
	}
	return nil
}

func (d podDir) checkOwner() error {
	info, err := os.Lstat(d.Path)
	if err != nil {
		return err
	}
	if !info.IsDir() {
		return errors.New("it is not a directory")
	}
	raw, err := os.ReadFile(d.owner())
	if err != nil {
		return fmt.Errorf("it was not made by evenkeel run: %w", err)
	}
	var owner dirOwner
	if err := json.Unmarshal(raw, &owner); err != nil || owner.UID != filepath.Base(d.Path) {
		return errors.New("it belongs to another pod")
	}
	return nil
}

// unmount takes the memory-backed volumes and the bound sub paths down. Only what is mounted directly on one of their places
// is ours.
func (d podDir) unmount() error {
	places, err := d.places()
	failed := []error{err}
	for _, place := range places {
		failed = append(failed, unmountAll(place))
	}
	return errors.Join(failed...)
}

// places are where `run` mounts: on sub paths, which may lie in a volume, and on volumes.
func (d podDir) places() (list []string, err error) {
	containers, err := entries(d.subPaths())
	for _, container := range containers {
		mounts, failed := entries(container)
		list, err = append(list, mounts...), errors.Join(err, failed)
	}
	volumes, failed := entries(d.volumes())
	return append(list, volumes...), errors.Join(err, failed)
}

// entries are the paths of what is in a directory; one that does not exist is empty.
func entries(dir string) (paths []string, err error) {
	list, err := os.ReadDir(dir)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	for _, e := range list {
		paths = append(paths, filepath.Join(dir, e.Name()))
	}
	return paths, err
}

// unmountAll takes down what is mounted on a path, also if it is there more than once. The flag keeps a symbolic link, which a
// container cannot put there but a person can, from being followed.
func unmountAll(path string) error {
	for {
		switch err := unix.Unmount(path, unix.UMOUNT_NOFOLLOW|unix.MNT_DETACH); err {
		case nil:
		case unix.EINVAL, unix.ENOENT: // EINVAL: not a mount point
			return nil
		default:
			return fmt.Errorf("cannot unmount %s: %w", path, err)
		}
	}
}

// sweepPodDirs removes directories below base whose pod does not exist: `run` was killed before its pod began or after it was
// gone. Directories that a running `run` holds are left alone.
func sweepPodDirs(base string, uids func() (map[string]bool, error)) error {
	lock, err := lockBase(base, unix.LOCK_EX)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	defer lock.Close()
	orphans, err := orphanDirs(base, uids)
	for _, d := range orphans {
		err = errors.Join(err, d.remove())
	}
	return err
}

// orphanDirs lists them. The pods are asked for last: a pod whose `run` has ended by then is in the answer.
func orphanDirs(base string, uids func() (map[string]bool, error)) (list []podDir, err error) {
	entries, err := os.ReadDir(base)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("cannot look for directories of gone pods: %w", err)
	}
	for _, e := range entries {
		d := podDir{filepath.Join(base, e.Name())}
		if d.checkOwner() == nil && !d.locked() {
			list = append(list, d)
		}
	}
	if list == nil {
		return nil, nil
	}
	live, err := uids()
	return slices.DeleteFunc(list, func(d podDir) bool { return err != nil || live[filepath.Base(d.Path)] }), err
}

func (d podDir) locked() bool {
	f, err := os.Open(d.owner())
	if err != nil {
		return !errors.Is(err, fs.ErrNotExist)
	}
	defer f.Close()
	return unix.Flock(int(f.Fd()), unix.LOCK_SH|unix.LOCK_NB) != nil
}
