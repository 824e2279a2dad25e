package layer

import (
	"archive/tar"
	"fmt"
	"math"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// paxXattr begins the PAX records that carry extended attributes (layer.md, "xattrs").
const paxXattr = "SCHILY.xattr."

// The order is always owner, mode, attributes, time: chown(2) clears setuid bits and file capabilities, and all of
// them may touch times.

func (u *unpacker) describeFile(fd int, h *tar.Header) error {
	if err := checkOwner(h); err != nil {
		return err
	}
	if u.tree.mustOwn(h) {
		if err := unix.Fchown(fd, h.Uid, h.Gid); err != nil {
			return fmt.Errorf("set owner %d:%d: %w", h.Uid, h.Gid, err)
		}
	}
	if u.tree.mustMode(h) {
		if err := unix.Fchmod(fd, uint32(h.Mode)&0o7777); err != nil {
			return fmt.Errorf("set mode %#o: %w", h.Mode&0o7777, err)
		}
	}
	return u.xattrs(h, func(key, value string) error { return unix.Fsetxattr(fd, key, []byte(value), 0) })
}

// mustOwn says whether the file's owner may differ from what it was made with.
func (t *tree) mustOwn(h *tar.Header) bool {
	return t.inherits || h.Uid != t.own[0] || h.Gid != t.own[1]
}

// mustMode says whether the file's mode may differ from what it was made with.
func (t *tree) mustMode(h *tar.Header) bool {
	return t.inherits || uint32(h.Mode)&(0o7000|t.umask) != 0
}

// describe gives anything but a regular file its metadata.
func (u *unpacker) describe(at place, h *tar.Header) error {
	if err := checkOwner(h); err != nil {
		return err
	}
	if err := unix.Fchownat(at.dir, at.base, h.Uid, h.Gid, unix.AT_SYMLINK_NOFOLLOW); err != nil {
		return fmt.Errorf("set owner %d:%d: %w", h.Uid, h.Gid, err)
	}
	if h.Typeflag != tar.TypeSymlink { // it has no mode of its own
		if err := unix.Fchmodat(at.dir, at.base, uint32(h.Mode)&0o7777, 0); err != nil {
			return fmt.Errorf("set mode %#o: %w", h.Mode&0o7777, err)
		}
	}
	path := ""
	err := u.xattrs(h, func(key, value string) error {
		if path == "" {
			path = descriptorPath(at.dir) + "/" + at.base
		}
		return unix.Lsetxattr(path, key, []byte(value), 0)
	})
	if err != nil {
		return err
	}
	if h.Typeflag != tar.TypeDir {
		return setTime(at.dir, at.base, timespec(h.ModTime))
	}
	u.tree.inherits = u.tree.inherits || h.Mode&unix.S_ISGID != 0
	return u.setTimeLater(at.path, timespec(h.ModTime))
}

// checkOwner refuses ids that the kernel would read as "leave it" (all bits set) or cut to another user's.
func checkOwner(h *tar.Header) error {
	if h.Uid < 0 || h.Gid < 0 || int64(h.Uid) >= math.MaxUint32 || int64(h.Gid) >= math.MaxUint32 {
		return fmt.Errorf("%w: owner %d:%d", ErrMalformed, h.Uid, h.Gid)
	}
	return nil
}

// xattrs sets the extended attributes of an entry. A file system that has none loses them, as with every unpacker.
func (u *unpacker) xattrs(h *tar.Header, set func(key, value string) error) error {
	var total int64
	for record, value := range h.PAXRecords {
		key, ok := strings.CutPrefix(record, paxXattr)
		if !ok {
			continue
		}
		if total += int64(len(key) + len(value)); total > u.limits.XattrBytes {
			return fmt.Errorf("%w: more than %d bytes of extended attributes", ErrLimit, u.limits.XattrBytes)
		}
		if err := u.xattr(h, key, value, set); err != nil {
			return err
		}
	}
	return nil
}

func (u *unpacker) xattr(h *tar.Header, key, value string, set func(key, value string) error) error {
	switch {
	case strings.HasPrefix(key, "trusted.overlay."):
		// overlayfs would obey it: a redirect lets a directory show another one's content.
		return fmt.Errorf("%w: attribute %s is overlayfs's own", ErrMalformed, key)
	case key == "security.selinux":
		return nil // labels are the host's to give
	case key == "system.posix_acl_default":
		u.tree.inherits = true
	}
	err := set(key, value)
	onNode := h.Typeflag != tar.TypeReg && h.Typeflag != tar.TypeDir
	if err == unix.ENOTSUP || err == unix.EPERM && onNode && strings.HasPrefix(key, "user.") { // xattr(7): files and directories only
		return nil
	}
	if err != nil {
		return fmt.Errorf("set attribute %q: %w", shorten(key), err)
	}
	return nil
}

// timespec keeps what the archive says; the kernel clamps it to what the file system can store.
func timespec(t time.Time) unix.Timespec {
	return unix.Timespec{Sec: t.Unix(), Nsec: int64(t.Nanosecond())}
}

// setTime sets both times of an entry: the access time of an unpacked file means nothing, and a fixed one makes two
// unpacks of a layer alike.
func setTime(dir int, base string, mtime unix.Timespec) error {
	times := []unix.Timespec{mtime, mtime}
	if err := unix.UtimesNanoAt(dir, base, times, unix.AT_SYMLINK_NOFOLLOW); err != nil {
		return fmt.Errorf("set time: %w", err)
	}
	return nil
}
