package layer

import (
	"archive/tar"
	"fmt"
	"io"
	"strings"

	"golang.org/x/sys/unix"
)

// entry unpacks one entry of the archive.
func (u *unpacker) entry(h *tar.Header, content io.Reader) error {
	if u.stats.Entries++; u.stats.Entries > u.limits.Entries {
		return fmt.Errorf("%w: more than %d entries", ErrLimit, u.limits.Entries)
	}
	if h.Typeflag == tar.TypeXGlobalHeader {
		return nil // defaults for the headers that follow; nothing that images use
	}
	name, err := cleanName(h.Name, u.limits.NameLength)
	if err != nil {
		return err
	}
	if name == "." {
		return u.rootEntry(h)
	}
	dir, base := split(name)
	kind, base, err := classify(dir, base)
	if err != nil || kind == ignored {
		return err
	}
	fd, err := u.tree.dir(dir)
	if err != nil {
		return fmt.Errorf("open its directory: %w", err)
	}
	at := place{dir: fd, base: base, path: name}
	switch kind {
	case whiteout:
		return u.whiteout(at)
	case opaque:
		return setOpaque(fd)
	}
	return u.create(at, h, content)
}

// place is where an entry goes.
type place struct {
	dir  int    // descriptor of the directory
	base string // name in it
	path string // clean name from the root
}

func (u *unpacker) rootEntry(h *tar.Header) error {
	if h.Typeflag != tar.TypeDir {
		return fmt.Errorf("%w: the root of a layer is a directory, not an entry of type %q", ErrMalformed, h.Typeflag)
	}
	return u.describe(place{u.tree.root, ".", "."}, h)
}

func (u *unpacker) create(at place, h *tar.Header, content io.Reader) error {
	switch h.Typeflag {
	case tar.TypeReg, '\x00', tar.TypeCont, tar.TypeGNUSparse:
		return u.file(at, h, content)
	case tar.TypeDir:
		return u.directory(at, h)
	case tar.TypeSymlink:
		return u.node(at, h, func() error { return unix.Symlinkat(h.Linkname, at.dir, at.base) })
	case tar.TypeLink:
		return u.hardLink(at, h)
	case tar.TypeChar, tar.TypeBlock, tar.TypeFifo:
		return u.device(at, h)
	}
	return fmt.Errorf("%w: entries of type %q cannot be unpacked", ErrMalformed, h.Typeflag)
}

// replace runs an act that makes something new, and once more after removing what was in its place.
func (u *unpacker) replace(at place, act func() error) (removed, error) {
	err := act()
	if err != unix.EEXIST {
		return removed{}, err
	}
	gone, err := u.tree.remove(at.dir, at.base)
	if err != nil {
		return gone, fmt.Errorf("remove the earlier %q: %w", shorten(at.path), err)
	}
	u.stats.Bytes -= gone.bytes
	u.stats.Inodes -= gone.inodes
	delete(u.times, at.path)
	u.tree.noLongerBare(at.path)
	return gone, act()
}

func (u *unpacker) file(at place, h *tar.Header, content io.Reader) error {
	if h.Size < 0 {
		return fmt.Errorf("%w: size %d", ErrMalformed, h.Size)
	}
	if err := u.spend(h.Size); err != nil { // before a byte is written: a sparse file costs the stream nothing
		return err
	}
	fd := -1
	_, err := u.replace(at, func() (err error) {
		fd, err = unix.Openat(at.dir, at.base, unix.O_CREAT|unix.O_EXCL|unix.O_WRONLY|unix.O_NOFOLLOW|unix.O_CLOEXEC, uint32(h.Mode)&0o777)
		return err
	})
	if err != nil {
		return fmt.Errorf("make file: %w", err)
	}
	u.stats.Inodes++
	u.stats.Bytes += h.Size
	if recorded := u.recipe != nil && h.Size > 0 && !isSparse(h); recorded {
		u.recipe.begin(u.tree.whereabouts(at), h.Size)
	}
	err = u.copy(fd, content)
	if u.recipe != nil {
		u.recipe.end()
	}
	if err == nil {
		err = u.describeFile(fd, h)
	}
	if closeErr := unix.Close(fd); err == nil && closeErr != nil {
		err = fmt.Errorf("close file: %w", closeErr)
	}
	if err != nil {
		return err
	}
	return setTime(at.dir, at.base, timespec(h.ModTime))
}

// isSparse tells that a file's content is not what stands in the archive.
func isSparse(h *tar.Header) bool {
	if h.Typeflag == tar.TypeGNUSparse {
		return true
	}
	for record := range h.PAXRecords {
		if strings.HasPrefix(record, "GNU.sparse.") {
			return true
		}
	}
	return false
}

func (u *unpacker) copy(fd int, content io.Reader) error {
	for {
		n, err := content.Read(u.buffer[:])
		if err := write(fd, u.buffer[:n]); err != nil {
			return fmt.Errorf("write file: %w", err)
		}
		if err == io.EOF {
			return nil
		}
		if err != nil {
			return fmt.Errorf("read content: %w", malformed(err))
		}
		if err := u.ctx.Err(); err != nil {
			return err
		}
	}
}

func write(fd int, data []byte) error {
	for len(data) > 0 {
		n, err := unix.Write(fd, data)
		if err == unix.EINTR {
			continue
		}
		if err != nil {
			return err
		}
		data = data[n:]
	}
	return nil
}

// directory makes a directory, or gives the one that is there its metadata: an entry may come after its children.
func (u *unpacker) directory(at place, h *tar.Header) error {
	u.tree.noLongerBare(at.path)
	switch err := unix.Mkdirat(at.dir, at.base, 0o700); err {
	case nil:
		u.stats.Inodes++
		return u.describe(at, h)
	case unix.EEXIST:
	default:
		return fmt.Errorf("make directory: %w", err)
	}
	var st unix.Stat_t
	if err := unix.Fstatat(at.dir, at.base, &st, unix.AT_SYMLINK_NOFOLLOW); err != nil {
		return fmt.Errorf("examine the earlier entry: %w", err)
	}
	if st.Mode&unix.S_IFMT == unix.S_IFDIR {
		return u.describe(at, h)
	}
	return u.directoryInstead(at, h)
}

// directoryInstead replaces an earlier file. If that was a whiteout the directory must go on hiding the lower layers',
// with which overlayfs would merge it.
func (u *unpacker) directoryInstead(at place, h *tar.Header) error {
	gone, err := u.tree.remove(at.dir, at.base)
	if err != nil {
		return fmt.Errorf("remove the earlier entry: %w", err)
	}
	if err := unix.Mkdirat(at.dir, at.base, 0o700); err != nil {
		return fmt.Errorf("make directory: %w", err)
	}
	u.stats.Bytes -= gone.bytes
	u.stats.Inodes += 1 - gone.inodes
	if gone.whiteout {
		if err := setOpaqueAt(at); err != nil {
			return err
		}
	}
	return u.describe(at, h)
}

// hardLink links to an entry of this layer. AT_SYMLINK_FOLLOW is not given: a link to a symbolic link is one itself.
func (u *unpacker) hardLink(at place, h *tar.Header) error {
	target, err := cleanName(h.Linkname, u.limits.NameLength)
	if err != nil {
		return fmt.Errorf("hard link: %w", err)
	}
	if target == at.path || target == "." {
		return fmt.Errorf("%w: hard link to %q", ErrMalformed, shorten(h.Linkname))
	}
	dir, base := split(target)
	// Looked up beside the open directories: finding it there could close the one the link goes to.
	from, _, err := u.tree.open(dir)
	if err != nil {
		return fmt.Errorf("%w: hard link to %q: %w", ErrMalformed, shorten(h.Linkname), err)
	}
	defer unix.Close(from)
	_, err = u.replace(at, func() error { return unix.Linkat(from, base, at.dir, at.base, 0) })
	if err == unix.ENOENT || err == unix.EPERM {
		return fmt.Errorf("%w: hard link to %q, which is no file of this layer: %w", ErrMalformed, shorten(h.Linkname), err)
	}
	if err != nil {
		return fmt.Errorf("hard link to %q: %w", shorten(h.Linkname), err)
	}
	return nil
}

// Device numbers of Linux: 12 bits of major, 20 of minor (include/linux/kdev_t.h). The kernel would cut longer ones to
// another device.
const maxMajor, maxMinor = 1<<12 - 1, 1<<20 - 1

func (u *unpacker) device(at place, h *tar.Header) error {
	if h.Devmajor < 0 || h.Devmajor > maxMajor || h.Devminor < 0 || h.Devminor > maxMinor {
		return fmt.Errorf("%w: device number %d:%d", ErrMalformed, h.Devmajor, h.Devminor)
	}
	mode := map[byte]uint32{tar.TypeChar: unix.S_IFCHR, tar.TypeBlock: unix.S_IFBLK, tar.TypeFifo: unix.S_IFIFO}[h.Typeflag]
	number := int(unix.Mkdev(uint32(h.Devmajor), uint32(h.Devminor)))
	if h.Typeflag == tar.TypeFifo {
		number = 0
	}
	return u.node(at, h, func() error { return unix.Mknodat(at.dir, at.base, mode|0o600, number) })
}

// node makes what is neither file nor directory.
func (u *unpacker) node(at place, h *tar.Header, act func() error) error {
	if _, err := u.replace(at, act); err != nil {
		return fmt.Errorf("make entry of type %q: %w", h.Typeflag, err)
	}
	u.stats.Inodes++
	return u.describe(at, h)
}
