package image

import (
	"archive/tar"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/evenkeel/evenkeel/image/layer"
)

// rootfsOf makes one layer per argument, lowest first; each is a list of files "name=content".
func rootfsOf(t testing.TB, base string, layers ...[]string) Rootfs {
	t.Helper()
	var list []Layer
	for i, files := range layers {
		dir := filepath.Join(base, fmt.Sprint("layer", i))
		mustDo(t, os.MkdirAll(dir, 0o755))
		for _, file := range files {
			name, content, _ := strings.Cut(file, "=")
			mustDo(t, os.MkdirAll(filepath.Dir(filepath.Join(dir, name)), 0o755))
			mustDo(t, os.WriteFile(filepath.Join(dir, name), []byte(content), 0o644))
		}
		list = append(list, Layer{Dir: dir})
	}
	target := filepath.Join(base, "run", "rootfs")
	t.Cleanup(func() {
		if err := Unmount(target); err != nil {
			t.Error(err)
		}
	})
	return Rootfs{Layers: list, Upper: filepath.Join(base, "container", "upper"), Work: filepath.Join(base, "container", "work"), Target: target}
}

func mustDo(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func wantFiles(t *testing.T, root string, want map[string]string) {
	t.Helper()
	for name, content := range want {
		if got, err := os.ReadFile(filepath.Join(root, name)); err != nil || string(got) != content {
			t.Errorf("%s holds %q (%v), want %q", name, got, err, content)
		}
	}
}

func wantMounted(t *testing.T, path string, want bool) {
	t.Helper()
	if got, err := isMountPoint(path); err != nil || got != want {
		t.Errorf("%s mounted: %v, %v, want %v", path, got, err, want)
	}
}

func TestRootfs(t *testing.T) {
	r := rootfsOf(t, t.TempDir(), []string{"a=lowest", "b=lowest", "c=lowest"}, []string{"b=middle", "c=middle"}, []string{"c=top"})
	mustDo(t, unix.Mknod(filepath.Join(r.Layers[2].Dir, "a"), unix.S_IFCHR, 0)) // a whiteout
	for range 2 {
		mustDo(t, r.Mount(t.Context()))
	}
	wantFiles(t, r.Target, map[string]string{"b": "middle", "c": "top"})
	if _, err := os.Lstat(filepath.Join(r.Target, "a")); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("the hidden file is seen: %v", err)
	}
	if info, err := os.Stat(r.Target); err != nil || info.Mode().Perm() != 0o755 {
		t.Errorf("the root directory is %v, %v, want mode 0755", info.Mode(), err)
	}
	mustDo(t, os.WriteFile(filepath.Join(r.Target, "c"), []byte("written"), 0o600))
	wantFiles(t, r.Layers[2].Dir, map[string]string{"c": "top"})

	for range 2 {
		mustDo(t, Unmount(r.Target))
		wantMounted(t, r.Target, false)
	}
	mustDo(t, r.Mount(t.Context())) // what was written is kept
	wantFiles(t, r.Target, map[string]string{"b": "middle", "c": "written"})
}

func TestRootfsOfFewLayers(t *testing.T) {
	for _, layers := range [][][]string{{}, {{"a=1"}}, {{}}} {
		t.Run(fmt.Sprint(layers), func(t *testing.T) {
			r := rootfsOf(t, t.TempDir(), layers...)
			mustDo(t, r.Mount(t.Context()))
			mustDo(t, os.WriteFile(filepath.Join(r.Target, "new"), []byte("n"), 0o600))
			wantFiles(t, r.Upper, map[string]string{"new": "n"})
		})
	}
}

// TestRootfsOfAsManyLayersAsTheKernelTakes mounts them in every way, with a writable layer and without, and shows that one more
// is the kernel's to refuse.
func TestRootfsOfAsManyLayersAsTheKernelTakes(t *testing.T) {
	base, err := os.MkdirTemp("/var/lib", "ektest-layers-") // on disk, for the mapped; everybody may enter
	mustDo(t, err)
	t.Cleanup(func() { os.RemoveAll(base) })
	mustDo(t, os.Chmod(base, 0o711))
	var layers [][]string
	for i := range maxLayers {
		layers = append(layers, []string{fmt.Sprintf("f%d=%d", i, i)})
	}
	writable := rootfsOf(t, base, layers...)
	readOnly := writable
	readOnly.Upper, readOnly.Work = "", ""
	mapped := writable
	mapped.Upper, mapped.Work, mapped.IDMap = filepath.Join(base, "mapped", "upper"), filepath.Join(base, "mapped", "work"), userNamespace(t)
	with := func(mount func(Rootfs, []string) error) func(*testing.T, Rootfs) error {
		return func(t *testing.T, r Rootfs) error {
			lower, err := r.prepare()
			mustDo(t, err)
			return mount(r, lower)
		}
	}
	whole := func(t *testing.T, r Rootfs) error { return r.Mount(t.Context()) }
	for name, c := range map[string]struct {
		rootfs Rootfs
		mount  func(*testing.T, Rootfs) error
	}{
		"writable": {writable, whole}, "read-only": {readOnly, whole}, "mapped": {mapped, whole},
		"writable, mount(2)": {writable, with(Rootfs.mountOld)}, "read-only, mount(2)": {readOnly, with(Rootfs.mountOld)},
	} {
		t.Run(name, func(t *testing.T) {
			mustDo(t, c.mount(t, c.rootfs))
			wantFiles(t, c.rootfs.Target, map[string]string{"f0": "0", fmt.Sprint("f", maxLayers-1): fmt.Sprint(maxLayers - 1)})
			mustDo(t, Unmount(c.rootfs.Target))
		})
	}
	for name, r := range map[string]Rootfs{"writable": writable, "read-only": readOnly} {
		lower, err := r.prepare()
		mustDo(t, err)
		more := filepath.Join(base, "one more")
		mustDo(t, makeDir(more, 0o755))
		if err := r.mountOld(append(lower, more)); err == nil {
			t.Errorf("%s: the kernel takes more than %d layers", name, maxLayers)
			mustDo(t, Unmount(r.Target))
		}
	}
}

// TestRootfsWithLayerTwice is an image that repeats a layer: A, B, A again. The upper A counts.
func TestRootfsWithLayerTwice(t *testing.T) {
	r := rootfsOf(t, t.TempDir(), []string{"x=A"}, []string{"x=B", "y=B"})
	r.Layers = append(r.Layers, r.Layers[0])
	mustDo(t, r.Mount(t.Context()))
	wantFiles(t, r.Target, map[string]string{"x": "A", "y": "B"})
}

// TestRootfsPaths mounts layers whose paths are hard to say in a mount option, in both ways of saying it.
func TestRootfsPaths(t *testing.T) {
	ways := map[string]func(Rootfs, []string) error{"new": Rootfs.mountNew, "old": Rootfs.mountOld}
	for name, part := range map[string]string{
		"plain": "plain", "colon": "sha256:00", "comma": "a,b", "backslash": `a\b\:c\,`, "space": "a b\n",
		"long": strings.Repeat("long/", 80) + "path",
	} {
		for way, mount := range ways {
			t.Run(name+"/"+way, func(t *testing.T) {
				layers := [][]string{}
				for i := range 120 {
					layers = append(layers, []string{fmt.Sprintf("%d=%d", i, i), fmt.Sprintf("same=%d", i)})
				}
				r := rootfsOf(t, filepath.Join(t.TempDir(), part), layers...)
				lower, err := r.prepare()
				mustDo(t, err)
				mustDo(t, mount(r, lower))
				wantFiles(t, r.Target, map[string]string{"0": "0", "77": "77", "119": "119", "same": "119"})
				mustDo(t, os.WriteFile(filepath.Join(r.Target, "new"), []byte("n"), 0o600))
				wantFiles(t, r.Upper, map[string]string{"new": "n"})
			})
		}
	}
}

// TestRootfsLabel: the label is one option, whatever is in it. A kernel without SELinux refuses it by name, in both ways of mounting.
func TestRootfsLabel(t *testing.T) {
	r := rootfsOf(t, t.TempDir(), []string{"a=1"})
	r.Label = "system_u:object_r:container_file_t:s0:c1,c2"
	const want = `lowerdir=/l,index=off,metacopy=off,upperdir=/u,workdir=/w,context="system_u:object_r:container_file_t:s0:c1,c2"`
	if got := r.options([]string{"/l"}, "/u", "/w"); got != want {
		t.Errorf("options are %s, want %s", got, want)
	}
	types, err := os.ReadFile("/proc/filesystems")
	mustDo(t, err)
	if strings.Contains(string(types), "selinuxfs") {
		t.Skip("this kernel has SELinux and takes labels; what they do there is TestSELinux of integration (make vm-test SUITE=TestSELinux VMFLAGS=-selinux)")
	}
	lower, err := r.prepare()
	mustDo(t, err)
	if err := r.mountNew(lower); !errors.Is(err, unix.EINVAL) || !strings.Contains(err.Error(), "context="+r.Label) {
		t.Errorf("new way: %v", err)
	}
	if err := r.mountOld(lower); !errors.Is(err, unix.EINVAL) {
		t.Errorf("old way: %v", err)
	}
	if err := (Volume{Label: r.Label}).Mount(t.Context(), r.Target); !errors.Is(err, unix.EINVAL) {
		t.Errorf("empty volume: %v", err)
	}
	wantMounted(t, r.Target, false)
}

func TestRootfsFailures(t *testing.T) {
	r := rootfsOf(t, t.TempDir(), []string{"a=1"})
	gone := r
	gone.Layers = []Layer{{Dir: filepath.Join(r.Layers[0].Dir, "gone")}, r.Layers[0]}
	if err := gone.Mount(t.Context()); !errors.Is(err, os.ErrNotExist) || !strings.Contains(err.Error(), gone.Layers[0].Dir) {
		t.Errorf("got %v, want an error that names the missing layer", err)
	}
	wantMounted(t, r.Target, false)
	file := r
	file.Layers = []Layer{{Dir: filepath.Join(r.Layers[0].Dir, "a")}}
	if err := file.Mount(t.Context()); err == nil || !strings.Contains(err.Error(), file.Layers[0].Dir+" is not a directory") {
		t.Errorf("got %v, want the kernel's own words about the path", err)
	}
	many := r
	for i := range maxLayers + 1 {
		many.Layers = append(many.Layers, Layer{Dir: fmt.Sprint("/nowhere/", i)})
	}
	if err := many.Mount(t.Context()); err == nil || !strings.Contains(err.Error(), "502 layers") {
		t.Errorf("got %v, want an error about the number of layers", err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if err := r.Mount(ctx); !errors.Is(err, context.Canceled) {
		t.Errorf("got %v, want context.Canceled", err)
	}
}

func TestUnmount(t *testing.T) {
	mustDo(t, Unmount(filepath.Join(t.TempDir(), "never", "there")))
	plain := filepath.Join(t.TempDir(), "plain")
	mustDo(t, os.Mkdir(plain, 0o700))
	mustDo(t, Unmount(plain))
	if _, err := os.Lstat(plain); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("the mount point is left: %v", err)
	}

	r := rootfsOf(t, t.TempDir(), []string{"a=1"})
	mustDo(t, r.Mount(t.Context()))
	busy, err := os.Open(filepath.Join(r.Target, "a"))
	mustDo(t, err)
	defer busy.Close()
	mustDo(t, unix.Mount(r.Target, r.Target, "", unix.MS_BIND, "")) // and another on top
	mustDo(t, Unmount(r.Target))
	wantMounted(t, r.Target, false)

	full := filepath.Join(t.TempDir(), "full")
	mustDo(t, os.MkdirAll(filepath.Join(full, "of things"), 0o700))
	if err := Unmount(full); err == nil || !strings.Contains(err.Error(), full) {
		t.Errorf("got %v, want an error with the path", err)
	}
}

func TestVolatileRootfs(t *testing.T) {
	r := rootfsOf(t, t.TempDir(), []string{"a=1"})
	r.Volatile = true
	for range 2 { // also with the mark of the first mount, as a killed daemon leaves it
		mustDo(t, r.Mount(t.Context()))
		mustDo(t, os.WriteFile(filepath.Join(r.Target, "new"), []byte("n"), 0o600))
		mustDo(t, Unmount(r.Target))
	}
	r.Volatile = false
	mustDo(t, r.Mount(t.Context()))
	wantFiles(t, r.Target, map[string]string{"a": "1", "new": "n"})
}

func BenchmarkRootfs(b *testing.B) {
	r := rootfsOf(b, b.TempDir(), []string{"a=1"}, []string{"b=1"}, []string{"c=1"}, []string{"d=1"})
	for _, r.Volatile = range []bool{false, true} {
		b.Run(fmt.Sprintf("volatile=%v", r.Volatile), func(b *testing.B) {
			for b.Loop() {
				mustDo(b, r.Mount(b.Context()))
				mustDo(b, Unmount(r.Target))
			}
		})
	}
}

// TestUnpackedLayersStack asks the kernel whether the whiteouts of unpacked layers mean what the stream said.
func TestUnpackedLayersStack(t *testing.T) {
	base := t.TempDir()
	r := rootfsOf(t, base)
	for i, entries := range [][]string{
		{"kept/", "kept/a", "gone", "gonedir/", "gonedir/a", "opaque/", "opaque/a", "again/", "again/a", "file", "dir/", "dir/a"},
		{".wh.gone", ".wh.gonedir", "opaque/", "opaque/.wh..wh..opq", "opaque/b", ".wh.again", "again/", "again/b", "kept/b", "file/", "file/a", "dir"},
	} {
		dir := filepath.Join(base, fmt.Sprint("unpacked", i))
		mustDo(t, os.Mkdir(dir, 0o755))
		var stream bytes.Buffer
		w := tar.NewWriter(&stream)
		for _, name := range entries {
			mustDo(t, w.WriteHeader(&tar.Header{Name: name, Mode: 0o755})) // a slash at the end makes a directory
		}
		mustDo(t, w.Close())
		_, err := layer.Unpack(t.Context(), dir, &stream, layer.Limits{})
		mustDo(t, err)
		r.Layers = append(r.Layers, Layer{Dir: dir})
	}
	mustDo(t, r.Mount(t.Context()))
	var got []string
	mustDo(t, filepath.WalkDir(r.Target, func(path string, entry fs.DirEntry, err error) error {
		name, _ := filepath.Rel(r.Target, path)
		if err == nil && entry.IsDir() {
			name += "/"
		}
		got = append(got, name)
		return err
	}))
	want := "./ again/ again/b dir file/ file/a kept/ kept/a kept/b opaque/ opaque/b"
	if strings.Join(got, " ") != want {
		t.Errorf("\n got %s\nwant %s", strings.Join(got, " "), want)
	}
}
