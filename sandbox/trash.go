package sandbox

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"sync"
)

// trash removes directories in two steps: a rename, after which nothing of an object is left at its place, record and
// data at once; and the deletion of its files, which can take seconds and which nobody waits for.
type trash struct {
	dir  string
	busy sync.WaitGroup
}

// discard moves dir away. A nil error means dir does not exist, whoever removed it.
func (t *trash) discard(dir string) error {
	if err := os.MkdirAll(t.dir, 0o700); err != nil {
		return err
	}
	away := filepath.Join(t.dir, filepath.Base(dir)+"-"+newID()[:8])
	if err := os.Rename(dir, away); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("cannot move %s to the trash: %w", dir, err)
	}
	t.busy.Go(func() { os.RemoveAll(away) }) // what remains is tried again at the next start
	return nil
}

// empty deletes what an earlier process left.
func (t *trash) empty() {
	entries, _ := os.ReadDir(t.dir)
	for _, entry := range entries {
		t.busy.Go(func() { os.RemoveAll(filepath.Join(t.dir, entry.Name())) })
	}
}

// wait returns when everything discarded so far is deleted.
func (t *trash) wait() { t.busy.Wait() }
