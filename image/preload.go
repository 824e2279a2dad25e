package image

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"

	"github.com/opencontainers/go-digest"
)

// preloaded is what became of an archive in the preload directory.
type preloaded struct {
	Size       int64           `json:"size"`
	ModifiedAt int64           `json:"modifiedAt"` // ns
	Images     []digest.Digest `json:"images"`
}

func (s *Store) preloadFile() string { return filepath.Join(s.Root, "preload.json") }

// preload imports the archives in the preload directory, in the order of their names: those that are new or changed, and
// those whose images are here no more. A failure is logged and holds nothing else up.
func (s *Store) preload(ctx context.Context) {
	if s.Preload == "" {
		return
	}
	list, err := os.ReadDir(s.Preload)
	if errors.Is(err, fs.ErrNotExist) {
		return
	}
	if err != nil {
		s.logger().Warn("cannot read the preload directory", "dir", s.Preload, "error", err)
		return
	}
	known := map[string]preloaded{}
	if text, err := os.ReadFile(s.preloadFile()); err == nil {
		json.Unmarshal(text, &known) // a damaged file costs an import
	}
	now := map[string]preloaded{}
	for _, e := range list {
		info, err := e.Info()
		if err != nil || !info.Mode().IsRegular() || ctx.Err() != nil {
			continue
		}
		p := preloaded{Size: info.Size(), ModifiedAt: info.ModTime().UnixNano()}
		if old := known[e.Name()]; old.Size == p.Size && old.ModifiedAt == p.ModifiedAt && s.hasAll(old.Images) {
			now[e.Name()] = old
			continue
		}
		if p.Images, err = s.importFile(ctx, filepath.Join(s.Preload, e.Name())); err != nil {
			s.logger().Warn("cannot preload images", "archive", e.Name(), "error", err)
			continue
		}
		now[e.Name()] = p
		s.logger().Info("images preloaded", "archive", e.Name(), "images", p.Images)
	}
	text, err := json.Marshal(now)
	if err == nil {
		err = writeDurable(s.preloadFile(), text)
	}
	if err != nil {
		s.logger().Warn("cannot note what was preloaded", "error", err)
	}
}

func (s *Store) hasAll(images []digest.Digest) bool {
	for _, id := range images {
		if s.byID(id) == nil {
			return false
		}
	}
	return len(images) > 0
}

func (s *Store) importFile(ctx context.Context, path string) (ids []digest.Digest, err error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, fmt.Errorf("cannot open the archive: %w", err)
	}
	defer f.Close()
	list, err := s.Import(ctx, f, nil)
	for _, img := range list {
		ids = append(ids, img.ID)
	}
	return ids, err
}
