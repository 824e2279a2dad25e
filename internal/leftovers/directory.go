package leftovers

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
)

// directories looks at the places that hold one entry per object. Broken-off pulls and the trash belong to nobody.
func (s *search) directories() error {
	var errs []error
	if s.Root != "" {
		for _, place := range []string{"pods", "containers", "images/ingest", "images/trash", "trash"} {
			errs = append(errs, s.entries(filepath.Join(s.Root, place), everything))
		}
	}
	if s.State != "" {
		for _, place := range []string{"pods", "containers"} {
			errs = append(errs, s.entries(filepath.Join(s.State, place), everything))
		}
		errs = append(errs, s.runtimes())
	}
	return errors.Join(errs...)
}

// runtimes looks at what OCI runtimes keep: one directory per handler in the state directory, with one entry per container.
func (s *search) runtimes() error {
	handlers, err := os.ReadDir(s.State)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("cannot list runtimes: %w", err)
	}
	var errs []error
	for _, handler := range handlers {
		name := handler.Name()
		if !handler.IsDir() || name == "pods" || name == "containers" {
			continue
		}
		keep := idShape.MatchString
		if name == "runc" {
			keep = everything
		}
		errs = append(errs, s.entries(filepath.Join(s.State, name), keep))
	}
	return errors.Join(errs...)
}

func everything(string) bool { return true }

func (s *search) entries(dir string, counts func(name string) bool) error {
	entries, err := os.ReadDir(dir)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("cannot list %s: %w", dir, err)
	}
	for _, entry := range entries {
		if counts(entry.Name()) && (!s.owned(entry.Name()) || inTrash(dir)) {
			s.add(Directory, filepath.Join(dir, entry.Name()), "%s", s.contents(filepath.Join(dir, entry.Name()), entry))
		}
	}
	return nil
}

// inTrash: an entry of the trash keeps its object's id in its name, and is waste also while that object lives.
func inTrash(dir string) bool { return filepath.Base(dir) == "trash" }

// contents names what is in a directory, which tells how far its removal came.
func (s *search) contents(name string, entry fs.DirEntry) string {
	if !entry.IsDir() {
		return "a file"
	}
	entries, err := os.ReadDir(name)
	if err != nil || len(entries) == 0 {
		return "empty"
	}
	var names []string
	for _, e := range entries[:min(len(entries), 8)] {
		names = append(names, e.Name())
	}
	return "holds " + strings.Join(names, ", ")
}
