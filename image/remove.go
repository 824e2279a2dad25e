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
	s.mu.Lock()
	if _, whole := s.images[e.ID]; whole {
		delete(s.images, e.ID)
		s.haunt(e)
	}
	delete(s.broken, e.ID)
	s.mu.Unlock()
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
	var failed error
	sound, damaged := s.unneeded(used)
	remove := func(id digest.Digest, keep func()) {
		err := removeLayer.Do(ctx, func() error { return s.toTrash(s.layerDir(id)) })
		if err != nil {
			s.keep(id, keep)
			failed = errors.Join(failed, err)
		}
	}
	for _, l := range sound {
		remove(l.DiffID, func() { s.layers[l.DiffID] = l })
	}
	for _, id := range damaged {
		remove(id, func() { s.condemned[id] = true })
	}
	return errors.Join(failed, s.clearAside(used))
}

// keep puts back what is known of a layer that could not be removed, so that the next collection tries again.
func (s *Store) keep(id digest.Digest, put func()) {
	if _, err := os.Lstat(s.layerDir(id)); err != nil {
		return
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	put()
}

// unneeded takes what nobody needs out of the index, and out of what is condemned.
func (s *Store) unneeded(used map[digest.Digest]bool) (sound []layerRecord, damaged []digest.Digest) {
	s.mu.Lock()
	defer s.mu.Unlock()
	needed := map[digest.Digest]bool{}
	s.expire()
	for _, list := range []map[digest.Digest]*entry{s.images, s.ghosts, s.broken} {
		for _, e := range list {
			for _, id := range e.needs() {
				needed[id] = true
			}
		}
	}
	free := func(id digest.Digest) bool { return !needed[id] && !used[id] && s.holds[id] == 0 }
	for id, l := range s.layers {
		if free(id) {
			sound = append(sound, l)
			delete(s.layers, id)
		}
	}
	for id := range s.condemned {
		if free(id) {
			damaged = append(damaged, id)
			delete(s.condemned, id)
		}
	}
	return sound, damaged
}
