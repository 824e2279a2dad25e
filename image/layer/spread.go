package layer

import (
	"errors"
	"fmt"

	"golang.org/x/sys/unix"
)

// topDir is FS_TOPDIR_FL of include/uapi/linux/fs.h; `chattr +T` sets it.
const topDir = 0x00020000

// Spread tells ext4 that the directories in dir have nothing to do with each other, so that each begins in a block group
// of its own (the Orlov allocator's top-level directories). Layers are best unpacked into a directory like this: ext4
// never reuses an inode that was freed in the last minutes, and looks at each such one anew for each file that it makes
// in that group. After an image was removed, a file made beside it costs 200 µs instead of 8. In a benchmark that pulls again
// and again this was a fifth of the daemon's processor time (6.7 s of a pull, 5.0 s without).
//
// File systems without the flag are left as they are, which is no error.
func Spread(dir string) error {
	fd, err := unix.Open(dir, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return fmt.Errorf("cannot open %s: %w", dir, err)
	}
	defer unix.Close(fd)
	flags, err := unix.IoctlGetInt(fd, unix.FS_IOC_GETFLAGS)
	if err == nil && flags&topDir == 0 {
		err = unix.IoctlSetPointerInt(fd, unix.FS_IOC_SETFLAGS, flags|topDir)
	}
	for _, unknown := range []error{unix.ENOTTY, unix.ENOTSUP, unix.EINVAL, unix.ENOSYS} {
		if errors.Is(err, unknown) {
			return nil
		}
	}
	if err != nil {
		return fmt.Errorf("cannot spread the directories in %s: %w", dir, err)
	}
	return nil
}
