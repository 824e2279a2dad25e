package layer

import (
	"bytes"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"testing"

	"golang.org/x/sys/unix"
)

// FuzzUnpack throws damaged archives at Unpack. Whatever it answers, the world outside stays as it was, nothing in the
// layer carries an attribute of overlayfs but opaque, and the counts stay sane.
//
// It works in memory (tmpfs has all that layers need): on ext4, which does not reuse the inodes of the last minutes, an
// execution takes half a second after a while.
func FuzzUnpack(f *testing.F) {
	for _, h := range hostiles {
		data := archive(f, h.items...)
		if h.raw != nil {
			data = h.raw(data)
		}
		if len(data) < 64<<10 {
			f.Add(data)
		}
	}
	base := inMemory(f)
	outside := filepath.Join(base, "outside")
	must(f, os.Mkdir(outside, 0o755))
	must(f, os.WriteFile(filepath.Join(outside, "secret"), []byte("untouched"), 0o600))
	before, runs := describeTree(f, outside), 0
	f.Fuzz(func(t *testing.T, data []byte) {
		runs++
		dir := filepath.Join(base, strconv.Itoa(runs))
		must(t, os.Mkdir(dir, 0o755))
		defer os.RemoveAll(dir)
		tryArchive(t, dir, repaired(data))
		if after := describeTree(t, outside); !maps.Equal(before, after) {
			t.Fatalf("the world outside changed:\n from %v\n to   %v", before, after)
		}
	})
}

// inMemory makes a directory that a killed fuzzer's successor does not mind.
func inMemory(f *testing.F) string {
	f.Helper()
	var st unix.Statfs_t
	if err := unix.Statfs("/dev/shm", &st); err != nil || st.Type != unix.TMPFS_MAGIC {
		f.Fatalf("FuzzUnpack needs a tmpfs: mount -t tmpfs none /dev/shm (%v)", err)
	}
	base, err := os.MkdirTemp("/dev/shm", "evenkeel-fuzz-")
	must(f, err)
	f.Cleanup(func() { os.RemoveAll(base) })
	return base
}

// repaired has right checksums: most damage would end at the first one.
func repaired(data []byte) []byte {
	data = slices.Clone(data)
	for i := 0; i+512 <= len(data); i += 512 {
		if bytes.HasPrefix(data[i+257:], []byte("ustar")) {
			checksummed(data[i:])
		}
	}
	return data
}

func tryArchive(t *testing.T, dir string, data []byte) {
	limits := Limits{Bytes: 1 << 20, Entries: 1000, NameLength: 400} // a long name may make hundreds of directories
	var recipe bytes.Buffer
	stats, err := Unpacker{Limits: limits, Recipe: &recipe}.Unpack(t.Context(), dir, bytes.NewReader(data))
	if err == nil && stats.Whole && !bytes.Equal(replay(t, dir, recipe.Bytes()), data) {
		t.Fatal("the recipe makes another archive")
	}
	if err == nil && (stats.Bytes < 0 || stats.Inodes < 0 || stats.Bytes > limits.Bytes) {
		t.Fatalf("counted %+v", stats)
	}
	checkLayer(t, dir, stats, err)
}
