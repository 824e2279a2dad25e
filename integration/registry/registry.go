// Package registry serves images made on the spot from a registry in this process, over plain HTTP on loopback. No
// test needs a network.
package registry

import (
	"archive/tar"
	"bytes"
	"fmt"
	"io"
	"log"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"sync/atomic"

	"github.com/google/go-containerregistry/pkg/name"
	"github.com/google/go-containerregistry/pkg/registry"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/empty"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/remote"
	"github.com/google/go-containerregistry/pkg/v1/tarball"
)

// A Registry holds images and counts what is asked of it.
type Registry struct {
	Host string // 127.0.0.1:port, the first part of a reference
	// Requests counts blob downloads.
	Requests atomic.Int64
	server   *httptest.Server

	mu             sync.Mutex // guards what follows
	user, password string     // demanded of every caller
	damaged        string     // digest of a blob that is served with a byte turned
}

// Serve starts an empty registry. The caller ends it with Close.
func Serve() *Registry {
	r := &Registry{}
	inner := registry.New(registry.Logger(log.New(io.Discard, "", 0)))
	r.server = httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, q *http.Request) {
		r.mu.Lock()
		user, password, damaged := r.user, r.password, r.damaged
		r.mu.Unlock()
		if u, p, _ := q.BasicAuth(); user != "" && (u != user || p != password) {
			w.Header().Set("WWW-Authenticate", `Basic realm="test"`)
			w.WriteHeader(http.StatusUnauthorized)
			return
		}
		if strings.Contains(q.URL.Path, "/blobs/") && q.Method == http.MethodGet {
			r.Requests.Add(1)
		}
		if damaged != "" && strings.HasSuffix(q.URL.Path, damaged) && q.Method == http.MethodGet {
			w = &damager{ResponseWriter: w}
		}
		inner.ServeHTTP(w, q)
	}))
	r.Host = strings.TrimPrefix(r.server.URL, "http://")
	return r
}

func (r *Registry) Close() { r.server.Close() }

// Demand makes the registry refuse callers without these credentials.
func (r *Registry) Demand(user, password string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.user, r.password = user, password
}

// Damage makes the registry serve a blob with one byte turned.
func (r *Registry) Damage(digest string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.damaged = digest
}

// damager turns a byte in the middle of the first piece.
type damager struct {
	http.ResponseWriter
	done bool
}

func (d *damager) Write(p []byte) (int, error) {
	if !d.done && len(p) > 0 {
		d.done = true
		p = bytes.Clone(p)
		p[len(p)/2] ^= 0x40
	}
	return d.ResponseWriter.Write(p)
}

// Hosts writes the hosts.toml that lets an engine speak plain HTTP with the registry.
func (r *Registry) Hosts(dir string) error { return r.Mirror(dir, r.Host) }

// Mirror writes the hosts.toml that sends an engine to this registry for images of another.
func (r *Registry) Mirror(dir, of string) error {
	at := filepath.Join(dir, of)
	if err := os.MkdirAll(at, 0o755); err != nil {
		return err
	}
	text := fmt.Sprintf("[host.\"http://%s\"]\n  capabilities = [\"pull\", \"resolve\"]\n", r.Host)
	if of != "_default" {
		text = fmt.Sprintf("server = \"http://%s\"\n\n", r.Host) + text
	}
	return os.WriteFile(filepath.Join(at, "hosts.toml"), []byte(text), 0o644)
}

// Push stores an image or index and returns its reference, such as 127.0.0.1:4711/busybox:latest.
func (r *Registry) Push(repository string, what remote.Taggable) (string, error) {
	ref, err := name.ParseReference(r.Host + "/" + repository)
	if err != nil {
		return "", err
	}
	switch x := what.(type) {
	case v1.ImageIndex:
		err = remote.WriteIndex(ref, x)
	case v1.Image:
		err = remote.Write(ref, x)
	}
	return ref.Name(), err
}

// A File of a layer. A name that ends in a slash is a directory; a Link makes a symbolic link.
type File struct {
	Name    string
	Mode    int64
	Content []byte
	Link    string
}

// Layer packs files.
func Layer(files ...File) (v1.Layer, error) {
	var buf bytes.Buffer
	w := tar.NewWriter(&buf)
	for _, f := range files {
		h := &tar.Header{Name: f.Name, Mode: f.Mode, Size: int64(len(f.Content)), Typeflag: tar.TypeReg}
		if strings.HasSuffix(f.Name, "/") {
			h.Typeflag = tar.TypeDir
		} else if f.Link != "" {
			h.Typeflag, h.Linkname = tar.TypeSymlink, f.Link
		}
		if err := w.WriteHeader(h); err != nil {
			return nil, err
		}
		if _, err := w.Write(f.Content); err != nil {
			return nil, err
		}
	}
	if err := w.Close(); err != nil {
		return nil, err
	}
	return tarball.LayerFromOpener(func() (io.ReadCloser, error) { return io.NopCloser(bytes.NewReader(buf.Bytes())), nil })
}

// Image stacks layers under a configuration for this machine.
func Image(config v1.Config, layers ...v1.Layer) (v1.Image, error) {
	return ImageFor(v1.Platform{OS: "linux", Architecture: runtime.GOARCH}, config, layers...)
}

// ImageFor stacks layers for a platform.
func ImageFor(p v1.Platform, config v1.Config, layers ...v1.Layer) (v1.Image, error) {
	img, err := mutate.AppendLayers(empty.Image, layers...)
	if err != nil {
		return nil, err
	}
	return mutate.ConfigFile(img, withConfig(img, p, config))
}

func withConfig(img v1.Image, p v1.Platform, config v1.Config) *v1.ConfigFile {
	file, err := img.ConfigFile()
	if err != nil {
		return &v1.ConfigFile{} // an image in memory always has one
	}
	file = file.DeepCopy()
	file.OS, file.Architecture, file.Variant, file.Config = p.OS, p.Architecture, p.Variant, config
	return file
}

// For is an image and the platform an index names it for.
type For struct {
	Platform v1.Platform
	Image    v1.Image
}

// Index names images by platform.
func Index(images ...For) v1.ImageIndex {
	index := v1.ImageIndex(empty.Index)
	for _, f := range images {
		index = mutate.AppendManifests(index, mutate.IndexAddendum{Add: f.Image, Descriptor: v1.Descriptor{Platform: &f.Platform}})
	}
	return index
}

// BusyboxFiles is a small system of the machine's own static busybox, with a link for every applet.
func BusyboxFiles() ([]File, error) {
	program, err := os.ReadFile("/bin/busybox")
	if err != nil {
		return nil, fmt.Errorf("%w: run `make deps` (package busybox-static)", err)
	}
	applets, err := exec.Command("/bin/busybox", "--list").Output()
	if err != nil {
		return nil, fmt.Errorf("cannot list the applets of /bin/busybox: %w", err)
	}
	files := []File{
		{Name: "bin/", Mode: 0o755}, {Name: "etc/", Mode: 0o755}, {Name: "tmp/", Mode: 0o1777}, {Name: "root/", Mode: 0o700},
		{Name: "bin/busybox", Mode: 0o755, Content: program},
		{Name: "etc/passwd", Mode: 0o644, Content: []byte("root:x:0:0:root:/root:/bin/sh\nnobody:x:65534:65534:nobody:/:/bin/sh\n")},
		{Name: "etc/group", Mode: 0o644, Content: []byte("root:x:0:\nnogroup:x:65534:\n")},
	}
	for _, applet := range strings.Fields(string(applets)) {
		if applet != "busybox" {
			files = append(files, File{Name: "bin/" + applet, Mode: 0o777, Link: "busybox"})
		}
	}
	return files, nil
}

// Busybox is an image of BusyboxFiles.
func Busybox() (v1.Image, error) {
	files, err := BusyboxFiles()
	if err != nil {
		return nil, err
	}
	layer, err := Layer(files...)
	if err != nil {
		return nil, err
	}
	return Image(v1.Config{Cmd: []string{"sh"}, Env: []string{"PATH=/bin"}, WorkingDir: "/"}, layer)
}
