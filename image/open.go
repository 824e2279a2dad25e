package image

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"math/rand/v2"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"

	"github.com/opencontainers/go-digest"

	"github.com/evenkeel/evenkeel/internal/effect"
)

var (
	discardIngest = effect.New("image.discard")
	deleteTrash   = effect.New("image.trash")
)

// Open reads the store's index, finishes or undoes what a crash left half-done, and makes it ready. Records that
// cannot be read are renamed to *.broken and logged; a new pull of the image makes it whole again. An image that lacks a
// layer is not listed until that layer alone has been fetched, by a pull or in the background.
func (s *Store) Open(ctx context.Context) error {
	s.stopChores()
	s.background.Wait() // of a former Open of the same Store
	if err := s.mkdirs(); err != nil {
		return err
	}
	s.turn, s.syncing, s.sweep = make(turn, 1), make(turn, 1), make(turn, 1)
	s.windows = make(chan struct{}, max(1, runtime.GOMAXPROCS(0)-1)) // with a pull's own one: more would not be faster, and each costs 8 MiB
	s.mu.Lock()
	s.chores, s.stop = context.WithCancel(context.WithoutCancel(ctx))
	s.closed = false
	s.mu.Unlock()
	s.index.clear(s.layerDir, s.Pinned)
	for _, p := range s.Pinned {
		if _, err := ParseReference(p); err != nil && !strings.HasPrefix(p, "sha256:") {
			return fmt.Errorf("cannot pin image: %w", err)
		}
	}
	if err := errors.Join(s.clearIngest(ctx), s.loadLayers(ctx), s.loadImages()); err != nil {
		return fmt.Errorf("cannot open the image store: %w", err)
	}
	if err := s.Collect(ctx); err != nil {
		return err
	}
	s.emptyTrash()
	s.lookAfter(s.chores)
	return nil
}

// Close ends running pulls and waits for deletions in the background. A daemon need not call it before it exits:
// what is not deleted yet is deleted after the next Open.
func (s *Store) Close() {
	s.mu.Lock()
	s.closed = true
	if s.expiry != nil {
		s.expiry.Stop()
	}
	s.mu.Unlock()
	s.stopChores()
	s.pulls.cancelAll()
	s.unpacks.cancelAll()
	s.background.Wait()
	s.leaveCleanly()
}

func (s *Store) clearIngest(ctx context.Context) error {
	list, err := os.ReadDir(s.ingest())
	for _, e := range list {
		err = errors.Join(err, s.discard(ctx, filepath.Join(s.ingest(), e.Name())))
	}
	return err
}

// loadLayers indexes what is in place. A layer that cannot be read is of no use to an image, but a container may
// stand on it, so only its absence from the index is changed.
func (s *Store) loadLayers(ctx context.Context) error {
	dir := filepath.Join(s.Root, "layers")
	list, err := os.ReadDir(dir)
	for _, e := range list {
		l, bad := readLayerRecord(filepath.Join(dir, e.Name()))
		if bad == nil && filepath.Base(s.layerDir(l.DiffID)) != e.Name() {
			bad = fmt.Errorf("it describes layer %s", l.DiffID)
		}
		if _, sound := os.Lstat(filepath.Join(dir, e.Name(), damagedMark)); bad == nil && !errors.Is(sound, fs.ErrNotExist) {
			bad = errors.New("a check found it so")
		}
		if bad != nil {
			s.logger().Warn("layer is damaged and will be fetched again when an image needs it", "layer", e.Name(), "error", bad)
			err = errors.Join(err, s.dropDamaged(ctx, e.Name()))
			continue
		}
		s.index.enterLayer(l)
	}
	return err
}

func (s *Store) dropDamaged(ctx context.Context, name string) error {
	id := digest.Digest(strings.Replace(name, "-", ":", 1))
	if id.Validate() != nil {
		return s.discard(ctx, filepath.Join(s.Root, "layers", name))
	}
	return s.clearPlace(ctx, id)
}

// clearPlace is discard for a layer's place: containers may stand on what is there.
func (s *Store) clearPlace(ctx context.Context, id digest.Digest) error {
	return discardIngest.Do(context.WithoutCancel(ctx), func() error { return s.outOfTheWay(ctx, id) })
}

func (s *Store) loadImages() error {
	dir := filepath.Join(s.Root, "images")
	list, err := os.ReadDir(dir)
	var records []record
	for _, e := range list {
		path := filepath.Join(dir, e.Name())
		switch {
		case strings.HasPrefix(e.Name(), "."):
			err = errors.Join(err, os.Remove(path)) // a record that was being written
		case strings.HasSuffix(e.Name(), ".json"):
			r, bad := s.loadImage(path)
			if bad != nil {
				s.logger().Error("image is set aside; pull it again", "record", path, "error", bad)
				err = errors.Join(err, os.Rename(path, path+".broken"))
				continue
			}
			records = append(records, r)
		}
	}
	// In order of age, so that a tag that two records have after a crash goes to the newer.
	slices.SortFunc(records, func(a, b record) int { return int(int64(a.Sequence) - int64(b.Sequence)) })
	for _, r := range records {
		if lost := s.lacks(r); lost != "" {
			s.logger().Error("image lacks a layer; it is not listed until that layer has been fetched", "image", r.ID, "tags", r.Tags, "layer", lost)
			s.enterBroken(r)
			continue
		}
		s.enter(r)
	}
	return err
}

func (s *Store) loadImage(path string) (record, error) {
	r, err := readRecord(path)
	if err != nil {
		return r, err
	}
	if path != s.recordPath(r.ID) {
		return r, fmt.Errorf("it describes image %s", r.ID)
	}
	return r, nil
}

// discard takes a directory out of the way at once and deletes it in the background. A nil error means that nothing
// is at path, whoever removed it.
func (s *Store) discard(ctx context.Context, path string) error {
	return discardIngest.Do(context.WithoutCancel(ctx), func() error { return s.toTrash(path) })
}

// toTrash is one rename, since the trash may be emptied at any moment: a directory made there to receive path could be
// gone before it does.
func (s *Store) toTrash(path string) error {
	bin := filepath.Join(s.trash(), fmt.Sprintf("%s.%016x", filepath.Base(path), rand.Uint64()))
	err := os.Rename(path, bin)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("cannot discard %s: %w", path, err)
	}
	s.emptyTrash()
	return nil
}

// emptyTrash deletes in the background whatever is in the trash then, one tree at a time.
func (s *Store) emptyTrash() {
	s.background.Go(func() {
		s.sweep.take(context.Background())
		defer s.sweep.give()
		list, err := os.ReadDir(s.trash())
		for _, e := range list {
			err = errors.Join(err, deleteTrash.Do(context.Background(), func() error {
				return os.RemoveAll(filepath.Join(s.trash(), e.Name()))
			}))
		}
		if err != nil {
			s.logger().Warn("cannot empty the trash of the image store; the next start tries again", "error", err)
		}
	})
}
