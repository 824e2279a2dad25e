// Package atomicfile writes whole files that a reader sees either as they were or as they are now.
//
// A file is written beside its target and renamed over it (rename(2) is atomic within a file system). Write does
// not sync: a power cut may leave the old content, the new one or, on some file systems, an empty file, which is why
// records carry a checksum. Nothing on the path of a pod may sync (DESIGN: State); only images do, and they sync a
// whole file system once per pull instead of a file at a time.
package atomicfile

import (
	"fmt"
	"os"
	"path/filepath"
)

// Write replaces the content of path. On error the old file is untouched and no temporary file remains.
func Write(path string, data []byte, perm os.FileMode) error {
	temp, err := os.CreateTemp(filepath.Dir(path), "."+filepath.Base(path)+".*")
	if err != nil {
		return fmt.Errorf("cannot write %s: %w", path, err)
	}
	if err := finish(temp, path, data, perm); err != nil {
		os.Remove(temp.Name())
		return fmt.Errorf("cannot write %s: %w", path, err)
	}
	return nil
}

func finish(temp *os.File, path string, data []byte, perm os.FileMode) error {
	_, err := temp.Write(data)
	if err == nil {
		err = temp.Chmod(perm)
	}
	if closeErr := temp.Close(); err == nil {
		err = closeErr
	}
	if err != nil {
		return err
	}
	return os.Rename(temp.Name(), path)
}
