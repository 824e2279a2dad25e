package image

import (
	"bytes"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

func TestImpliedDirectoriesKeepTheirMode(t *testing.T) {
	h, s := newHub(t), newStore(t)
	base := pack("gzip", file{"tmp/", "", 0o1777}, file{"secret/", "", 0o700}, file{"secret/in/", "", 0o750}, file{"gone/", "", 0o711},
		file{"opaque/", "", 0o711}, file{"again/", "", 0o711}, file{"plain/", "", 0o755}, file{"plain/2/", "", 0o755})
	upper := pack("gzip", file{"tmp/x", "1", 0}, file{"secret/in/y", "2", 0}, file{".wh.gone", "", 0}, file{"opaque/.wh..wh..opq", "", 0}, file{"new/z", "3", 0}, file{"plain/2/u", "", 0})
	top := pack("zstd", file{"again/", "", 0o701}, file{"again/k", "1", 0}, file{"gone/back", "1", 0})
	ref := h.push(t, "app:1", imageOf(t, "", base, upper, top))
	img := pull(t, s, ref)
	if len(img.Layers) != 4 {
		t.Fatalf("layers %v", img.Layers)
	}
	mend := img.Layers[3].Dir
	got := map[string]os.FileMode{}
	filepath.Walk(mend, func(path string, info os.FileInfo, err error) error {
		if path != mend {
			rel, _ := filepath.Rel(mend, path)
			got[rel] = info.Mode()
		}
		return err
	})
	want := map[string]os.FileMode{"tmp": os.ModeDir | os.ModeSticky | 0o777, "secret": os.ModeDir | 0o700, "secret/in": os.ModeDir | 0o750}
	for p, mode := range want {
		if got[p] != mode {
			t.Errorf("%s is %v, want %v", p, got[p], mode)
		}
	}
	if len(got) != len(want) {
		t.Errorf("the mend holds %v", got)
	}
	tidy(t, s, 1, 4)
	reopen(t, s)
	if again, err := s.Get(ref); err != nil || len(again.Layers) != 4 {
		t.Errorf("after a restart: %v", err)
	}
	pull(t, s, h.push(t, "copy:1", imageOf(t, "linux/"+thisMachine().Architecture, base, upper, top)))
	tidy(t, s, len(s.List()), 4)
	for _, i := range s.List() {
		s.Remove(deadline(t), i.ID.String())
	}
	tidy(t, s, 0, 0)
}

func TestHiddenLinkIsTold(t *testing.T) {
	h, s := newHub(t), newStore(t)
	var log bytes.Buffer
	s.Log = slog.New(slog.NewTextHandler(&log, nil))
	base := pack("gzip", file{"usr/lib/", "", 0o755}, file{"lib", "usr/lib", linkMode})
	pull(t, s, h.push(t, "app:1", imageOf(t, "", base, pack("gzip", file{"lib/x", "1", 0}))))
	if !strings.Contains(log.String(), "path=lib") {
		t.Errorf("log: %s", log.String())
	}
}

// TestNoLinkLeadsOutOfTheLayers: whether a layer hides a link is asked of the layers below, not of the machine that a link of
// theirs leads to.
func TestNoLinkLeadsOutOfTheLayers(t *testing.T) {
	h, s := newHub(t), newStore(t)
	var log bytes.Buffer
	s.Log = slog.New(slog.NewTextHandler(&log, nil))
	outside := t.TempDir()
	mustDo(t, os.Symlink("x", filepath.Join(outside, "b")))
	base := pack("gzip", file{"a", outside, linkMode})
	pull(t, s, h.push(t, "app:1", imageOf(t, "", base, pack("gzip", file{"a/", "", 0o755}, file{"a/b/c", "1", 0}))))
	if strings.Contains(log.String(), "path=a/b") {
		t.Errorf("log: %s", log.String())
	}
}

// TestImpliedDirectoryHidesALink: as with the overlay snapshotters of containerd, Docker and CRI-O, for which images are
// made, the directory takes the place of the lower layer's link, and what the link led to stays where it is.
func TestImpliedDirectoryHidesALink(t *testing.T) {
	h, s := newHub(t), newStore(t)
	base := pack("gzip", file{"usr/lib/", "", 0o755}, file{"usr/lib/low", "1", 0}, file{"lib", "usr/lib", linkMode}, file{"lib64", "usr/lib", linkMode})
	upper := pack("gzip", file{"lib/x", "2", 0}, file{"lib64/", "", 0o711})
	img := pull(t, s, h.push(t, "app:1", imageOf(t, "", base, upper)))
	run := t.TempDir()
	r := Rootfs{Layers: img.Layers, Upper: filepath.Join(run, "upper"), Work: filepath.Join(run, "work"), Target: filepath.Join(run, "rootfs")}
	t.Cleanup(func() { mustDo(t, Unmount(r.Target)) })
	mustDo(t, r.Mount(t.Context()))
	wantFiles(t, r.Target, map[string]string{"lib/x": "2", "usr/lib/low": "1"})
	for name, mode := range map[string]os.FileMode{"lib": os.ModeDir | 0o755, "lib64": os.ModeDir | 0o711} {
		if info, err := os.Lstat(filepath.Join(r.Target, name)); err != nil || info.Mode() != mode {
			t.Errorf("%s: %v, %v, want %v", name, info, err, mode)
		}
	}
	if _, err := os.Lstat(filepath.Join(r.Target, "lib/low")); !os.IsNotExist(err) {
		t.Errorf("lib leads to usr/lib: %v", err)
	}
}
