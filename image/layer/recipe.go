package layer

import (
	"bufio"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"os"

	"github.com/klauspost/compress/zstd"
	"golang.org/x/sys/unix"
)

// A recipe is what is needed besides the unpacked files to make the archive again, byte for byte: all of the stream but
// the files' content, and in its place their paths. It says how a layer should look, so that damage is found by the
// digest that the image has for it anyway, and lets an image be exported under the id that it was pulled with. Headers
// are alike, so a recipe compresses to about fifty bytes for each file.
//
// It is a zstd stream of steps: a byte that says which, the number of bytes that the step stands for, and then those
// bytes (rawStep) or the length and text of the path that holds them (fileStep). endStep comes last and alone.
const (
	rawStep  = 'B'
	fileStep = 'F'
	endStep  = 'E'
)

const (
	rawBuffer   = 32 << 10
	recipeLimit = 256 << 20 // bytes on disk; an archive whose headers take more is not honest
)

// recipeWriter stands between the stream and the tar reader and writes down what passes.
type recipeWriter struct {
	stream  io.Reader
	out     *bounded
	packer  *zstd.Encoder
	raw     []byte
	content bool  // what passes now is the content of a file that was told
	total   int64 // bytes of the archive
	err     error // the disk's; nothing is written after it
}

// bounded is the recipe's file.
type bounded struct {
	io.Writer
	left int64
}

var errRecipeTooLong = errors.New("the recipe is too long")

func (b *bounded) Write(p []byte) (int, error) {
	if b.left -= int64(len(p)); b.left < 0 {
		return 0, errRecipeTooLong
	}
	return b.Writer.Write(p)
}

func newRecipe(stream io.Reader, to io.Writer) (*recipeWriter, error) {
	r := &recipeWriter{stream: stream, out: &bounded{to, recipeLimit}, raw: make([]byte, 0, rawBuffer)}
	var err error
	r.packer, err = zstd.NewWriter(r.out, zstd.WithEncoderLevel(zstd.SpeedFastest), zstd.WithEncoderConcurrency(1),
		zstd.WithWindowSize(128<<10), zstd.WithLowerEncoderMem(true))
	return r, err
}

func (r *recipeWriter) Read(p []byte) (int, error) {
	n, err := r.stream.Read(p)
	r.total += int64(n)
	if !r.content && r.err == nil {
		for rest := p[:n]; len(rest) > 0; {
			m := min(len(rest), cap(r.raw)-len(r.raw))
			r.raw = append(r.raw, rest[:m]...)
			rest = rest[m:]
			if len(r.raw) == cap(r.raw) {
				r.flush()
			}
		}
	}
	return n, err
}

// begin says that the content of a file passes next, which lies at path then.
func (r *recipeWriter) begin(path string, size int64) {
	r.flush()
	r.step(fileStep, size)
	r.write(binary.AppendUvarint(nil, uint64(len(path))))
	r.write([]byte(path))
	r.content = true
}

func (r *recipeWriter) end() { r.content = false }

func (r *recipeWriter) flush() {
	if len(r.raw) > 0 {
		r.step(rawStep, int64(len(r.raw)))
		r.write(r.raw)
		r.raw = r.raw[:0]
	}
}

func (r *recipeWriter) step(kind byte, size int64) {
	r.write(binary.AppendUvarint([]byte{kind}, uint64(size)))
}

func (r *recipeWriter) write(p []byte) {
	if r.err == nil {
		_, r.err = r.packer.Write(p)
	}
}

// finish completes the recipe. It reports whether there is one: an archive may be too odd.
func (r *recipeWriter) finish() (whole bool, err error) {
	r.flush()
	r.write([]byte{endStep})
	err = r.err
	if closeErr := r.packer.Close(); err == nil {
		err = closeErr
	}
	if errors.Is(err, errRecipeTooLong) {
		return false, nil
	}
	return err == nil, err
}

// ErrDamaged matches errors about a layer whose files are not what was unpacked.
var ErrDamaged = errors.New("damaged layer")

// Replay makes the archive that was unpacked below dir again.
func Replay(dir string, recipe io.Reader) (io.ReadCloser, error) {
	root, err := unix.Open(dir, unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, fmt.Errorf("%w: cannot open %s: %w", ErrDamaged, dir, err)
	}
	unpacker, err := zstd.NewReader(recipe, zstd.WithDecoderConcurrency(1), zstd.WithDecoderLowmem(true))
	if err != nil {
		unix.Close(root)
		return nil, err
	}
	return &replayer{root: root, unpacker: unpacker, steps: bufio.NewReader(unpacker)}, nil
}

// replayer follows a recipe.
type replayer struct {
	root     int
	unpacker *zstd.Decoder
	steps    *bufio.Reader
	file     *os.File // under way; nil: raw bytes are
	path     string
	left     int64 // of the step under way
	ended    bool
}

func (r *replayer) Read(p []byte) (int, error) {
	for r.left == 0 {
		if err := r.next(); err != nil {
			return 0, err
		}
	}
	from := io.Reader(r.steps)
	if r.file != nil {
		from = r.file
	}
	n, err := from.Read(p[:min(int64(len(p)), r.left)])
	r.left -= int64(n)
	if n > 0 {
		return n, nil // an error, if it lasts, comes again
	}
	if err == io.EOF {
		err = io.ErrUnexpectedEOF
	}
	if r.file != nil {
		return 0, fmt.Errorf("%w: cannot read %q: %w", ErrDamaged, r.path, err)
	}
	return 0, broken(err)
}

// broken blames the recipe.
func broken(err error) error {
	if err == io.EOF {
		err = io.ErrUnexpectedEOF
	}
	return fmt.Errorf("%w: its recipe cannot be read: %w", ErrDamaged, err)
}

func (r *replayer) next() error {
	if r.file != nil {
		r.file.Close()
		r.file = nil
	}
	if r.ended {
		return io.EOF
	}
	kind, err := r.steps.ReadByte()
	if err != nil {
		return broken(err)
	}
	if kind == endStep {
		r.ended = true
		return io.EOF
	}
	size, err := binary.ReadUvarint(r.steps)
	if err != nil || kind != rawStep && kind != fileStep || size > 1<<62 {
		return broken(err)
	}
	r.left = int64(size)
	if kind == fileStep {
		return r.open()
	}
	return nil
}

func (r *replayer) open() error {
	length, err := binary.ReadUvarint(r.steps)
	if err != nil || length > unix.PathMax {
		return broken(err)
	}
	path := make([]byte, length)
	if _, err := io.ReadFull(r.steps, path); err != nil {
		return broken(err)
	}
	r.path = string(path)
	// Not blocking: where a file was, damage may have put a pipe.
	how := unix.OpenHow{Flags: unix.O_RDONLY | unix.O_NONBLOCK | unix.O_NOFOLLOW | unix.O_NOATIME | unix.O_CLOEXEC, Resolve: beneath}
	fd, err := openat2(r.root, r.path, &how)
	if err != nil {
		return fmt.Errorf("%w: cannot open %q: %w", ErrDamaged, shorten(r.path), err)
	}
	r.file = os.NewFile(uintptr(fd), r.path)
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		return fmt.Errorf("%w: cannot examine %q: %w", ErrDamaged, shorten(r.path), err)
	}
	if st.Mode&unix.S_IFMT != unix.S_IFREG || st.Size != r.left {
		return fmt.Errorf("%w: %q is a file of %d bytes no more", ErrDamaged, shorten(r.path), r.left)
	}
	return nil
}

func (r *replayer) Close() error {
	if r.file != nil {
		r.file.Close()
	}
	r.unpacker.Close()
	return unix.Close(r.root)
}
