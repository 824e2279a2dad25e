package projectquota

import (
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"testing"

	"golang.org/x/sys/unix"
)

// counting returns a directory whose file system counts projects: that of the machine, or one of our own on a loop
// device. A kernel without CONFIG_QFMT_V2 can have neither on ext4.
func counting(t *testing.T) string {
	t.Helper()
	if _, _, err := Usage("/var/lib", 0); err == nil {
		dir, err := os.MkdirTemp("/var/lib", "ektest-project-")
		must(t, err)
		t.Cleanup(func() { os.RemoveAll(dir) })
		return dir
	}
	dir, image := t.TempDir(), filepath.Join(t.TempDir(), "disk")
	must(t, os.WriteFile(image, nil, 0o600))
	must(t, os.Truncate(image, 64<<20))
	out, err := exec.Command("mkfs.ext4", "-q", "-F", "-O", "project,quota", "-E", "quotatype=prjquota", image).CombinedOutput()
	if err != nil {
		t.Skipf("no file system with project quota here, since mkfs.ext4 (package e2fsprogs) cannot make one: %v: %s", err, out)
	}
	if out, err := exec.Command("mount", "-o", "loop,prjquota", image, dir).CombinedOutput(); err != nil {
		t.Skipf("no file system with project quota here, since the kernel does not mount one (CONFIG_QFMT_V2): %s", out)
	}
	t.Cleanup(func() { unix.Unmount(dir, unix.MNT_DETACH) })
	return dir
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

const project = 0xe7654321

func TestCount(t *testing.T) {
	dir := counting(t)
	must(t, Probe(dir, project))
	if left, _ := os.ReadDir(dir); len(left) > 1 { // lost+found
		t.Errorf("the probe left %v", left)
	}
	tree := filepath.Join(dir, "tree")
	must(t, os.Mkdir(tree, 0o755))
	must(t, Assign(tree, project))
	must(t, os.MkdirAll(filepath.Join(tree, "a/b"), 0o755))
	must(t, os.WriteFile(filepath.Join(tree, "a/b/file"), make([]byte, 1<<20), 0o644))
	must(t, os.WriteFile(filepath.Join(dir, "other"), make([]byte, 1<<20), 0o644))
	bytes, inodes, err := Usage(dir, project)
	if err != nil || inodes != 4 || bytes < 1<<20 || bytes > 1<<20+64<<10 {
		t.Errorf("%d bytes and %d inodes, %v", bytes, inodes, err)
	}
	// What was copied up or made elsewhere cannot be smuggled in, nor out.
	if err := os.Rename(filepath.Join(dir, "other"), filepath.Join(tree, "other")); !errors.Is(err, unix.EXDEV) {
		t.Errorf("a file was moved into the project: %v", err)
	}
	must(t, os.RemoveAll(tree))
	if bytes, inodes, err := Usage(dir, project); err != nil || bytes != 0 || inodes != 0 {
		t.Errorf("%d bytes and %d inodes are left, %v", bytes, inodes, err)
	}
}

func TestFileSystemsWithoutBooks(t *testing.T) {
	for _, dir := range []string{"/proc", "/sys", "/dev/shm"} {
		if err := Probe(dir, project); !errors.Is(err, errors.ErrUnsupported) {
			t.Errorf("%s: %v", dir, err)
		}
	}
}

func TestReserved(t *testing.T) {
	file := filepath.Join(t.TempDir(), "projects")
	must(t, os.WriteFile(file, []byte("# a note\n1048577:/var/lib/kubelet/pods/x\n7:/srv\nbroken\n99999999999:/too/large\n"), 0o644))
	taken := reservedIn(file)
	if len(taken) != 2 || !taken[1048577] || !taken[7] {
		t.Errorf("%v", taken)
	}
	if taken := reservedIn(file + "-missing"); len(taken) != 0 {
		t.Errorf("%v", taken)
	}
}
