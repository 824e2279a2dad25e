package main

import (
	"archive/tar"
	"bytes"
	"fmt"
	"io"
	"math/rand/v2"
	"runtime"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/empty"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/types"
	"github.com/klauspost/compress/gzip"
	"github.com/klauspost/compress/zstd"
	"github.com/opencontainers/go-digest"

	"github.com/evenkeel/evenkeel/integration/registry"
)

// publish makes the three images, the same ones every time.
func publish(r *registry.Registry, o options) error {
	var plain [][]byte
	if o.only != "one" {
		for i := range 8 {
			plain = append(plain, files(uint64(i), int(7500*o.scale), 10_000))
		}
	}
	for _, p := range pictures {
		if o.only != "" && o.only != p.name {
			continue
		}
		var layers []v1.Layer
		var err error
		switch p.name {
		case "gzip":
			layers, err = packAll(plain, packGzip, types.OCILayer)
		case "zstd":
			layers, err = packAll(plain, packZstd, types.OCILayerZStd)
		case "one":
			layers, err = packAll([][]byte{files(99, int(300*o.scale), 1_000_000)}, packGzip, types.OCILayer)
		}
		if err != nil {
			return err
		}
		if err := push(r, p.name+":1", layers); err != nil {
			return err
		}
	}
	return nil
}

func push(r *registry.Registry, name string, layers []v1.Layer) error {
	img, err := mutate.AppendLayers(mutate.MediaType(empty.Image, types.OCIManifestSchema1), layers...)
	if err != nil {
		return err
	}
	config, err := img.ConfigFile()
	if err != nil {
		return err
	}
	config = config.DeepCopy()
	config.OS, config.Architecture = "linux", runtime.GOARCH
	if img, err = mutate.ConfigFile(img, config); err != nil {
		return err
	}
	_, err = r.Push(name, img)
	return err
}

// files is an archive of files of half to one and a half times the size, in directories of a hundred, as the package
// trees of interpreters are. A third of the bytes is left by gzip.
func files(seed uint64, count, size int) []byte {
	random := rand.New(rand.NewPCG(seed, 7))
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	for i := range count {
		dir := fmt.Sprintf("usr/lib/layer%d/package%d", seed, i/100)
		if i%100 == 0 {
			w.WriteHeader(&tar.Header{Name: dir + "/", Typeflag: tar.TypeDir, Mode: 0o755})
		}
		content := text(random, size/2+random.IntN(size))
		w.WriteHeader(&tar.Header{Name: fmt.Sprintf("%s/module%d.py", dir, i), Typeflag: tar.TypeReg, Mode: 0o644, Size: int64(len(content))})
		w.Write(content)
	}
	w.Close()
	return b.Bytes()
}

// text draws words from a vocabulary, common ones more often.
func text(random *rand.Rand, size int) []byte {
	b := make([]byte, 0, size+16)
	for len(b) < size {
		n := int(random.ExpFloat64() * 400)
		b = append(b, vocabulary[n%len(vocabulary)]...)
		b = append(b, " (.\n"[random.IntN(4)])
	}
	return b[:size]
}

var vocabulary = func() (words []string) {
	random := rand.New(rand.NewPCG(1, 2))
	for range 4000 {
		word := make([]byte, 3+random.IntN(9))
		for i := range word {
			word[i] = byte('a' + random.IntN(26))
		}
		words = append(words, string(word))
	}
	return words
}()

type packed struct {
	diffID, digest v1.Hash
	plain, data    []byte
	media          types.MediaType
}

func (l packed) Digest() (v1.Hash, error)            { return l.digest, nil }
func (l packed) DiffID() (v1.Hash, error)            { return l.diffID, nil }
func (l packed) Size() (int64, error)                { return int64(len(l.data)), nil }
func (l packed) MediaType() (types.MediaType, error) { return l.media, nil }
func (l packed) Compressed() (io.ReadCloser, error) {
	return io.NopCloser(bytes.NewReader(l.data)), nil
}
func (l packed) Uncompressed() (io.ReadCloser, error) {
	return io.NopCloser(bytes.NewReader(l.plain)), nil
}

func packAll(plain [][]byte, pack func([]byte) ([]byte, error), media types.MediaType) (layers []v1.Layer, err error) {
	for _, p := range plain {
		l := packed{plain: p, media: media}
		if l.data, err = pack(p); err != nil {
			return nil, err
		}
		if l.diffID, err = v1.NewHash(digest.FromBytes(p).String()); err != nil {
			return nil, err
		}
		if l.digest, err = v1.NewHash(digest.FromBytes(l.data).String()); err != nil {
			return nil, err
		}
		layers = append(layers, l)
	}
	return layers, nil
}

func packGzip(data []byte) ([]byte, error) {
	var b bytes.Buffer
	w := gzip.NewWriter(&b)
	if _, err := w.Write(data); err != nil {
		return nil, err
	}
	err := w.Close()
	return b.Bytes(), err
}

func packZstd(data []byte) ([]byte, error) {
	w, err := zstd.NewWriter(nil)
	if err != nil {
		return nil, err
	}
	defer w.Close()
	return w.EncodeAll(data, nil), nil
}
