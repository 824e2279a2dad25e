package main

import (
	"errors"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"testing"
)

func TestWriteArchive(t *testing.T) {
	dir := t.TempDir()
	to := filepath.Join(dir, "a.tar")
	whole := func(w io.Writer) error { _, err := io.WriteString(w, "whole"); return err }
	half := func(w io.Writer) error { return errors.Join(whole(w), errors.New("cut")) }
	if err := writeArchive(to, nil, whole); err != nil {
		t.Fatal(err)
	}
	if err := writeArchive(to, nil, half); err == nil {
		t.Error("half an archive is good")
	}
	if text, err := os.ReadFile(to); err != nil || string(text) != "whole" {
		t.Errorf("%q: %v", text, err)
	}
	link := filepath.Join(dir, "link")
	if err := os.Symlink("/dev/null", link); err != nil {
		t.Fatal(err)
	}
	if err := writeArchive(link, nil, whole); err != nil {
		t.Fatal(err)
	}
	if info, err := os.Lstat(link); err != nil || info.Mode().Type() != fs.ModeSymlink {
		t.Errorf("the archive took the place of a link to a device: %v", info.Mode())
	}
	if left, err := os.ReadDir(dir); err != nil || len(left) != 2 {
		t.Errorf("%v is left", left)
	}
}
