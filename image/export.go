package image

import (
	"archive/tar"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"time"

	"github.com/opencontainers/go-digest"
	"github.com/opencontainers/image-spec/specs-go"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/evenkeel/evenkeel/image/layer"
)

// Export writes images as one archive that is an OCI layout and reads like one of `docker save` as well. An image has the
// same id wherever it is imported: its layers are made again byte for byte, uncompressed, from their recipes. Errors are
// ErrNotFound, layer.ErrDamaged, the writer's, or that an image cannot be made again.
//
// compression is gzip, zstd, or empty for none.
func (s *Store) Export(ctx context.Context, w io.Writer, compression string, refs ...string) error {
	packed, err := layer.Compress(w, compression)
	if err != nil {
		return err
	}
	return errors.Join(s.export(ctx, packed, refs), packed.Close())
}

func (s *Store) export(ctx context.Context, w io.Writer, refs []string) error {
	x := exporter{Store: s, ctx: ctx, tar: tar.NewWriter(w), done: map[digest.Digest]bool{}}
	for _, ref := range refs {
		e, err := s.find(ref)
		if err == nil {
			err = x.image(e)
		}
		if err != nil {
			return fmt.Errorf("cannot export %s: %w", ref, err)
		}
	}
	err := x.document(ocispec.ImageIndexFile, ocispec.Index{Versioned: specs.Versioned{SchemaVersion: 2}, MediaType: ocispec.MediaTypeImageIndex, Manifests: x.manifests})
	err = errors.Join(err, x.document(ocispec.ImageLayoutFile, ocispec.ImageLayout{Version: ocispec.ImageLayoutVersion}))
	if len(x.docker) > 0 {
		err = errors.Join(err, x.document("manifest.json", x.docker))
	}
	if err := errors.Join(err, x.tar.Close()); err != nil {
		return fmt.Errorf("cannot finish the archive: %w", err)
	}
	return nil
}

type exporter struct {
	*Store
	ctx       context.Context
	tar       *tar.Writer
	done      map[digest.Digest]bool // blobs that are in the archive
	manifests []ocispec.Descriptor
	docker    []dockerEntry
}

func (x *exporter) image(e *entry) error {
	for _, id := range e.needs() {
		x.hold(id)
		defer x.release(id)
	}
	if e.Artifact != "" {
		return x.artifact(e)
	}
	manifest := ocispec.Manifest{
		Versioned: specs.Versioned{SchemaVersion: 2}, MediaType: ocispec.MediaTypeImageManifest,
		Config: ocispec.Descriptor{MediaType: ocispec.MediaTypeImageConfig, Digest: e.ID, Size: int64(len(e.Config))},
	}
	names := dockerEntry{Config: blobPath(e.ID), RepoTags: e.Tags}
	for _, id := range e.layers {
		l, ok := x.layer(id)
		if !ok || l.Archive == 0 {
			return fmt.Errorf("layer %s cannot be made again, as an entry of its archive replaced another or an older release unpacked it; copy the image from its registry", id)
		}
		if err := x.layerBlob(l); err != nil {
			return err
		}
		manifest.Layers = append(manifest.Layers, ocispec.Descriptor{MediaType: ocispec.MediaTypeImageLayer, Digest: id, Size: l.Archive})
		names.Layers = append(names.Layers, blobPath(id))
	}
	text, err := json.Marshal(manifest)
	if err != nil {
		return err
	}
	platform := e.image.Config.Platform
	d := ocispec.Descriptor{MediaType: ocispec.MediaTypeImageManifest, Digest: digest.FromBytes(text), Size: int64(len(text)), Platform: &platform}
	x.docker = append(x.docker, names)
	x.list(d, e.Tags)
	return errors.Join(x.small(e.ID, e.Config), x.small(d.Digest, text))
}

// list names the manifest, once for each tag.
func (x *exporter) list(d ocispec.Descriptor, tags []string) {
	if len(tags) == 0 {
		x.manifests = append(x.manifests, d)
	}
	for _, tag := range tags {
		named := d
		named.Annotations = map[string]string{containerdName: tag}
		x.manifests = append(x.manifests, named)
	}
}

func (x *exporter) artifact(e *entry) error {
	var manifest ocispec.Manifest
	if err := json.Unmarshal(e.Config, &manifest); err != nil {
		return err
	}
	if manifest.Config.Digest != ocispec.DescriptorEmptyJSON.Digest {
		return fmt.Errorf("the config of artifact %s is not kept; copy it from its registry", e.ID)
	}
	for _, id := range e.layers {
		l, ok := x.layer(id)
		if !ok || l.File == "" {
			return fmt.Errorf("a packed directory of artifact %s cannot be made again; copy it from its registry", e.ID)
		}
		f, err := os.Open(filepath.Join(x.layerDir(id), "fs", l.File))
		if err != nil {
			return err
		}
		err = x.blob(l.Blob, l.Bytes, f)
		f.Close()
		if err != nil {
			return err
		}
	}
	x.list(ocispec.Descriptor{MediaType: ocispec.MediaTypeImageManifest, ArtifactType: e.Artifact, Digest: e.ID, Size: int64(len(e.Config))}, e.Tags)
	return errors.Join(x.small(ocispec.DescriptorEmptyJSON.Digest, ocispec.DescriptorEmptyJSON.Data), x.small(e.ID, e.Config))
}

func (x *exporter) layer(id digest.Digest) (layerRecord, bool) {
	x.mu.Lock()
	defer x.mu.Unlock()
	l, ok := x.layers[id]
	return l, ok
}

func (x *exporter) layerBlob(l layerRecord) error {
	recipe, err := os.Open(filepath.Join(x.layerDir(l.DiffID), "recipe"))
	if err != nil {
		return err
	}
	defer recipe.Close()
	archive, err := layer.Replay(filepath.Join(x.layerDir(l.DiffID), "fs"), recipe)
	if err != nil {
		return err
	}
	defer archive.Close()
	return x.blob(l.DiffID, l.Archive, archive)
}

// blob copies a blob into the archive, unless it is there, and sees that it is what it is called.
func (x *exporter) blob(id digest.Digest, size int64, r io.Reader) error {
	if x.done[id] {
		return nil
	}
	x.done[id] = true
	if err := x.header(blobPath(id), size); err != nil {
		return err
	}
	h := id.Algorithm().Hash()
	if _, err := io.Copy(io.MultiWriter(x.tar, h), contextReader{x.ctx, r}); err != nil {
		return err
	}
	if got := digest.NewDigest(id.Algorithm(), h); got != id {
		return fmt.Errorf("%w: %s is %s on disk; run evenkeel fsck --repair", layer.ErrDamaged, id, got)
	}
	return nil
}

func (x *exporter) small(id digest.Digest, text []byte) error {
	return x.blob(id, int64(len(text)), bytes.NewReader(text))
}

func (x *exporter) document(name string, v any) error {
	text, err := json.Marshal(v)
	if err == nil {
		err = x.header(name, int64(len(text)))
	}
	if err == nil {
		_, err = x.tar.Write(text)
	}
	return err
}

// header has no time, so that one image always gives one archive.
func (x *exporter) header(name string, size int64) error {
	return x.tar.WriteHeader(&tar.Header{Name: name, Mode: 0o444, Size: size, ModTime: time.Unix(0, 0), Typeflag: tar.TypeReg})
}

func blobPath(id digest.Digest) string {
	return "blobs/" + id.Algorithm().String() + "/" + id.Encoded()
}
