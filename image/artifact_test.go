package image

import (
	"encoding/json"
	"errors"
	"net/http"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"

	"github.com/google/go-containerregistry/pkg/name"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	ggcr "github.com/google/go-containerregistry/pkg/v1/remote"
	"github.com/opencontainers/go-digest"
	"github.com/opencontainers/image-spec/specs-go"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

// layerOf is the first layer of what is published under ref.
func layerOf(t *testing.T, h *hub, ref string) v1.Layer {
	t.Helper()
	parsed, err := name.ParseReference(ref)
	if err != nil {
		t.Fatal(err)
	}
	img, err := ggcr.Image(parsed)
	if err != nil {
		t.Fatal(err)
	}
	layers, err := img.Layers()
	if err != nil {
		t.Fatal(err)
	}
	h.forget()
	return layers[0]
}

// artifactOf publishes an artifact of files under a tag and returns its reference and digest.
func (h *hub) artifactOf(t *testing.T, tag string, files ...ocispec.Descriptor) (string, digest.Digest) {
	t.Helper()
	manifest := ocispec.Manifest{
		Versioned: specs.Versioned{SchemaVersion: 2}, MediaType: ocispec.MediaTypeImageManifest,
		ArtifactType: "application/vnd.example.model", Config: ocispec.DescriptorEmptyJSON, Layers: files,
	}
	blobs := map[digest.Digest][]byte{manifest.Config.Digest: manifest.Config.Data}
	for i, f := range files {
		blobs[f.Digest] = f.Data
		files[i].Data = nil
	}
	for d, data := range blobs {
		h.put(t, "/v2/team/model/blobs/uploads/?digest="+d.String(), http.MethodPost, "", data)
	}
	text, err := json.Marshal(manifest)
	if err != nil {
		t.Fatal(err)
	}
	h.put(t, "/v2/team/model/manifests/"+tag, http.MethodPut, manifest.MediaType, text)
	h.forget()
	return h.host() + "/team/model:" + tag, digest.FromBytes(text)
}

func (h *hub) put(t *testing.T, path, method, media string, data []byte) {
	t.Helper()
	req, err := http.NewRequest(method, h.URL+path, strings.NewReader(string(data)))
	if err != nil {
		t.Fatal(err)
	}
	req.Header.Set("Content-Type", media)
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	resp.Body.Close()
	if resp.StatusCode/100 != 2 {
		t.Fatalf("%s %s: %s", method, path, resp.Status)
	}
}

func artifactBlob(title string, data []byte, more ...string) ocispec.Descriptor {
	d := ocispec.Descriptor{MediaType: "application/octet-stream", Digest: digest.FromBytes(data), Size: int64(len(data)), Data: data, Annotations: map[string]string{}}
	if title != "" {
		d.Annotations[ocispec.AnnotationTitle] = title
	}
	for _, key := range more {
		d.Annotations[key] = "true"
	}
	return d
}

func TestArtifactsAreVolumes(t *testing.T) {
	h, s := newHub(t), newStore(t)
	packed := pack("gzip", file{"data/", "", 0o755}, file{"data/x", "unpacked", 0o600})
	ref, id := h.artifactOf(t, "1", artifactBlob("model.bin", []byte(noise(1, 300_000))), artifactBlob("conf/a.yaml", []byte("a: 1")),
		artifactBlob("", []byte("nameless")), artifactBlob("data", packed.packed, unpackAnnotation))
	img := pull(t, s, ref)
	if img.ID != id || img.Artifact != "application/vnd.example.model" || img.Size < 300_000 || len(img.Layers) != 4 {
		t.Errorf("got %s, type %q, %d bytes, %d layers", img.ID, img.Artifact, img.Size, len(img.Layers))
	}
	if _, err := s.Find(ref); !errors.Is(err, ErrArtifact) || !strings.Contains(err.Error(), "image volume") {
		t.Errorf("a container of an artifact: %v", err)
	}
	reopen(t, s)
	v, err := s.Volume(t.Context(), string(id))
	if err != nil {
		t.Fatal(err)
	}
	target := mountVolume(t, v)
	for name, want := range map[string]string{
		"model.bin": noise(1, 300_000), "conf/a.yaml": "a: 1", "data/x": "unpacked",
		digest.FromString("nameless").Encoded(): "nameless",
	} {
		if got, err := os.ReadFile(filepath.Join(target, name)); err != nil || string(got) != want {
			t.Errorf("%s: %v", name, err)
		}
	}
	if err := os.WriteFile(filepath.Join(target, "new"), nil, 0o644); err == nil {
		t.Error("the volume can be written to")
	}
	if err := Unmount(target); err != nil {
		t.Error(err)
	}
	if err := s.Remove(t.Context(), string(id)); err != nil {
		t.Error(err)
	}
	tidy(t, s, 0, 0)
}

func TestHostileArtifacts(t *testing.T) {
	h, s := newHub(t), newStore(t)
	for _, title := range []string{"../x", "/etc/passwd", ".", "a/../../b", "nul\x00byte", strings.Repeat("x", 2000)} {
		ref, _ := h.artifactOf(t, "1", artifactBlob(title, []byte("evil")))
		if _, err := s.Pull(deadline(t), ref, PullOptions{}); !errors.Is(err, ErrCorrupt) {
			t.Errorf("%.20q: %v", title, err)
		}
	}
	many := []ocispec.Descriptor{}
	for range artifactFileLimit + 1 {
		many = append(many, artifactBlob("a", []byte("a")))
	}
	ref, _ := h.artifactOf(t, "1", many...)
	if _, err := s.Pull(deadline(t), ref, PullOptions{}); !errors.Is(err, errUnsupported) {
		t.Errorf("many files: %v", err)
	}
	ref, _ = h.artifactOf(t, "1", artifactBlob("wrong", []byte("right")))
	h.hand(func(w http.ResponseWriter, r *http.Request) bool {
		if strings.Contains(r.URL.Path, "/blobs/") {
			w.Write([]byte("WRONG"))
		}
		return strings.Contains(r.URL.Path, "/blobs/")
	})
	if _, err := s.Pull(deadline(t), ref, PullOptions{}); !errors.Is(err, ErrCorrupt) {
		t.Errorf("wrong content: %v", err)
	}
	tidy(t, s, 0, 0)
}

func mountVolume(t *testing.T, v Volume) string {
	t.Helper()
	target := filepath.Join(t.TempDir(), "volume")
	if err := v.Mount(t.Context(), target); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { Unmount(target) })
	return target
}

func TestVolumeOfAnImage(t *testing.T) {
	h, s := newHub(t), newStore(t)
	ref := h.push(t, "app:1", imageOf(t, "", pack("gzip", file{"etc/a", "below", 0}, file{"gone", "x", 0}),
		pack("zstd", file{"etc/a", "above", 0}, file{".wh.gone", "", 0}, file{"etc/up", "../../../../etc/a", linkMode}, file{"out", "/proc/self/root/tmp", linkMode})))
	pull(t, s, ref)
	v, err := s.Volume(t.Context(), ref)
	if err != nil {
		t.Fatal(err)
	}
	target := mountVolume(t, v)
	if err := v.Mount(t.Context(), target); err != nil {
		t.Errorf("mounting twice: %v", err)
	}
	if got, _ := os.ReadFile(filepath.Join(target, "etc/a")); string(got) != "above" {
		t.Errorf("etc/a is %q", got)
	}
	for sub, want := range map[string]string{"": "", "etc": "/etc", "/etc/": "/etc", "etc/a": "/etc/a", "etc/up": "/etc/a", "../etc": "/etc"} {
		if got, err := v.Inside(target, sub); err != nil || got != target+want {
			t.Errorf("%q is %q, %v; want %q", sub, got, err, want)
		}
	}
	for _, sub := range []string{"gone", "none", "etc/a/b", "out", "etc/none"} {
		got, err := v.Inside(target, sub)
		if !errors.Is(err, ErrSubPath) || errors.Is(err, ErrNotFound) || !strings.Contains(err.Error(), v.ID.String()) || !strings.Contains(err.Error(), strconv.Quote(sub)) {
			t.Errorf("%q is %q, %v", sub, got, err)
		}
	}
	none := mountVolume(t, Volume{})
	if list, err := os.ReadDir(none); err != nil || len(list) != 0 {
		t.Errorf("an empty volume holds %v, %v", list, err)
	}
	if _, err := s.Volume(t.Context(), "quay.io/no/such:1"); !errors.Is(err, ErrNotFound) {
		t.Errorf("missing: %v", err)
	}
}
