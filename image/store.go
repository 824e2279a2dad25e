package image

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/evenkeel/evenkeel/image/layer"
)

const shortID = 4 // digits; fewer are more likely a slip than an id

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

// entry is an image in the index.
type entry struct {
	record
	image *Image // never changed once it is here
}

// List returns all images, newest first, from memory.
func (s *Store) List() []*Image {
	var list []*Image
	for _, e := range s.entries() {
		list = append(list, e.image)
	}
	return list
}

// entries are newest first.
func (s *Store) entries() []*entry {
	s.mu.Lock()
	list := slices.Collect(maps.Values(s.images))
	s.mu.Unlock()
	return byAge(list)
}

func byAge(list []*entry) []*entry {
	slices.SortFunc(list, func(a, b *entry) int { return cmp.Compare(b.Sequence, a.Sequence) })
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

func (s *Store) find(ref string) (*entry, error) { return findIn(s.entries(), ref) }

// findIn prefers a name to a short id: an image may well be called cafe.
func findIn(list []*entry, ref string) (*entry, error) {
	hex := strings.TrimPrefix(ref, "sha256:")
	if imageID.MatchString(hex) {
		return only(ref, list, func(e *entry) bool { return e.ID.Encoded() == hex })
	}
	name, err := ParseReference(ref)
	if err == nil {
		e, missing := only(ref, list, func(e *entry) bool { return e.named(name) })
		if missing == nil || !maybeShort(hex) {
			return e, missing
		}
	}
	if maybeShort(hex) {
		return only(ref, list, func(e *entry) bool { return strings.HasPrefix(e.ID.Encoded(), hex) })
	}
	return nil, err
}

func maybeShort(hex string) bool {
	return len(hex) >= shortID && len(hex) < 64 && strings.Trim(hex, "0123456789abcdef") == ""
}

func (e *entry) named(name Reference) bool {
	return slices.Contains(e.Tags, name.String()) || slices.Contains(e.Digests, name.String())
}

// only returns the newest match of a name, and refuses a short id that two images share.
func only(ref string, list []*entry, match func(*entry) bool) (*entry, error) {
	var found []*entry
	for _, e := range list {
		if match(e) {
			found = append(found, e)
		}
	}
	switch {
	case len(found) == 0:
		return nil, fmt.Errorf("%w: %s", ErrNotFound, ref)
	case len(found) > 1 && maybeShort(strings.TrimPrefix(ref, "sha256:")):
		return nil, fmt.Errorf("%w: %s may be %s; give more of it", ErrAmbiguous, ref, candidates(found))
	}
	return found[0], nil
}

// candidates names images as a person tells them apart.
func candidates(list []*entry) string {
	var texts []string
	for _, e := range list {
		text := e.ID.Encoded()
		if len(e.Tags) > 0 {
			text += " (" + strings.Join(e.Tags, ", ") + ")"
		}
		texts = append(texts, text)
	}
	return strings.Join(texts, " or ")
}

// FsInfo is what the store occupies: bytes and inodes, counted at unpack, never by a walk.
func (s *Store) FsInfo() (bytes, inodes uint64) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, l := range s.layers {
		b, i := l.used()
		bytes += uint64(b)
		inodes += uint64(i)
	}
	for _, e := range s.images {
		bytes += uint64(e.Documents)
		inodes++
	}
	return bytes, inodes
}

// enter puts a record into the index and takes its tags from the images that had them, broken ones too: healed, they would
// take the tags back. It returns those images' records as they are to be written now.
func (s *Store) enter(r record) (img *Image, changed []record) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, list := range []map[digest.Digest]*entry{s.images, s.broken} {
		for id, e := range list {
			if id == r.ID || !slices.ContainsFunc(e.Tags, func(t string) bool { return slices.Contains(r.Tags, t) }) {
				continue
			}
			old := e.record
			old.Tags = slices.DeleteFunc(slices.Clone(old.Tags), func(t string) bool { return slices.Contains(r.Tags, t) })
			list[id] = s.entry(old)
			changed = append(changed, old)
		}
	}
	e := s.entry(r)
	s.images[r.ID] = e
	delete(s.ghosts, r.ID)
	delete(s.broken, r.ID)
	return e.image, changed
}

// entry makes the public face of a record. Called with mu held.
func (s *Store) entry(r record) *entry {
	img := &Image{
		ID: r.ID, Tags: r.Tags, Digests: r.Digests, Size: r.Documents,
		Config: r.image, PulledAt: r.PulledAt, Pinned: s.pinned(r), Artifact: r.Artifact,
	}
	needs := r.needs()
	for i, id := range needs {
		// overlayfs refuses a directory that is given twice. Of equal layers the highest decides what is seen.
		if slices.Contains(needs[i+1:], id) {
			continue
		}
		l := s.layers[id]
		img.Layers = append(img.Layers, Layer{DiffID: id, Dir: filepath.Join(s.layerDir(id), "fs"), Size: l.Bytes})
		img.Size += l.Bytes
	}
	return &entry{r, img}
}

func (s *Store) pinned(r record) bool {
	for _, p := range s.Pinned {
		if p == string(r.ID) {
			return true
		}
		name, err := ParseReference(p)
		if err == nil && (&entry{record: r}).named(name) {
			return true
		}
	}
	return false
}

// known finds an image for the platform that some repository calls by this manifest digest.
func (s *Store) known(manifest digest.Digest, want ocispec.Platform) *entry {
	for _, e := range s.entries() {
		if (e.image.Config.Architecture == "" || fits(e.image.Config.Platform, want)) &&
			slices.ContainsFunc(e.Digests, func(d string) bool { return strings.HasSuffix(d, "@"+string(manifest)) }) {
			return e
		}
	}
	return nil
}

// hold keeps a layer from being collected until release, whether or not it is here yet.
func (s *Store) hold(id digest.Digest) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.holds[id]++
}

func (s *Store) release(id digest.Digest) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.holds[id]--; s.holds[id] == 0 {
		delete(s.holds, id)
	}
}

func (s *Store) has(id digest.Digest) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	_, ok := s.layers[id]
	return ok
}

// open is an error when the store is not open.
func (s *Store) open() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.images == nil || s.closed {
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
