package image

import (
	"encoding/json"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

// An OCI artifact (image-spec, manifest.md, "Guidelines for Artifact Usage") is a manifest whose blobs are files: models,
// rules, charts. It is kept like an image, so that it is pulled, listed, shared, verified and removed in one way: its id
// is the digest of its manifest, since many artifacts have the same empty config, and each of its files is a layer that
// holds this file alone. A volume shows them together.

// unpackAnnotation marks a directory that ORAS packed as a tar archive.
const unpackAnnotation = "io.deis.oras.content.unpack"

const (
	artifactFileLimit = 400  // files; each is an overlay layer, of which the kernel takes 500
	titleLimit        = 1024 // bytes of a file's name
)

// artifactType tells artifacts from images by the config's type, which is what the specification tells implementers to
// look at. It is empty for images.
func (doc *document) artifactType() string {
	switch doc.Config.MediaType {
	case ocispec.MediaTypeImageConfig, dockerConfig, "", "application/octet-stream": // the last one by old tools
		return ""
	}
	return first(doc.ArtifactType, doc.Config.MediaType)
}

func artifactPlan(manifest []byte, kind string) (*plan, error) {
	files, err := artifactFiles(manifest)
	if err != nil {
		return nil, err
	}
	return &plan{config: manifest, artifact: kind, layers: files, extra: int64(len(manifest))}, nil
}

// artifactFiles reads the files out of an artifact's manifest.
func artifactFiles(manifest []byte) (files []blob, err error) {
	var doc ocispec.Manifest
	if err := json.Unmarshal(manifest, &doc); err != nil {
		return nil, fmt.Errorf("%w: manifest is not JSON: %v", ErrCorrupt, err)
	}
	if len(doc.Layers) > artifactFileLimit {
		return nil, fmt.Errorf("%w: an artifact of %d files; up to %d can be shown in a volume", errUnsupported, len(doc.Layers), artifactFileLimit)
	}
	for _, d := range doc.Layers {
		if d.MediaType == ocispec.MediaTypeEmptyJSON {
			continue // stands for nothing
		}
		f, err := artifactFile(d)
		if err != nil {
			return nil, err
		}
		files = append(files, f)
	}
	return files, nil
}

// artifactFile names the layer of a file after all that makes it what it is.
func artifactFile(d ocispec.Descriptor) (blob, error) {
	if d.Digest.Validate() != nil || d.Size < 0 {
		return blob{}, fmt.Errorf("%w: file with digest %q and size %d", ErrCorrupt, d.Digest, d.Size)
	}
	title := first(d.Annotations[ocispec.AnnotationTitle], d.Digest.Encoded())
	name := filepath.Clean(title)
	if !filepath.IsLocal(name) || name == "." || len(name) > titleLimit || strings.ContainsRune(name, 0) {
		return blob{}, fmt.Errorf("%w: the artifact calls a file %q, which is no path below a directory", ErrCorrupt, title)
	}
	if d.Annotations[unpackAnnotation] == "true" {
		name = ""
	}
	text, err := json.Marshal([]string{"artifact", d.Digest.String(), name})
	return blob{Descriptor: d, diffID: digest.FromBytes(text), artifact: true, file: name}, err
}

// writeFile puts the blob below root as it is. It is readable for every user, as nobody in the pod owns it.
func (l blob) writeFile(body io.Reader, root string) (inodes int64, err error) {
	r, err := os.OpenRoot(root)
	if err != nil {
		return 0, err
	}
	defer r.Close()
	if dir := filepath.Dir(l.file); dir != "." {
		if err := r.MkdirAll(dir, 0o755); err != nil {
			return 0, err
		}
	}
	f, err := r.OpenFile(l.file, os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o444)
	if err != nil {
		return 0, err
	}
	_, err = io.Copy(f, body)
	if closeErr := f.Close(); err == nil {
		err = closeErr
	}
	return int64(2 + strings.Count(l.file, "/")), err
}
