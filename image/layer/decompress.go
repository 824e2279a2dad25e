package layer

import (
	"bufio"
	"bytes"
	"context"
	"fmt"
	"io"
	"sync"

	"github.com/klauspost/compress/gzip"
	"github.com/klauspost/compress/zstd"

	"github.com/evenkeel/evenkeel/internal/inflate"
)

// maxWindow is the largest zstd window: what `zstd --ultra -22` and `--long` write. A decoder may need that much memory,
// so a frame that asks for more is refused.
const maxWindow = 128 << 20

// Decompress returns the plain tar of a stream in gzip (also multi-member), zstd or no compression, told by its first
// bytes. An empty stream is an empty tar. Other compressions, which the image specification does not know, are
// ErrFormat. Closing the result does not close r.
func Decompress(r io.Reader) (io.ReadCloser, error) {
	return decompress(r, func(stream io.Reader) (io.ReadCloser, error) { return unzstd(stream, func() {}) })
}

// Windows bounds how many zstd streams are decoded at a time: as many as the channels have places. Each needs a window in
// memory, 8 MiB as a rule, which the writer of the stream chose. Shared ones are for all pulls, Own ones for one alone: a
// registry that trickles holds its place for hours, and must not hold up what comes from elsewhere.
type Windows struct{ Shared, Own chan struct{} }

// Decompress is the function of that name. If the stream is zstd it waits for a place, which Close gives back.
func (w Windows) Decompress(ctx context.Context, r io.Reader) (io.ReadCloser, error) {
	return decompress(r, func(stream io.Reader) (io.ReadCloser, error) {
		select {
		case w.Shared <- struct{}{}:
			return unzstd(stream, func() { <-w.Shared })
		case w.Own <- struct{}{}:
			return unzstd(stream, func() { <-w.Own })
		case <-ctx.Done():
			return nil, context.Cause(ctx)
		}
	})
}

func decompress(r io.Reader, unzstd func(io.Reader) (io.ReadCloser, error)) (io.ReadCloser, error) {
	stream := bufio.NewReaderSize(r, 64<<10)
	head, err := stream.Peek(262)
	if err != nil && err != io.EOF {
		return nil, fmt.Errorf("cannot read the start of the layer: %w", err)
	}
	switch {
	case bytes.HasPrefix(head, []byte{0x1f, 0x8b}):
		return io.NopCloser(inflate.NewReader(stream)), nil
	case isZstd(head):
		return unzstd(stream)
	}
	if name := foreign(head); name != "" {
		return nil, fmt.Errorf("%w: the layer is compressed with %s; layers are gzip, zstd or plain tar", ErrFormat, name)
	}
	return io.NopCloser(stream), nil
}

func unzstd(r io.Reader, done func()) (io.ReadCloser, error) {
	z, err := zstdDecoder()
	if err == nil {
		err = z.Reset(r)
	}
	if err != nil {
		done()
		return nil, fmt.Errorf("cannot read the layer's zstd header: %w", err)
	}
	return &zstdReader{z, done}, nil
}

// zstdDecoder decodes in the caller's goroutine: layers run side by side already, and more decoders would only cost memory.
func zstdDecoder() (*zstd.Decoder, error) {
	if z, ok := zstdDecoders.Get().(*zstd.Decoder); ok {
		return z, nil
	}
	return zstd.NewReader(nil, zstd.WithDecoderConcurrency(1), zstd.WithDecoderLowmem(true), zstd.WithDecoderMaxWindow(maxWindow))
}

// zstdDecoders keeps windows from one layer of an image to the next. It holds nothing that needs closing: a decoder of
// concurrency 1 has no goroutines.
var zstdDecoders sync.Pool

type zstdReader struct {
	*zstd.Decoder
	done func()
}

func (z *zstdReader) Close() error {
	if z.Decoder != nil {
		if z.Reset(nil) == nil { // lets go of the stream
			zstdDecoders.Put(z.Decoder)
		}
		z.Decoder = nil
		z.done()
	}
	return nil
}

// isZstd knows data frames and the skippable frames that some writers begin with (RFC 8878, section 3.1).
func isZstd(head []byte) bool {
	if len(head) < 4 {
		return false
	}
	return bytes.Equal(head[:4], []byte{0x28, 0xb5, 0x2f, 0xfd}) ||
		head[0]&0xf0 == 0x50 && bytes.Equal(head[1:4], []byte{0x2a, 0x4d, 0x18})
}

// foreign names a compression that layers do not use. A plain tar may begin with any of these bytes, as they are the
// name of its first file; the magic in its header (offset 257) tells.
func foreign(head []byte) string {
	if len(head) >= 262 && string(head[257:262]) == "ustar" {
		return ""
	}
	for magic, name := range map[string]string{
		"\xfd7zXZ\x00":     "xz",
		"BZh":              "bzip2",
		"\x04\x22\x4d\x18": "lz4",
		"LZIP":             "lzip",
		"PK\x03\x04":       "zip",
	} {
		if bytes.HasPrefix(head, []byte(magic)) {
			return name
		}
	}
	return ""
}

// Compress returns a writer that packs what is written to w: gzip, zstd, or "" for not at all. Closing it does not close w.
func Compress(w io.Writer, how string) (io.WriteCloser, error) {
	switch how {
	case "":
		return plainWriter{w}, nil
	case "gzip":
		return gzip.NewWriter(w), nil
	case "zstd":
		return zstd.NewWriter(w)
	}
	return nil, fmt.Errorf("%w: %q; there are gzip and zstd", ErrFormat, how)
}

type plainWriter struct{ io.Writer }

func (plainWriter) Close() error { return nil }
