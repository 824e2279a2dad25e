package image

import (
	"bytes"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/types"
	"github.com/klauspost/compress/gzip"
	"golang.org/x/sys/unix"

	"github.com/evenkeel/evenkeel/integration/vm/debian"
)

// debianPackages have what makes packages hard to unpack: setuid and setgid files, hard and symbolic links, thousands of small
// files, empty and odd directories, foreign owners. Each becomes an image, for both architectures.
var debianPackages = []string{"sudo", "openssh-client", "tzdata", "perl-base", "bash", "passwd"}

// TestLikeGNUTarAndWhiteouts pulls images of real packages and compares what a container would see with what GNU tar
// unpacks over itself, plus the whiteout rules of the image specification.
func TestLikeGNUTarAndWhiteouts(t *testing.T) {
	archives := packages(t)
	for name, plain := range archives {
		t.Run(name, func(t *testing.T) { compareWithTar(t, plain) })
	}
}

func compareWithTar(t *testing.T, plain []byte) {
	h, s := newHub(t), newStore(t)
	reference := t.TempDir()
	run(t, bytes.NewReader(plain), "tar", "-xp", "--numeric-owner", "--xattrs", "--xattrs-include=*", "-C", reference)
	victim, opaque := twoVictims(t, reference)
	second := tarOf(file{filepath.Join(filepath.Dir(victim), ".wh."+filepath.Base(victim)), "", 0}, file{opaque + "/.wh..wh..opq", "", 0}, file{opaque + "/new", "n", 0o600})
	ref := h.push(t, "deb:1", imageOf(t, "", layerFrom(plain), layerFrom(second)))
	v := Volume{Layers: pull(t, s, ref).Layers}
	os.Remove(filepath.Join(reference, victim))
	clearDir(t, filepath.Join(reference, opaque))
	must(t, os.WriteFile(filepath.Join(reference, opaque, "new"), []byte("n"), 0o600))
	must(t, os.Chmod(filepath.Join(reference, opaque, "new"), 0o600))
	got, want := describe(t, mountVolume(t, v)), describe(t, reference)
	compare(t, got, want)
	t.Logf("%d entries", len(want))
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// packages returns the content of Debian packages as plain archives. They are kept in .cache/debs. Outside of a source tree,
// in a test machine, there is neither a cache nor a network: the machine's own /etc has to do there, and in short tests.
func packages(t *testing.T) map[string][]byte {
	t.Helper()
	archives := map[string][]byte{"/etc": run(t, nil, "tar", "-c", "--xattrs", "-C", "/", "etc")}
	if _, err := os.Stat("../go.mod"); err != nil || testing.Short() {
		return archives
	}
	for _, arch := range []string{"amd64", "arm64"} {
		for _, deb := range debs(t, arch) {
			archives[filepath.Base(deb)] = run(t, nil, "dpkg-deb", "--fsys-tarfile", deb)
		}
	}
	return archives
}

func debs(t *testing.T, arch string) (files []string) {
	t.Helper()
	dir, err := filepath.Abs("../.cache/debs/" + arch)
	must(t, err)
	var archive *debian.Archive
	for _, name := range debianPackages {
		kept, _ := filepath.Glob(filepath.Join(dir, "cache/archives", name+"_*.deb"))
		if len(kept) == 0 {
			if archive == nil {
				archive, err = debian.Open(t.Context(), dir, arch)
			}
			var file string
			if err == nil {
				file, err = archive.Fetch(t.Context(), name)
			}
			if err != nil {
				t.Fatalf("package %s for %s is neither in %s nor to be had from Debian; copy .cache from a machine with a network, or test with -short: %v", name, arch, dir, err)
			}
			kept = []string{file}
		}
		files = append(files, kept[0])
	}
	return files
}

func run(t *testing.T, in *bytes.Reader, name string, args ...string) []byte {
	t.Helper()
	c := exec.Command(name, args...)
	if in != nil {
		c.Stdin = in
	}
	var out, words bytes.Buffer
	c.Stdout, c.Stderr = &out, &words
	if err := c.Run(); err != nil {
		t.Fatalf("%s %v: %v\n%s", name, args, err, &words)
	}
	return out.Bytes()
}

func layerFrom(plain []byte) v1.Layer {
	var b bytes.Buffer
	w := gzip.NewWriter(&b)
	w.Write(plain)
	w.Close()
	return testLayer{plain: plain, packed: b.Bytes(), media: types.OCILayer}
}

// twoVictims picks a file to be hidden and another directory to be made opaque.
func twoVictims(t *testing.T, root string) (victim, opaque string) {
	t.Helper()
	filepath.WalkDir(root, func(path string, d fs.DirEntry, err error) error {
		rel, _ := filepath.Rel(root, path)
		if err == nil && d.Type().IsRegular() {
			if opaque == "" {
				opaque = filepath.Dir(rel)
			} else if victim == "" && filepath.Dir(rel) != opaque && !strings.HasPrefix(rel, opaque+"/") {
				victim = rel
			}
		}
		return nil
	})
	if victim == "" { // the package has one directory of files
		victim = filepath.Join(opaque, "none")
	}
	return victim, opaque
}

func clearDir(t *testing.T, dir string) {
	t.Helper()
	list, err := os.ReadDir(dir)
	must(t, err)
	for _, e := range list {
		must(t, os.RemoveAll(filepath.Join(dir, e.Name())))
	}
}

// describe says of every path all that matters.
func describe(t *testing.T, root string) map[string]string {
	t.Helper()
	all := map[string]string{}
	err := filepath.WalkDir(root, func(path string, d fs.DirEntry, err error) error {
		if err != nil || path == root {
			return err
		}
		var st unix.Stat_t
		if err := unix.Lstat(path, &st); err != nil {
			return err
		}
		rel, _ := filepath.Rel(root, path)
		text := fmt.Sprintf("%o %d:%d rdev %d", st.Mode, st.Uid, st.Gid, st.Rdev)
		switch st.Mode & unix.S_IFMT {
		case unix.S_IFREG:
			content, err := os.ReadFile(path)
			if err != nil {
				return err
			}
			text += fmt.Sprintf(" links %d time %d.%d %x", st.Nlink, st.Mtim.Sec, st.Mtim.Nsec, content)
		case unix.S_IFLNK:
			target, _ := os.Readlink(path)
			text += fmt.Sprintf(" time %d.%d -> %s", st.Mtim.Sec, st.Mtim.Nsec, target)
		}
		value := make([]byte, 64)
		if n, err := unix.Lgetxattr(path, "security.capability", value); err == nil {
			text += fmt.Sprintf(" capability %x", value[:n])
		}
		all[rel] = text
		return nil
	})
	must(t, err)
	return all
}

func compare(t *testing.T, got, want map[string]string) {
	t.Helper()
	for p, w := range want {
		if strings.HasSuffix(p, "/new") {
			w, got[p] = w[:20], got[p][:min(20, len(got[p]))] // its time is now
		}
		if got[p] != w {
			t.Errorf("%s is %.200s, want %.200s", p, got[p], w)
		}
	}
	for p := range got {
		if _, ok := want[p]; !ok {
			t.Errorf("%s should not be there", p)
		}
	}
}
