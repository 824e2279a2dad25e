package image

import (
	"bytes"
	"errors"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-containerregistry/pkg/v1/layout"
	"github.com/google/go-containerregistry/pkg/v1/tarball"

	"github.com/evenkeel/evenkeel/image/layer"
)

func TestExportKeepsTheID(t *testing.T) {
	h, s := newHub(t), newStore(t)
	shared := pack("gzip", file{"tmp/", "", 0o1777}, file{"bin/tool", noise(1, 70_000), 0o4755}, file{"bin/link", "tool", linkMode})
	one := h.push(t, "one:1", imageOf(t, "", shared, pack("zstd", file{"tmp/x", "above", 0}))) // with a mend
	two := h.push(t, "two:1", imageOf(t, "", shared))
	model, id := h.artifactOf(t, "1", artifactBlob("model", []byte(noise(2, 5000))))
	a, b := pull(t, s, one), pull(t, s, two)
	pull(t, s, model)
	pull(t, s, a.Digests[0])
	var archive bytes.Buffer
	if err := s.Export(t.Context(), &archive, "", one, string(b.ID), string(id)); err != nil {
		t.Fatal(err)
	}
	var packed bytes.Buffer
	if err := s.Export(t.Context(), &packed, "zstd", one, string(b.ID), string(id)); err != nil || packed.Len() >= archive.Len() {
		t.Fatal(err)
	}
	if err := s.Export(t.Context(), io.Discard, "rar", one); err == nil {
		t.Error("an unknown compression")
	}
	other := newStore(t)
	list, err := other.Import(t.Context(), &packed, nil)
	if err != nil || len(list) != 3 || list[0].ID != a.ID || list[1].ID != b.ID || list[2].ID != id || list[2].Artifact == "" {
		t.Fatalf("imported %v, %v", list, err)
	}
	for _, ref := range []string{one, two, model} {
		if _, err := other.Get(ref); err != nil {
			t.Error(err)
		}
	}
	if report, err := other.Check(t.Context(), false, nil); err != nil || len(report.Damages) > 0 {
		t.Errorf("%+v, %v", report, err)
	}
	var again bytes.Buffer
	if err := other.Export(t.Context(), &again, "", one, string(b.ID), string(id)); err != nil || !bytes.Equal(archive.Bytes(), again.Bytes()) {
		t.Errorf("exporting what was imported gives another archive: %v", err)
	}
	readByOthers(t, archive.Bytes(), one, string(a.ID))

	if err := s.Export(t.Context(), io.Discard, "", "quay.io/no/such:1"); !errors.Is(err, ErrNotFound) {
		t.Errorf("missing: %v", err)
	}
	wreck(t, filepath.Join(a.Layers[0].Dir, "bin/tool"))
	if err := s.Export(t.Context(), io.Discard, "", one); !errors.Is(err, layer.ErrDamaged) || !strings.Contains(err.Error(), "fsck") {
		t.Errorf("damaged: %v", err)
	}
	twice := h.push(t, "twice:1", imageOf(t, "", pack("gzip", file{"a", "first", 0}, file{"a", "second", 0})))
	pull(t, s, twice)
	if err := s.Export(t.Context(), io.Discard, "", twice); err == nil || !strings.Contains(err.Error(), "registry") {
		t.Errorf("a layer that cannot be made again: %v", err)
	}
}

// readByOthers lets another implementation read both faces of the archive.
func readByOthers(t *testing.T, archive []byte, tag, id string) {
	t.Helper()
	dir := t.TempDir()
	file := filepath.Join(dir, "a.tar")
	os.WriteFile(file, archive, 0o644)
	manifest, err := tarball.LoadManifest(func() (io.ReadCloser, error) { return os.Open(file) })
	if err != nil || len(manifest) != 2 || manifest[0].RepoTags[0] != tag {
		t.Errorf("as docker save: %+v, %v", manifest, err)
	}
	if out, err := exec.Command("tar", "-xf", file, "-C", dir).CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	l, err := layout.ImageIndexFromPath(dir)
	if err != nil {
		t.Fatal(err)
	}
	index, err := l.IndexManifest()
	if err != nil || len(index.Manifests) != 3 {
		t.Fatalf("as OCI layout: %+v, %v", index, err)
	}
	img, err := l.Image(index.Manifests[0].Digest)
	if err != nil {
		t.Fatal(err)
	}
	if got := idOf(t, img); string(got) != id {
		t.Errorf("the layout's image is %s", got)
	}
}

func TestPreload(t *testing.T) {
	h, s := newHub(t), newStore(t)
	ref := h.push(t, "app:1", imageOf(t, "", pack("gzip", file{"a", "1", 0})))
	pull(t, s, ref)
	dir := t.TempDir()
	f, err := os.Create(filepath.Join(dir, "a.tar"))
	if err != nil {
		t.Fatal(err)
	}
	if err := s.Export(t.Context(), f, "gzip", ref); err != nil {
		t.Fatal(err)
	}
	f.Close()
	h.Close()
	os.WriteFile(filepath.Join(dir, "b.tar"), []byte("no archive"), 0o644)
	os.Mkdir(filepath.Join(dir, "c"), 0o755)
	var logged strings.Builder
	other := &Store{Root: t.TempDir(), Preload: dir, Lease: -1}
	logTo(other, &logged)
	t.Cleanup(other.Close)
	reopen(t, other)
	other.background.Wait()
	other.mustGet(t, ref)
	if !strings.Contains(logged.String(), "archive=b.tar") {
		t.Error("nothing was said of the bad archive")
	}
	logged.Reset()
	reopen(t, other)
	other.background.Wait()
	if strings.Contains(logged.String(), "archive=a.tar") {
		t.Error("an archive that did not change was imported again")
	}
	other.Remove(t.Context(), ref)
	reopen(t, other)
	other.background.Wait()
	other.mustGet(t, ref)
	missing := &Store{Root: t.TempDir(), Preload: filepath.Join(dir, "none"), Lease: -1}
	reopen(t, missing)
	missing.Close()
}

func TestUsageTellsWhatIsShared(t *testing.T) {
	h, s := newHub(t), newStore(t)
	base := pack("gzip", file{"base", noise(1, 1000), 0})
	one := pull(t, s, h.push(t, "one:1", imageOf(t, "", base, pack("gzip", file{"x", "12", 0}))))
	pull(t, s, h.push(t, "two:1", imageOf(t, "", base)))
	pull(t, s, h.push(t, "three:1", imageOf(t, "", pack("gzip", file{"y", "1", 0}))))
	for _, u := range s.Usage() {
		want := int64(1000)
		if strings.HasSuffix(u.Tags[0], "three:1") {
			want = 0
		}
		if u.Shared != want || u.ID == one.ID && u.Size < 1002 {
			t.Errorf("%s: %d of %d bytes are shared", u.Tags[0], u.Shared, u.Size)
		}
	}
}
