package image

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"

	"github.com/opencontainers/go-digest"

	"github.com/evenkeel/evenkeel/image/layer"
)

func (s *Store) ingest() string { return filepath.Join(s.Root, "ingest") }
func (s *Store) trash() string  { return filepath.Join(s.Root, "trash") }
func (s *Store) aside() string  { return filepath.Join(s.Root, "aside") }

func (s *Store) layerDir(id digest.Digest) string {
	return filepath.Join(s.Root, "layers", id.Algorithm().String()+"-"+id.Encoded())
}

func (s *Store) recordPath(id digest.Digest) string {
	return filepath.Join(s.Root, "images", id.Encoded()+".json")
}

func (s *Store) logger() *slog.Logger {
	if s.Log == nil {
		return slog.New(slog.DiscardHandler)
	}
	return s.Log
}

// turn lets one at a time change what stands on disk under names that others rely on. It is no mutex, since its
// holder waits for the disk: nothing that only reads the index ever needs it.
type turn chan struct{}

func (t turn) take(ctx context.Context) error {
	select {
	case t <- struct{}{}:
		return nil
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

func (t turn) give() { <-t }

// List returns all images, newest first, from memory.
func (s *Store) List() []*Image {
	var list []*Image
	for _, e := range s.entries() {
		list = append(list, e.image)
	}
	return list
}

// Get finds an image by id (with or without sha256:), unambiguous short id, tag or digest reference. Missing is ErrNotFound, a
// short id of several images ErrAmbiguous.
func (s *Store) Get(ref string) (*Image, error) {
	e, err := s.find(ref)
	if err != nil {
		return nil, err
	}
	s.lease(e.ID)
	return e.image, nil
}

// FsInfo is what the store occupies: bytes and inodes, counted at unpack, never by a walk.
func (s *Store) FsInfo() (bytes, inodes uint64) { return s.used() }

// open is an error when the store is not open.
func (s *Store) open() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.chores == nil || s.closed {
		return errors.New("the image store is closed")
	}
	return nil
}

func (s *Store) mkdirs() error {
	for _, name := range []string{"ingest", "trash", "layers", "images", "aside"} {
		if err := os.MkdirAll(filepath.Join(s.Root, name), 0o700); err != nil {
			return fmt.Errorf("cannot make the image store: %w", err)
		}
	}
	// Layers are unpacked side by side, and often after others were removed.
	if err := layer.Spread(s.ingest()); err != nil {
		return fmt.Errorf("cannot make the image store: %w", err)
	}
	return nil
}
