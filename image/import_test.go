package image

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-containerregistry/pkg/name"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/empty"
	"github.com/google/go-containerregistry/pkg/v1/layout"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/tarball"
	"github.com/opencontainers/go-digest"
)

func dockerArchive(t *testing.T, ref string, img v1.Image) []byte {
	t.Helper()
	n, err := name.NewTag(ref)
	if err != nil {
		t.Fatal(err)
	}
	var b bytes.Buffer
	if err := tarball.Write(n, img, &b); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

// ociArchive packs a layout whose index.json lists the index's manifests.
func ociArchive(t *testing.T, index v1.ImageIndex, also ...file) []byte {
	t.Helper()
	dir := t.TempDir()
	if _, err := layout.Write(dir, index); err != nil {
		t.Fatal(err)
	}
	var files []file
	filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if err == nil && !d.IsDir() {
			text, _ := os.ReadFile(path)
			rel, _ := filepath.Rel(dir, path)
			files = append(files, file{rel, string(text), 0})
		}
		return err
	})
	slices.Reverse(files) // index.json and oci-layout come last or first, as they like
	return tarOf(append(files, also...)...)
}

func annotated(img v1.Image, annotations map[string]string) mutate.IndexAddendum {
	p := parsePlatform("")
	return mutate.IndexAddendum{Add: img, Descriptor: v1.Descriptor{Platform: &p, Annotations: annotations}}
}

func TestImportDockerSave(t *testing.T) {
	h, s := newHub(t), newStore(t)
	shared := pack("gzip", file{"shared", noise(1, 300<<10), 0})
	made := imageOf(t, "", shared, pack("gzip", file{"a", "1", 0}))
	text := dockerArchive(t, "team/app:1", made)
	var packed bytes.Buffer
	w := gzip.NewWriter(&packed)
	w.Write(text)
	w.Close()
	for _, archive := range [][]byte{text, packed.Bytes()} {
		list, err := s.Import(deadline(t), bytes.NewReader(archive), nil)
		if err != nil || len(list) != 1 || list[0].ID != idOf(t, made) || !slices.Equal(list[0].Tags, []string{"docker.io/team/app:1"}) {
			t.Fatalf("got %+v %v", list, err)
		}
		checkWhole(t, list[0])
	}
	tidy(t, s, 1, 2)
	ref := h.push(t, "shares:1", imageOf(t, "", shared))
	pull(t, s, ref)
	if h.asked("/blobs/") != 1 {
		t.Errorf("a layer that was imported is fetched: %v", h.requests)
	}
}

// Old Dockers write uncompressed layers as ID/layer.tar, and a link where two images share one.
func TestImportOldDockerSave(t *testing.T) {
	s := newStore(t)
	l := pack("", file{"a", "1", 0})
	made := imageOf(t, "", l)
	config, err := made.RawConfigFile()
	if err != nil {
		t.Fatal(err)
	}
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	put := func(name string, text []byte) {
		w.WriteHeader(&tar.Header{Name: name, Size: int64(len(text)), Mode: 0o644, Typeflag: tar.TypeReg})
		w.Write(text)
	}
	put("manifest.json", []byte(`[{"Config":"c.json","RepoTags":["old:1","old:2"],"Layers":["two/layer.tar"]},{"Config":"./c.json","RepoTags":null,"Layers":["three/layer.tar"]}]`))
	w.WriteHeader(&tar.Header{Name: "two/layer.tar", Typeflag: tar.TypeSymlink, Linkname: "../one/layer.tar"})
	w.WriteHeader(&tar.Header{Name: "three/layer.tar", Typeflag: tar.TypeLink, Linkname: "one/layer.tar"})
	put("./one/layer.tar", l.plain)
	put("c.json", config)
	put("repositories", []byte("{}"))
	w.Close()
	list, err := s.Import(deadline(t), &b, nil)
	if err != nil || len(list) != 2 || len(list[0].Tags) != 2 || content(t, list[0], 0, "a") != "1" {
		t.Fatalf("got %+v %v", list, err)
	}
	tidy(t, s, 1, 1)
}

func TestImportLayout(t *testing.T) {
	named := imageOf(t, "", pack("gzip", file{"a", "1", 0}))
	tagged := imageOf(t, "", pack("zstd", file{"b", "2", 0}))
	silent := imageOf(t, "", pack("", file{"c", "3", 0}))
	other := imageOf(t, "linux/s390x", pack("", file{"d", "4", 0}))
	archive := ociArchive(t, mutate.AppendManifests(empty.Index,
		annotated(named, map[string]string{"io.containerd.image.name": "docker.io/team/app:1", "org.opencontainers.image.ref.name": "1"}),
		annotated(tagged, map[string]string{"org.opencontainers.image.ref.name": "quay.io/team/b"}),
		annotated(silent, map[string]string{"org.opencontainers.image.ref.name": "latest"}),
		mutate.IndexAddendum{Add: other}))
	s := newStore(t)
	list, err := s.Import(deadline(t), bytes.NewReader(archive), nil)
	if err != nil || len(list) != 3 {
		t.Fatalf("got %+v %v", list, err)
	}
	if list[0].Tags[0] != "docker.io/team/app:1" || list[0].Digests[0] != "docker.io/team/app@"+digestOf(t, named).String() ||
		list[1].Tags[0] != "quay.io/team/b:latest" || len(list[2].Tags)+len(list[2].Digests) != 0 {
		t.Errorf("names: %v %v, %v, %v %v", list[0].Tags, list[0].Digests, list[1].Tags, list[2].Tags, list[2].Digests)
	}
	if got, err := s.Get(idOf(t, silent).Encoded()[:12]); err != nil || got.ID != list[2].ID {
		t.Errorf("the image without a name: %v", err)
	}
	tidy(t, s, 3, 3)
}

// TestImportTakesTheLastOfOneName, as tar does: `tar -r` replaces a file by another of its name at the end.
func TestImportTakesTheLastOfOneName(t *testing.T) {
	img := imageOf(t, "", pack("", file{"a", "1", 0}))
	config, err := img.RawConfigFile()
	if err != nil {
		t.Fatal(err)
	}
	s := newStore(t)
	list, err := s.Import(deadline(t), bytes.NewReader(tarOf(
		file{"manifest.json", `[]`, 0}, file{"c", "old", 0}, file{"c", string(config), 0}, file{"l", string(pack("", file{"a", "1", 0}).plain), 0},
		file{"manifest.json", `[{"Config":"c","RepoTags":["twice:1"],"Layers":["l"]}]`, 0})), nil)
	if err != nil || len(list) != 1 || list[0].ID != idOf(t, img) {
		t.Errorf("%v, %v", list, err)
	}
	tidy(t, s, 1, 1)
}

func TestImportRefusesBadArchives(t *testing.T) {
	good := imageOf(t, "", pack("gzip", file{"a", noise(1, 100<<10), 0}))
	blob := digestOf(t, good).Encoded()
	layout := ociArchive(t, mutate.AppendManifests(empty.Index, annotated(good, nil)))
	lying := pack("gzip", file{"a", "1", 0})
	lying.wrongDiffID = true
	for what, c := range map[string]struct {
		archive []byte
		want    string
		class   error
	}{
		"empty":               {nil, "neither an OCI layout", nil},
		"text":                {[]byte(strings.Repeat("no archive", 200)), "cannot read the archive", nil},
		"other tar":           {tarOf(file{"readme", "hello", 0}), "neither an OCI layout", nil},
		"truncated":           {layout[:len(layout)/2], "unexpected EOF", nil},
		"wrong blob":          {tarOf(file{"index.json", "{}", 0}, file{"blobs/sha256/" + blob, "x", 0}), "its name is not its digest", ErrCorrupt},
		"index is not JSON":   {tarOf(file{"index.json", "[", 0}), "not JSON", ErrCorrupt},
		"index is empty":      {tarOf(file{"index.json", "{}", 0}), "lists no image", ErrCorrupt},
		"blob is missing":     {tarOf(file{"index.json", `{"manifests":[{"digest":"sha256:` + blob + `","size":5}]}`, 0}), "lacks blob", ErrCorrupt},
		"digest is nonsense":  {tarOf(file{"index.json", `{"manifests":[{"digest":"../../x","size":5}]}`, 0}), "manifest digest", ErrCorrupt},
		"layer is missing":    {tarOf(file{"manifest.json", `[{"Config":"c","Layers":["../../etc/passwd"]}]`, 0}, file{"c", `{}`, 0}), "lacks layer", ErrCorrupt},
		"config is missing":   {tarOf(file{"manifest.json", `[{"Config":"/etc/passwd"}]`, 0}), "lacks the config", ErrCorrupt},
		"name is malformed":   {dockerArchiveNamed(t, "NOT A NAME"), "not a repository", ErrReference},
		"wrong diff id":       {dockerArchive(t, "a:1", imageOf(t, "", lying)), "archive should be", ErrCorrupt},
		"for another machine": {dockerArchive(t, "a:1", imageOf(t, "linux/s390x", pack("gzip", file{"a", "1", 0}))), "linux/s390x", ErrPlatform},
	} {
		s := newStore(t)
		_, err := s.Import(deadline(t), bytes.NewReader(c.archive), nil)
		if err == nil || !strings.Contains(err.Error(), c.want) || c.class != nil && !errors.Is(err, c.class) {
			t.Errorf("%s: %v; want %q", what, err, c.want)
		}
		tidy(t, s, 0, 0)
	}
}

// TestABombIsNoArchive: what an archive inflates to is bounded before it is on disk, and so is a sparse file, which is in no byte of the
// archive.
func TestABombIsNoArchive(t *testing.T) {
	img := imageOf(t, "", pack("gzip", file{"a", noise(1, 100<<10), 0}))
	packed := func(plain []byte) []byte {
		var b bytes.Buffer
		w := gzip.NewWriter(&b)
		w.Write(plain)
		w.Close()
		return b.Bytes()
	}
	hole := t.TempDir()
	must(t, os.WriteFile(filepath.Join(hole, "hole"), nil, 0o600))
	must(t, os.Truncate(filepath.Join(hole, "hole"), 1<<30))
	sparse, err := exec.Command("tar", "--sparse", "--format=pax", "-C", hole, "-cf", "-", "hole").Output()
	must(t, err)
	dir := t.TempDir()
	for what, archive := range map[string][]byte{
		"one file":   packed(tarOf(file{"zeros", strings.Repeat("\x00", 1<<20), 0})),
		"sparse":     sparse,
		"many files": packed(tarOf(file{"a", strings.Repeat("a", 200<<10), 0}, file{"b", strings.Repeat("b", 200<<10), 0})),
	} {
		s := newStore(t)
		s.ArchiveBytes = 256 << 10
		_, err := s.Import(deadline(t), bytes.NewReader(archive), nil)
		if err == nil || !strings.Contains(err.Error(), "more than 262144 bytes") || !strings.Contains(err.Error(), "images.max_archive_bytes") {
			t.Errorf("%s: %v", what, err)
		}
		tidy(t, s, 0, 0)
		var logged strings.Builder
		logTo(s, &logged)
		s.Preload = dir
		os.WriteFile(filepath.Join(dir, "bomb.tar"), archive, 0o644)
		os.WriteFile(filepath.Join(dir, "good.tar"), dockerArchive(t, "a:1", img), 0o644)
		reopen(t, s)
		s.background.Wait()
		if !strings.Contains(logged.String(), "archive=bomb.tar") || !strings.Contains(logged.String(), "max_archive_bytes") {
			t.Errorf("%s: %s", what, logged.String())
		}
		tidy(t, s, 1, 1)
	}
}

func dockerArchiveNamed(t *testing.T, name string) []byte {
	img := imageOf(t, "", pack("", file{"a", "1", 0}))
	config, err := img.RawConfigFile()
	if err != nil {
		t.Fatal(err)
	}
	return tarOf(file{"manifest.json", `[{"Config":"c","RepoTags":["` + name + `"],"Layers":["l"]}]`, 0}, file{"c", string(config), 0},
		file{"l", string(pack("", file{"a", "1", 0}).plain), 0})
}

// TestImportKeepsLittleInMemory: names and documents of an archive are kept until its import is over.
func TestImportKeepsLittleInMemory(t *testing.T) {
	name := func(i int) string { return fmt.Sprint(i, "/", strings.Repeat("x", 900<<10)) }
	var names, links []file
	for i := range 20 {
		names = append(names, file{name(i), "", 0})
		links = append(links, file{fmt.Sprint(i), name(i), linkMode})
	}
	config := `{"architecture":"` + runtime.GOARCH + `","os":"linux","rootfs":{"type":"layers"},"history":[{"comment":"` + strings.Repeat("x", 4<<20) + `"}]}`
	manifest := fmt.Sprintf(`{"schemaVersion":2,"mediaType":"application/vnd.oci.image.manifest.v1+json","config":{"mediaType":"application/vnd.oci.image.config.v1+json","digest":"%s","size":%d},"layers":[]}`,
		digest.FromString(config), len(config))
	entry := fmt.Sprintf(`{"mediaType":"application/vnd.oci.image.manifest.v1+json","digest":"%s","size":%d},`, digest.FromString(manifest), len(manifest))
	again := `{"Config":"c","RepoTags":[],"Layers":[]},`
	for what, c := range map[string]struct {
		files []file
		want  string
	}{
		"long names":           {names, "more than 16 MiB"},
		"long links":           {links, "more than 16 MiB"},
		"one image many times": {[]file{{"index.json", `{"schemaVersion":2,"manifests":[` + strings.TrimSuffix(strings.Repeat(entry, 20), ",") + `]}`, 0}, {"m", manifest, 0}, {"c", config, 0}}, "more than 64 MiB"},
		"the same for docker":  {[]file{{"manifest.json", `[` + strings.TrimSuffix(strings.Repeat(again, 20), ",") + `]`, 0}, {"c", config, 0}}, "more than 64 MiB"},
		"no room to say":       {[]file{{"index.json", "{}", 0}, {"blobs/sha256/" + strings.Repeat("a", 64) + strings.Repeat("/../"+strings.Repeat("a", 64), 1000), "", 0}}, "its name is not its digest"},
	} {
		s := newStore(t)
		_, err := s.Import(deadline(t), bytes.NewReader(tarOf(c.files...)), nil)
		if err == nil || !strings.Contains(err.Error(), c.want) || len(err.Error()) > 1000 {
			t.Errorf("%s: %.1000v; want %q", what, err, c.want)
		}
		tidy(t, s, 0, 0)
	}
}

func TestImportCancelled(t *testing.T) {
	s := newStore(t)
	ctx, cancel := context.WithCancel(deadline(t))
	archive := dockerArchive(t, "a:1", imageOf(t, "", pack("", file{"a", noise(1, 2<<20), 0})))
	half := io.MultiReader(bytes.NewReader(archive[:1<<20]), callOnRead(cancel), bytes.NewReader(archive[1<<20:]))
	if _, err := s.Import(ctx, half, nil); !errors.Is(err, context.Canceled) {
		t.Errorf("got %v", err)
	}
	tidy(t, s, 0, 0)
}

type callOnRead func()

func (f callOnRead) Read([]byte) (int, error) { f(); return 0, io.EOF }
