package layer

import (
	"bytes"
	"context"
	"errors"
	"io"
	"math/rand"
	"strings"
	"testing"
	"testing/iotest"

	"github.com/klauspost/compress/gzip"
	"github.com/klauspost/compress/zstd"
)

func gzipped(t testing.TB, data []byte) []byte {
	t.Helper()
	var buffer bytes.Buffer
	w := gzip.NewWriter(&buffer)
	w.Write(data)
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return buffer.Bytes()
}

func zstded(t testing.TB, data []byte) []byte {
	t.Helper()
	w, err := zstd.NewWriter(nil)
	if err != nil {
		t.Fatal(err)
	}
	return w.EncodeAll(data, nil)
}

func TestDecompress(t *testing.T) {
	data := make([]byte, 300<<10)
	rand.New(rand.NewSource(1)).Read(data)
	layer := archive(t, file("random", string(data)), file("text", strings.Repeat("text ", 10000)))
	half := len(layer) / 2
	skippable := append([]byte{0x50, 0x2a, 0x4d, 0x18, 4, 0, 0, 0}, "skip"...)
	for name, c := range map[string]struct{ stream, want []byte }{
		"plain":           {layer, layer},
		"gzip":            {gzipped(t, layer), layer},
		"gzip, 2 members": {append(gzipped(t, layer[:half]), gzipped(t, layer[half:])...), layer},
		"gzip, empty":     {gzipped(t, nil), nil},
		"zstd":            {zstded(t, layer), layer},
		"zstd, 2 frames":  {append(zstded(t, layer[:half]), zstded(t, layer[half:])...), layer},
		"zstd, skippable": {append(append(bytes.Clone(skippable), zstded(t, layer)...), skippable...), layer},
		"empty":           {nil, nil},
		"short":           {[]byte("abc"), []byte("abc")},
		"name like bzip2": {archive(t, file("BZh", "x")), archive(t, file("BZh", "x"))},
	} {
		for way, reader := range map[string]io.Reader{"": bytes.NewReader(c.stream), " byte by byte": iotest.OneByteReader(bytes.NewReader(c.stream))} {
			stream, err := Decompress(reader)
			if err != nil {
				t.Errorf("%s%s: %v", name, way, err)
				continue
			}
			got, err := io.ReadAll(stream)
			if err != nil || !bytes.Equal(got, c.want) {
				t.Errorf("%s%s: %d bytes, %v, want %d", name, way, len(got), err, len(c.want))
			}
			if err := stream.Close(); err != nil {
				t.Errorf("%s%s: close: %v", name, way, err)
			}
		}
	}
}

func TestDecompressRefuses(t *testing.T) {
	for stream, name := range map[string]string{
		"\xfd7zXZ\x00\x00": "xz", "BZh91AY&SY": "bzip2", "\x04\x22\x4d\x18abc": "lz4", "PK\x03\x04": "zip", "LZIP\x01": "lzip",
	} {
		_, err := Decompress(strings.NewReader(stream))
		if !errors.Is(err, ErrFormat) || !strings.Contains(err.Error(), name) {
			t.Errorf("%s: %v, want ErrFormat with the name", name, err)
		}
	}
}

func TestDecompressDamage(t *testing.T) {
	layer := archive(t, file("text", strings.Repeat("some text ", 100000)))
	for name, stream := range map[string][]byte{"gzip": gzipped(t, layer), "zstd": zstded(t, layer)} {
		for damage, stream := range map[string][]byte{
			"cut": stream[:len(stream)-5], "header only": stream[:4],
			"flipped": func() []byte { s := bytes.Clone(stream); s[len(s)/2] ^= 0x55; return s }(),
		} {
			z, err := Decompress(bytes.NewReader(stream))
			if err == nil {
				_, err = io.Copy(io.Discard, z)
				z.Close()
			}
			if err == nil {
				t.Errorf("%s, %s: read without an error", name, damage)
			}
		}
	}
	broken := errors.New("connection reset")
	if _, err := Decompress(iotest.ErrReader(broken)); !errors.Is(err, broken) {
		t.Errorf("got %v, want the reader's own error", err)
	}
}

// TestDecompressionBomb is 160 MB of zeros in a layer of a few KB.
func TestDecompressionBomb(t *testing.T) {
	zeros := strings.Repeat("\x00", 40<<20)
	bomb := archive(t, file("1", zeros), file("2", zeros), file("3", zeros), file("4", zeros))
	for name, packed := range map[string][]byte{"gzip": gzipped(t, bomb), "zstd": zstded(t, bomb)} {
		stream, err := Decompress(bytes.NewReader(packed))
		if err != nil {
			t.Fatal(err)
		}
		stats, err := Unpack(t.Context(), t.TempDir(), stream, Limits{Bytes: 100 << 20})
		stream.Close()
		if !errors.Is(err, ErrLimit) || stats.Bytes > 100<<20 {
			t.Errorf("%s: %+v, %v, want ErrLimit", name, stats, err)
		}
	}
}

// TestWindows: a zstd stream waits for a place, and no other stream does.
func TestWindows(t *testing.T) {
	data := []byte("some data")
	windows := Windows{Shared: make(chan struct{}, 1)}
	first, err := windows.Decompress(t.Context(), bytes.NewReader(zstded(t, data)))
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := windows.Decompress(ctx, bytes.NewReader(zstded(t, data))); !errors.Is(err, context.Canceled) {
		t.Errorf("got %v, want context.Canceled while the only place is taken", err)
	}
	if _, err := windows.Decompress(ctx, bytes.NewReader(gzipped(t, data))); err != nil {
		t.Errorf("gzip waits for a window: %v", err)
	}
	waiting := make(chan error)
	go func() {
		second, err := windows.Decompress(t.Context(), bytes.NewReader(zstded(t, data)))
		if err == nil {
			second.Close()
		}
		waiting <- err
	}()
	first.Close()
	first.Close() // gives back once
	if err := <-waiting; err != nil {
		t.Error(err)
	}
	if len(windows.Shared) != 0 {
		t.Errorf("%d places are still taken", len(windows.Shared))
	}
}
