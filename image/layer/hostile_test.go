package layer

import (
	"archive/tar"
	"bytes"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// hostile is an archive that wants something it must not get.
type hostile struct {
	name  string
	items []item
	raw   func(data []byte) []byte // damages the finished archive
	lim   Limits
	err   error    // what Unpack must answer; nil: the archive is unpacked, harmlessly
	files []string // "name=content" that must be inside afterwards
}

func device(name string, kind byte, major, minor int64) item {
	return item{tar.Header{Typeflag: kind, Name: name, Mode: 0o600, Devmajor: major, Devminor: minor}, ""}
}

func owned(i item, uid, gid int) item {
	i.Uid, i.Gid = uid, gid
	return i
}

func repeat(n int, make func(i int) item) []item {
	items := []item{}
	for i := range n {
		items = append(items, make(i))
	}
	return items
}

// patched overwrites bytes of the first header and repairs its checksum.
func patched(offset int, text string) func([]byte) []byte {
	return func(data []byte) []byte {
		copy(data[offset:], text)
		return checksummed(data)
	}
}

// second applies damage to the second header, behind a file of up to 512 bytes.
func second(damage func([]byte) []byte) func([]byte) []byte {
	return func(data []byte) []byte { return append(data[:1024:1024], damage(data[1024:])...) }
}

func checksummed(data []byte) []byte {
	copy(data[148:156], "        ")
	sum := 0
	for _, b := range data[:512] {
		sum += int(b)
	}
	copy(data[148:156], fmt.Sprintf("%06o\x00 ", sum))
	return data
}

// Names that lead to the file outside, which each case gets beside its directory: ../outside/secret.
var hostiles = []hostile{
	{name: "dots", items: []item{file("../outside/secret", "x")}, err: ErrMalformed},
	{name: "dots behind a name", items: []item{file("a/../../outside/secret", "x")}, err: ErrMalformed},
	{name: "dots that stay inside", items: []item{file("a/../b", "x")}, files: []string{"b=x"}},
	{name: "dots alone", items: []item{file("..", "x")}, err: ErrMalformed},
	{name: "dots as directory", items: []item{directory("../outside")}, err: ErrMalformed},
	{name: "dots behind a slash", items: []item{file("/../outside/secret", "x")}, err: ErrMalformed},
	{name: "many dots", items: []item{file(strings.Repeat("../", 100)+"etc/passwd", "x")}, err: ErrMalformed},
	{name: "absolute name", items: []item{file("/etc/evenkeel-hostile", "x")}, files: []string{"etc/evenkeel-hostile=x"}},
	{name: "many slashes", items: []item{file("////etc//evenkeel-hostile", "x")}, files: []string{"etc/evenkeel-hostile=x"}},
	{name: "empty name", items: []item{file("", "x")}, err: ErrMalformed},
	{name: "root as file", items: []item{file(".", "x")}, err: ErrMalformed},
	{name: "root as symbolic link", items: []item{symlink("./", "/etc")}, err: ErrMalformed},
	{name: "root as hard link", items: []item{hardlink(".", "a")}, err: ErrMalformed},
	{name: "root as device", items: []item{device("/.", tar.TypeChar, 1, 3)}, err: ErrMalformed},

	{name: "symbolic link to outside, then through it", items: []item{symlink("l", "../outside"), file("l/secret", "x")}, files: []string{"outside/secret=x"}},
	{name: "absolute link, then through it", items: []item{symlink("l", "/"), file("l/etc/evenkeel-hostile", "x")}, files: []string{"etc/evenkeel-hostile=x"}},
	{name: "link to the root of the machine by proc", items: []item{symlink("l", "/proc/self/root"), file("l/etc/evenkeel-hostile", "x")}, files: []string{"proc/self/root/etc/evenkeel-hostile=x"}},
	{name: "link to a descriptor", items: []item{symlink("l", "/proc/self/fd/3"), file("l/f", "x")}, files: []string{"proc/self/fd/3/f=x"}},
	{name: "file over a link to outside", items: []item{symlink("l", "../outside/secret"), file("l", "x")}, files: []string{"l=x"}},
	{name: "directory over a link to outside", items: []item{symlink("l", "../outside"), directory("l"), file("l/secret", "x")}, files: []string{"l/secret=x"}},
	{name: "chain of links", items: []item{symlink("a", "b"), symlink("b", "c"), symlink("c", "../../outside"), file("a/secret", "x")}, files: []string{"outside/secret=x"}},
	{name: "link through a link", items: []item{directory("d"), symlink("d/up", ".."), symlink("d/up/out", "../outside"), file("out/secret", "x")}, files: []string{"outside/secret=x"}},
	{name: "link replaced between two entries", items: []item{directory("d"), file("d/a", "x"), symlink("d", "../outside"), file("d/secret", "x")}, files: []string{"outside/secret=x"}},
	{name: "directory replaced by a link while open", items: append([]item{directory("d"), file("d/secret", "own")}, symlink("d", "/"), file("d/secret", "x")), files: []string{"secret=x"}},
	{name: "loop of links", items: []item{symlink("a", "b"), symlink("b", "a"), file("a/f", "x")}, err: unix.ELOOP},
	{name: "link to itself", items: []item{symlink("a", "a"), file("a/f", "x")}, err: unix.ELOOP},
	{name: "link below itself", items: []item{symlink("a", "a/b"), file("a/f", "x")}, err: unix.ELOOP},
	{name: "endless dangling links", items: append(repeat(60, func(i int) item { return symlink(fmt.Sprint(i), fmt.Sprint(i+1)) }), file("0/f", "x")), err: unix.ELOOP},
	{name: "link without target", items: []item{symlink("l", "")}, err: unix.ENOENT},
	{name: "link with a target too long", items: []item{symlink("l", strings.Repeat("x", 5000))}, err: unix.ENAMETOOLONG},
	{name: "metadata through a link", items: []item{symlink("l", "../outside/secret"), owned(symlink("l", "../outside/secret"), 7, 7)}},
	{name: "directory times through a link", items: []item{directory("d/e"), symlink("d", "../outside")}},

	{name: "hard link to outside", items: []item{hardlink("l", "../outside/secret")}, err: ErrMalformed},
	{name: "hard link to an absolute name", items: []item{hardlink("l", "/etc/passwd")}, err: ErrMalformed},
	{name: "hard link through a link", items: []item{symlink("d", "../outside"), hardlink("l", "d/secret"), file("l", "x")}, err: ErrMalformed},
	{name: "hard link to a link to outside", items: []item{symlink("s", "../outside/secret"), hardlink("l", "s"), file("l", "x")}, files: []string{"l=x"}},
	{name: "hard link to a directory", items: []item{directory("d"), hardlink("l", "d")}, err: ErrMalformed},
	{name: "hard link to the root", items: []item{hardlink("l", ".")}, err: ErrMalformed},
	{name: "hard link to itself", items: []item{file("l", "x"), hardlink("l", "l")}, err: ErrMalformed},
	{name: "hard link to nothing", items: []item{hardlink("l", "nothing")}, err: ErrMalformed},
	{name: "hard link without target", items: []item{hardlink("l", "")}, err: ErrMalformed},
	{name: "hard link over its own target's directory", items: []item{directory("d"), file("d/f", "x"), hardlink("d", "d/f")}, err: ErrMalformed},

	{name: "whiteout of the root", items: []item{file(".wh.", "")}, err: ErrMalformed},
	{name: "whiteout of a dot", items: []item{file(".wh..", "")}, err: ErrMalformed},
	{name: "whiteout of two dots", items: []item{file("a/.wh...", "")}, err: ErrMalformed},
	{name: "whiteout of outside", items: []item{file("../outside/.wh.secret", "")}, err: ErrMalformed},
	{name: "whiteout through a link", items: []item{symlink("d", "../outside"), file("d/.wh.secret", "")}},
	{name: "whiteout as a directory", items: []item{file(".wh.d/f", "x")}, err: ErrMalformed},
	{name: "whiteout as a symbolic link", items: []item{symlink(".wh.f", "../outside/secret")}},
	{name: "opaque through a link", items: []item{symlink("d", "../outside"), file("d/.wh..wh..opq", "")}},
	{name: "opaque of outside", items: []item{file("../outside/.wh..wh..opq", "")}, err: ErrMalformed},
	{name: "opaque by attribute", items: []item{xattr(directory("d"), "trusted.overlay.opaque", "y")}, err: ErrMalformed},
	{name: "redirect by attribute", items: []item{xattr(directory("d"), "trusted.overlay.redirect", "/etc")}, err: ErrMalformed},
	{name: "metacopy by attribute", items: []item{xattr(file("f", ""), "trusted.overlay.metacopy", "")}, err: ErrMalformed},
	{name: "escaped overlay attribute", items: []item{xattr(file("f", ""), "trusted.overlay.overlay.opaque", "y")}, err: ErrMalformed},
	{name: "aufs bookkeeping with dots", items: []item{file(".wh..wh.plnk/../../outside/secret", "x")}, err: ErrMalformed},

	{name: "device number too long", items: []item{device("d", tar.TypeBlock, 1<<20, 0)}, err: ErrMalformed},
	{name: "minor number too long", items: []item{device("d", tar.TypeChar, 1, 1<<20)}, err: ErrMalformed},
	{name: "write into a device", items: []item{device("zero", tar.TypeChar, 1, 5), file("zero", "x")}, files: []string{"zero=x"}},
	{name: "write into a fifo", items: []item{device("pipe", tar.TypeFifo, 0, 0), file("pipe", "x")}, files: []string{"pipe=x"}},
	{name: "file below a device", items: []item{device("null", tar.TypeChar, 1, 3), file("null/f", "x")}, err: unix.ENOTDIR},
	{name: "file below a file", items: []item{file("f", ""), file("f/g", "x")}, err: unix.ENOTDIR},
	{name: "unknown type", items: []item{file("f", "")}, raw: patched(156, "Z"), err: ErrMalformed},

	{name: "huge size", items: []item{file("f", "")}, raw: patched(124, "77777777777\x00"), lim: Limits{Bytes: 1 << 20}, err: ErrLimit},
	{name: "huge binary size", items: []item{file("f", "")}, raw: patched(124, "\x80\x00\x00\x00\x7f\xff\xff\xff\xff\xff\xff\xff"), err: ErrLimit},
	{name: "sum of sizes beyond the largest number", items: []item{file("a", "x"), file("b", "")}, raw: second(patched(124, "\x80\x00\x00\x00\x7f\xff\xff\xff\xff\xff\xff\xff")), err: ErrLimit},
	{name: "negative size", items: []item{file("f", "")}, raw: patched(124, strings.Repeat("\xff", 12)), err: tar.ErrHeader},
	{name: "size beyond the end", items: []item{file("f", "x")}, raw: patched(124, "00000100000\x00"), err: io.ErrUnexpectedEOF},
	{name: "sum of sizes", items: repeat(20, func(i int) item { return file(fmt.Sprint(i), strings.Repeat("x", 1000)) }), lim: Limits{Bytes: 10_000}, err: ErrLimit},
	{name: "one file written again and again", items: repeat(20, func(i int) item { return file("f", strings.Repeat("x", 1000)) }), lim: Limits{Bytes: 10_000}, err: ErrLimit},
	{name: "endless padding", items: []item{file("f", "x")}, raw: func(d []byte) []byte { return append(d, make([]byte, 1<<20)...) }, lim: Limits{Bytes: 1 << 19}, err: ErrLimit},
	{name: "many entries", items: repeat(20, func(i int) item { return file("f", "") }), lim: Limits{Entries: 10}, err: ErrLimit},
	{name: "many ignored entries", items: repeat(20, func(i int) item { return file(".wh..wh.x", "") }), lim: Limits{Entries: 10}, err: ErrLimit},
	{name: "name too long", items: []item{file(strings.Repeat("d/", 3000)+"f", "")}, err: ErrLimit},
	{name: "element too long", items: []item{file(strings.Repeat("x", 300), "")}, err: unix.ENAMETOOLONG},
	{name: "deep", items: []item{file(strings.Repeat("d/", 1500)+"f", "x")}, files: []string{strings.Repeat("d/", 1500) + "f=x"}},
	{name: "deeper by a link", items: []item{directory(strings.Repeat("d/", 1500)), symlink("l", strings.Repeat("d/", 1500)), file("l/"+strings.Repeat("d/", 1500)+"f", "x")}, err: ErrLimit},
	{name: "attribute flood", items: []item{xattr(file("f", ""), "user.x", strings.Repeat("x", 200<<10))}, err: ErrLimit},
	{name: "attribute larger than the kernel's", items: []item{xattr(file("f", ""), "user.x", strings.Repeat("x", 70<<10))}, err: unix.E2BIG},
	{name: "attribute of no name space", items: []item{xattr(file("f", ""), "evil", "x")}, files: []string{"f="}},
	{name: "attribute on a link", items: []item{symlink("l", "../outside/secret"), xattr(symlink("l", "../outside/secret"), "user.x", "x")}},
	{name: "trusted attribute on a link", items: []item{xattr(symlink("l", "../outside/secret"), "trusted.x", "x")}},

	{name: "owner with all bits", items: []item{owned(file("f", ""), 1<<32-1, 0)}, err: ErrMalformed},
	{name: "group beyond the kernel's", items: []item{owned(file("f", ""), 0, 1<<32)}, err: ErrMalformed},
	{name: "negative owner", items: []item{file("f", "")}, raw: patched(108, strings.Repeat("\xff", 8)), err: ErrMalformed},
	{name: "names that differ in case", items: []item{file("Name", "1"), file("name", "2"), file("NAME", "3")}, files: []string{"Name=1", "name=2", "NAME=3"}},
	{name: "names that differ in Unicode form", items: []item{file("\u00e9", "1"), file("e\u0301", "2")}, files: []string{"\u00e9=1", "e\u0301=2"}},
	{name: "control characters", items: []item{file("a\nb\x1b[2J", "x")}, files: []string{"a\nb\x1b[2J=x"}},
	{name: "not a tar", raw: func([]byte) []byte { return bytes.Repeat([]byte("no tar at all. "), 100) }, err: tar.ErrHeader},
	{name: "damaged checksum", items: []item{file("f", "x")}, raw: func(d []byte) []byte { d[0]++; return d }, err: tar.ErrHeader},
	{name: "cut in a header", items: []item{file("f", "x")}, raw: func(d []byte) []byte { return d[:300] }, err: io.ErrUnexpectedEOF},
	{name: "cut in content", items: []item{file("f", strings.Repeat("x", 5000))}, raw: func(d []byte) []byte { return d[:2000] }, err: io.ErrUnexpectedEOF},
}

func TestHostile(t *testing.T) {
	for _, h := range hostiles {
		t.Run(h.name, func(t *testing.T) {
			dir, outside := arena(t)
			before := describeTree(t, outside)
			data := archive(t, h.items...)
			if h.raw != nil {
				data = h.raw(data)
			}
			_, err := Unpack(t.Context(), dir, bytes.NewReader(data), h.lim)
			if !errors.Is(err, h.err) {
				t.Errorf("got %v, want %v", err, h.err)
			}
			for _, file := range h.files {
				name, content, _ := strings.Cut(file, "=")
				wantInside(t, dir, name, content)
			}
			if after := describeTree(t, outside); !maps.Equal(before, after) {
				t.Errorf("the world outside changed:\n from %v\n to   %v", before, after)
			}
			if _, err := os.Lstat("/etc/evenkeel-hostile"); err == nil {
				t.Error("/etc was written to")
				os.Remove("/etc/evenkeel-hostile")
			}
		})
	}
	t.Logf("%d hostile archives", len(hostiles))
}

// TestNamesAreBoundedInMemory: where many names are kept they are short, and a map takes more for each than its bytes.
func TestNamesAreBoundedInMemory(t *testing.T) {
	dir, _ := arena(t)
	root, err := openTree(dir, DefaultLimits.NameLength)
	if err != nil {
		t.Fatal(err)
	}
	defer root.close()
	u := &unpacker{ctx: t.Context(), tree: root, limits: DefaultLimits, times: map[string]unix.Timespec{}}
	most := 0
	for i := range 550_000 {
		if err := u.setTimeLater(fmt.Sprintf("%07d", i), unix.Timespec{}); err != nil {
			t.Fatal(err)
		}
		most = max(most, len(u.times))
	}
	if most > maxTimesSize/perName {
		t.Errorf("%d directories' times were kept", most)
	}
	for i := 0; err == nil && i < 550_000; i++ {
		err = root.noteBare(fmt.Sprintf("%07d", i))
	}
	if !errors.Is(err, ErrLimit) || !strings.Contains(err.Error(), "32 MiB") || len(root.bare) > maxBareSize/perName {
		t.Errorf("%d directories without an entry are kept: %v", len(root.bare), err)
	}
	for name := range root.bare {
		root.noLongerBare(name)
	}
	if root.bareSize != 0 {
		t.Errorf("none are left, and they take %d bytes", root.bareSize)
	}
	var entries []item
	for i := range 10_000 {
		entries = append(entries, file(fmt.Sprintf("%s/%d", strings.Repeat("long/", 200), i), ""))
	}
	v := &verifier{tree: root, wrong: map[string]string{}}
	if err := v.entries(t.Context(), tar.NewReader(bytes.NewReader(archive(t, entries...)))); !errors.Is(err, ErrDamaged) || len(v.wrong) == len(entries) {
		t.Errorf("%d complaints are kept about a layer of which nothing is left: %v", len(v.wrong), err)
	}
	again := &verifier{tree: root, wrong: map[string]string{}}
	for range 3 {
		if err := again.complain("f", "why"); err != nil {
			t.Fatal(err)
		}
	}
	again.replaced("elsewhere")
	if again.drop("f"); again.size != 0 {
		t.Errorf("no complaint is left, and they take %d bytes", again.size)
	}
}

// TestALargeDirectoryIsRemovedInPieces: a later entry can replace a directory that has as many entries as a layer may have.
func TestALargeDirectoryIsRemovedInPieces(t *testing.T) {
	dir, _ := arena(t)
	const files = 50_000
	if err := os.Mkdir(filepath.Join(dir, "d"), 0o755); err != nil {
		t.Fatal(err)
	}
	for i := range files {
		if err := unix.Mknod(fmt.Sprintf("%s/d/%s%d", dir, strings.Repeat("x", 100), i), unix.S_IFREG|0o600, 0); err != nil {
			t.Fatal(err)
		}
	}
	root, err := openTree(dir, DefaultLimits.NameLength)
	if err != nil {
		t.Fatal(err)
	}
	defer root.close()
	before, most := heap(true), uint64(0)
	done := make(chan removed)
	go func() {
		gone, err := root.remove(root.root, "d")
		if err != nil {
			t.Error(err)
		}
		done <- gone
	}()
	for {
		select {
		case gone := <-done:
			if gone.inodes != files+1 {
				t.Errorf("%d inodes are gone", gone.inodes)
			}
			if most > before+12<<20 {
				t.Errorf("the memory grew by %d KiB", (most-before)>>10)
			}
			return
		case <-time.After(5 * time.Millisecond):
			most = max(most, heap(false))
		}
	}
}

func heap(collect bool) uint64 {
	if collect {
		runtime.GC()
	}
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	return m.HeapAlloc
}

// arena makes the layer's directory and, beside it, the world outside.
func arena(t testing.TB) (dir, outside string) {
	base := t.TempDir()
	dir, outside = filepath.Join(base, "layer"), filepath.Join(base, "outside")
	for _, d := range []string{dir, outside} {
		if err := os.Mkdir(d, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.WriteFile(filepath.Join(outside, "secret"), []byte("untouched"), 0o600); err != nil {
		t.Fatal(err)
	}
	return dir, outside
}

// wantInside reads a file by a path that holds no symbolic link and may be longer than one.
func wantInside(t *testing.T, dir, name, content string) {
	t.Helper()
	root, err := os.OpenRoot(dir)
	if err != nil {
		t.Fatal(err)
	}
	defer root.Close()
	info, err := root.Lstat(name)
	if err != nil || !info.Mode().IsRegular() {
		t.Errorf("%q is no file inside: %v", shorten(name), err)
		return
	}
	if got, err := root.ReadFile(name); err != nil || string(got) != content {
		t.Errorf("%q holds %q (%v), want %q", shorten(name), got, err, content)
	}
}

func checkLayer(t *testing.T, dir string, stats Stats, unpackErr error) {
	t.Helper()
	var inodes int64
	seen := map[uint64]bool{}
	err := filepath.WalkDir(dir, func(path string, _ fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		var st unix.Stat_t
		if err := unix.Lstat(path, &st); err != nil {
			return err
		}
		if !seen[st.Ino] && path != dir {
			inodes++
		}
		seen[st.Ino] = true
		for _, attribute := range strings.Fields(xattrsOf(path)) {
			if strings.HasPrefix(attribute, "trusted.overlay.") && attribute != opaqueXattr+"=79" {
				t.Errorf("%s carries %s", path, attribute)
			}
		}
		return nil
	})
	if err == nil && unpackErr == nil && inodes != stats.Inodes {
		t.Errorf("counted %d inodes, and there are %d", stats.Inodes, inodes)
	}
}
