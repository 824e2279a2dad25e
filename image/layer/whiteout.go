package layer

import (
	"fmt"

	"golang.org/x/sys/unix"
)

const opaqueXattr = "trusted.overlay.opaque"

// whiteout hides a name of the lower layers. It says nothing about this layer's own entry of that name (layer.md:
// whiteouts apply to lower layers only): a file hides what is below by itself, a directory must be opaque for it.
func (u *unpacker) whiteout(at place) error {
	err := unix.Mknodat(at.dir, at.base, unix.S_IFCHR, 0)
	if err == nil {
		u.stats.Inodes++
		return nil
	}
	if err != unix.EEXIST {
		return fmt.Errorf("make whiteout: %w", err)
	}
	var st unix.Stat_t
	if err := unix.Fstatat(at.dir, at.base, &st, unix.AT_SYMLINK_NOFOLLOW); err != nil {
		return fmt.Errorf("examine %q: %w", at.base, err)
	}
	if st.Mode&unix.S_IFMT == unix.S_IFDIR {
		return setOpaqueAt(at)
	}
	return nil
}

func setOpaque(dir int) error {
	if err := unix.Setxattr(descriptorPath(dir), opaqueXattr, []byte("y"), 0); err != nil {
		return fmt.Errorf("make directory opaque: %w", err)
	}
	return nil
}

func setOpaqueAt(at place) error {
	if err := unix.Lsetxattr(descriptorPath(at.dir)+"/"+at.base, opaqueXattr, []byte("y"), 0); err != nil {
		return fmt.Errorf("make directory opaque: %w", err)
	}
	return nil
}
