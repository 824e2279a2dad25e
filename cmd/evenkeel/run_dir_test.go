package main

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"
	v1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"
)

func needRoot(t *testing.T) {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Fatal("this test mounts and changes owners: run it as root (sudo make test)")
	}
}

func makePodDir(t *testing.T, base, uid string) (podDir, *os.File) {
	t.Helper()
	d := podDir{filepath.Join(base, uid)}
	lock, err := d.create(dirOwner{uid, "default/" + uid})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { lock.Close(); d.unmount() })
	return d, lock
}

func gone(path string) bool {
	_, err := os.Lstat(path)
	return errors.Is(err, fs.ErrNotExist)
}

func TestVolumesComeAndGoWithTheirPod(t *testing.T) {
	needRoot(t)
	base := t.TempDir()
	host := filepath.Join(base, "host")
	group, limit, made := int64(2345), resource.MustParse("1Mi"), v1.HostPathDirectoryOrCreate
	pod := &v1.Pod{Spec: v1.PodSpec{
		SecurityContext: &v1.PodSecurityContext{FSGroup: &group},
		Volumes: []v1.Volume{
			{Name: "disk", VolumeSource: v1.VolumeSource{EmptyDir: &v1.EmptyDirVolumeSource{}}},
			{Name: "memory", VolumeSource: v1.VolumeSource{EmptyDir: &v1.EmptyDirVolumeSource{Medium: v1.StorageMediumMemory, SizeLimit: &limit}}},
			{Name: "host", VolumeSource: v1.VolumeSource{HostPath: &v1.HostPathVolumeSource{Path: host, Type: &made}}},
		},
		Containers: []v1.Container{{Name: "c", VolumeMounts: []v1.VolumeMount{{Name: "disk", SubPath: "a/b"}, {Name: "host", SubPath: "c"}}}},
	}}
	d, _ := makePodDir(t, base, "uid")
	if err := errors.Join(prepareVolumes(pod, d), bindSubPaths(pod, &pod.Spec.Containers[0], d)); err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"disk", "memory"} {
		info, err := os.Stat(d.volume(name))
		if err != nil {
			t.Fatal(err)
		}
		if info.Mode() != fs.ModeDir|fs.ModeSetgid|0o777 || info.Sys().(*syscall.Stat_t).Gid != uint32(group) {
			t.Errorf("volume %s has mode %v, group %d", name, info.Mode(), info.Sys().(*syscall.Stat_t).Gid)
		}
	}
	var s unix.Statfs_t
	if err := unix.Statfs(d.volume("memory"), &s); err != nil || s.Type != unix.TMPFS_MAGIC || s.Blocks*uint64(s.Bsize) != 1<<20 {
		t.Errorf("the memory volume is not a tmpfs of 1 MiB: %v, type %x, %d bytes", err, s.Type, s.Blocks*uint64(s.Bsize))
	}
	if err := d.remove(); err != nil {
		t.Fatal(err)
	}
	if err := d.remove(); err != nil {
		t.Errorf("removing what is gone: %v", err)
	}
	if !gone(d.Path) || !gone(d.volume("memory")) {
		t.Error("the directory is still there")
	}
	if gone(filepath.Join(host, "c")) {
		t.Error("the host path is gone, too")
	}
}

func TestHostPathTypes(t *testing.T) {
	dir := t.TempDir()
	file := filepath.Join(dir, "file")
	if err := os.WriteFile(file, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		kind v1.HostPathType
		path string
		ok   bool
	}{
		{v1.HostPathUnset, "/nowhere", true},
		{v1.HostPathDirectory, dir, true},
		{v1.HostPathDirectory, file, false},
		{v1.HostPathDirectory, "/nowhere", false},
		{v1.HostPathDirectoryOrCreate, filepath.Join(dir, "x/y"), true},
		{v1.HostPathDirectoryOrCreate, file, false},
		{v1.HostPathFile, file, true},
		{v1.HostPathFile, dir, false},
		{v1.HostPathFileOrCreate, filepath.Join(dir, "new"), true},
		{v1.HostPathFileOrCreate, dir, false},
		{v1.HostPathCharDev, "/dev/null", true},
		{v1.HostPathSocket, "/dev/null", false},
		{"Hologram", dir, false},
	} {
		err := prepareHostPath(&v1.HostPathVolumeSource{Path: c.path, Type: &c.kind})
		if (err == nil) != c.ok {
			t.Errorf("%s %s: %v", c.kind, c.path, err)
		}
	}
}

func withSubPath(volume, sub string) *v1.Container {
	return &v1.Container{Name: "c", VolumeMounts: []v1.VolumeMount{{Name: "other"}, {Name: volume, SubPath: sub}}}
}

// TestSubPathsAreThoseOfTheStart: an init container makes a file, which must not be a directory by then, or a symbolic link.
func TestSubPathsAreThoseOfTheStart(t *testing.T) {
	needRoot(t)
	d, _ := makePodDir(t, t.TempDir(), "uid")
	pod := &v1.Pod{Spec: v1.PodSpec{SecurityContext: &v1.PodSecurityContext{}, Volumes: []v1.Volume{{Name: "v", VolumeSource: v1.VolumeSource{EmptyDir: &v1.EmptyDirVolumeSource{}}}}}}
	if err := prepareVolumes(pod, d); err != nil {
		t.Fatal(err)
	}
	write(t, filepath.Join(d.volume("v"), "file"), "made by init")
	bound := d.subPath("c", 1)
	for range 2 { // the container starts again
		if err := bindSubPaths(pod, withSubPath("v", "file"), d); err != nil {
			t.Fatal(err)
		}
		if text, err := os.ReadFile(bound); err != nil || string(text) != "made by init" {
			t.Fatalf("the sub path holds %q: %v", text, err)
		}
	}
	if err := bindSubPaths(pod, withSubPath("v", "new/directory"), d); err != nil {
		t.Fatal(err)
	}
	if source := mounts(pod, withSubPath("v", "new/directory"), d)[1].HostPath; source != bound {
		t.Errorf("the engine is told %s, bound is %s", source, bound)
	}
	// Who changes the volume now does not change what is mounted.
	if err := os.Rename(d.volume("v")+"/new", d.volume("v")+"/old"); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink("/", d.volume("v")+"/new"); err != nil {
		t.Fatal(err)
	}
	write(t, filepath.Join(bound, "mark"), "")
	if gone(d.volume("v") + "/old/directory/mark") {
		t.Error("the bound sub path is another directory than was there")
	}
	if err := bindSubPaths(pod, withSubPath("v", "new/etc"), d); err == nil {
		t.Error("a symbolic link led out of the volume")
	}
	if err := d.remove(); err != nil || !gone(d.Path) {
		t.Errorf("the directory stays: %v", err)
	}
}

// TestMountsInVolumesAreNotDeleted: what somebody else mounted in a volume is not the pod's.
func TestMountsInVolumesAreNotDeleted(t *testing.T) {
	needRoot(t)
	disk := t.TempDir()
	write(t, filepath.Join(disk, "precious"), "")
	d, _ := makePodDir(t, t.TempDir(), "uid")
	at := filepath.Join(d.volume("v"), "disk")
	if err := os.MkdirAll(at, 0o755); err != nil {
		t.Fatal(err)
	}
	if err := unix.Mount(disk, at, "", unix.MS_BIND, ""); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { unix.Unmount(at, unix.MNT_DETACH) })
	if err := d.remove(); err == nil || !strings.Contains(err.Error(), at) || gone(filepath.Join(disk, "precious")) {
		t.Errorf("removal went on (%v), precious is gone: %v", err, gone(filepath.Join(disk, "precious")))
	}
	if err := unix.Unmount(at, 0); err != nil {
		t.Fatal(err)
	}
	if err := d.remove(); err != nil || !gone(d.Path) {
		t.Errorf("the directory stays: %v", err)
	}
}

// TestForeignDirectoriesAreLeftAlone: an annotation is written by whoever may create pods, so it proves nothing.
func TestForeignDirectoriesAreLeftAlone(t *testing.T) {
	base := t.TempDir()
	foreign := podDir{filepath.Join(base, "foreign")}
	if err := os.Mkdir(foreign.Path, 0o755); err != nil {
		t.Fatal(err)
	}
	if foreign.remove() == nil || gone(foreign.Path) {
		t.Error("a directory without an owner was removed")
	}
	d, _ := makePodDir(t, base, "uid")
	moved := podDir{filepath.Join(base, "other")}
	if err := os.Rename(d.Path, moved.Path); err != nil {
		t.Fatal(err)
	}
	if moved.remove() == nil || gone(moved.Path) {
		t.Error("a directory of another pod was removed")
	}
	link := podDir{filepath.Join(base, "uid")}
	if err := os.Symlink(moved.Path, link.Path); err != nil {
		t.Fatal(err)
	}
	if link.remove() == nil || gone(moved.Path) {
		t.Error("a symbolic link was followed")
	}
	for _, c := range []struct {
		uid, path string
		found     bool
	}{
		{"uid", "/base/uid", true}, {"uid", "/etc", false}, {"uid", "", false}, {"", "/base", false}, {"uid", "/base/other/uid", false},
		{"uid", "/volume/of/a/pod/uid", false}, {"..", "/base/..", false}, {"a/b", "/base/a/b", false}, {"uid", "/base/x/../uid", false},
	} {
		p := &cri.PodSandbox{Metadata: &cri.PodSandboxMetadata{Uid: c.uid}, Annotations: map[string]string{directoryAnnotation: c.path}}
		if _, found := podDirOf(p, "/base"); found != c.found {
			t.Errorf("%q is the directory of pod %q: %v", c.path, c.uid, found)
		}
	}
}

func TestSweep(t *testing.T) {
	base := t.TempDir()
	held, _ := makePodDir(t, base, "held")
	live, lock := makePodDir(t, base, "live")
	lock.Close()
	dead, lock := makePodDir(t, base, "dead")
	lock.Close()
	uids := func() (map[string]bool, error) { return map[string]bool{"live": true}, nil }
	if err := sweepPodDirs(base, uids); err != nil {
		t.Fatal(err)
	}
	if gone(held.Path) || gone(live.Path) || !gone(dead.Path) {
		t.Errorf("held gone: %v, live gone: %v, dead gone: %v", gone(held.Path), gone(live.Path), gone(dead.Path))
	}
	// Who cannot ask must not remove.
	if err := sweepPodDirs(base, func() (map[string]bool, error) { return nil, fs.ErrPermission }); gone(live.Path) {
		t.Errorf("a live pod's directory was removed: %v", err)
	}
	if err := sweepPodDirs(filepath.Join(base, "none"), uids); err != nil {
		t.Error(err)
	}
}

func TestStopOrder(t *testing.T) {
	container := func(id, pod, sidecar string, state cri.ContainerState) *cri.Container {
		return &cri.Container{Id: id, PodSandboxId: pod, State: state, Annotations: map[string]string{sidecarAnnotation: sidecar}}
	}
	running, exited := cri.ContainerState_CONTAINER_RUNNING, cri.ContainerState_CONTAINER_EXITED
	waves := stopOrder([]*cri.Container{
		container("s1", "p", "1", running), container("a", "p", "", running), container("s3", "p", "3", running),
		container("b", "p", "", cri.ContainerState_CONTAINER_UNKNOWN), container("done", "p", "", exited), container("x", "other", "", running),
	}, "p")
	var got [][]string
	for _, wave := range waves {
		var ids []string
		for _, c := range wave {
			ids = append(ids, c.Id)
		}
		got = append(got, ids)
	}
	want := [][]string{{"a", "b"}, {"s3"}, {"s1"}}
	if !slices.EqualFunc(got, want, slices.Equal) {
		t.Errorf("waves %v, want %v", got, want)
	}
}
