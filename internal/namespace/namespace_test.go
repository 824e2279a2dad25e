package namespace

import (
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

func pinDir(t testing.TB) string {
	t.Helper()
	dir := filepath.Join(t.TempDir(), "ns")
	t.Cleanup(func() {
		if err := Unpin(dir); err != nil {
			t.Error(err)
		}
	})
	return dir
}

// inside reads a file of /proc/sys from within the pinned namespaces, by a process of its own.
func inside(t *testing.T, dir string, args ...string) string {
	t.Helper()
	var nsenter []string
	for _, name := range []string{"net", "ipc", "uts"} {
		if pinned(filepath.Join(dir, name)) {
			nsenter = append(nsenter, "--"+name+"="+filepath.Join(dir, name))
		}
	}
	out, err := exec.Command("nsenter", append(append(nsenter, "--"), args...)...).CombinedOutput()
	if err != nil {
		t.Fatalf("nsenter %v: %v\n%s", args, err, out)
	}
	return strings.TrimSpace(string(out))
}

func mounts(t testing.TB, below string) int {
	t.Helper()
	info, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		t.Fatal(err)
	}
	return strings.Count(string(info), below+"/")
}

func TestPin(t *testing.T) {
	dir := pinDir(t)
	hostname, _ := os.Hostname()
	somaxconn, _ := os.ReadFile("/proc/sys/net/core/somaxconn")
	shmmni, _ := os.ReadFile("/proc/sys/kernel/shmmni")
	options := Options{Net: true, IPC: true, UTS: true, Hostname: "box-1", Sysctls: map[string]string{
		"net.core.somaxconn": "77", "net/ipv4/ip_unprivileged_port_start": "0",
		"kernel.shmmni": "99", "kernel.sem": "250 32000 100 200", "fs.mqueue.queues_max": "12",
	}}
	if err := Pin(t.Context(), dir, options); err != nil {
		t.Fatal(err)
	}
	for file, want := range map[string]string{
		"net/core/somaxconn": "77", "net/ipv4/ip_unprivileged_port_start": "0", "kernel/shmmni": "99",
		"kernel/sem": "250\t32000\t100\t200", "fs/mqueue/queues_max": "12", "kernel/hostname": "box-1",
	} {
		if got := inside(t, dir, "cat", "/proc/sys/"+file); got != want {
			t.Errorf("%s is %q inside, want %q", file, got, want)
		}
	}
	if got := inside(t, dir, "cat", "/sys/class/net/lo/flags", "/proc/net/dev"); !strings.Contains(got, "lo:") {
		t.Errorf("no loopback inside: %s", got)
	}
	if now, _ := os.Hostname(); now != hostname {
		t.Errorf("the host's own name became %q", now)
	}
	if now, _ := os.ReadFile("/proc/sys/net/core/somaxconn"); string(now) != string(somaxconn) {
		t.Errorf("the host's own net.core.somaxconn became %q", now)
	}
	if now, _ := os.ReadFile("/proc/sys/kernel/shmmni"); string(now) != string(shmmni) {
		t.Errorf("the host's own kernel.shmmni became %q", now)
	}
	if n := mounts(t, dir); n != 3 {
		t.Errorf("%d mounts, want 3", n)
	}
}

func TestPinKeepsWhatIsPinned(t *testing.T) {
	dir := pinDir(t)
	if err := Pin(t.Context(), dir, Options{Net: true}); err != nil {
		t.Fatal(err)
	}
	before, _ := os.Stat(filepath.Join(dir, "net"))
	if err := os.WriteFile(filepath.Join(dir, "uts"), nil, 0o600); err != nil { // as a crash before the mount leaves it
		t.Fatal(err)
	}
	for range 2 {
		if err := Pin(t.Context(), dir, Options{Net: true, UTS: true, Hostname: "x"}); err != nil {
			t.Fatal(err)
		}
	}
	after, _ := os.Stat(filepath.Join(dir, "net"))
	if !os.SameFile(before, after) {
		t.Error("the network namespace was replaced")
	}
	if n := mounts(t, dir); n != 2 {
		t.Errorf("%d mounts, want 2", n)
	}
}

func TestPinFailsWithoutTrace(t *testing.T) {
	dir := pinDir(t)
	err := Pin(t.Context(), dir, Options{Net: true, IPC: true, Sysctls: map[string]string{"net.no.such": "1"}})
	if !errors.Is(err, ErrSysctl) || !strings.Contains(err.Error(), `sysctls["net.no.such"]`) {
		t.Errorf("got %v, want ErrSysctl with the field", err)
	}
	if _, err := os.Stat(dir); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("the directory is left: %v", err)
	}
	if err := Pin(t.Context(), dir, Options{IPC: true}); err != nil {
		t.Fatal(err)
	}
	if err := os.Mkdir(filepath.Join(dir, "uts"), 0o700); err != nil { // nothing can be pinned on a directory
		t.Fatal(err)
	}
	if err := Pin(t.Context(), dir, Options{Net: true, IPC: true, UTS: true}); err == nil {
		t.Error("pinned on a directory")
	}
	if pinned(filepath.Join(dir, "net")) || !pinned(filepath.Join(dir, "ipc")) {
		t.Error("want what was pinned before, and that alone")
	}
}

func TestSysctlsRefused(t *testing.T) {
	all := Options{Net: true, IPC: true, UTS: true}
	for _, c := range []struct {
		key     string
		options Options
		says    string
	}{
		{"net.ipv4.ip_forward", Options{IPC: true}, "the pod uses the host's"},
		{"kernel.msgmax", Options{Net: true}, "the pod uses the host's"},
		{"kernel.hostname", all, "host name"},
		{"kernel.domainname", all, "host name"},
		{"vm.swappiness", all, "whole machine"},
		{"kernel.pid_max", all, "whole machine"},
		{"net", all, "whole machine"},
		{"net/../vm/swappiness", all, "no name"},
		{"net/ipv4/../../vm", all, "no name"},
		{"/net/core/somaxconn", all, "no name"},
		{"net..core", all, "no name"},
		{"", all, "no name"},
		{"net.core.somaxconn\x00", all, "no name"},
	} {
		c.options.Sysctls = map[string]string{c.key: "1"}
		err := Pin(t.Context(), filepath.Join(t.TempDir(), "ns"), c.options)
		if !errors.Is(err, ErrSysctl) || !strings.Contains(err.Error(), c.says) || !strings.Contains(err.Error(), fmt.Sprintf("sysctls[%q]", c.key)) {
			t.Errorf("%q: %v, want it to name the field and say %q", c.key, err, c.says)
		}
	}
}

func TestSysctlPath(t *testing.T) {
	for key, want := range map[string]string{
		"net.core.somaxconn":                 "net/core/somaxconn",
		"net/core/somaxconn":                 "net/core/somaxconn",
		"net.ipv4.conf.eth0/100.forwarding":  "net/ipv4/conf/eth0.100/forwarding",
		"net/ipv4/conf/eth0.100/forwarding":  "net/ipv4/conf/eth0.100/forwarding",
		"net.ipv4.conf.all.accept_redirects": "net/ipv4/conf/all/accept_redirects",
	} {
		if got, err := sysctlPath(key); err != nil || got != want {
			t.Errorf("%s: %q, %v, want %q", key, got, err, want)
		}
	}
}

func TestUnpin(t *testing.T) {
	dir := pinDir(t)
	if err := Unpin(dir); err != nil {
		t.Errorf("nothing there: %v", err)
	}
	if err := Pin(t.Context(), dir, Options{Net: true, IPC: true, UTS: true}); err != nil {
		t.Fatal(err)
	}
	open, err := os.Open(filepath.Join(dir, "net")) // busy
	if err != nil {
		t.Fatal(err)
	}
	defer open.Close()
	if err := unix.Mount(filepath.Join(dir, "ipc"), filepath.Join(dir, "ipc"), "", unix.MS_BIND, ""); err != nil { // twice
		t.Fatal(err)
	}
	if err := unpin(filepath.Join(dir, "uts")); err != nil { // partly gone
		t.Fatal(err)
	}
	for range 2 {
		if err := Unpin(dir); err != nil {
			t.Fatal(err)
		}
	}
	if n := mounts(t, dir); n != 0 {
		t.Errorf("%d mounts are left", n)
	}
	if _, err := os.Stat(dir); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("the directory is left: %v", err)
	}
}

func TestPinPID(t *testing.T) {
	dir := pinDir(t)
	start := func() *exec.Cmd {
		cmd := exec.Command("sleep", "60")
		cmd.SysProcAttr = &unix.SysProcAttr{Cloneflags: unix.CLONE_NEWPID}
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { cmd.Process.Kill(); cmd.Wait() })
		return cmd
	}
	for _, cmd := range []*exec.Cmd{start(), start()} { // the second takes the first's place
		for range 2 {
			if err := PinPID(dir, cmd.Process.Pid); err != nil {
				t.Fatal(err)
			}
		}
		want, _ := os.Stat(fmt.Sprintf("/proc/%d/ns/pid", cmd.Process.Pid))
		if got, _ := os.Stat(filepath.Join(dir, "pid")); !os.SameFile(want, got) {
			t.Error("another namespace is pinned")
		}
		if n := mounts(t, dir); n != 1 {
			t.Errorf("%d mounts, want 1", n)
		}
	}
	if err := PinPID(dir, 1<<30); err == nil {
		t.Error("pinned the namespace of a process that does not exist")
	}
}

func TestInNet(t *testing.T) {
	dir := pinDir(t)
	if err := Pin(t.Context(), dir, Options{Net: true}); err != nil {
		t.Fatal(err)
	}
	var address string
	err := InNet(filepath.Join(dir, "net"), func() error {
		links, err := net.Interfaces()
		if err != nil || len(links) == 0 || links[0].Name != "lo" || links[0].Flags&net.FlagUp == 0 {
			return fmt.Errorf("interfaces %v, %v, want loopback, up", links, err)
		}
		listener, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			return err
		}
		defer listener.Close()
		address = listener.Addr().String()
		connection, err := net.Dial("tcp", address)
		if err == nil {
			connection.Close()
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := net.DialTimeout("tcp", address, time.Second); err == nil {
		t.Error("the listener was on the host's loopback")
	}
	want := errors.New("wrong")
	if err := InNet(filepath.Join(dir, "net"), func() error { return want }); !errors.Is(err, want) {
		t.Errorf("got %v, want f's own error", err)
	}
	if err := InNet(filepath.Join(dir, "gone"), func() error { return nil }); !errors.Is(err, os.ErrNotExist) || !strings.Contains(err.Error(), dir) {
		t.Errorf("got %v, want an error with the path", err)
	}
}

// TestThreadsStayAtHome makes many namespaces at once and looks whether any thread of this process kept one.
func TestThreadsStayAtHome(t *testing.T) {
	home, err := os.Readlink("/proc/self/ns/net")
	if err != nil {
		t.Fatal(err)
	}
	var group sync.WaitGroup
	for range 50 {
		dir := pinDir(t)
		group.Go(func() {
			if err := Pin(t.Context(), dir, Options{Net: true, IPC: true, UTS: true}); err != nil {
				t.Error(err)
			}
			if err := InNet(filepath.Join(dir, "net"), func() error { return nil }); err != nil {
				t.Error(err)
			}
		})
	}
	group.Wait()
	for end := time.Now().Add(time.Minute); ; time.Sleep(10 * time.Millisecond) { // a thread takes a moment to end
		strays := 0
		tasks, _ := filepath.Glob("/proc/self/task/*/ns/net")
		for _, task := range tasks {
			if ns, err := os.Readlink(task); err == nil && ns != home {
				strays++
			}
		}
		if strays == 0 {
			break
		}
		if time.Now().After(end) {
			t.Fatalf("%d threads are in a pod's network namespace", strays)
		}
	}
	if now, _ := os.Readlink("/proc/self/ns/net"); now != home {
		t.Errorf("the process moved from %s to %s", home, now)
	}
}

func BenchmarkPin(b *testing.B) {
	base := b.TempDir()
	for i := range b.N {
		dir := filepath.Join(base, fmt.Sprint(i))
		if err := Pin(b.Context(), dir, Options{Net: true, IPC: true, UTS: true, Hostname: "h"}); err != nil {
			b.Fatal(err)
		}
		b.StopTimer()
		if err := Unpin(dir); err != nil {
			b.Fatal(err)
		}
		b.StartTimer()
	}
}
