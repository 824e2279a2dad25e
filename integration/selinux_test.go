package integration

import (
	"errors"
	"fmt"
	"os"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/evenkeel/evenkeel/integration/engine"
)

// TestSELinuxOptionsWithoutSELinux: clusters ask for labels whatever the node has. Where SELinux is off, or its policy knows no
// containers, nothing gets one. Where it is on: TestSELinux, here and in oci.
func TestSELinuxOptionsWithoutSELinux(t *testing.T) {
	if _, err := os.Stat("/sys/fs/selinux/context"); err == nil {
		t.Skip("SELinux is on; TestSELinux")
	}
	n := start(t, "builtin")
	options := &cri.SELinuxOption{User: "system_u", Role: "system_r", Type: "container_t", Level: "s0:c1,c2"}
	cfg := n.Pod("labelled")
	cfg.Linux.SecurityContext.SelinuxOptions = options
	volume := t.TempDir()
	c := engine.Sleeper("main", busybox)
	c.Linux.SecurityContext.SelinuxOptions = options
	c.Mounts = []*cri.Mount{{HostPath: volume, ContainerPath: "/volume", SelinuxRelabel: true}}
	id := n.run(n.runPod(cfg), cfg, c)
	if got := n.output(id, "sh", "-c", "echo yes > /volume/written; cat /volume/written"); strings.TrimSpace(got) != "yes" {
		t.Errorf("the volume says %q", got)
	}
	buf := make([]byte, 100)
	if size, err := unix.Lgetxattr(volume, "security.selinux", buf); !errors.Is(err, unix.ENODATA) {
		t.Errorf("the volume has the label %q (%v)", buf[:max(0, size)], err)
	}
}

// needSELinux skips, with the reason, where no policy with the containers' types is enforced.
func needSELinux(t *testing.T) {
	t.Helper()
	data, err := os.ReadFile("/sys/fs/selinux/enforce")
	if err != nil || strings.TrimSpace(string(data)) != "1" {
		t.Skip("SELinux is not enforced (/sys/fs/selinux/enforce); make vm-test SUITE=TestSELinux VMFLAGS=-selinux")
	}
}

const tryAll = `for f in "$@"; do (echo yes >> $f) 2>/dev/null && echo "$f written" || echo "$f refused"; done`

// TestSELinux: what a container gets is labelled so that the policy lets it work, and what others have is not for it.
func TestSELinux(t *testing.T) {
	needSELinux(t)
	n := start(t, "builtin")
	asked, plain := t.TempDir(), t.TempDir()
	must(t, os.WriteFile(asked+"/file", nil, 0o666))
	must(t, os.WriteFile(plain+"/file", nil, 0o666))
	mounts := []*cri.Mount{
		{HostPath: asked, ContainerPath: "/asked", SelinuxRelabel: true}, {HostPath: plain, ContainerPath: "/plain"},
		{ContainerPath: "/image", Image: &cri.ImageSpec{Image: busybox}, Readonly: true},
	}
	const level = "s0:c1,c2"
	id := n.confined("first", level, mounts)
	got := n.output(id, "sh", "-c", tryAll, "sh", "/file", "/tmp/file", "/dev/shm/file", "/etc/hosts", "/etc/resolv.conf", "/etc/hostname", "/asked/file", "/plain/file")
	want := "/file written\n/tmp/file written\n/dev/shm/file written\n/etc/hosts written\n/etc/resolv.conf written\n/etc/hostname written\n/asked/file written\n/plain/file refused\n"
	if got != want {
		t.Errorf("at %s:\n%swant\n%s", level, got, want)
	}
	if got := n.output(id, "/image/bin/busybox", "cat", "/proc/self/attr/current"); strings.Trim(got, "\x00\n") != "system_u:system_r:container_t:"+level {
		t.Errorf("a program of the image volume runs as %q", got)
	}
	for _, file := range []string{"/", "/bin/busybox", "/file", "/dev", "/dev/shm", "/dev/shm/file", "/etc/hosts", "/etc/resolv.conf", "/etc/hostname", "/asked", "/asked/file", "/image/bin/busybox"} {
		if got := n.label(id, file); got != "system_u:object_r:container_file_t:"+level {
			t.Errorf("%s has label %q", file, got)
		}
	}
	if got := n.label(id, "/plain/file"); strings.Contains(got, "container_file_t") {
		t.Errorf("a volume that was not asked to be labelled has label %q", got)
	}
	mounts[0].SelinuxRelabel = false
	other := n.confined("other", "s0:c3", mounts)
	if got := n.output(other, "sh", "-c", tryAll, "sh", "/file", "/etc/hosts", "/asked/file"); got != "/file written\n/etc/hosts written\n/asked/file refused\n" {
		t.Errorf("at s0:c3:\n%s", got)
	}
	n.privilegedKeepsTheEnginesLabel()
	n.usernsIsLabelled(level)
}

// confined runs a pod of one container at a level.
func (n *node) confined(name, level string, mounts []*cri.Mount) string {
	n.t.Helper()
	cfg := n.Pod(name)
	cfg.Linux.SecurityContext.SelinuxOptions = &cri.SELinuxOption{Level: level}
	c := engine.Sleeper("main", busybox)
	c.Mounts = mounts
	return n.run(n.runPod(cfg), cfg, c)
}

func (n *node) privilegedKeepsTheEnginesLabel() {
	n.t.Helper()
	cfg := n.Pod("privileged")
	cfg.Linux.SecurityContext.Privileged = true
	c := engine.Sleeper("main", busybox)
	c.Linux.SecurityContext.Privileged = true
	id := n.run(n.runPod(cfg), cfg, c)
	own, err := os.ReadFile("/proc/self/attr/current")
	must(n.t, err)
	if got := n.output(id, "cat", "/proc/self/attr/current"); strings.Trim(got, "\x00\n") != strings.Trim(string(own), "\x00\n") {
		n.t.Errorf("a privileged container runs as %q, the engine as %q", got, own)
	}
}

// usernsIsLabelled: the kernel takes fewer labels from a user namespace (security/selinux/hooks.c, selinux_set_mnt_opts).
func (n *node) usernsIsLabelled(level string) {
	n.t.Helper()
	cfg := n.usernsPod("mapped")
	cfg.Linux.SecurityContext.SelinuxOptions = &cri.SELinuxOption{Level: level}
	c := usernsContainer(cfg, "main", stay)
	c.Mounts = []*cri.Mount{{ContainerPath: "/image", Image: &cri.ImageSpec{Image: busybox}, Readonly: true, UidMappings: podMapping(), GidMappings: podMapping()}}
	id := n.run(n.runPod(cfg), cfg, c)
	const want = "/file written\n/dev/shm/file written\n/etc/hosts written\n"
	if got := n.output(id, "/image/bin/sh", "-c", tryAll, "sh", "/file", "/dev/shm/file", "/etc/hosts"); got != want {
		n.t.Errorf("in a user namespace:\n%s", got)
	}
	for _, file := range []string{"/", "/file", "/dev", "/dev/shm/file", "/etc/hosts", "/image/bin/sh"} {
		if got := n.label(id, file); got != "system_u:object_r:container_file_t:"+level {
			n.t.Errorf("%s in a user namespace has label %q", file, got)
		}
	}
}

// label of a file that a container sees, as the kernel has it.
func (n *node) label(id, file string) string {
	n.t.Helper()
	buf := make([]byte, 200)
	size, err := unix.Getxattr(fmt.Sprintf("/proc/%d/root%s", n.pid(id), file), "security.selinux", buf)
	if err != nil {
		n.t.Errorf("%s: %v", file, err)
		return ""
	}
	return strings.TrimRight(string(buf[:size]), "\x00")
}
