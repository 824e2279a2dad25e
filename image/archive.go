package image

import (
	"archive/tar"
	"context"
	_ "crypto/sha256"
	"errors"
	"fmt"
	"io"
	"os"
	"path"
	"path/filepath"
	"strconv"
	"strings"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/evenkeel/evenkeel/image/layer"
	"github.com/evenkeel/evenkeel/internal/effect"
)

var spoolArchive = effect.New("image.spool")

// archive is an image archive whose files lie in a directory of ingest, under numbers: names in a tar are untrusted
// and never become paths. The order of an archive's entries is arbitrary, so it is read whole before it is used.
type archive struct {
	dir   string
	limit int64              // bytes of all files
	left  int64              // of them
	taken int                // entries so far; an archive may have several of one name, of which the last counts
	names int                // bytes of their names and of what they link to, which are kept until the import is over
	texts int64              // bytes of the documents that were read, likewise
	files map[string]spooled // by clean path in the archive
	links map[string]string  // symbolic and hard, to clean paths
	blobs map[digest.Digest]spooled
}

// spooled is one file of an archive.
type spooled struct {
	path   string
	size   int64
	digest digest.Digest
}

// What one archive may have the daemon keep in memory. Compressed, neither costs its writer anything.
const (
	archiveEntries = 100_000  // files
	archiveNames   = 16 << 20 // bytes of names: twice as many as that many blobs have; a single name can have 1 MiB
	archiveTexts   = 64 << 20 // bytes of manifests and configs, which have some KiB for each image
	linkDepth      = 8
)

// DefaultArchiveBytes is what Store.ArchiveBytes means where it is zero: above the archives of the largest images with models
// in them, and below what most nodes have free.
const DefaultArchiveBytes = 64 << 30

// spool reads the whole archive, which may itself be compressed, and whose files may have so many bytes together. On error the
// directory is left to the caller.
func spool(ctx context.Context, r io.Reader, dir string, limit int64) (*archive, error) {
	plain, err := layer.Decompress(r)
	if err != nil {
		return nil, fmt.Errorf("cannot read the archive: %w", err)
	}
	defer plain.Close()
	a := &archive{dir: dir, limit: limit, left: limit, files: map[string]spooled{}, links: map[string]string{}, blobs: map[digest.Digest]spooled{}}
	t := tar.NewReader(plain)
	for {
		header, err := t.Next()
		if err == io.EOF {
			return a, nil
		}
		if err != nil {
			return nil, fmt.Errorf("cannot read the archive: %w", err)
		}
		if ctx.Err() != nil {
			return nil, context.Cause(ctx)
		}
		if a.taken++; a.taken > archiveEntries {
			return nil, fmt.Errorf("cannot read the archive: more than %d files", archiveEntries)
		}
		if a.names += len(header.Name) + len(header.Linkname); a.names > archiveNames {
			return nil, fmt.Errorf("cannot read the archive: the names of its files have more than %d MiB together; those of an image have some KiB, so pack it anew, with docker save for one", archiveNames>>20)
		}
		if err := a.take(ctx, header, t); err != nil {
			return nil, fmt.Errorf("cannot read %.256q of the archive: %w", header.Name, err)
		}
	}
}

func (a *archive) take(ctx context.Context, header *tar.Header, r io.Reader) error {
	name := inArchive(header.Name)
	switch header.Typeflag {
	case tar.TypeReg:
		return a.store(ctx, name, header.Size, r)
	case tar.TypeLink:
		a.links[name] = inArchive(header.Linkname)
	case tar.TypeSymlink:
		a.links[name] = inArchive(path.Join(path.Dir(name), header.Linkname))
	}
	return nil
}

// inArchive is a name as a key: clean, relative, and never above the archive's root.
func inArchive(name string) string { return strings.TrimPrefix(path.Clean("/"+name), "/") }

// store counts a file before it writes one byte: compressed or sparse, its content costs the archive nothing.
func (a *archive) store(ctx context.Context, name string, size int64, r io.Reader) error {
	if size < 0 || size > a.left {
		return fmt.Errorf("its files have more than %d bytes, which is as much as one archive may have here; images.max_archive_bytes in the configuration allows more", a.limit)
	}
	a.left -= size
	f, err := os.OpenFile(filepath.Join(a.dir, strconv.Itoa(a.taken)), os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o600)
	if err != nil {
		return err
	}
	hash := digest.Canonical.Hash()
	_, err = io.Copy(io.MultiWriter(f, hash), contextReader{ctx, r})
	if err := errors.Join(err, f.Close()); err != nil {
		return err
	}
	s := spooled{f.Name(), size, digest.NewDigest(digest.Canonical, hash)}
	if want := blobName(name); want.Validate() == nil && want.Algorithm() == digest.Canonical && want != s.digest {
		return fmt.Errorf("%w: its name is not its digest", ErrCorrupt)
	}
	a.files[name], a.blobs[s.digest] = s, s
	delete(a.links, name)
	return nil
}

// blobName reads the digest out of blobs/<algorithm>/<hex>, or returns nonsense.
func blobName(name string) digest.Digest {
	rest, _ := strings.CutPrefix(name, "blobs/")
	return digest.Digest(strings.Replace(rest, "/", ":", 1))
}

// file finds a file by its name in the archive, through links.
func (a *archive) file(name string) (spooled, bool) {
	name = inArchive(name)
	for range linkDepth {
		if s, ok := a.files[name]; ok {
			return s, true
		}
		target, ok := a.links[name]
		if !ok {
			break
		}
		name = target
	}
	return spooled{}, false
}

// read returns a small file.
func (a *archive) read(name string) ([]byte, error) {
	s, ok := a.file(name)
	if !ok {
		return nil, fmt.Errorf("the archive has no file %s", strconv.Quote(name))
	}
	return a.text(s, manifestLimit)
}

// text reads a document. An index can name one a thousand times.
func (a *archive) text(s spooled, limit int64) ([]byte, error) {
	if s.size > limit {
		return nil, fmt.Errorf("%w: document is longer than %d MiB", ErrCorrupt, limit>>20)
	}
	if a.texts += s.size; a.texts > archiveTexts {
		return nil, fmt.Errorf("%w: the manifests and configs of its images have more than %d MiB together; divide it into several archives", ErrCorrupt, archiveTexts>>20)
	}
	return os.ReadFile(s.path)
}

// content finds a blob by digest; digests other than sha256 only by the name that the layout gives them.
func (a *archive) content(d digest.Digest) (spooled, error) {
	if s, ok := a.blobs[d]; ok {
		return s, nil
	}
	if s, ok := a.file("blobs/" + d.Algorithm().String() + "/" + d.Encoded()); ok {
		return s, nil
	}
	return spooled{}, fmt.Errorf("%w: the archive lacks blob %s", ErrCorrupt, d)
}

func (a *archive) document(d ocispec.Descriptor, limit int64) ([]byte, error) {
	s, err := a.content(d.Digest)
	if err != nil {
		return nil, err
	}
	text, err := a.text(s, limit)
	if err == nil && d.Digest.Algorithm().FromBytes(text) != d.Digest {
		err = fmt.Errorf("%w: blob %s of the archive", ErrCorrupt, d.Digest)
	}
	return text, err
}

func (a *archive) manifest(_ context.Context, d ocispec.Descriptor) ([]byte, error) {
	return a.document(d, manifestLimit)
}

func (a *archive) config(_ context.Context, d ocispec.Descriptor) ([]byte, error) {
	return a.document(d, configLimit)
}

func (a *archive) blob(_ context.Context, d ocispec.Descriptor, skip int) (io.ReadCloser, error) {
	if skip > 0 {
		return nil, errOutOfHosts
	}
	s, err := a.content(d.Digest)
	if err != nil {
		return nil, err
	}
	if s.size != d.Size {
		return nil, fmt.Errorf("%w: blob %s has %d bytes, its manifest says %d", ErrCorrupt, d.Digest, s.size, d.Size)
	}
	return os.Open(s.path)
}

// contextReader lets a long copy be cancelled between two reads.
type contextReader struct {
	ctx context.Context
	io.Reader
}

func (c contextReader) Read(p []byte) (int, error) {
	if c.ctx.Err() != nil {
		return 0, context.Cause(c.ctx)
	}
	return c.Reader.Read(p)
}

var _, _ source = (*archive)(nil), (*remote)(nil)
