package image

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"

	"github.com/opencontainers/go-digest"

	"github.com/evenkeel/evenkeel/internal/effect"
)

var (
	removeRecord = effect.New("image.remove.record")
	removeLayer  = effect.New("image.remove.layer")
)

// Remove forgets the image that ref names, with all its tags and digests. It is gone from Get and List when Remove returns;
// disk space follows in the background, when the image's lease has ended (see Find). A missing image is no error; a
// short id of several images is, ErrAmbiguous.
func (s *Store) Remove(ctx context.Context, ref string) error {
	if err := s.turn.take(ctx); err != nil {
		return err
	}
	defer s.turn.give()
	e, err := s.find(ref)
	if errors.Is(err, ErrNotFound) {
		e, err = s.findBroken(ref)
	}
	if errors.Is(err, ErrNotFound) {
		return nil
	}
	if err != nil {
		return err
	}
	if err := removeRecord.Do(ctx, func() error { return s.forget(e.ID) }); err != nil {
		return fmt.Errorf("cannot remove image %s: %w", ref, err)
	}
	s.index.remove(e)
	if err := s.collect(context.WithoutCancel(ctx)); err != nil {
		s.logger().Warn("cannot free the layers of an image; the next removal tries again", "image", e.ID, "error", err)
	}
	return nil
}

func (s *Store) forget(id digest.Digest) error {
	err := os.Remove(s.recordPath(id))
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	return err
}

// Collect removes the layers that no image, no lease, no running pull and no container needs. Remove does so as well; it is
// worth a call after the last container on a removed image has gone.
func (s *Store) Collect(ctx context.Context) error {
	if err := s.turn.take(ctx); err != nil {
		return err
	}
	defer s.turn.give()
	return s.collect(ctx)
}

// collect runs in the caller's turn. A layer leaves the index before the disk: whoever wants it from then on fetches
// it anew, and publishes in a later turn.
func (s *Store) collect(ctx context.Context) error {
	var used map[digest.Digest]bool
	if s.InUse != nil {
		used = s.InUse()
	}
	whole, damaged := s.unneeded(used)
	defer func() { s.arm(s.nextExpiry()) }()
	var failed error
	for _, l := range whole {
		if err := s.removeLayer(ctx, l.DiffID, func() { s.index.enterLayer(l) }); err != nil {
			failed = errors.Join(failed, err)
		}
	}
	for _, id := range damaged {
		if err := s.removeLayer(ctx, id, func() { s.index.condemnLayer(id) }); err != nil {
			failed = errors.Join(failed, err)
		}
	}
	return errors.Join(failed, s.clearAside(used))
}

// removeLayer puts back what was known of a layer that could not be removed, so that the next collection tries again.
func (s *Store) removeLayer(ctx context.Context, id digest.Digest, putBack func()) error {
	err := removeLayer.Do(ctx, func() error { return s.toTrash(s.layerDir(id)) })
	if err == nil {
		return nil
	}
	if _, gone := os.Lstat(s.layerDir(id)); gone == nil {
		putBack()
	}
	return err
}
