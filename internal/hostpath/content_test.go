package hostpath

import (
	"bytes"
	"context"
	"errors"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

func TestRead(t *testing.T) {
	dir, f := t.TempDir(), finder(t)
	path := filepath.Join(dir, "file")
	must(t, os.WriteFile(path, []byte("content\x00\xff"), 0o600))
	for _, path := range []string{path, "/proc/self/root" + path} { // by the caches, and by a helper
		if data, err := f.Read(t.Context(), path); err != nil || string(data) != "content\x00\xff" {
			t.Errorf("%s: %q, %v", path, data, err)
		}
	}
	must(t, unix.Mkfifo(filepath.Join(dir, "fifo"), 0o600))
	must(t, os.WriteFile(filepath.Join(dir, "large"), make([]byte, contentLimit+1), 0o600))
	for _, name := range []string{"fifo", "large", "."} {
		if data, err := f.Read(t.Context(), filepath.Join(dir, name)); err == nil {
			t.Errorf("%s: read %d bytes", name, len(data))
		}
	}
	if _, err := f.Read(t.Context(), path+"-missing"); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("missing: %v", err)
	}
}

func TestCreateIsWholeOrNothing(t *testing.T) {
	dir, f := t.TempDir(), finder(t)
	path := filepath.Join(dir, "file")
	content := bytes.Repeat([]byte("0123456789abcdef"), 100_000)
	whole := func(w io.Writer) error { _, err := w.Write(content); return err }
	cut := errors.New("cut")
	if err := f.Create(t.Context(), path, func(w io.Writer) error { w.Write(content); return cut }); !errors.Is(err, cut) {
		t.Errorf("failing: %v", err)
	}
	ctx, stop := context.WithTimeout(t.Context(), 300*time.Millisecond)
	defer stop()
	slow := func(w io.Writer) error { w.Write(content); <-ctx.Done(); return ctx.Err() }
	if err := f.Create(ctx, path, slow); !errors.Is(err, ErrSilent) {
		t.Errorf("too slow: %v", err)
	}
	if left, _ := os.ReadDir(dir); len(left) > 0 {
		t.Errorf("left %v", left)
	}
	must(t, f.Create(t.Context(), path, whole))
	if data, err := os.ReadFile(path); err != nil || !bytes.Equal(data, content) {
		t.Errorf("%d bytes, %v", len(data), err)
	}
	if err := f.Create(t.Context(), path, whole); !errors.Is(err, fs.ErrExist) {
		t.Errorf("again: %v", err)
	}
	if err := f.Create(t.Context(), filepath.Join(dir, "none/file"), whole); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("in no directory: %v", err)
	}
}

func TestCreateWithoutUnnamedFiles(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "file")
	var stream bytes.Buffer
	pieces{&stream}.Write([]byte("content"))
	if err := createNamed(path, bytes.NewReader(stream.Bytes())); !errors.Is(err, errCutShort) {
		t.Errorf("cut short: %v", err)
	}
	if left, _ := os.ReadDir(dir); len(left) > 0 {
		t.Errorf("left %v", left)
	}
	stream.Write(make([]byte, 4))
	must(t, createNamed(path, &stream))
	if data, err := os.ReadFile(path); err != nil || string(data) != "content" {
		t.Errorf("%q, %v", data, err)
	}
}
