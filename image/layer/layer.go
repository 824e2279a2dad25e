// Package layer turns an untrusted layer stream into an overlay lower directory.
//
// A layer is a tar archive that somebody else wrote. Every act on the file system goes through a descriptor of the
// directory it happens in, and that descriptor comes from openat2(2) bounded by the layer's own directory (see tree);
// no path is ever joined and then trusted. What a name in the stream may say is checked in name.go, what it may cost
// in Limits. Whiteouts of the OCI image specification (layer.md, "Whiteouts") become those of overlayfs
// (Documentation/filesystems/overlayfs.rst, "whiteouts and opaque directories").
package layer

import (
	"archive/tar"
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"slices"

	"golang.org/x/sys/unix"
)

// Sentinels of this room. Errors that match neither come from the stream's reader or from the disk.
var (
	ErrMalformed = errors.New("malformed layer")     // the archive breaks the tar format or the image specification's rules
	ErrLimit     = errors.New("layer over a limit")  // see Limits
	ErrFormat    = errors.New("unknown compression") // see Decompress
)

// Limits bound what one layer may cost. Zero fields mean the defaults in DefaultLimits.
type Limits struct {
	Bytes      int64 // unpacked: all files, also those that a later entry replaces
	Entries    int64 // of any type, also those that leave nothing on disk
	NameLength int64 // bytes of an entry's whole name, and of the real path of its directory
	XattrBytes int64 // names and values of one entry's extended attributes
}

// DefaultLimits lets every image through that a node could sensibly run. PATH_MAX (4096) bounds names in the kernel,
// XATTR_LIST_MAX (64 KiB) the attributes' names and XATTR_SIZE_MAX (64 KiB) one value.
var DefaultLimits = Limits{Bytes: 256 << 30, Entries: 10_000_000, NameLength: 4095, XattrBytes: 128 << 10}

func (l Limits) withDefaults() Limits {
	or := func(value, fallback int64) int64 {
		if value == 0 {
			return fallback
		}
		return value
	}
	return Limits{
		Bytes:      or(l.Bytes, DefaultLimits.Bytes),
		Entries:    or(l.Entries, DefaultLimits.Entries),
		NameLength: or(l.NameLength, DefaultLimits.NameLength),
		XattrBytes: or(l.XattrBytes, DefaultLimits.XattrBytes),
	}
}

// Stats is what an unpacked layer holds.
type Stats struct {
	Bytes   int64 // sum of regular file sizes
	Inodes  int64
	Entries int64
	// Implied lists the directories, relative to the layer, that entries lie in but no entry describes. They were made
	// root:root 0755; in an overlay they hide the owner and mode of a lower layer's directory of that name.
	Implied []string
	// Archive is how many bytes the stream had. Whole tells that the recipe makes the same archive again; it does not if
	// an entry replaced a file with content, or none was wanted.
	Archive int64
	Whole   bool
}

// Unpacker unpacks as Unpack does, and writes a recipe.
type Unpacker struct {
	Limits Limits
	Recipe io.Writer // see Replay and Verify
}

// Unpack writes the tar stream r below dir, which exists, is empty, and is out of reach of other users, converting OCI whiteouts to overlayfs's
// (character device 0/0, trusted.overlay.opaque). Nothing outside dir is ever touched, whatever the names and links in
// the stream. The stream is read to its end, behind the archive's own end too, so that a digest taken on the way is
// complete. After an error dir holds what was unpacked so far; the caller removes it. A cancelled ctx ends Unpack
// between two reads: it is the reader's task not to block forever.
func Unpack(ctx context.Context, dir string, r io.Reader, l Limits) (Stats, error) {
	return Unpacker{Limits: l}.Unpack(ctx, dir, r)
}

// Unpack is the function of that name.
func (o Unpacker) Unpack(ctx context.Context, dir string, r io.Reader) (Stats, error) {
	limits := o.Limits.withDefaults()
	root, err := openTree(dir, limits.NameLength)
	if err != nil {
		return Stats{}, err
	}
	defer root.close()
	u := &unpacker{ctx: ctx, tree: root, limits: limits, times: map[string]unix.Timespec{}}
	// Headers come in pieces of 512 bytes; file content is read past this buffer.
	var stream io.Reader = bufio.NewReaderSize(r, 64<<10)
	if o.Recipe != nil {
		if u.recipe, err = newRecipe(stream, o.Recipe); err != nil {
			return Stats{}, err
		}
		stream = u.recipe
	}
	err = u.unpack(stream)
	u.stats.Inodes += root.made
	if err != nil {
		return u.stats, err
	}
	u.stats.Implied = root.implied()
	return u.stats, u.finishRecipe()
}

func (u *unpacker) finishRecipe() error {
	if u.recipe == nil {
		return nil
	}
	whole, err := u.recipe.finish()
	if err != nil {
		return fmt.Errorf("cannot write the recipe: %w", err)
	}
	u.stats.Archive, u.stats.Whole = u.recipe.total, whole && !u.tree.lost
	return nil
}

// unpacker is the state of one Unpack.
type unpacker struct {
	ctx     context.Context
	tree    *tree
	limits  Limits
	stats   Stats
	written int64 // bytes, against Limits.Bytes
	buffer  [256 << 10]byte
	recipe  *recipeWriter // nil: none is wanted

	times     map[string]unix.Timespec // modification times of directories, which every entry in them changes again
	timesSize int                      // bytes that times takes
}

func (u *unpacker) unpack(stream io.Reader) error {
	archive := tar.NewReader(stream)
	for {
		if err := u.ctx.Err(); err != nil {
			return err
		}
		header, err := archive.Next()
		if err == io.EOF {
			break
		}
		if err != nil && !errors.Is(err, tar.ErrInsecurePath) { // names are judged by place
			return fmt.Errorf("cannot read layer after %d entries: %w", u.stats.Entries, malformed(err))
		}
		if err := u.entry(header, archive); err != nil {
			return fmt.Errorf("cannot unpack %q: %w", shorten(header.Name), err)
		}
	}
	if err := u.setTimes(); err != nil {
		return err
	}
	return u.drain(stream)
}

// malformed gives tar's own complaints the room's sentinel and leaves the reader's errors as they are.
func malformed(err error) error {
	if errors.Is(err, tar.ErrHeader) || errors.Is(err, tar.ErrFieldTooLong) {
		return fmt.Errorf("%w: %w", ErrMalformed, err)
	}
	return err
}

// drain reads the padding behind the archive. It counts as unpacked bytes, or endless zeros would have no bound.
func (u *unpacker) drain(stream io.Reader) error {
	for {
		n, err := stream.Read(u.buffer[:])
		if err := u.spend(int64(n)); err != nil {
			return fmt.Errorf("cannot read the end of the layer: %w", err)
		}
		if err == io.EOF {
			return nil
		}
		if err != nil {
			return fmt.Errorf("cannot read the end of the layer: %w", err)
		}
		if err := u.ctx.Err(); err != nil {
			return err
		}
	}
}

// spend compares before it adds: a header may claim so many bytes that the sum would be negative, and no limit from then on.
func (u *unpacker) spend(n int64) error {
	if n > u.limits.Bytes-u.written {
		return fmt.Errorf("%w: more than %d bytes unpacked", ErrLimit, u.limits.Bytes)
	}
	u.written += n
	return nil
}

// maxTimesSize bounds the memory for names of directories whose times are still to be set.
const maxTimesSize = 32 << 20

// setTimeLater notes a directory's modification time. When too many are noted they are set early, and entries that
// follow in those directories change them again: a wrong time in an absurd layer beats a node without memory.
func (u *unpacker) setTimeLater(path string, mtime unix.Timespec) error {
	if _, known := u.times[path]; !known {
		u.timesSize += perName + len(path)
	}
	u.times[path] = mtime
	if u.timesSize > maxTimesSize {
		return u.setTimes()
	}
	return nil
}

// setTimes gives directories their modification times, at the end, when nothing changes in them any more. In order of
// their names they are found in directories that are open.
func (u *unpacker) setTimes() error {
	for _, path := range slices.Sorted(maps.Keys(u.times)) {
		dir, base := split(path)
		fd, err := u.tree.find(dir)
		if err == nil {
			err = setTime(fd, base, u.times[path])
		}
		if err != nil && !gone(err) {
			return fmt.Errorf("cannot set the time of %q: %w", shorten(path), err)
		}
	}
	clear(u.times)
	u.timesSize = 0
	return nil
}

// gone tells that a later entry replaced a directory or one above it.
func gone(err error) bool {
	return errors.Is(err, unix.ENOENT) || errors.Is(err, unix.ENOTDIR) || errors.Is(err, unix.ELOOP)
}
