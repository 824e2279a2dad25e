package image

import (
	"context"
	"errors"
	"fmt"
	"hash"
	"io"
	"os"
	"path/filepath"
	"syscall"

	"github.com/opencontainers/go-digest"

	"github.com/evenkeel/evenkeel/image/layer"
	"github.com/evenkeel/evenkeel/internal/effect"
)

var (
	makeIngest  = effect.New("image.ingest")
	unpackLayer = effect.New("image.layer.unpack")
)

// unpack fetches a layer into a directory of its own in ingest and returns it, or nothing if the layer has got its
// place meanwhile. Content that turns out wrong is fetched once more from each further host.
func (s *Store) unpack(ctx context.Context, src source, l blob, tell func(Progress)) (dir string, err error) {
	if s.has(l.diffID) {
		return "", nil
	}
	var wrong error
	for skip := 0; ; skip++ {
		dir, err = s.unpackOnce(ctx, src, l, skip, tell)
		if err == nil {
			s.count.fetched.Add(1)
		}
		switch {
		case errors.Is(err, errOutOfHosts):
			return "", wrong
		case wrong != nil && errors.Is(err, ErrNotFound): // one host does have it, or says so
			return "", fmt.Errorf("%w\n%v", wrong, err)
		case !errors.Is(err, ErrCorrupt):
			return dir, err
		}
		s.count.corrupt.Add(1)
		s.logger().Warn("layer is corrupt", "blob", l.Digest, "error", err)
		wrong = errors.Join(wrong, err)
	}
}

func (s *Store) unpackOnce(ctx context.Context, src source, l blob, skip int, tell func(Progress)) (dir string, err error) {
	fetch, stop := context.WithCancel(ctx)
	defer stop()
	body, err := src.blob(fetch, l.Descriptor, skip)
	if err != nil {
		return "", err
	}
	defer body.Close()
	err = makeIngest.Do(ctx, func() error {
		dir, err = os.MkdirTemp(s.ingest(), "layer-")
		return err
	})
	if err == nil {
		err = unpackLayer.Do(ctx, func() error {
			return atLowPriority(func() error { return l.unpack(ctx, &stoppable{body, stop}, dir, tell) })
		})
	}
	if err != nil && dir != "" {
		err = errors.Join(err, s.discard(ctx, dir))
	}
	return dir, err
}

// stoppable is a blob whose reader can be interrupted in the middle of a read.
type stoppable struct {
	io.Reader
	stop func()
}

// unpack pours the blob into dir/fs and describes it in dir/layer.json.
func (l blob) unpack(ctx context.Context, body *stoppable, dir string, tell func(Progress)) error {
	root := filepath.Join(dir, "fs")
	if err := os.Mkdir(root, 0o755); err != nil {
		return err
	}
	recipe, err := os.Create(filepath.Join(dir, "recipe"))
	if err != nil {
		return err
	}
	r, err := l.pour(ctx, body, root, recipe, tell)
	if info, statErr := recipe.Stat(); statErr == nil {
		r.Recipe = info.Size()
	}
	if err := errors.Join(err, recipe.Close()); err != nil {
		return err
	}
	text, err := seal(r)
	if err != nil {
		return err
	}
	return os.WriteFile(filepath.Join(dir, "layer.json"), text, 0o600) // durable with the rest, by one sync
}

// pour runs the stages of an unpack, each at its own pace: read and hash the blob; inflate and hash the archive;
// write files. It returns what layer.json is to say.
func (l blob) pour(ctx context.Context, body *stoppable, root string, recipe io.Writer, tell func(Progress)) (layerRecord, error) {
	packed := l.Digest.Algorithm().Hash()
	blobs := readAhead(io.TeeReader(body, packed))
	defer blobs.Close()
	defer body.stop() // first, since Close waits for a read that is under way
	counted := &counter{Reader: blobs, blob: l, tell: tell}
	r := layerRecord{DiffID: l.diffID, Blob: l.Digest}
	err := l.content(ctx, counted, body.stop, root, recipe, &r)
	if local(err) || ctx.Err() != nil {
		return r, errors.Join(err, context.Cause(ctx))
	}
	// The end of the archive need not be the end of the blob, and a blob that is not what it should be fails in all
	// sorts of ways: its digest tells the truth.
	if _, drainErr := io.Copy(io.Discard, counted); drainErr != nil {
		return r, drainErr
	}
	if err := match("blob", l.Digest, packed); err != nil {
		return r, err
	}
	return r, err
}

// content makes of the blob what it stands for.
func (l blob) content(ctx context.Context, blobs io.Reader, stop func(), root string, recipe io.Writer, r *layerRecord) (err error) {
	if l.file == "" {
		return l.inflate(ctx, blobs, stop, root, recipe, r)
	}
	r.File, r.Bytes = l.file, l.Size
	r.Inodes, err = l.writeFile(blobs, root)
	return err
}

func (l blob) inflate(ctx context.Context, blobs io.Reader, stop func(), root string, recipe io.Writer, r *layerRecord) (err error) {
	plain, err := l.windows.Decompress(ctx, blobs)
	if err != nil {
		return err
	}
	defer plain.Close()
	unpacked := l.diffID.Algorithm().Hash()
	archive := readAhead(io.TeeReader(plain, unpacked))
	defer archive.Close()
	defer func() {
		if local(err) {
			stop() // likewise; in other cases the rest of the blob is still wanted
		}
	}()
	stats, err := layer.Unpacker{Limits: l.limits, Recipe: recipe}.Unpack(ctx, root, archive)
	if err != nil {
		return err
	}
	r.Bytes, r.Inodes, r.Implied = stats.Bytes, stats.Inodes, stats.Implied
	if stats.Whole {
		r.Archive = stats.Archive
	}
	if l.artifact { // nothing says what the archive is to be but the blob's digest
		r.Content = digest.NewDigest(l.diffID.Algorithm(), unpacked)
		return nil
	}
	return match("archive", l.diffID, unpacked)
}

func match(what string, want digest.Digest, h hash.Hash) error {
	if got := digest.NewDigest(want.Algorithm(), h); got != want {
		return fmt.Errorf("%w: the layer's %s should be %s and is %s", ErrCorrupt, what, want, got)
	}
	return nil
}

// local reports whether an unpack failed because of this machine's disk; the rest of the blob is not worth reading then.
func local(err error) bool {
	var errno syscall.Errno
	return err != nil && errors.As(err, &errno) && !errors.Is(err, ErrUnavailable)
}

// counter reports what has been taken out of the blob.
type counter struct {
	io.Reader
	blob       blob
	tell       func(Progress)
	done, told int64
}

const progressStep = 256 << 10 // bytes

func (c *counter) Read(p []byte) (int, error) {
	n, err := c.Reader.Read(p)
	c.done += int64(n)
	if c.tell != nil && (c.done-c.told >= progressStep || c.told == 0 && n > 0) {
		c.told = c.done
		c.tell(Progress{Digest: c.blob.Digest, Phase: "downloading", Done: c.done, Total: c.blob.Size})
	}
	return n, err
}
