package image

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"time"

	"github.com/opencontainers/go-digest"
	"golang.org/x/sync/errgroup"

	"github.com/evenkeel/evenkeel/image/layer"
	"github.com/evenkeel/evenkeel/internal/effect"
)

var (
	syncStore    = effect.New("image.sync")
	publishLayer = effect.New("image.layer.publish")
	writeRecord  = effect.New("image.record")
	untagRecord  = effect.New("image.record.untag")
)

const defaultParallel = 4

// work is one image on its way into the store: gather its layers, make them durable, publish them and then the image.
type work struct {
	*Store
	src  source
	tell func(Progress)

	mu    sync.Mutex // guards what follows
	held  []digest.Digest
	share map[digest.Digest]*flight[string] // that this work takes part in until its end

	lost    int64  // syncs of the store that had failed when this work began
	mending string // the mend's directory in ingest, if one is being made
	idle    *time.Timer
}

func (w *work) run(ctx context.Context, p *plan, called names) (*Image, error) {
	if err := p.mountable(called, ""); err != nil {
		return nil, err
	}
	if err := w.gather(ctx, p.layers); err != nil {
		return nil, err
	}
	mend, err := w.mend(ctx, p)
	if err != nil {
		return nil, fmt.Errorf("cannot fit the layers together: %w", err)
	}
	if err := p.mountable(called, mend); err != nil {
		return nil, err
	}
	if len(w.share) > 0 || w.mending != "" {
		if err := w.sync(ctx); err != nil {
			return nil, fmt.Errorf("cannot make layers durable: %w", err)
		}
	}
	if err := w.turn.take(ctx); err != nil {
		return nil, err
	}
	defer w.turn.give()
	if err := w.publish(ctx, mend); err != nil {
		return nil, err
	}
	r := record{ID: p.id(), Documents: p.extra, Config: p.config, Mend: mend, Artifact: p.artifact}
	if err := r.read(); err != nil {
		return nil, err
	}
	if old := w.byID(r.ID); old != nil {
		r = old.record
	}
	r.add(w.brokenNames(r.ID))
	if lost := w.lacks(r); lost != "" { // a check condemned it since it was gathered
		return nil, fmt.Errorf("layer %s was found damaged just now; pull once more", lost)
	}
	return w.write(ctx, r, called)
}

// sync makes what is in ingest durable. The kernel tells of data that it could not write once: whoever syncs next hears of no error
// (Documentation/core-api/errseq_t.rst), and the pages are clean and not on disk. So what was unpacked before a sync failed, by any
// work, is not published, and nobody joins its flights any more.
func (w *work) sync(ctx context.Context) error {
	if err := w.syncing.take(ctx); err != nil {
		return err
	}
	defer w.syncing.give()
	err := syncStore.Do(ctx, func() error { return syncAll(w.Root) })
	if err != nil {
		w.unpacks.forgetAll() // first: a work that begins in between is refused without need, the other way round it would trust a lost layer
	}
	if err != nil {
		w.lostSyncs.Add(1)
		return err
	}
	if w.lostSyncs.Load() != w.lost {
		return errors.New("the disk lost data when another image was synced; pull once more")
	}
	return nil
}

// gather returns when every layer is in place or in ingest, whoever put it there.
func (w *work) gather(ctx context.Context, layers []blob) error {
	ctx, stop := w.watch(ctx)
	defer stop()
	defer beThrifty()()
	g, ctx := errgroup.WithContext(ctx)
	limit := w.Parallel
	if limit == 0 {
		limit = defaultParallel
	}
	g.SetLimit(limit)
	windows := layer.Windows{Shared: w.windows, Own: make(chan struct{}, 1)}
	for _, l := range layers {
		w.report(l, "waiting", 0)
	}
	for i, l := range layers {
		same := func(b blob) bool { return b.diffID == l.diffID }
		if slices.ContainsFunc(layers[:i], same) {
			continue // the same layer twice in one image
		}
		l.limits, l.windows = w.Limits, windows
		g.Go(func() error { return w.need(ctx, l) })
	}
	return g.Wait()
}

func (w *work) report(l blob, phase string, done int64) {
	w.progressed()
	if w.tell != nil {
		w.tell(Progress{Digest: l.Digest, Phase: phase, Done: done, Total: l.Size})
	}
}

// need gets one layer. Where another pull is at it already, its result is used; where that fails, for instance because
// the other's credentials do not reach so far, this one's own source is tried.
func (w *work) need(ctx context.Context, l blob) error {
	w.hold(l.diffID)
	w.mu.Lock()
	w.held = append(w.held, l.diffID)
	w.mu.Unlock()
	for {
		if w.has(l.diffID) {
			w.count.reused.Add(1)
			w.report(l, "exists", l.Size)
			return nil
		}
		listen := func(p Progress) { w.report(l, p.Phase, min(p.Done, l.Size)) }
		fl, first := w.unpacks.join(ctx, l.diffID, listen, func(ctx context.Context, tell func(Progress)) (string, error) {
			return w.unpack(ctx, w.src, l, tell)
		})
		_, err := fl.wait(ctx)
		if err == nil {
			w.keepShare(l.diffID, fl)
			w.report(l, "done", l.Size)
			return nil
		}
		w.unpacks.leave(l.diffID, fl, nil)
		if first || ctx.Err() != nil {
			return fmt.Errorf("cannot get layer %s: %w", l.Digest, err)
		}
	}
}

func (w *work) keepShare(id digest.Digest, fl *flight[string]) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.share == nil {
		w.share = map[digest.Digest]*flight[string]{}
	}
	w.share[id] = fl
}

// publish gives what is in ingest its place, in this work's turn. Another work that shares a layer may have been
// quicker.
func (w *work) publish(ctx context.Context, mend digest.Digest) error {
	dirs := map[digest.Digest]string{}
	for id, fl := range w.share {
		dirs[id] = fl.value
	}
	if w.mending != "" {
		dirs[mend] = w.mending
	}
	moved := false
	for id, dir := range dirs {
		if w.has(id) {
			continue
		}
		if err := w.publishOne(ctx, id, dir); err != nil {
			return errors.Join(fmt.Errorf("cannot publish layer %s: %w", id, err), w.clearPlace(ctx, id))
		}
		moved = true
	}
	if !moved {
		return nil
	}
	return syncDir(filepath.Join(w.Root, "layers")) // before a record relies on the names
}

func (w *work) publishOne(ctx context.Context, id digest.Digest, dir string) error {
	l, err := readLayerRecord(dir)
	if err != nil {
		return err
	}
	if err := publishLayer.Do(ctx, func() error { return w.place(ctx, dir, id) }); err != nil {
		return err
	}
	w.index.enterLayer(l)
	return nil
}

// place replaces whatever stands there. It is not in the index, but containers may stand on it.
func (s *Store) place(ctx context.Context, from string, id digest.Digest) error {
	if err := s.outOfTheWay(ctx, id); err != nil {
		return err
	}
	return os.Rename(from, s.layerDir(id))
}

// write merges the names into the record and makes it the truth, on disk and then in memory, in the caller's turn.
func (s *Store) write(ctx context.Context, r record, called names) (*Image, error) {
	changed := r.add(called)
	s.lease(r.ID)
	if old := s.byID(r.ID); old != nil && !changed {
		return old.image, nil
	}
	r.Sequence, r.PulledAt = s.nextSequence(), time.Now().UTC()
	err := writeRecord.Do(ctx, func() error { return s.save(r) })
	if err != nil {
		return nil, errors.Join(fmt.Errorf("cannot record image %s: %w", r.ID, err), s.restore(r.ID))
	}
	img, losers := s.enter(r)
	for _, old := range losers {
		// If this fails the record still has the tag, but the newer one wins at the next start.
		if err := untagRecord.Do(ctx, func() error { return s.save(old) }); err != nil {
			s.logger().Warn("cannot take a tag from the record of an image", "image", old.ID, "error", err)
		}
	}
	return img, nil
}

func (s *Store) save(r record) error {
	text, err := seal(r)
	if err != nil {
		return err
	}
	return writeDurable(s.recordPath(r.ID), text)
}

// restore makes the disk say of an image what the index says, after a write whose outcome is unknown.
func (s *Store) restore(id digest.Digest) error {
	if old := s.byID(id); old != nil {
		return s.save(old.record)
	}
	return s.forget(id)
}

// end gives up what the work took. When it returns, nothing of a failed work is left in the store, unless another
// work still needs it.
func (w *work) end(ctx context.Context, failed bool) (err error) {
	drop := func(dir string) {
		if _, gone := os.Lstat(dir); gone == nil { // nobody has published it
			err = errors.Join(err, w.discard(ctx, dir))
		}
	}
	for id, fl := range w.share {
		w.unpacks.leave(id, fl, drop)
	}
	drop(w.mending)
	for _, id := range w.held {
		w.release(id)
	}
	if failed {
		err = errors.Join(err, w.Collect(context.WithoutCancel(ctx)))
	}
	return err
}
