package image

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"

	"github.com/opencontainers/go-digest"

	"github.com/evenkeel/evenkeel/image/layer"
)

// errUnverifiable says that a layer has nothing to be compared with: an entry of its archive replaced another, or an
// older release unpacked it.
var errUnverifiable = errors.New("the layer has no recipe")

// verify reads a layer from disk. Errors are layer.ErrDamaged, errUnverifiable, the context's, or the disk's.
func (s *Store) verify(ctx context.Context, l layerRecord) error {
	dir := s.layerDir(l.DiffID)
	root := filepath.Join(dir, "fs")
	switch {
	case l.Mend:
		return verifyMend(root, l.DiffID)
	case l.File != "":
		return verifyFile(ctx, filepath.Join(root, l.File), l.Blob)
	case l.Archive == 0:
		return errUnverifiable
	}
	recipe, err := os.Open(filepath.Join(dir, "recipe"))
	if err != nil {
		return fmt.Errorf("%w: %w", layer.ErrDamaged, err)
	}
	defer recipe.Close()
	want := l.archiveDigest()
	h := want.Algorithm().Hash()
	if err := layer.Verify(ctx, root, recipe, h); err != nil {
		return err
	}
	if got := digest.NewDigest(want.Algorithm(), h); got != want {
		return fmt.Errorf("%w: the content of some file changed: the archive should be %s and is %s", layer.ErrDamaged, want, got)
	}
	return nil
}

// archiveDigest is of the tar archive that the layer was unpacked from.
func (l layerRecord) archiveDigest() digest.Digest {
	return digest.Digest(first(string(l.Content), string(l.DiffID)))
}

func verifyFile(ctx context.Context, path string, want digest.Digest) error {
	f, err := os.Open(path)
	if err != nil {
		return fmt.Errorf("%w: %w", layer.ErrDamaged, err)
	}
	defer f.Close()
	h := want.Algorithm().Hash()
	if _, err := io.Copy(h, contextReader{ctx, f}); err != nil {
		return err
	}
	if got := digest.NewDigest(want.Algorithm(), h); got != want {
		return fmt.Errorf("%w: %s should be %s and is %s", layer.ErrDamaged, filepath.Base(path), want, got)
	}
	return nil
}

// verifyMend describes a mend once more. Its description's digest is its name.
func verifyMend(root string, id digest.Digest) error {
	var list []mended
	dir, err := os.OpenRoot(root)
	if err != nil {
		return fmt.Errorf("%w: %w", layer.ErrDamaged, err)
	}
	defer dir.Close()
	err = fs.WalkDir(dir.FS(), ".", func(path string, _ fs.DirEntry, err error) error {
		if err != nil || path == "." {
			return err
		}
		m, err := describeDir(path, filepath.Join(root, path))
		list = append(list, m)
		return err
	})
	if err != nil {
		return fmt.Errorf("%w: %w", layer.ErrDamaged, err)
	}
	sortMended(list)
	text, err := json.Marshal(list)
	if err != nil {
		return err
	}
	if got := digest.FromBytes(text); got != id {
		return fmt.Errorf("%w: its directories should be described by %s and are by %s", layer.ErrDamaged, id, got)
	}
	return nil
}
