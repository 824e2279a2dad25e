package inflate

import (
	"bytes"
	"compress/flate"
	"compress/gzip"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"os/exec"
	"strings"
	"testing"
	"testing/iotest"
)

func packed(t testing.TB, data []byte, level int) []byte {
	t.Helper()
	var b bytes.Buffer
	w, err := gzip.NewWriterLevel(&b, level)
	if err != nil {
		t.Fatal(err)
	}
	w.Write(data)
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

// samples are streams that use all kinds of blocks, all distances and lengths.
func samples() map[string][]byte {
	random := rand.New(rand.NewPCG(1, 2))
	noise := make([]byte, 300<<10)
	for i := range noise {
		noise[i] = byte(random.Uint32())
	}
	words := bytes.Buffer{}
	for words.Len() < 1<<20 {
		fmt.Fprintf(&words, "%x %d\n", random.IntN(1<<12), int(random.ExpFloat64()*50))
	}
	runs := bytes.Buffer{}
	for period := 1; period < 300; period++ {
		unit := noise[period*5 : period*6]
		for range 3 + random.IntN(900)/period {
			runs.Write(unit)
		}
	}
	far := bytes.Buffer{}
	for range 40 {
		far.Write(noise[:windowSize-random.IntN(300)])
	}
	few := make([]byte, 200<<10)
	for i := range few {
		few[i] = "aaaaaaab"[random.IntN(8)]
	}
	skewed := make([]byte, 500<<10) // long codes
	for i := range skewed {
		skewed[i] = byte(min(255, int(random.ExpFloat64()*random.ExpFloat64()*12)))
	}
	return map[string][]byte{
		"nothing": nil, "a byte": {7}, "noise": noise, "words": words.Bytes(), "runs": runs.Bytes(), "far": far.Bytes(),
		"few": few, "skewed": skewed, "zeros": make([]byte, 3<<20), "mixed": append(append(bytes.Clone(noise[:70000]), words.Bytes()...), noise...),
	}
}

func TestLikeTheStandardLibrary(t *testing.T) {
	for name, data := range samples() {
		for _, level := range []int{flate.HuffmanOnly, 0, 1, 6, 9} {
			stream := packed(t, data, level)
			got, err := io.ReadAll(NewReader(bytes.NewReader(stream)))
			if err != nil || !bytes.Equal(got, data) {
				t.Errorf("%s, level %d: %d bytes, %v, want %d", name, level, len(got), err, len(data))
			}
			slow := io.Reader(iotest.OneByteReader(bytes.NewReader(stream)))
			if len(stream) > 200<<10 {
				slow = iotest.HalfReader(bytes.NewReader(stream))
			}
			got, err = io.ReadAll(iotest.OneByteReader(NewReader(slow)))
			if err != nil || !bytes.Equal(got, data) {
				t.Errorf("%s, level %d, in pieces: %d bytes, %v, want %d", name, level, len(got), err, len(data))
			}
		}
	}
}

// TestGNUGzip reads what another program packs, with a header that has all fields.
func TestGNUGzip(t *testing.T) {
	data := samples()["words"]
	file := t.TempDir() + "/a file"
	if err := os.WriteFile(file, data, 0o600); err != nil {
		t.Fatal(err)
	}
	for _, level := range []string{"-1", "-9"} {
		out, err := exec.Command("gzip", "-c", level, file).Output()
		if err != nil {
			t.Fatal(err)
		}
		if got, err := io.ReadAll(NewReader(bytes.NewReader(out))); err != nil || !bytes.Equal(got, data) {
			t.Errorf("gzip %s: %d bytes, %v", level, len(got), err)
		}
	}
}

func TestHeader(t *testing.T) {
	var b bytes.Buffer
	w := gzip.NewWriter(&b)
	w.Name, w.Comment, w.Extra = "name", strings.Repeat("comment", 70), bytes.Repeat([]byte{0}, 3000)
	w.Write([]byte("content"))
	w.Close()
	if got, err := io.ReadAll(NewReader(iotest.OneByteReader(&b))); err != nil || string(got) != "content" {
		t.Errorf("%q, %v", got, err)
	}
	sum := []byte{0x1f, 0x8b, 8, flagSum, 0, 0, 0, 0, 0, 0, 0x11, 0x22}
	if _, err := io.ReadAll(NewReader(bytes.NewReader(sum))); !errors.Is(err, ErrHeader) {
		t.Errorf("a wrong header sum: %v, want ErrHeader", err)
	}
}

// TestMembers mixes members of all kinds. Matches do not reach into the member before.
func TestMembers(t *testing.T) {
	var stream, want bytes.Buffer
	for _, data := range samples() {
		for _, level := range []int{0, 6} {
			stream.Write(packed(t, data, level))
			want.Write(data)
		}
	}
	if got, err := io.ReadAll(NewReader(&stream)); err != nil || !bytes.Equal(got, want.Bytes()) {
		t.Errorf("%d bytes, %v, want %d", len(got), err, want.Len())
	}
	first := packed(t, []byte("0123456789"), 9)
	second := append([]byte{0x1f, 0x8b, 8, 0, 0, 0, 0, 0, 0, 0}, 0x03|0x40<<1) // garbage, whatever it means
	if _, err := io.ReadAll(NewReader(bytes.NewReader(append(first, second...)))); err == nil {
		t.Error("a broken second member was read without an error")
	}
	if _, err := io.ReadAll(NewReader(bytes.NewReader(append(packed(t, []byte("x"), 9), "tail"...)))); err == nil {
		t.Error("what follows the last member was taken for one")
	}
}

// TestDamage cuts and changes streams everywhere: the outcome is that of the standard library.
func TestDamage(t *testing.T) {
	stream := packed(t, samples()["words"][:3000], 6)
	for i := range stream {
		if _, err := io.ReadAll(NewReader(bytes.NewReader(stream[:i]))); i > 0 && !errors.Is(err, io.ErrUnexpectedEOF) {
			t.Fatalf("cut at %d: %v, want io.ErrUnexpectedEOF", i, err)
		}
		for bit := range 8 {
			bad := bytes.Clone(stream)
			bad[i] ^= 1 << bit
			compare(t, bad)
		}
	}
	broken := errors.New("connection reset")
	if _, err := io.ReadAll(NewReader(io.MultiReader(bytes.NewReader(stream[:900]), iotest.ErrReader(broken)))); !errors.Is(err, broken) {
		t.Errorf("got %v, want the reader's own error", err)
	}
}

// compare reads a stream with this decoder and with the standard library's. Both give the same bytes, and both fail or neither.
// The standard library may hand out less before an error.
func compare(t *testing.T, stream []byte) {
	t.Helper()
	var want []byte
	z, wantErr := gzip.NewReader(bytes.NewReader(stream))
	if wantErr == nil {
		want, wantErr = io.ReadAll(io.LimitReader(z, 64<<20))
	}
	got, err := io.ReadAll(io.LimitReader(NewReader(bytes.NewReader(stream)), 64<<20))
	if len(stream) == 0 {
		return // here an empty stream is empty
	}
	if (err == nil) != (wantErr == nil) || err == nil && !bytes.Equal(got, want) {
		t.Fatalf("%d bytes, %v; the standard library gives %d bytes, %v", len(got), err, len(want), wantErr)
	}
	if n := min(len(got), len(want)); !bytes.Equal(got[:n], want[:n]) {
		t.Fatalf("the first %d bytes differ from the standard library's", n)
	}
}

func FuzzInflate(f *testing.F) {
	for _, data := range samples() {
		for _, level := range []int{flate.HuffmanOnly, 0, 1, 9} {
			f.Add(packed(f, data[:min(len(data), 5000)], level))
		}
	}
	f.Fuzz(func(t *testing.T, stream []byte) { compare(t, stream) })
}

// FuzzBlocks spares the fuzzer the header and the checksum.
func FuzzBlocks(f *testing.F) {
	for _, data := range samples() {
		for _, level := range []int{flate.HuffmanOnly, 0, 1, 9} {
			f.Add(packed(f, data[:min(len(data), 5000)], level)[10:])
		}
	}
	f.Fuzz(func(t *testing.T, blocks []byte) {
		want, wantErr := io.ReadAll(io.LimitReader(flate.NewReader(bytes.NewReader(blocks)), 64<<20))
		got, err := io.ReadAll(io.LimitReader(NewReader(bytes.NewReader(append([]byte{0x1f, 0x8b, 8, 0, 0, 0, 0, 0, 0, 0}, blocks...))), 64<<20))
		n := min(len(got), len(want))
		if !bytes.Equal(got[:n], want[:n]) || wantErr == nil && len(got) < len(want) {
			t.Fatalf("%d bytes, %v; the standard library gives %d bytes, %v", len(got), err, len(want), wantErr)
		}
		if wantErr != nil && err == nil {
			t.Fatalf("no error; the standard library gives %v", wantErr)
		}
	})
}

func BenchmarkInflate(b *testing.B) {
	data := bytes.Repeat(samples()["words"], 8)
	stream := packed(b, data, 6)
	for name, open := range map[string]func(io.Reader) io.Reader{
		"this":     func(r io.Reader) io.Reader { return NewReader(r) },
		"standard": func(r io.Reader) io.Reader { z, _ := gzip.NewReader(r); return z },
	} {
		b.Run(name, func(b *testing.B) {
			b.SetBytes(int64(len(data)))
			for b.Loop() {
				if n, err := io.Copy(io.Discard, open(bytes.NewReader(stream))); err != nil || n != int64(len(data)) {
					b.Fatal(n, err)
				}
			}
		})
	}
}
