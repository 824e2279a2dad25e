package main

import (
	"archive/tar"
	"bytes"
	"fmt"
	"io/fs"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"

	"github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/static"
	"github.com/google/go-containerregistry/pkg/v1/tarball"
	"github.com/google/go-containerregistry/pkg/v1/types"

	"github.com/evenkeel/evenkeel/integration/registry"
)

// host is the registry's name in references. The registry itself has another address after each boot.
const host = "powercut.test"

const (
	layerCount  = 10
	imageCount  = 14
	filesALayer = 150
	hasLarge    = 3 // of so many layers one has a file of megabytes
)

// A made image is the same in every boot, so that what one boot pulled another can check.
type made struct {
	ref    string
	id     string
	layers []*layer
}

// A layer and what is in it.
type layer struct {
	v1.Layer
	diffID v1.Hash
	files  map[string]file // by name, without slashes at its ends
}

type file struct {
	mode    fs.FileMode
	content []byte
	link    string
}

func (l *layer) directory() string { return l.diffID.Algorithm + "-" + l.diffID.Hex }

func publish(r *registry.Registry) ([]*made, error) {
	var layers []*layer
	for k := range uint64(layerCount) {
		l, err := makeLayer(k)
		if err != nil {
			return nil, err
		}
		layers = append(layers, l)
	}
	var images []*made
	for i := range imageCount {
		m := &made{ref: fmt.Sprintf("%s/image-%d:latest", host, i)}
		for _, k := range []int{i, i*3 + 1, i*7 + 2} { // images share layers, as images do
			if l := layers[k%layerCount]; !slices.Contains(m.layers, l) {
				m.layers = append(m.layers, l)
			}
		}
		if err := m.push(r, fmt.Sprintf("image-%d:latest", i)); err != nil {
			return nil, err
		}
		images = append(images, m)
	}
	return images, nil
}

func (m *made) push(r *registry.Registry, repository string) error {
	var layers []v1.Layer
	for _, l := range m.layers {
		layers = append(layers, l.Layer)
	}
	img, err := registry.Image(v1.Config{Cmd: []string{m.ref}}, layers...)
	if err != nil {
		return err
	}
	id, err := img.ConfigName()
	if err != nil {
		return err
	}
	m.id = id.String()
	_, err = r.Push(repository, img)
	return err
}

// makeLayer draws the files of the k-th layer.
func makeLayer(k uint64) (*layer, error) {
	random := rand.New(rand.NewPCG(k, 4711))
	l := &layer{files: map[string]file{}}
	for d := range 8 {
		l.files[fmt.Sprintf("dir-%d-%d", k, d)] = file{mode: fs.ModeDir | 0o755}
	}
	for n := range filesALayer {
		name := fmt.Sprintf("dir-%d-%d/file-%d", k, random.IntN(8), n)
		size := random.IntN(12 << 10)
		if n == 0 && k%hasLarge == 0 {
			size = 4 << 20
		}
		f := file{mode: []fs.FileMode{0o644, 0o600, 0o755, 0o755 | fs.ModeSetuid}[random.IntN(4)], content: noise(random, size)}
		if n%15 == 7 {
			f = file{mode: fs.ModeSymlink | 0o777, link: fmt.Sprintf("somewhere-%d", n)}
		}
		l.files[name] = f
	}
	return l, l.pack(k%2 == 0)
}

func noise(random *rand.Rand, size int) []byte {
	p := make([]byte, 0, size+8)
	for len(p) < size {
		x := random.Uint64()
		p = append(p, byte(x), byte(x>>8), byte(x>>16), byte(x>>24), byte(x>>32), byte(x>>40), byte(x>>48), byte(x>>56))
	}
	return p[:size]
}

// pack makes the archive; half of the layers are compressed.
func (l *layer) pack(compressed bool) (err error) {
	var buf bytes.Buffer
	w := tar.NewWriter(&buf)
	names := make([]string, 0, len(l.files))
	for name := range l.files {
		names = append(names, name)
	}
	slices.Sort(names)
	for _, name := range names {
		if err := l.files[name].write(w, name); err != nil {
			return err
		}
	}
	if err := w.Close(); err != nil {
		return err
	}
	l.Layer = static.NewLayer(buf.Bytes(), types.OCIUncompressedLayer)
	if compressed {
		if l.Layer, err = tarball.LayerFromReader(&buf, tarball.WithCompressionLevel(1)); err != nil { //nolint:staticcheck // it is small
			return err
		}
	}
	l.diffID, err = l.DiffID()
	return err
}

func (f file) write(w *tar.Writer, name string) error {
	h := &tar.Header{Name: name, Typeflag: tar.TypeReg, Mode: int64(f.mode.Perm()), Size: int64(len(f.content))}
	switch {
	case f.mode.IsDir():
		h.Name, h.Typeflag = name+"/", tar.TypeDir
	case f.link != "":
		h.Typeflag, h.Linkname = tar.TypeSymlink, f.link
	case f.mode&fs.ModeSetuid != 0:
		h.Mode |= 0o4000
	}
	if err := w.WriteHeader(h); err != nil {
		return err
	}
	_, err := w.Write(f.content)
	return err
}

// verify compares a directory with the layer: nothing else, nothing missing, not a byte wrong.
func (l *layer) verify(dir string) (files int, err error) {
	err = filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if err != nil || path == dir {
			return err
		}
		name := strings.TrimPrefix(path, dir+"/")
		want, ok := l.files[name]
		if !ok {
			return fmt.Errorf("%s does not belong there", name)
		}
		files++
		return want.compare(path)
	})
	if err == nil && files != len(l.files) {
		err = fmt.Errorf("%d of %d files are there", files, len(l.files))
	}
	return files, err
}

func (f file) compare(path string) error {
	info, err := os.Lstat(path)
	if err != nil {
		return err
	}
	if info.Mode() != f.mode {
		return fmt.Errorf("%s has mode %s, want %s", path, info.Mode(), f.mode)
	}
	if s := info.Sys().(*syscall.Stat_t); s.Uid != 0 || s.Gid != 0 {
		return fmt.Errorf("%s belongs to %d:%d, want 0:0", path, s.Uid, s.Gid)
	}
	if f.mode.IsDir() {
		return nil
	}
	if f.link != "" {
		target, err := os.Readlink(path)
		if err == nil && target != f.link {
			err = fmt.Errorf("%s links to %q, want %q", path, target, f.link)
		}
		return err
	}
	content, err := os.ReadFile(path)
	if err == nil && !bytes.Equal(content, f.content) {
		err = fmt.Errorf("%s has %d bytes, and not the %d that the image has", path, len(content), len(f.content))
	}
	return err
}
