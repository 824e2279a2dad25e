package layer

import (
	"archive/tar"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// item is an entry of a test archive; body is the content of a file.
type item struct {
	tar.Header
	body string
}

func file(name, body string) item {
	return item{tar.Header{Typeflag: tar.TypeReg, Name: name, Mode: 0o644, Size: int64(len(body))}, body}
}
func directory(name string) item {
	return item{tar.Header{Typeflag: tar.TypeDir, Name: name, Mode: 0o755}, ""}
}
func symlink(name, target string) item {
	return item{tar.Header{Typeflag: tar.TypeSymlink, Name: name, Linkname: target, Mode: 0o777}, ""}
}
func hardlink(name, target string) item {
	return item{tar.Header{Typeflag: tar.TypeLink, Name: name, Linkname: target, Mode: 0o644}, ""}
}
func xattr(i item, key, value string) item {
	i.PAXRecords = map[string]string{paxXattr + key: value}
	return i
}

func archive(t testing.TB, items ...item) []byte {
	t.Helper()
	var buffer bytes.Buffer
	w := tar.NewWriter(&buffer)
	for _, i := range items {
		if err := w.WriteHeader(&i.Header); err != nil {
			t.Fatalf("cannot write the header of %q: %v", i.Name, err)
		}
		if _, err := w.Write([]byte(i.body)); err != nil {
			t.Fatal(err)
		}
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return buffer.Bytes()
}

func unpack(t *testing.T, items ...item) (dir string, stats Stats) {
	t.Helper()
	dir = t.TempDir()
	stats, err := Unpack(t.Context(), dir, bytes.NewReader(archive(t, items...)), Limits{})
	if err != nil {
		t.Fatal(err)
	}
	return dir, stats
}

// describeTree writes one line per file: all that an unpack promises to keep.
func describeTree(t testing.TB, dir string) map[string]string {
	t.Helper()
	lines, first := map[string]string{}, map[uint64]string{}
	err := filepath.WalkDir(dir, func(path string, _ fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		name, _ := filepath.Rel(dir, path)
		info, err := os.Lstat(path)
		if err != nil {
			return err
		}
		st := info.Sys().(*syscall.Stat_t)
		line := fmt.Sprintf("%v %d:%d %d.%09d", info.Mode(), st.Uid, st.Gid, st.Mtim.Sec, st.Mtim.Nsec)
		switch {
		case info.Mode().IsRegular():
			data, err := os.ReadFile(path)
			if err != nil {
				return err
			}
			line += fmt.Sprintf(" %d %x", len(data), bytes.Clone(data[:min(len(data), 64)]))
			if other, ok := first[st.Ino]; ok {
				line += " = " + other
			} else {
				first[st.Ino] = name
			}
		case info.Mode()&fs.ModeSymlink != 0:
			target, _ := os.Readlink(path)
			line += " -> " + target
		case info.Mode()&fs.ModeDevice != 0:
			line += fmt.Sprintf(" %d:%d", unix.Major(st.Rdev), unix.Minor(st.Rdev))
		}
		lines[name] = line + xattrsOf(path)
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return lines
}

func xattrsOf(path string) string {
	names := make([]byte, 64<<10)
	n, err := unix.Llistxattr(path, names)
	if err != nil || n == 0 {
		return ""
	}
	keys := strings.Split(strings.TrimRight(string(names[:n]), "\x00"), "\x00")
	slices.Sort(keys)
	var text strings.Builder
	for _, key := range keys {
		value := make([]byte, 64<<10)
		n, _ := unix.Lgetxattr(path, key, value)
		fmt.Fprintf(&text, " %s=%x", key, value[:n])
	}
	return text.String()
}

func compareTrees(t *testing.T, want, got map[string]string) {
	t.Helper()
	for _, name := range slices.Sorted(maps.Keys(want)) {
		if got[name] != want[name] {
			t.Errorf("%s:\n got %s\nwant %s", name, got[name], want[name])
		}
	}
	for name := range got {
		if _, ok := want[name]; !ok {
			t.Errorf("%s should not be there: %s", name, got[name])
		}
	}
}

func command(t *testing.T, dir, name string, args ...string) {
	t.Helper()
	cmd := exec.Command(name, args...)
	cmd.Dir = dir
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("%s %s: %v\n%s", name, strings.Join(args, " "), err, out)
	}
}

// TestLikeGNUTar packs a tree with everything a Unix file can be and compares our unpack with GNU tar's.
func TestLikeGNUTar(t *testing.T) {
	source := sampleTree(t)
	for _, format := range []string{"pax", "gnu"} {
		t.Run(format, func(t *testing.T) {
			base := t.TempDir()
			plain := filepath.Join(base, "tree.tar")
			args := []string{"-cf", plain, "--sparse", "--format=" + format}
			if format == "pax" {
				args = append(args, "--xattrs", "--xattrs-include=*")
			}
			command(t, source, "tar", append(args, ".")...)
			reference, ours := filepath.Join(base, "gnu"), filepath.Join(base, "ours")
			os.Mkdir(reference, 0o700)
			os.Mkdir(ours, 0o700)
			command(t, reference, "tar", "-xpf", plain, "--numeric-owner", "--xattrs", "--xattrs-include=*")
			stream, err := os.Open(plain)
			if err != nil {
				t.Fatal(err)
			}
			defer stream.Close()
			if _, err := Unpack(t.Context(), ours, stream, Limits{}); err != nil {
				t.Fatal(err)
			}
			compareTrees(t, describeTree(t, reference), describeTree(t, ours))
		})
	}
}

// sampleTree makes the odd cases and copies a few real directories beside them.
func sampleTree(t *testing.T) string {
	t.Helper()
	dir := t.TempDir()
	make := func(name, body string, mode os.FileMode) string {
		path := filepath.Join(dir, name)
		os.MkdirAll(filepath.Dir(path), 0o755)
		if err := os.WriteFile(path, []byte(body), mode); err != nil {
			t.Fatal(err)
		}
		must(t, os.Chmod(path, mode))
		return path
	}
	must(t, os.Chown(make("owned", "x", 0o640), 1000, 2000))
	must(t, os.Chmod(make("setuid", "#!", 0o755), 0o755|os.ModeSetuid|os.ModeSetgid))
	must(t, unix.Setxattr(make("capable", "cap", 0o755), "security.capability", []byte("\x01\x00\x00\x02\x00\x20\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00"), 0))
	must(t, unix.Setxattr(make("attributed", "a", 0o600), "user.colour", []byte("blue"), 0))
	must(t, os.Link(make("deep/er/first", "linked", 0o644), filepath.Join(dir, "second")))
	must(t, os.Symlink("/etc/passwd", filepath.Join(dir, "absolute")))
	must(t, os.Lchown(filepath.Join(dir, "absolute"), 12, 13))
	must(t, os.Symlink("../../nowhere", filepath.Join(dir, "deep/dangling")))
	must(t, unix.Mkfifo(filepath.Join(dir, "fifo"), 0o620))
	must(t, unix.Mknod(filepath.Join(dir, "null"), unix.S_IFCHR|0o666, int(unix.Mkdev(1, 3))))
	must(t, unix.Mknod(filepath.Join(dir, "disk"), unix.S_IFBLK|0o660, int(unix.Mkdev(259, 65537))))
	make(strings.Repeat("long", 60)+"/"+strings.Repeat("name", 60), "n", 0o444)
	make("empty", "", 0)
	make("unreadable/file", "u", 0o644)
	must(t, os.Chmod(filepath.Join(dir, "unreadable"), 0))
	make("shared/child/file", "s", 0o644)
	must(t, os.Chown(filepath.Join(dir, "shared"), 0, 50))
	must(t, os.Chmod(filepath.Join(dir, "shared"), 0o775|os.ModeSetgid|os.ModeSticky))
	sparse := make("sparse", "begin", 0o644)
	must(t, os.Truncate(sparse, 5<<20))
	command(t, dir, "cp", "-a", "/etc", "real-etc")
	command(t, dir, "cp", "-a", "/usr/share/zoneinfo", "/usr/lib/git-core", ".")
	must(t, os.Chtimes(filepath.Join(dir, "deep/er"), time.Unix(1, 0), time.Unix(1234567890, 123456789)))
	must(t, os.Chtimes(filepath.Join(dir, "owned"), time.Unix(1, 0), time.Unix(-5, 7)))
	must(t, os.Chtimes(dir, time.Unix(1, 0), time.Unix(99, 42)))
	return dir
}

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func TestWhiteouts(t *testing.T) {
	dir, stats := unpack(t,
		directory("etc"), file("etc/.wh.motd", ""), file("etc/.wh..wh..opq", ""),
		file(".wh..wh.aufs", "ignored"), file(".wh..wh.plnk/1.2", "ignored"),
		file("usr/.wh.share", ""),
		// The layer's own entries of a whited-out name stay, whichever comes first.
		file("kept", "k"), file(".wh.kept", ""),
		directory("d"), file("d/own", "o"), file(".wh.d", ""),
		file(".wh.e", ""), directory("e"), file("e/own", "o"),
		file(".wh.f", ""), file("f", "now a file"),
	)
	tree := describeTree(t, dir)
	wantWhiteout := func(name string) {
		t.Helper()
		var st unix.Stat_t
		must(t, unix.Lstat(filepath.Join(dir, name), &st))
		if st.Mode&unix.S_IFMT != unix.S_IFCHR || st.Rdev != 0 {
			t.Errorf("%s is no whiteout: %s", name, tree[name])
		}
	}
	wantOpaque := func(name string, want bool) {
		t.Helper()
		if got := strings.Contains(tree[name], opaqueXattr+"=79"); got != want {
			t.Errorf("%s opaque: %v, want %v", name, got, want)
		}
	}
	wantWhiteout("etc/motd")
	wantWhiteout("usr/share")
	wantOpaque("etc", true)
	wantOpaque("usr", false)
	wantOpaque("d", true)
	wantOpaque("e", true)
	if !strings.HasPrefix(tree["kept"], "-rw") || !strings.HasPrefix(tree["f"], "-rw") || tree["d/own"] == "" || tree["e/own"] == "" {
		t.Errorf("own entries are missing: %v", tree)
	}
	for name := range tree {
		if strings.Contains(name, ".wh.") {
			t.Errorf("%s should not be there", name)
		}
	}
	if want := int64(len(tree) - 1); stats.Inodes != want { // without the root
		t.Errorf("%d inodes counted, want %d", stats.Inodes, want)
	}
	if !slices.Equal(stats.Implied, []string{"usr"}) {
		t.Errorf("implied directories %v, want usr", stats.Implied)
	}
}

func TestReplace(t *testing.T) {
	outside := filepath.Join(t.TempDir(), "outside")
	must(t, os.WriteFile(outside, []byte("untouched"), 0o600))
	dir, stats := unpack(t,
		file("a", "old"), file("a", "newer"),
		symlink("b", outside), file("b", "file"),
		directory("c"), file("c/x", "123"), directory("c/y"), file("c", "file over directory"),
		file("d", "file"), directory("d"), file("d/x", "in"),
		symlink("e", "d"), directory("e"), file("e/x", "own"),
		directory("f"), item{tar.Header{Typeflag: tar.TypeDir, Name: "f", Mode: 0o700, Uid: 5}, ""},
		file("g", "g"), symlink("g", "a"),
		file("h", "h"), hardlink("h", "a"),
	)
	for name, want := range map[string]string{"a": "newer", "b": "file", "c": "file over directory", "d/x": "in", "e/x": "own", "g": "newer", "h": "newer"} {
		if got, err := os.ReadFile(filepath.Join(dir, name)); string(got) != want {
			t.Errorf("%s holds %q (%v), want %q", name, got, err, want)
		}
	}
	if got, _ := os.ReadFile(outside); string(got) != "untouched" {
		t.Errorf("a file outside now holds %q", got)
	}
	if tree := describeTree(t, dir); !strings.HasPrefix(tree["f"], "drwx------ 5:0") {
		t.Errorf("the later entry's metadata does not count: %s", tree["f"])
	}
	if stats.Inodes != 9 || stats.Bytes != 33 {
		t.Errorf("counted %+v, want 9 inodes and 33 bytes", stats)
	}
}

func TestThroughLinks(t *testing.T) {
	dir, _ := unpack(t,
		symlink("var/run", "/run"), file("var/run/pid", "1"), // dangling at that time
		directory("real"), symlink("alias", "real"), file("alias/f", "2"), directory("alias/sub"), file("real/sub/g", "3"),
		symlink("up", "../../../../run"), file("up/h", "4"),
	)
	for name, want := range map[string]string{"run/pid": "1", "real/f": "2", "real/sub/g": "3", "run/h": "4"} {
		if got, err := os.ReadFile(filepath.Join(dir, name)); string(got) != want {
			t.Errorf("%s holds %q (%v), want %q", name, got, err, want)
		}
	}
}

func TestEmpty(t *testing.T) {
	for name, stream := range map[string][]byte{"nothing": nil, "end only": make([]byte, 1024), "padded": make([]byte, 10240)} {
		stats, err := Unpack(t.Context(), t.TempDir(), bytes.NewReader(stream), Limits{})
		if err != nil || stats.Entries != 0 || stats.Inodes != 0 {
			t.Errorf("%s: %+v, %v", name, stats, err)
		}
	}
}

func TestCancelled(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := Unpack(ctx, t.TempDir(), bytes.NewReader(archive(t, file("a", "b"))), Limits{}); !errors.Is(err, context.Canceled) {
		t.Errorf("got %v, want context.Canceled", err)
	}
}

// TestModes: files have the mode of their entry whatever the umask and the directory would make of it.
func TestModes(t *testing.T) {
	modes := []int64{0, 0o400, 0o644, 0o666, 0o755, 0o777, 0o1644, 0o2755, 0o4755, 0o6777}
	var items []item
	for _, m := range modes {
		items = append(items, item{tar.Header{Typeflag: tar.TypeReg, Name: fmt.Sprintf("%o", m), Mode: m, Size: 1}, "x"})
	}
	check := func(what, dir string) {
		t.Helper()
		for _, m := range modes {
			var st unix.Stat_t
			must(t, unix.Lstat(filepath.Join(dir, fmt.Sprintf("%o", m)), &st))
			if int64(st.Mode&0o7777) != m {
				t.Errorf("%s: mode %#o, want %#o", what, st.Mode&0o7777, m)
			}
		}
	}
	for _, mask := range []int{0, 0o022, 0o027, 0o177} {
		old := unix.Umask(mask)
		dir, _ := unpack(t, items...)
		unix.Umask(old)
		check(fmt.Sprintf("umask %#o", mask), dir)
	}
	dir := t.TempDir()
	acl := "\x02\x00\x00\x00" // acl(5) as in include/uapi/linux/posix_acl_xattr.h: owner, group and others may read
	for _, tag := range []string{"\x01", "\x04", "\x20"} {
		acl += tag + "\x00\x04\x00\xff\xff\xff\xff"
	}
	if err := unix.Setxattr(dir, "system.posix_acl_default", []byte(acl), 0); errors.Is(err, unix.ENOTSUP) {
		t.Logf("no ACLs on %s", dir)
		return
	} else if err != nil {
		t.Fatal(err)
	}
	_, err := Unpack(t.Context(), dir, bytes.NewReader(archive(t, items...)), Limits{})
	must(t, err)
	check("default ACL", dir)
}
