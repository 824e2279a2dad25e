package image

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"context"
	"fmt"
	"io"
	"log"
	"log/slog"
	"math/rand/v2"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-containerregistry/pkg/name"
	"github.com/google/go-containerregistry/pkg/registry"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/empty"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	ggcr "github.com/google/go-containerregistry/pkg/v1/remote"
	"github.com/google/go-containerregistry/pkg/v1/types"
	"github.com/klauspost/compress/zstd"
	"github.com/opencontainers/go-digest"
)

// hub is a real registry in this process. A test may put a hand before it.
type hub struct {
	*httptest.Server
	inner http.Handler

	mu       sync.Mutex // guards what follows
	requests []string   // "GET /v2/..." and, with a range, " bytes=..."
	before   func(w http.ResponseWriter, r *http.Request) (done bool)
}

func newHub(t *testing.T) *hub {
	t.Helper()
	h := &hub{inner: registry.New(registry.Logger(log.New(io.Discard, "", 0)))}
	h.Server = httptest.NewServer(h)
	t.Cleanup(h.Close)
	return h
}

func (h *hub) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	h.mu.Lock()
	line := r.Method + " " + r.URL.Path
	if rng := r.Header.Get("Range"); rng != "" {
		line += " " + rng
	}
	h.requests = append(h.requests, line)
	before := h.before
	h.mu.Unlock()
	if before != nil && before(w, r) {
		return
	}
	h.inner.ServeHTTP(w, r)
}

func (h *hub) hand(f func(w http.ResponseWriter, r *http.Request) bool) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.before = f
}

// asked counts the requests so far that contain text.
func (h *hub) asked(text string) int {
	h.mu.Lock()
	defer h.mu.Unlock()
	n := 0
	for _, r := range h.requests {
		if strings.Contains(r, text) {
			n++
		}
	}
	return n
}

func (h *hub) forget() {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.requests = nil
}

func (h *hub) host() string { return strings.TrimPrefix(h.URL, "http://") }

// push publishes an image or an index and returns its full reference.
func (h *hub) push(t *testing.T, repository string, what any) string {
	t.Helper()
	ref, err := name.ParseReference(h.host() + "/" + repository)
	if err != nil {
		t.Fatal(err)
	}
	switch what := what.(type) {
	case v1.Image:
		err = ggcr.Write(ref, what)
	case v1.ImageIndex:
		err = ggcr.WriteIndex(ref, what)
	}
	if err != nil {
		t.Fatal(err)
	}
	h.forget()
	return ref.String()
}

// status answers every request that contains text with a status code.
func status(text string, code int) func(http.ResponseWriter, *http.Request) bool {
	return func(w http.ResponseWriter, r *http.Request) bool {
		if !strings.Contains(r.URL.Path, text) {
			return false
		}
		w.WriteHeader(code)
		fmt.Fprintf(w, `{"errors":[{"code":"SAID","message":"the registry says %d"}]}`, code)
		return true
	}
}

// linkMode makes a file a symbolic link to its content.
const linkMode = -1

// file is an entry of a layer.
type file struct {
	name, content string
	mode          int64
}

// testLayer is a layer in any compression.
type testLayer struct {
	plain, packed []byte
	media         types.MediaType
	wrongDiffID   bool
}

func (l testLayer) Digest() (v1.Hash, error) {
	return v1.NewHash(digest.FromBytes(l.packed).String())
}
func (l testLayer) DiffID() (v1.Hash, error) {
	if l.wrongDiffID {
		return v1.NewHash(digest.FromString("something else").String())
	}
	return v1.NewHash(digest.FromBytes(l.plain).String())
}
func (l testLayer) Compressed() (io.ReadCloser, error) {
	return io.NopCloser(bytes.NewReader(l.packed)), nil
}
func (l testLayer) Uncompressed() (io.ReadCloser, error) {
	return io.NopCloser(bytes.NewReader(l.plain)), nil
}
func (l testLayer) Size() (int64, error)                { return int64(len(l.packed)), nil }
func (l testLayer) MediaType() (types.MediaType, error) { return l.media, nil }

func tarOf(files ...file) []byte {
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	for _, f := range files {
		header := &tar.Header{Name: f.name, Mode: f.mode, Size: int64(len(f.content)), Typeflag: tar.TypeReg, ModTime: time.Unix(1700000000, 0)}
		if strings.HasSuffix(f.name, "/") {
			header.Typeflag = tar.TypeDir
		}
		if header.Mode == linkMode {
			header.Typeflag, header.Linkname, header.Size, f.content = tar.TypeSymlink, f.content, 0, ""
		}
		if header.Mode == 0 {
			header.Mode = 0o644
		}
		w.WriteHeader(header)
		w.Write([]byte(f.content))
	}
	w.Close()
	return b.Bytes()
}

func pack(compression string, files ...file) testLayer {
	l := testLayer{plain: tarOf(files...)}
	var b bytes.Buffer
	switch compression {
	case "gzip":
		w := gzip.NewWriter(&b)
		w.Write(l.plain)
		w.Close()
		l.media = types.OCILayer
	case "zstd":
		w, _ := zstd.NewWriter(&b)
		w.Write(l.plain)
		w.Close()
		l.media = types.OCILayerZStd
	default:
		b.Write(l.plain)
		l.media = types.OCIUncompressedLayer
	}
	l.packed = b.Bytes()
	return l
}

// noise is content that does not compress, the same for the same seed.
func noise(seed uint64, size int) string {
	b := make([]byte, size)
	rand.NewChaCha8([32]byte{byte(seed), byte(seed >> 8)}).Read(b)
	return string(b)
}

// imageOf makes an OCI image for a platform such as linux/arm64/v8; "" is this machine's.
func imageOf(t *testing.T, platform string, layers ...v1.Layer) v1.Image {
	t.Helper()
	img, err := mutate.AppendLayers(mutate.MediaType(mutate.ConfigMediaType(empty.Image, types.OCIConfigJSON), types.OCIManifestSchema1), layers...)
	if err != nil {
		t.Fatal(err)
	}
	config, err := img.ConfigFile()
	if err != nil {
		t.Fatal(err)
	}
	config = config.DeepCopy()
	p := parsePlatform(platform)
	config.OS, config.Architecture, config.Variant = p.OS, p.Architecture, p.Variant
	config.Config.Cmd = []string{"/bin/true"}
	img, err = mutate.ConfigFile(img, config)
	if err != nil {
		t.Fatal(err)
	}
	return img
}

func parsePlatform(text string) v1.Platform {
	if text == "" {
		text = platformName(thisMachine())
	}
	p, err := v1.ParsePlatform(text)
	if err != nil {
		panic(err)
	}
	return *p
}

func indexOf(platforms map[string]v1.Image) v1.ImageIndex {
	var adds []mutate.IndexAddendum
	for _, name := range slices.Sorted(func(yield func(string) bool) {
		for n := range platforms {
			if !yield(n) {
				return
			}
		}
	}) {
		p := parsePlatform(name)
		adds = append(adds, mutate.IndexAddendum{Add: platforms[name], Descriptor: v1.Descriptor{Platform: &p}})
	}
	return mutate.AppendManifests(mutate.IndexMediaType(empty.Index, types.OCIImageIndex), adds...)
}

func idOf(t *testing.T, img v1.Image) digest.Digest {
	t.Helper()
	h, err := img.ConfigName()
	if err != nil {
		t.Fatal(err)
	}
	return digest.Digest(h.String())
}

func digestOf(t *testing.T, what interface{ Digest() (v1.Hash, error) }) digest.Digest {
	t.Helper()
	h, err := what.Digest()
	if err != nil {
		t.Fatal(err)
	}
	return digest.Digest(h.String())
}

func newStore(t *testing.T) *Store {
	t.Helper()
	s := &Store{Root: t.TempDir(), HostsDir: t.TempDir(), Lease: -1} // what is removed is gone at once; lease_test.go for the other case
	reopen(t, s)
	t.Cleanup(s.Close)
	return s
}

func reopen(t *testing.T, s *Store) {
	t.Helper()
	if err := s.Open(context.Background()); err != nil {
		t.Fatal(err)
	}
}

func pull(t *testing.T, s *Store, ref string) *Image {
	t.Helper()
	img, err := s.Pull(deadline(t), ref, PullOptions{})
	if err != nil {
		t.Fatal(err)
	}
	checkWhole(t, img)
	return img
}

func deadline(t *testing.T) context.Context {
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	t.Cleanup(cancel)
	return ctx
}

func checkWhole(t *testing.T, img *Image) {
	t.Helper()
	for _, l := range img.Layers {
		if info, err := os.Stat(l.Dir); err != nil || !info.IsDir() {
			t.Errorf("layer %s of image %s is not on disk: %v", l.DiffID, img.ID, err)
		}
	}
}

func content(t *testing.T, img *Image, layer int, name string) string {
	t.Helper()
	text, err := os.ReadFile(filepath.Join(img.Layers[layer].Dir, name))
	if err != nil {
		t.Fatal(err)
	}
	return string(text)
}

// tidy checks that nothing but the given number of images and layers is in the store's directory.
func tidy(t *testing.T, s *Store, images, layers int) {
	t.Helper()
	s.background.Wait()
	for dir, want := range map[string]int{"ingest": 0, "trash": 0, "images": images, "layers": layers} {
		list, err := os.ReadDir(filepath.Join(s.Root, dir))
		if err != nil {
			t.Fatal(err)
		}
		if len(list) != want {
			t.Errorf("%s holds %d entries, want %d: %v", dir, len(list), want, list)
		}
	}
	if n := len(s.List()); n != images {
		t.Errorf("%d images are listed, want %d", n, images)
	}
	if len(s.holds) != 0 || len(s.unpacks.running) != 0 || len(s.pulls.running) != 0 {
		t.Errorf("something still runs: holds %v, unpacks %v, pulls %v", s.holds, s.unpacks.running, s.pulls.running)
	}
}

func writeHosts(t *testing.T, s *Store, dir, text string) {
	t.Helper()
	path := filepath.Join(s.HostsDir, dir)
	if err := os.MkdirAll(path, 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(path, "hosts.toml"), []byte(text), 0o644); err != nil {
		t.Fatal(err)
	}
}

func layersOf(t *testing.T, img v1.Image) []v1.Layer {
	t.Helper()
	layers, err := img.Layers()
	if err != nil {
		t.Fatal(err)
	}
	return layers
}

func (s *Store) mustGet(t *testing.T, ref string) *Image {
	t.Helper()
	img, err := s.Get(ref)
	if err != nil {
		t.Fatal(err)
	}
	return img
}

// logTo lets a test read what the store logs.
func logTo(s *Store, w io.Writer) {
	s.Log = slog.New(slog.NewTextHandler(w, &slog.HandlerOptions{Level: slog.LevelDebug}))
}
