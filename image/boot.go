package image

import (
	"context"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/opencontainers/go-digest"

	"github.com/evenkeel/evenkeel/internal/effect"
)

// The file boot says in which boot of the machine the store was last open, and whether it was closed. Another boot's id
// and no "closed" mean that the machine went down under it. The disk has said that all layers are durable, but disks lie,
// so the layers that were written in that boot are read once more, in the background, newest first.

var noteBoot = effect.New("image.boot")

const bootID = "/proc/sys/kernel/random/boot_id"

func (s *Store) bootFile() string { return filepath.Join(s.Root, "boot") }

// lookAfter starts what the store does by itself: preloading, reading layers after an unclean boot, and healing
// broken images.
func (s *Store) lookAfter(ctx context.Context) {
	s.background.Go(func() {
		s.preload(ctx)
		s.afterBoot(ctx)
		for _, e := range s.brokenEntries() {
			if err := s.heal(ctx, e); err == nil {
				s.logger().Info("image is whole again", "image", e.ID, "tags", e.Tags)
			} else if ctx.Err() == nil {
				s.logger().Warn("cannot heal an image; a pull will", "image", e.ID, "tags", e.Tags, "error", err)
			}
		}
	})
}

func (s *Store) stopChores() {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.stop != nil {
		s.stop()
	}
}

// afterBoot reads what must be suspected, and notes this boot when that is done: until then the old one stays the last.
func (s *Store) afterBoot(ctx context.Context) {
	now, err := os.ReadFile(bootID)
	if err != nil {
		s.logger().Warn("cannot tell one boot from another", "error", err)
		return
	}
	id := strings.TrimSpace(string(now))
	if suspects := s.suspects(id); len(suspects) > 0 {
		s.logger().Info("the machine went down with the image store open; reading the layers of that time", "layers", len(suspects))
		report, err := s.check(ctx, suspects, nil)
		if err != nil {
			s.logger().Warn("could not read all layers; the next start goes on", "read", report.Layers, "error", err)
			return
		}
		s.logger().Info("layers were read", "layers", report.Layers, "bytes", report.Bytes, "damaged", len(report.Damages))
	}
	s.note(ctx, id+" open\n")
}

// suspects lists the layers that were written since the store was opened in a boot that has ended without its being
// closed, newest first.
func (s *Store) suspects(id string) []layerRecord {
	info, err := os.Stat(s.bootFile())
	if err != nil {
		return nil
	}
	old, err := os.ReadFile(s.bootFile())
	last, state, _ := strings.Cut(strings.TrimSpace(string(old)), " ")
	if err != nil || last == id || state == "closed" {
		return nil
	}
	return s.writtenSince(info.ModTime())
}

func (s *Store) note(ctx context.Context, text string) {
	if old, err := os.ReadFile(s.bootFile()); err == nil && string(old) == text {
		return
	}
	if err := noteBoot.Do(ctx, func() error { return writeDurable(s.bootFile(), []byte(text)) }); err != nil {
		s.logger().Warn("cannot note the boot of the image store", "error", err)
	}
}

// leaveCleanly notes that nothing is under way.
func (s *Store) leaveCleanly() {
	now, err := os.ReadFile(bootID)
	old, oldErr := os.ReadFile(s.bootFile())
	if s.chores == nil || err != nil || oldErr != nil || !strings.HasPrefix(string(old), strings.TrimSpace(string(now))) {
		return // layers of an earlier boot are still to be read
	}
	s.note(context.WithoutCancel(s.chores), strings.TrimSpace(string(now))+" closed\n")
}

func (s *Store) writtenSince(since time.Time) (list []layerRecord) {
	times := map[digest.Digest]time.Time{}
	for _, l := range s.layerRecords() {
		info, err := os.Stat(filepath.Join(s.layerDir(l.DiffID), "layer.json"))
		if errors.Is(err, fs.ErrNotExist) || err == nil && info.ModTime().Before(since) {
			continue
		}
		if err == nil {
			times[l.DiffID] = info.ModTime()
		}
		list = append(list, l)
	}
	slices.SortFunc(list, func(a, b layerRecord) int { return times[b.DiffID].Compare(times[a.DiffID]) })
	return list
}
