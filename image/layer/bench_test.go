package layer

import (
	"bytes"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// BenchmarkUnpackSmall is a layer of 20,000 small files, the shape of an interpreter's package tree.
func BenchmarkUnpackSmall(b *testing.B) {
	benchmarkUnpack(b, smallFiles(b))
}

func smallFiles(b testing.TB) []byte {
	items := []item{}
	for d := range 400 {
		dir := fmt.Sprintf("usr/lib/packages/group%d/package%d", d%20, d)
		items = append(items, directory(dir))
		for f := range 50 {
			items = append(items, file(fmt.Sprintf("%s/module%d.py", dir, f), strings.Repeat("x", 100*(f+1))))
		}
	}
	return archive(b, items...)
}

// BenchmarkUnpackLarge is one file of 256 MB.
func BenchmarkUnpackLarge(b *testing.B) {
	benchmarkUnpack(b, archive(b, file("large", strings.Repeat("0123456789abcdef", 16<<20))))
}

func benchmarkUnpack(b *testing.B, layer []byte) {
	b.Run("plain", func(b *testing.B) { benchmarkUnpackTo(b, layer, false) })
	b.Run("recipe", func(b *testing.B) { benchmarkUnpackTo(b, layer, true) })
}

func benchmarkUnpackTo(b *testing.B, layer []byte, recipe bool) {
	base := b.TempDir()
	if err := Spread(base); err != nil {
		b.Fatal(err)
	}
	b.SetBytes(int64(len(layer)))
	for i := 0; b.Loop(); i++ {
		dir := filepath.Join(base, fmt.Sprint(i))
		if err := os.Mkdir(dir, 0o755); err != nil {
			b.Fatal(err)
		}
		o := Unpacker{}
		if recipe {
			o.Recipe = io.Discard
		}
		if _, err := o.Unpack(b.Context(), dir, bytes.NewReader(layer)); err != nil {
			b.Fatal(err)
		}
		b.StopTimer()
		os.RemoveAll(dir)
		b.StartTimer()
	}
}

func BenchmarkDecompress(b *testing.B) {
	layer := archive(b, file("text", strings.Repeat("some text that repeats, though not all of it: ", 1<<20)))
	for name, packed := range map[string][]byte{"gzip": gzipped(b, layer), "zstd": zstded(b, layer)} {
		b.Run(name, func(b *testing.B) {
			b.SetBytes(int64(len(layer)))
			for b.Loop() {
				stream, err := Decompress(bytes.NewReader(packed))
				if err != nil {
					b.Fatal(err)
				}
				io.Copy(io.Discard, stream)
				stream.Close()
			}
		})
	}
}
