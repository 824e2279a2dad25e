package image

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/evenkeel/evenkeel/internal/effect"
)

// An image that lacks a layer, since it is missing or was found damaged, is broken: no list and no look-up shows it, so
// the kubelet pulls it again, and that pull fetches what is missing and nothing else. Its record and its other layers
// stay for that. The store also tries by itself, with the credentials that the node has.
//
// A damaged layer that containers stand on goes aside, not to the trash: taking files from below a running overlay would
// turn one wrong byte into a broken pod. It stays until no container uses the layer, or until the next boot.

var (
	setAside     = effect.New("image.layer.aside")
	condemnLayer = effect.New("image.layer.condemn")
)

// Broken finds an image that no list shows and that Remove would remove: one that lacks a layer. It is named as for Get.
func (s *Store) Broken(ref string) (*Image, error) {
	e, err := s.findBroken(ref)
	if err != nil {
		return nil, err
	}
	return e.image, nil
}

// condemn takes a damaged layer out of the index, and the images that need it out of the list. It returns them. In a turn of
// its own, since whoever lists an image in his counts on its layers. The layer stays where it is, as containers may stand on
// it, with a mark: the next start would take it for whole again.
func (s *Store) condemn(ctx context.Context, id digest.Digest) ([]*entry, error) {
	if err := s.turn.take(ctx); err != nil {
		return nil, err
	}
	defer s.turn.give()
	images := s.index.condemnLayer(id)
	err := condemnLayer.Do(ctx, func() error {
		return errors.Join(os.WriteFile(filepath.Join(s.layerDir(id), damagedMark), nil, 0o600), syncDir(s.layerDir(id)))
	})
	if err != nil {
		err = fmt.Errorf("cannot mark layer %s as damaged: %w", id, err)
	}
	return images, err
}

// damagedMark is a file beside layer.json.
const damagedMark = "damaged"

// heal pulls a broken image by the names that say exactly what it is.
func (s *Store) heal(ctx context.Context, e *entry) error {
	if len(e.Digests) == 0 {
		return errors.New("no registry is known to have the image; import or pull it again")
	}
	platform := e.image.Config.Platform
	var failed error
	for _, name := range e.Digests {
		img, err := s.Pull(ctx, name, PullOptions{Platform: wanted(platform)})
		if err == nil && img.ID == e.ID {
			return nil
		}
		if err == nil {
			err = fmt.Errorf("%s is image %s for this platform", name, img.ID)
		}
		failed = errors.Join(failed, err)
		if ctx.Err() != nil {
			break
		}
	}
	return failed
}

func wanted(p ocispec.Platform) *ocispec.Platform {
	if p.Architecture == "" { // an artifact, or an image that does not say
		return nil
	}
	return &p
}

// outOfTheWay removes whatever stands at a layer's place, which is not in the index. A nil error means that nothing does.
func (s *Store) outOfTheWay(ctx context.Context, id digest.Digest) error {
	if s.InUse == nil || !s.InUse()[id] {
		return s.toTrash(s.layerDir(id))
	}
	return setAside.Do(context.WithoutCancel(ctx), func() error {
		err := os.Rename(s.layerDir(id), filepath.Join(s.aside(), fmt.Sprintf("%s.%016x", filepath.Base(s.layerDir(id)), rand.Uint64())))
		if errors.Is(err, os.ErrNotExist) {
			return nil
		}
		return err
	})
}

// clearAside gives up what no container can stand on any more.
func (s *Store) clearAside(used map[digest.Digest]bool) error {
	list, err := os.ReadDir(s.aside())
	for _, e := range list {
		name, _, _ := strings.Cut(e.Name(), ".")
		if !used[digest.Digest(strings.Replace(name, "-", ":", 1))] {
			err = errors.Join(err, s.toTrash(filepath.Join(s.aside(), e.Name())))
		}
	}
	return err
}
