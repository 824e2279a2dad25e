package layer

import (
	"bytes"
	"crypto/sha256"
	"errors"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

// unpackWithRecipe unpacks a whole archive and returns its recipe.
func unpackWithRecipe(t testing.TB, dir string, data []byte) (Stats, []byte) {
	t.Helper()
	var recipe bytes.Buffer
	stats, err := Unpacker{Recipe: &recipe}.Unpack(t.Context(), dir, bytes.NewReader(data))
	if err != nil {
		t.Fatal(err)
	}
	return stats, recipe.Bytes()
}

func replay(t testing.TB, dir string, recipe []byte) []byte {
	t.Helper()
	r, err := Replay(dir, bytes.NewReader(recipe))
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	data, err := io.ReadAll(r)
	if err != nil {
		t.Fatal(err)
	}
	return data
}

func TestRecipeMakesTheSameArchive(t *testing.T) {
	source := sampleTree(t)
	for _, format := range []string{"pax", "gnu", "ustar"} {
		plain := filepath.Join(t.TempDir(), "tree.tar")
		args := []string{"-cf", plain, "--format=" + format}
		switch format {
		case "pax":
			args = append(args, "--sparse", "--xattrs", "--xattrs-include=*")
		case "gnu":
			args = append(args, "--sparse")
		default: // formats that cannot hold all of it
			args = append(args, "--exclude=long*", "--exclude=disk", "--exclude=owned", "--exclude=zoneinfo", "--exclude=real-etc")
		}
		command(t, source, "tar", append(args, ".")...)
		data, err := os.ReadFile(plain)
		must(t, err)
		dir := t.TempDir()
		stats, recipe := unpackWithRecipe(t, dir, data)
		if !stats.Whole || stats.Archive != int64(len(data)) || !bytes.Equal(replay(t, dir, recipe), data) {
			t.Errorf("%s: whole %v, %d of %d bytes, or not the same ones", format, stats.Whole, stats.Archive, len(data))
		}
		h := sha256.New()
		if err := Verify(t.Context(), dir, bytes.NewReader(recipe), h); err != nil || !bytes.Equal(h.Sum(nil), sum(data)) {
			t.Errorf("%s: %v", format, err)
		}
		t.Logf("%s: %d entries, %d bytes, recipe %d bytes", format, stats.Entries, len(data), len(recipe))
	}
}

func sum(data []byte) []byte {
	s := sha256.Sum256(data)
	return s[:]
}

// TestRecipeOfOddArchives: whatever unpacks and calls its recipe whole is reproduced and found undamaged.
func TestRecipeOfOddArchives(t *testing.T) {
	whole := 0
	for _, h := range hostiles {
		dir, _ := arena(t)
		data := archive(t, h.items...)
		if h.raw != nil {
			data = h.raw(data)
		}
		var recipe bytes.Buffer
		stats, err := Unpacker{Limits: h.lim, Recipe: &recipe}.Unpack(t.Context(), dir, bytes.NewReader(data))
		if err != nil || !stats.Whole {
			continue
		}
		whole++
		if !bytes.Equal(replay(t, dir, recipe.Bytes()), data) {
			t.Errorf("%s: another archive comes back", h.name)
		}
		if err := Verify(t.Context(), dir, bytes.NewReader(recipe.Bytes()), sha256.New()); err != nil {
			t.Errorf("%s: %v", h.name, err)
		}
	}
	t.Logf("%d of %d archives unpack with a whole recipe", whole, len(hostiles))
	if whole < 10 {
		t.Error("that is too few to prove anything")
	}
}

func TestRecipeKnowsWhatItCannotMake(t *testing.T) {
	dir := t.TempDir()
	stats, _ := unpackWithRecipe(t, dir, archive(t, file("a", "first"), file("a", "second")))
	if stats.Whole {
		t.Error("the first a is gone, and the recipe claims to be whole")
	}
	stats, recipe := unpackWithRecipe(t, t.TempDir(), archive(t, directory("a"), directory("a"), file("a/b", "")))
	if !stats.Whole || len(recipe) == 0 {
		t.Error("a directory that comes twice loses nothing")
	}
}

func TestRecipeThroughLinks(t *testing.T) {
	data := archive(t, symlink("run", "/var/run"), file("run/early", "made through a dangling link"), directory("var"),
		symlink("lib", "usr/lib"), file("lib/x", "moved in"), file("usr/lib/y", "direct"))
	dir := t.TempDir()
	stats, recipe := unpackWithRecipe(t, dir, data)
	if !stats.Whole || !bytes.Equal(replay(t, dir, recipe), data) {
		t.Error("files that came through links are not found again")
	}
}

func TestVerifyFindsDamage(t *testing.T) {
	data := archive(t, directory("d"), file("d/f", strings.Repeat("content", 1000)), symlink("l", "d/f"), file("m", "x"),
		xattr(file("cap", "c"), "security.capability", "\x01\x00\x00\x02\x00\x20\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00"), file(".wh.gone", ""))
	for what, damage := range map[string]func(path func(string) string) error{
		"a byte turned": func(p func(string) string) error {
			f, err := os.OpenFile(p("d/f"), os.O_WRONLY, 0)
			must(t, err)
			defer f.Close()
			_, err = f.WriteAt([]byte{'C'}, 3000)
			return err
		},
		"zeros":            func(p func(string) string) error { return os.WriteFile(p("d/f"), make([]byte, 7000), 0o644) },
		"emptied":          func(p func(string) string) error { return os.Truncate(p("d/f"), 0) },
		"longer":           func(p func(string) string) error { return os.Truncate(p("d/f"), 7001) },
		"removed":          func(p func(string) string) error { return os.Remove(p("m")) },
		"directory gone":   func(p func(string) string) error { return os.RemoveAll(p("d")) },
		"mode":             func(p func(string) string) error { return os.Chmod(p("m"), 0o777) },
		"directory's mode": func(p func(string) string) error { return os.Chmod(p("d"), 0o777) },
		"owner":            func(p func(string) string) error { return os.Chown(p("m"), 7, 7) },
		"capability":       func(p func(string) string) error { return unix.Removexattr(p("cap"), "security.capability") },
		"whiteout":         func(p func(string) string) error { return os.Remove(p("gone")) },
		"link": func(p func(string) string) error {
			return errors.Join(os.Remove(p("l")), os.Symlink("elsewhere", p("l")))
		},
		"a pipe": func(p func(string) string) error { return errors.Join(os.Remove(p("m")), unix.Mkfifo(p("m"), 0o644)) },
		"a link out of there": func(p func(string) string) error {
			return errors.Join(os.Remove(p("m")), os.Symlink("/etc/passwd", p("m")))
		},
		"all gone": func(p func(string) string) error { return os.RemoveAll(p("")) },
	} {
		dir := t.TempDir()
		_, recipe := unpackWithRecipe(t, dir, data)
		must(t, damage(func(name string) string { return filepath.Join(dir, name) }))
		h := sha256.New()
		err := Verify(t.Context(), dir, bytes.NewReader(recipe), h)
		if err == nil && bytes.Equal(h.Sum(nil), sum(data)) {
			t.Errorf("%s: not found", what)
		}
		if err != nil && !errors.Is(err, ErrDamaged) {
			t.Errorf("%s: %v", what, err)
		}
	}
	dir := t.TempDir()
	_, recipe := unpackWithRecipe(t, dir, data)
	for _, bad := range [][]byte{nil, recipe[:len(recipe)/2], append(bytes.Clone(recipe[:20]), recipe[21:]...)} {
		if err := Verify(t.Context(), dir, bytes.NewReader(bad), sha256.New()); !errors.Is(err, ErrDamaged) {
			t.Errorf("a damaged recipe: %v", err)
		}
	}
}

func BenchmarkRecipe(b *testing.B) {
	data := smallFiles(b)
	dir := b.TempDir()
	_, recipe := unpackWithRecipe(b, dir, data)
	b.ReportMetric(float64(len(recipe)), "recipe-bytes")
	b.SetBytes(int64(len(data)))
	for b.Loop() {
		if err := Verify(b.Context(), dir, bytes.NewReader(recipe), sha256.New()); err != nil {
			b.Fatal(err)
		}
	}
}
