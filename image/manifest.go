package image

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/evenkeel/evenkeel/image/layer"
)

// The Docker media types that registries still serve; their documents read like the OCI ones.
const (
	dockerManifest = "application/vnd.docker.distribution.manifest.v2+json"
	dockerIndex    = "application/vnd.docker.distribution.manifest.list.v2+json"
	dockerConfig   = "application/vnd.docker.container.image.v1+json"
	dockerSchema1  = "application/vnd.docker.distribution.manifest.v1"
)

// nesting is how deep an index may stand inside another one.
const nesting = 4

func acceptable(what string) []string {
	if strings.HasPrefix(what, "manifests/") {
		return []string{strings.Join([]string{ocispec.MediaTypeImageManifest, ocispec.MediaTypeImageIndex, dockerManifest, dockerIndex, "*/*;q=0.5"}, ", ")}
	}
	return []string{"*/*"}
}

// source is where an image's content comes from: a registry or an archive.
type source interface {
	// manifest and config return the verified document.
	manifest(context.Context, ocispec.Descriptor) ([]byte, error)
	config(context.Context, ocispec.Descriptor) ([]byte, error)
	// blob opens a layer, unverified. Where content turned out wrong, it is asked again with a higher skip, and
	// answers errOutOfHosts when there is nowhere else to get it.
	blob(ctx context.Context, d ocispec.Descriptor, skip int) (io.ReadCloser, error)
}

// plan is an image before its layers are here.
type plan struct {
	config   []byte // the manifest of an artifact
	image    ocispec.Image
	artifact string // the type of an OCI artifact
	layers   []blob // lowest first
	extra    int64  // bytes of the documents
}

// blob is a layer as a manifest announces it.
type blob struct {
	ocispec.Descriptor
	diffID digest.Digest
	// Of an artifact: file is the path of the blob's only file; empty: it is a tar archive.
	artifact bool
	file     string
	limits   layer.Limits  // the store's
	windows  layer.Windows // the store's and the pull's
}

func (p *plan) id() digest.Digest { return digest.FromBytes(p.config) }

// mountable refuses, before anything large is fetched, an image with more layers than an overlay can have. Layers count once
// (Rootfs.lower).
func (p *plan) mountable(called names, mend digest.Digest) error {
	distinct := map[digest.Digest]bool{}
	for _, l := range p.layers {
		distinct[l.diffID] = true
	}
	if mend != "" {
		distinct[mend] = true
	}
	if len(distinct) <= maxLayers {
		return nil
	}
	name := first(append(slices.Concat(called.tags, called.digests), p.id().String())...)
	return fmt.Errorf("%w: image %s has %d layers, and the kernel mounts %d at most", errUnsupported, name, len(distinct), maxLayers)
}

// document is a manifest or an index; which one, its fields say.
type document struct {
	SchemaVersion int                  `json:"schemaVersion"`
	MediaType     string               `json:"mediaType"`
	ArtifactType  string               `json:"artifactType"`
	Config        *ocispec.Descriptor  `json:"config"`
	Layers        []ocispec.Descriptor `json:"layers"`
	Manifests     []ocispec.Descriptor `json:"manifests"`
	FSLayers      json.RawMessage      `json:"fsLayers"`
}

func parseDocument(text []byte, mediaType string) (*document, error) {
	if strings.HasPrefix(mediaType, dockerSchema1) {
		return nil, errSchema1
	}
	doc := &document{}
	if err := json.Unmarshal(text, doc); err != nil {
		return nil, fmt.Errorf("%w: manifest is not JSON: %v", ErrCorrupt, err)
	}
	switch {
	case doc.SchemaVersion == 1 || doc.FSLayers != nil:
		return nil, errSchema1
	case doc.Manifests != nil && (doc.Config != nil || doc.Layers != nil):
		// Two readers could take it for two different things (CVE-2021-41190).
		return nil, fmt.Errorf("%w: manifest is both an index and an image", ErrCorrupt)
	case doc.Manifests == nil && doc.Config == nil:
		return nil, fmt.Errorf("%w: neither an image manifest nor an index (media type %q)", errUnsupported, first(doc.MediaType, mediaType))
	}
	return doc, nil
}

var (
	errUnsupported = errors.New("unsupported image format")
	errSchema1     = fmt.Errorf("%w: Docker image manifest version 2, schema 1, which was retired in 2019; push the image again with a current tool", errUnsupported)
)

func first(texts ...string) string {
	for _, t := range texts {
		if t != "" {
			return t
		}
	}
	return ""
}

// makePlan reads manifests from desc down to the image for the platform.
func makePlan(ctx context.Context, src source, desc ocispec.Descriptor, want ocispec.Platform) (*plan, error) {
	return planBelow(ctx, &frugal{src, manifestsPerPull}, desc, want, nesting)
}

// manifestsPerPull bounds a search through indexes whose entries name no platform: nested ones can list more than anybody
// could ever fetch.
const manifestsPerPull = 256

// frugal is a source that hands out so many manifests.
type frugal struct {
	source
	left int
}

func (f *frugal) manifest(ctx context.Context, d ocispec.Descriptor) ([]byte, error) {
	if f.left--; f.left < 0 {
		return nil, fmt.Errorf("%w: no image for this platform among the first %d manifests of the index", ErrCorrupt, manifestsPerPull)
	}
	return f.source.manifest(ctx, d)
}

func planBelow(ctx context.Context, src source, desc ocispec.Descriptor, want ocispec.Platform, depth int) (*plan, error) {
	if err := desc.Digest.Validate(); err != nil {
		return nil, fmt.Errorf("%w: manifest digest %q: %v", ErrCorrupt, desc.Digest, err)
	}
	text, err := src.manifest(ctx, desc)
	if err != nil {
		return nil, err
	}
	doc, err := parseDocument(text, desc.MediaType)
	if err != nil {
		return nil, err
	}
	if doc.Manifests == nil {
		if kind := doc.artifactType(); kind != "" {
			return artifactPlan(text, kind)
		}
		return doc.plan(ctx, src, want, int64(len(text)))
	}
	if depth == 0 {
		return nil, fmt.Errorf("%w: index inside index, more than %d deep", errUnsupported, nesting)
	}
	return planFromIndex(ctx, src, doc.Manifests, want, depth)
}

// planFromIndex follows the best entry. Entries that name no platform (nested indexes, old tools) are looked into, in
// order, when no entry fits by name.
func planFromIndex(ctx context.Context, src source, list []ocispec.Descriptor, want ocispec.Platform, depth int) (*plan, error) {
	want.OSFeatures = slices.DeleteFunc(slices.Clone(want.OSFeatures), func(f string) bool { return f == orEmulated }) // an index is a choice
	if best := choose(list, want); best != nil {
		return planBelow(ctx, src, *best, want, depth-1)
	}
	missing := &platformError{want: want}
	for _, d := range list {
		if d.Platform != nil {
			missing.add(*d.Platform)
			continue
		}
		p, err := planBelow(ctx, src, d, want, depth-1)
		var other *platformError
		switch {
		case err == nil:
			return p, nil
		case errors.As(err, &other):
			missing.add(other.available...)
		case !errors.Is(err, errUnsupported):
			return nil, err
		}
	}
	return nil, missing
}

func (doc *document) plan(ctx context.Context, src source, want ocispec.Platform, size int64) (*plan, error) {
	if err := doc.checkTypes(); err != nil {
		return nil, err
	}
	if err := doc.Config.Digest.Validate(); err != nil {
		return nil, fmt.Errorf("%w: config digest %q: %v", ErrCorrupt, doc.Config.Digest, err)
	}
	text, err := src.config(ctx, *doc.Config)
	if err != nil {
		return nil, err
	}
	p, err := planFromConfig(text, doc.Layers, want)
	if err != nil {
		return nil, err
	}
	p.extra += size
	return p, nil
}

// planFromConfig joins the layers as they are transported with what the config says they contain.
func planFromConfig(text []byte, layers []ocispec.Descriptor, want ocispec.Platform) (*plan, error) {
	p := &plan{config: text, extra: int64(len(text))}
	if err := json.Unmarshal(text, &p.image); err != nil {
		return nil, fmt.Errorf("%w: image config is not JSON: %v", ErrCorrupt, err)
	}
	has := p.image.Platform
	if has.Variant == "" && has.Architecture == want.Architecture {
		has.Variant = want.Variant // most builders leave it out, and the index has chosen already
	}
	if has.Architecture != "" && !fits(has, want) {
		return nil, &platformError{want: want, available: []ocispec.Platform{has}}
	}
	ids := p.image.RootFS.DiffIDs
	if len(ids) != len(layers) {
		return nil, fmt.Errorf("%w: the manifest has %d layers, the image config %d", ErrCorrupt, len(layers), len(ids))
	}
	for i, l := range layers {
		if l.Digest.Validate() != nil || ids[i].Validate() != nil || l.Size < 0 {
			return nil, fmt.Errorf("%w: layer %d has digest %q, diff id %q and size %d", ErrCorrupt, i, l.Digest, ids[i], l.Size)
		}
		p.layers = append(p.layers, blob{Descriptor: l, diffID: ids[i]})
	}
	return p, nil
}

// checkTypes names what cannot be a container's file system before anything large is fetched.
func (doc *document) checkTypes() error {
	for _, l := range doc.Layers {
		if !layerType(l.MediaType) {
			return fmt.Errorf("%w: layer %s has media type %q", errUnsupported, l.Digest, l.MediaType)
		}
	}
	return nil
}

// layerType knows all that is a tar archive, compressed or not; which it is, the bytes tell.
func layerType(t string) bool {
	base, compression, _ := strings.Cut(t, "+")
	switch base {
	case ocispec.MediaTypeImageLayer, "application/vnd.oci.image.layer.nondistributable.v1.tar":
		return compression == "" || compression == "gzip" || compression == "zstd"
	case "application/vnd.docker.image.rootfs.diff.tar", "application/vnd.docker.image.rootfs.diff.tar.gzip",
		"application/vnd.docker.image.rootfs.diff.tar.zstd", "application/vnd.docker.image.rootfs.foreign.diff.tar.gzip":
		return compression == ""
	}
	return false
}
