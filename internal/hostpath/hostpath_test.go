package hostpath

import (
	"context"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// The test binary plays the helper, as the shim does in the engine.
func TestMain(m *testing.M) {
	if len(os.Args) > 1 && os.Args[1] == Mode {
		switch os.Args[2] {
		case "hang":
			time.Sleep(time.Hour)
		case "chatter":
			os.Stdout.Write(make([]byte, 2*answerLimit))
			os.Exit(0)
		}
		if err := Help(os.Args[2:], os.Stdout); err != nil {
			os.Exit(1)
		}
		os.Exit(0)
	}
	os.Exit(m.Run())
}

func finder(t *testing.T) *Finder {
	self, err := os.Executable()
	must(t, err)
	return &Finder{Helper: self}
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func TestHelperAndCacheAgree(t *testing.T) {
	dir := t.TempDir()
	must(t, os.Mkdir(filepath.Join(dir, "real"), 0o755))
	must(t, os.WriteFile(filepath.Join(dir, "real", "file"), nil, 0o644))
	must(t, os.Symlink("real", filepath.Join(dir, "link")))
	must(t, unix.Mkfifo(filepath.Join(dir, "fifo"), 0o644)) // must not be opened for reading
	for _, test := range []struct {
		path, real string
		dir        bool
	}{
		{dir, dir, true},
		{dir + "/link", dir + "/real", true},
		{dir + "/link/file", dir + "/real/file", false},
		{dir + "/link/../fifo", dir + "/fifo", false},
		{"/dev/null", "/dev/null", false},
		{"/proc/self/../sys/kernel", "/proc/sys/kernel", true},
	} {
		asked, err := resolve(test.path)
		must(t, err)
		if asked.Real != test.real || asked.Dir != test.dir {
			t.Errorf("helper: %s is %+v", test.path, asked)
		}
		known, ok := cached(test.path)
		if ok && known != asked {
			t.Errorf("%s: the cache says %+v, the helper %+v", test.path, known, asked)
		}
		if !ok {
			t.Logf("%s is not in the caches here", test.path)
		}
	}
	if m, err := resolve("/proc/self/mountinfo"); err != nil || m.Mount.Type != "proc" || m.Mount.Point != "/proc" {
		t.Errorf("mount: %+v, %v", m, err)
	}
}

// An answer that is too long is an error, and no storage that does not answer.
func TestAnswerThatIsTooLong(t *testing.T) {
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	err := finder(t).ask(ctx, &Path{}, "/dev", "chatter", "/dev")
	if err == nil || errors.Is(err, ErrSilent) || !strings.Contains(err.Error(), "longer than") {
		t.Errorf("got %v", err)
	}
}

// What a pod uses all the time must not cost a process each time.
func TestOrdinaryPathsNeedNoHelper(t *testing.T) {
	dir := t.TempDir()
	f := &Finder{Helper: "/nonexistent"}
	for _, path := range []string{dir, "/dev/null", "/proc", "/sys"} {
		if _, err := f.Resolve(t.Context(), path); err != nil {
			t.Errorf("%s: %v (kernels before 6.8 always need the helper)", path, err)
		}
	}
}

func TestMake(t *testing.T) {
	dir, f := t.TempDir(), finder(t)
	p, err := f.Make(t.Context(), filepath.Join(dir, "a/b"))
	if err != nil || !p.Dir || p.Real != filepath.Join(dir, "a/b") {
		t.Fatalf("%+v, %v", p, err)
	}
	if info, err := os.Stat(p.Real); err != nil || info.Mode().Perm() != 0o755 {
		t.Errorf("%v, %v", info, err)
	}
	must(t, os.WriteFile(filepath.Join(dir, "file"), nil, 0o644))
	if p, err := f.Make(t.Context(), filepath.Join(dir, "file")); err != nil || p.Dir {
		t.Errorf("file: %+v, %v", p, err)
	}
	must(t, os.Symlink("nowhere", filepath.Join(dir, "dangling")))
	for _, path := range []string{"dangling", "file/below"} {
		if _, err := f.Make(t.Context(), filepath.Join(dir, path)); err == nil {
			t.Errorf("%s: made", path)
		}
	}
	if _, err := f.Resolve(t.Context(), filepath.Join(dir, "missing")); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("missing: %v", err)
	}
	if _, err := f.Resolve(t.Context(), "relative"); err == nil {
		t.Error("a relative path has no meaning here")
	}
}

func TestDevices(t *testing.T) {
	for _, path := range []string{"/dev/null", "/dev"} {
		nodes, err := finder(t).Devices(t.Context(), path)
		must(t, err)
		null := slices.IndexFunc(nodes, func(n Node) bool { return n.Path == "/dev/null" })
		if null < 0 || nodes[null].Kind != "c" || nodes[null].Major != 1 || nodes[null].Minor != 3 {
			t.Errorf("%s: %+v", path, nodes)
		}
	}
}

// The kernel keeps this attribute also where SELinux is off.
func TestRelabel(t *testing.T) {
	const label = "system_u:object_r:container_file_t:s0:c1,c2"
	dir := t.TempDir()
	must(t, os.MkdirAll(filepath.Join(dir, "a/b"), 0o755))
	must(t, os.Symlink("/etc/passwd", filepath.Join(dir, "a/link")))
	must(t, finder(t).Relabel(t.Context(), dir, label))
	for _, name := range []string{"", "a", "a/b", "a/link"} {
		buf := make([]byte, 100)
		n, err := unix.Lgetxattr(filepath.Join(dir, name), labelAttribute, buf)
		if err != nil || string(buf[:n]) != label {
			t.Errorf("%q: %q, %v", name, buf[:max(n, 0)], err)
		}
	}
	if _, err := unix.Lgetxattr("/etc/passwd", labelAttribute, nil); !errors.Is(err, unix.ENODATA) {
		t.Errorf("a link was followed: %v", err)
	}
}

// Two that ask the same share a process; it is killed when its owner loses patience, and whoever still waits asks anew.
func TestSilence(t *testing.T) {
	f := finder(t)
	ask := func(limit time.Duration) error {
		ctx, stop := context.WithTimeout(t.Context(), limit)
		defer stop()
		return f.ask(ctx, &Path{}, "/proc/x", "hang")
	}
	long := make(chan error)
	start := time.Now()
	go func() { long <- ask(50 * time.Millisecond) }()
	go func() { long <- ask(400 * time.Millisecond) }()
	for range 2 {
		if err := <-long; !errors.Is(err, ErrSilent) || !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("%v", err)
		}
	}
	if took := time.Since(start); took < 350*time.Millisecond || took > 3*time.Second {
		t.Errorf("took %s", took)
	}
	for deadline := time.Now().Add(time.Minute); ; time.Sleep(time.Millisecond) {
		f.mu.Lock()
		n := len(f.running)
		f.mu.Unlock()
		if n == 0 {
			break
		}
		if time.Now().After(deadline) {
			t.Fatalf("%d helpers are left", n)
		}
	}
}

func TestParseMount(t *testing.T) {
	m, id, ok := parseMount(`36 35 98:0 /mnt1 /mnt\0402 rw,noatime shared:7 master:1 - fuse.sshfs host:/ rw`)
	if want := (Mount{"/mnt 2", "fuse.sshfs", true, true}); !ok || id != "36" || m != want {
		t.Errorf("%+v %s %v", m, id, ok)
	}
	if m, _, _ := parseMount(`36 35 98:0 / / rw - ext4 /dev/root rw`); m != (Mount{"/", "ext4", false, false}) {
		t.Errorf("%+v", m)
	}
}

func BenchmarkCached(b *testing.B) {
	for b.Loop() {
		cached("/var/lib")
	}
}
