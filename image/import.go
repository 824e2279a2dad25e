package image

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"slices"
	"strings"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

// containerdName is the annotation by which containerd, BuildKit and Docker name an image in full.
const containerdName = "io.containerd.image.name"

// found is one image of an archive.
type found struct {
	*plan
	names
}

// Import reads an OCI-layout or docker-save tar archive, compressed or not, and returns its images for this machine's
// platform. One that the archive does not name is listed by its id alone. Errors are ErrCorrupt, ErrPlatform, ErrReference,
// the reader's, the context's, or the disk's; images before the one that failed stay.
func (s *Store) Import(ctx context.Context, r io.Reader, progress func(Progress)) ([]*Image, error) {
	if err := s.open(); err != nil {
		return nil, err
	}
	var dir string
	err := makeIngest.Do(ctx, func() (err error) {
		dir, err = os.MkdirTemp(s.ingest(), "archive-")
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("cannot import: %w", err)
	}
	list, err := s.importFrom(ctx, r, dir, progress)
	if err := errors.Join(err, s.discard(ctx, dir)); err != nil {
		return list, fmt.Errorf("cannot import: %w", err)
	}
	return list, nil
}

func (s *Store) importFrom(ctx context.Context, r io.Reader, dir string, progress func(Progress)) ([]*Image, error) {
	var a *archive
	err := spoolArchive.Do(ctx, func() (err error) {
		a, err = spool(ctx, r, dir, cmp.Or(s.ArchiveBytes, DefaultArchiveBytes))
		return err
	})
	if err != nil {
		return nil, err
	}
	plans, err := a.images(ctx, thisMachine())
	if err != nil {
		return nil, err
	}
	tell := (&audience{}).through(progress)
	var list []*Image
	for _, p := range plans {
		img, err := s.bring(ctx, a, p.plan, p.names, tell)
		if err != nil {
			return list, err
		}
		list = append(list, img)
	}
	return list, nil
}

// images reads the archive's table of contents. Archives of newer Dockers are of both kinds; the OCI one says more,
// and manifest.json adds names.
func (a *archive) images(ctx context.Context, want ocispec.Platform) ([]found, error) {
	_, oci := a.file("index.json")
	_, docker := a.file("manifest.json")
	switch {
	case oci:
		return a.layoutImages(ctx, want, docker)
	case docker:
		return a.dockerImages(want)
	}
	return nil, errors.New("the archive is neither an OCI layout (index.json) nor made by docker save (manifest.json)")
}

func (a *archive) layoutImages(ctx context.Context, want ocispec.Platform, docker bool) ([]found, error) {
	text, err := a.read("index.json")
	if err != nil {
		return nil, err
	}
	var index ocispec.Index
	if err := json.Unmarshal(text, &index); err != nil {
		return nil, fmt.Errorf("%w: index.json is not JSON: %v", ErrCorrupt, err)
	}
	if len(index.Manifests) == 0 {
		return nil, fmt.Errorf("%w: index.json lists no image", ErrCorrupt)
	}
	named, err := a.dockerNames(docker)
	if err != nil {
		return nil, err
	}
	return a.layoutPlans(ctx, index.Manifests, want, named)
}

// layoutPlans passes over what is for other platforms, unless nothing remains.
func (a *archive) layoutPlans(ctx context.Context, list []ocispec.Descriptor, want ocispec.Platform, named map[digest.Digest][]string) ([]found, error) {
	var images []found
	missing := &platformError{want: want}
	for _, d := range list {
		p, err := makePlan(ctx, a, d, want)
		var other *platformError
		switch {
		case errors.As(err, &other):
			missing.add(other.available...)
			continue
		case err != nil:
			return nil, err
		}
		called, err := layoutNames(d, named[p.id()])
		if err != nil {
			return nil, err
		}
		images = append(images, found{p, called})
	}
	if len(images) == 0 {
		return nil, missing
	}
	return images, nil
}

// layoutNames takes the full name where there is one. The annotation of the OCI specification may be a full
// name (skopeo) or a tag alone (BuildKit), which names nothing.
func layoutNames(d ocispec.Descriptor, more []string) (names, error) {
	list := slices.Clone(more)
	if n := d.Annotations[containerdName]; n != "" {
		list = append(list, n)
	} else if n := d.Annotations[ocispec.AnnotationRefName]; strings.ContainsAny(n, "/:") {
		list = append(list, n)
	}
	called, err := parseNames(list)
	for _, t := range called.tags {
		name, _ := ParseReference(t)
		called.digests = union(called.digests, []string{name.Name() + "@" + d.Digest.String()})
	}
	return called, err
}

func parseNames(list []string) (called names, err error) {
	for _, n := range list {
		name, err := ParseReference(n)
		if err != nil {
			return called, err
		}
		if name.Digest != "" {
			called.digests = union(called.digests, []string{name.String()})
		} else {
			called.tags = union(called.tags, []string{name.String()})
		}
	}
	return called, nil
}

// dockerEntry is an element of manifest.json (https://github.com/moby/docker-image-spec/blob/main/spec.md).
type dockerEntry struct {
	Config   string
	RepoTags []string
	Layers   []string
}

func (a *archive) dockerEntries() ([]dockerEntry, error) {
	text, err := a.read("manifest.json")
	if err != nil {
		return nil, err
	}
	var list []dockerEntry
	if err := json.Unmarshal(text, &list); err != nil {
		return nil, fmt.Errorf("%w: manifest.json is not JSON: %v", ErrCorrupt, err)
	}
	if len(list) == 0 {
		return nil, fmt.Errorf("%w: manifest.json lists no image", ErrCorrupt)
	}
	return list, nil
}

// dockerNames maps image ids to the names that manifest.json gives them.
func (a *archive) dockerNames(present bool) (map[digest.Digest][]string, error) {
	if !present {
		return nil, nil
	}
	list, err := a.dockerEntries()
	named := map[digest.Digest][]string{}
	for _, e := range list {
		if config, ok := a.file(e.Config); ok {
			named[config.digest] = append(named[config.digest], e.RepoTags...)
		}
	}
	return named, err
}

func (a *archive) dockerImages(want ocispec.Platform) ([]found, error) {
	list, err := a.dockerEntries()
	if err != nil {
		return nil, err
	}
	var images []found
	for _, e := range list {
		p, err := a.dockerPlan(e, want)
		if err != nil {
			return nil, err
		}
		called, err := parseNames(e.RepoTags)
		if err != nil {
			return nil, err
		}
		images = append(images, found{p, called})
	}
	return images, nil
}

// dockerPlan makes the descriptors that the format lacks: the archive's files are known by digest since the spooling.
func (a *archive) dockerPlan(e dockerEntry, want ocispec.Platform) (*plan, error) {
	config, ok := a.file(e.Config)
	if !ok {
		return nil, fmt.Errorf("%w: the archive lacks the config %.256q of image %.256q", ErrCorrupt, e.Config, first(e.RepoTags...))
	}
	text, err := a.text(config, configLimit)
	if err != nil {
		return nil, err
	}
	var layers []ocispec.Descriptor
	for _, name := range e.Layers {
		l, ok := a.file(name)
		if !ok {
			return nil, fmt.Errorf("%w: the archive lacks layer %.256q of image %.256q", ErrCorrupt, name, first(e.RepoTags...))
		}
		layers = append(layers, ocispec.Descriptor{MediaType: ocispec.MediaTypeImageLayer, Digest: l.digest, Size: l.size})
	}
	return planFromConfig(text, layers, want)
}

// through returns a tell that passes on to f alone.
func (a *audience) through(f func(Progress)) func(Progress) {
	a.listen(f)
	return a.tell
}
