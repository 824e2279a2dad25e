package namespace

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"
)

var someIDs = IDs{Host: 70000, Length: 5000}

// ownerOf returns the inode of the user namespace that owns the namespace pinned at path (ioctl_ns(2)).
func ownerOf(t *testing.T, path string) uint64 {
	t.Helper()
	fd, err := unix.Open(path, unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(fd)
	owner, err := unix.IoctlRetInt(fd, unix.NS_GET_USERNS)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(owner)
	var st unix.Stat_t
	if err := unix.Fstat(owner, &st); err != nil {
		t.Fatal(err)
	}
	return st.Ino
}

func inode(t *testing.T, path string) uint64 {
	t.Helper()
	var st unix.Stat_t
	if err := unix.Stat(path, &st); err != nil {
		t.Fatal(err)
	}
	return st.Ino
}

// asPod runs a command as root of the pinned user namespace, in the other pinned namespaces.
func asPod(t *testing.T, dir string, args ...string) string {
	t.Helper()
	enter := []string{"--user=" + filepath.Join(dir, "user"), "--setuid=0", "--setgid=0"}
	for _, name := range []string{"net", "ipc", "uts"} {
		if pinned(filepath.Join(dir, name)) {
			enter = append(enter, "--"+name+"="+filepath.Join(dir, name))
		}
	}
	out, err := exec.Command("nsenter", append(append(enter, "--"), args...)...).CombinedOutput()
	if err != nil {
		t.Fatalf("nsenter %v: %v\n%s", args, err, out)
	}
	return strings.TrimSpace(string(out))
}

func children(t *testing.T) string {
	t.Helper()
	var all strings.Builder
	lists, _ := filepath.Glob("/proc/self/task/*/children")
	for _, list := range lists {
		data, _ := os.ReadFile(list)
		all.Write(data)
	}
	return all.String()
}

func TestPinInUserNamespace(t *testing.T) {
	dir := pinDir(t)
	err := Pin(t.Context(), dir, Options{Net: true, IPC: true, UTS: true, User: &someIDs, Hostname: "inside", Sysctls: map[string]string{
		"net.core.somaxconn": "77", "net.ipv4.ip_unprivileged_port_start": "0", "kernel.shmmni": "99", "kernel.sem": "250 32000 100 200", "fs.mqueue.queues_max": "12",
	}})
	if err != nil {
		t.Fatal(err)
	}
	user := inode(t, filepath.Join(dir, "user"))
	for _, name := range []string{"net", "ipc", "uts"} {
		if ownerOf(t, filepath.Join(dir, name)) != user {
			t.Errorf("the %s namespace is not owned by the pod's user namespace", name)
		}
	}
	for _, file := range []string{"uid_map", "gid_map"} {
		if got := strings.Fields(asPod(t, dir, "cat", "/proc/self/"+file)); fmt.Sprint(got) != "[0 70000 5000]" {
			t.Errorf("%s is %v", file, got)
		}
	}
	if got := asPod(t, dir, "cat", "/proc/self/setgroups"); got != "allow" {
		t.Errorf("setgroups is %q; a container could not have supplementary groups", got)
	}
	for file, want := range map[string]string{
		"net/core/somaxconn": "77", "kernel/shmmni": "99", "kernel/sem": "250\t32000\t100\t200", "fs/mqueue/queues_max": "12", "kernel/hostname": "inside",
	} {
		if got := inside(t, dir, "cat", "/proc/sys/"+file); got != want {
			t.Errorf("%s is %q inside, want %q", file, got, want)
		}
	}
	if got := asPod(t, dir, "unshare", "--mount", "sh", "-c", "mount -t mqueue queues /tmp && stat -c %u:%g /tmp"); got != "0:0" {
		t.Errorf("the message queues belong to %s inside", got)
	}
	if got := asPod(t, dir, "ip", "link", "show", "lo"); !strings.Contains(got, "UP") {
		t.Errorf("loopback is not up: %s", got)
	}
	asPod(t, dir, "ip", "link", "set", "lo", "mtu", "1400") // root inside is root of the network
	if n := mounts(t, dir); n != 4 {
		t.Errorf("%d mounts, want 4", n)
	}
	if left := children(t); left != "" {
		t.Errorf("children are left: %s", left)
	}
	if euid := unix.Geteuid(); euid != 0 {
		t.Errorf("the process is user %d now", euid)
	}
}

func TestPinMakesOwnedNamespacesTogether(t *testing.T) {
	dir := pinDir(t)
	options := Options{Net: true, User: &someIDs}
	if err := Pin(t.Context(), dir, options); err != nil {
		t.Fatal(err)
	}
	before := inode(t, filepath.Join(dir, "user"))
	if err := Pin(t.Context(), dir, options); err != nil || inode(t, filepath.Join(dir, "user")) != before {
		t.Errorf("a whole set was replaced (%v)", err)
	}
	options.UTS = true
	if err := Pin(t.Context(), dir, options); err != nil {
		t.Fatal(err)
	}
	user := inode(t, filepath.Join(dir, "user"))
	for _, name := range []string{"net", "uts"} {
		if ownerOf(t, filepath.Join(dir, name)) != user {
			t.Errorf("the %s namespace is not owned by the user namespace pinned beside it", name)
		}
	}
}

func TestPinInUserNamespaceFailsWithoutTrace(t *testing.T) {
	for name, options := range map[string]Options{
		"no such sysctl": {Net: true, User: &someIDs, Sysctls: map[string]string{"net.no.such": "1"}},
		"bad value":      {IPC: true, User: &someIDs, Sysctls: map[string]string{"kernel.shmmni": "many"}},
		"no ids":         {Net: true, User: &IDs{Host: 70000}},
	} {
		t.Run(name, func(t *testing.T) {
			dir := pinDir(t)
			if err := Pin(t.Context(), dir, options); err == nil {
				t.Fatal("pinned")
			}
			if _, err := os.Stat(dir); !os.IsNotExist(err) {
				t.Errorf("the directory is left: %v", err)
			}
			if left := children(t); left != "" {
				t.Errorf("children are left: %s", left)
			}
		})
	}
}

func TestPinProcess(t *testing.T) {
	dir := pinDir(t)
	process, err := os.StartProcess("/bin/sleep", []string{"sleep", "60"}, &os.ProcAttr{
		Sys: someIDs.Attributes(syscall.CLONE_NEWNET | syscall.CLONE_NEWUTS | syscall.CLONE_NEWPID),
	})
	if err != nil {
		t.Fatal(err)
	}
	defer process.Wait()
	defer process.Kill()
	if err := PinProcess(dir, process.Pid, Options{Net: true, UTS: true, User: &someIDs, Hostname: "adopted"}); err != nil {
		t.Fatal(err)
	}
	if err := PinPID(dir, process.Pid); err != nil {
		t.Fatal(err)
	}
	if got := asPod(t, dir, "hostname"); got != "adopted" {
		t.Errorf("host name %q", got)
	}
	if inode(t, filepath.Join(dir, "pid")) != inode(t, fmt.Sprintf("/proc/%d/ns/pid", process.Pid)) || ownerOf(t, filepath.Join(dir, "pid")) != inode(t, filepath.Join(dir, "user")) {
		t.Error("the PID namespace is another one, or belongs to another user namespace")
	}
}

func BenchmarkPinInUserNamespace(b *testing.B) {
	for b.Loop() {
		dir := filepath.Join(b.TempDir(), "ns")
		if err := Pin(b.Context(), dir, Options{Net: true, IPC: true, UTS: true, User: &someIDs}); err != nil {
			b.Fatal(err)
		}
		if err := Unpin(dir); err != nil {
			b.Fatal(err)
		}
	}
}
