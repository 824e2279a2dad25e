package image

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/evenkeel/evenkeel/internal/namespace"
)

const mappedRoot, mappedLength = 70000, 5000

func userNamespace(t testing.TB) *IDMap {
	t.Helper()
	dir := filepath.Join(t.TempDir(), "ns")
	mustDo(t, namespace.Pin(t.Context(), dir, namespace.Options{User: &namespace.IDs{Host: mappedRoot, Length: mappedLength}}))
	t.Cleanup(func() {
		if err := namespace.Unpin(dir); err != nil {
			t.Error(err)
		}
	})
	return &IDMap{UserNS: filepath.Join(dir, "user"), UID: mappedRoot, GID: mappedRoot}
}

// inUserNamespace runs a shell script there, as its root, with target as the working directory.
func inUserNamespace(t *testing.T, m *IDMap, target, script string) string {
	t.Helper()
	out, err := exec.Command("nsenter", "--user="+m.UserNS, "--setuid=0", "--setgid=0", "--wd="+target, "sh", "-ec", script).CombinedOutput()
	if err != nil {
		t.Fatalf("%s: %v\n%s", script, err, out)
	}
	return strings.TrimSpace(string(out))
}

func wantOwner(t *testing.T, path string, uid, gid uint32) {
	t.Helper()
	var st unix.Stat_t
	mustDo(t, unix.Lstat(path, &st))
	if st.Uid != uid || st.Gid != gid {
		t.Errorf("%s belongs to %d:%d, want %d:%d", path, st.Uid, st.Gid, uid, gid)
	}
}

func TestRootfsOfUserNamespace(t *testing.T) {
	for name, mount := range map[string]func(Rootfs) error{
		"detached layers": func(r Rootfs) error { return r.Mount(context.Background()) },
		"layers attached in a mount namespace of their own": func(r Rootfs) error {
			lower, err := r.prepare()
			if err != nil {
				return err
			}
			overlay, err := r.overlayElsewhere(lower)
			if err != nil {
				return err
			}
			defer unix.Close(overlay)
			return r.attach(overlay)
		},
	} {
		t.Run(name, func(t *testing.T) { rootfsOfUserNamespace(t, mount) })
	}
}

func rootfsOfUserNamespace(t *testing.T, mount func(Rootfs) error) {
	base, err := os.MkdirTemp("/var/lib", "ektest-idmap-") // on disk; everybody may enter
	mustDo(t, err)
	t.Cleanup(func() { os.RemoveAll(base) })
	mustDo(t, os.Chmod(base, 0o711))
	r := rootfsOf(t, base, []string{"etc/passwd=root", "home/file=old"}, []string{"top=1"})
	mustDo(t, os.Chown(filepath.Join(r.Layers[0].Dir, "home"), 1000, 1001))
	mustDo(t, os.Chown(filepath.Join(r.Layers[0].Dir, "home/file"), 1000, 1001))
	mustDo(t, os.MkdirAll(filepath.Dir(r.Target), 0o711))
	before := mountsBelow(t, base)
	r.IDMap, r.Volatile = userNamespace(t), true
	mustDo(t, mount(r))
	if n := mountsBelow(t, base); n != before+1 {
		t.Errorf("%d mounts more than before, want 1", n-before)
	}

	// Seen from outside, everything belongs to the pod's range; seen from inside, to whom the image says.
	wantOwner(t, r.Target, mappedRoot, mappedRoot)
	wantOwner(t, filepath.Join(r.Target, "etc/passwd"), mappedRoot, mappedRoot)
	wantOwner(t, filepath.Join(r.Target, "home/file"), mappedRoot+1000, mappedRoot+1001)
	if got := inUserNamespace(t, r.IDMap, r.Target, "stat -c %u:%g . etc/passwd home/file"); got != "0:0\n0:0\n1000:1001" {
		t.Errorf("inside: %q", got)
	}
	inUserNamespace(t, r.IDMap, r.Target, "echo new >> home/file; echo mine > made; chown 5:6 made; mkdir d; rm top; chmod u+s etc/passwd")
	wantFiles(t, r.Target, map[string]string{"home/file": "oldnew\n", "made": "mine\n"})

	// On disk: copied and new files have the pod's ids, the layer is as it was.
	wantOwner(t, filepath.Join(r.Upper, "home/file"), mappedRoot+1000, mappedRoot+1001)
	wantOwner(t, filepath.Join(r.Upper, "made"), mappedRoot+5, mappedRoot+6)
	wantOwner(t, filepath.Join(r.Upper, "etc/passwd"), mappedRoot, mappedRoot)
	wantOwner(t, filepath.Join(r.Layers[0].Dir, "etc/passwd"), 0, 0)
	wantFiles(t, r.Layers[0].Dir, map[string]string{"home/file": "old"})
	if info, err := os.Stat(filepath.Join(r.Layers[0].Dir, "etc/passwd")); err != nil || info.Mode()&os.ModeSetuid != 0 {
		t.Errorf("the layer was changed: %v %v", info.Mode(), err)
	}
}

func mountsBelow(t *testing.T, dir string) int {
	t.Helper()
	info, err := os.ReadFile("/proc/self/mountinfo")
	mustDo(t, err)
	return strings.Count(string(info), " "+dir+"/")
}

// procfs cannot map owners; an overlay could not be stacked on it either, so the error must come from the mapping.
func TestRootfsOfUserNamespaceNeedsMappableLayers(t *testing.T) {
	r := rootfsOf(t, t.TempDir())
	r.Layers, r.IDMap = []Layer{{Dir: "/proc/self/task"}}, userNamespace(t)
	err := r.Mount(t.Context())
	if !errors.Is(err, ErrNoIDMap) || !strings.Contains(fmt.Sprint(err), "/proc/self/task") {
		t.Errorf("got %v, want ErrNoIDMap with the path", err)
	}
	wantMounted(t, r.Target, false)
}

func TestProbeIDMap(t *testing.T) {
	ids := *userNamespace(t)
	dir := t.TempDir()
	mustDo(t, ProbeIDMap(dir, ids))
	if left, _ := os.ReadDir(dir); len(left) > 0 {
		t.Errorf("the probe left %v", left)
	}
	small := filepath.Join(dir, "tmpfs")
	mountTmpfs(t, small, "1m")
	mustDo(t, ProbeIDMap(small, ids))
}

func BenchmarkRootfsOfUserNamespace(b *testing.B) {
	r := rootfsOf(b, b.TempDir(), []string{"a=1"}, []string{"b=2"}, []string{"c=3"}, []string{"d=4"}, []string{"e=5"})
	r.IDMap, r.Volatile = userNamespace(b), true
	for b.Loop() {
		mustDo(b, r.Mount(b.Context()))
		mustDo(b, Unmount(r.Target))
	}
}
