package cpio

import (
	"bytes"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"testing"
)

// read takes an archive apart as the kernel does (init/initramfs.c).
func read(t *testing.T, archive []byte) (list []string) {
	t.Helper()
	field := func(at, n int) int {
		v, err := strconv.ParseInt(string(archive[at+6+8*n:at+14+8*n]), 16, 64)
		if err != nil {
			t.Fatal(err)
		}
		return int(v)
	}
	for at := 0; at < len(archive); {
		if string(archive[at:at+6]) != "070701" {
			t.Fatalf("no header at %d", at)
		}
		mode, size, nameLength := field(at, 1), field(at, 6), field(at, 11)
		name := string(archive[at+110 : at+110+nameLength-1])
		at = (at + 110 + nameLength + 3) &^ 3
		if name != "TRAILER!!!" {
			list = append(list, fmt.Sprintf("%o %s %q", mode, name, archive[at:at+size]))
		}
		at = (at + size + 3) &^ 3
	}
	return list
}

func TestArchive(t *testing.T) {
	var buf bytes.Buffer
	for range 2 { // the kernel reads archives that follow one another
		w := NewWriter(&buf)
		w.Bytes("a/b/file", 0o640, "hello")
		w.Directory("a/b", 0o700) // it was needed before it was described
		w.Link("a/link", "b/file")
		w.Bytes("/empty", 0o600, "")
		if err := w.Close(); err != nil {
			t.Fatal(err)
		}
	}
	one := []string{`40755 a ""`, `40755 a/b ""`, `100640 a/b/file "hello"`, `120777 a/link "b/file"`, `100600 empty ""`}
	if got, want := read(t, buf.Bytes()), slices.Concat(one, one); !slices.Equal(got, want) {
		t.Errorf("got:\n%s\nwant:\n%s", strings.Join(got, "\n"), strings.Join(want, "\n"))
	}
}

func TestMissingFileFails(t *testing.T) {
	w := NewWriter(&bytes.Buffer{})
	w.File("x", "/no/such/file")
	if w.Close() == nil {
		t.Error("an archive without one of its files was finished")
	}
}
