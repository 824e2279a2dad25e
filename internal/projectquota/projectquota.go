// Package projectquota has the kernel count what a tree of files occupies: every file of it belongs to a project, a number,
// and the file system keeps the books of each (quotactl(2), ioctl_xfs_fsgetxattr(2)). That is exact, and costs one system
// call however large the tree is. ext4 does so with its features project and quota, mounted with prjquota; xfs with prjquota.
//
// Nothing is limited, and a project without files leaves nothing behind: the kernel drops its entry.
package projectquota

import (
	"bufio"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"unsafe"

	"golang.org/x/sys/unix"
)

// attributes is struct fsxattr of linux/fs.h.
type attributes struct {
	flags, extentSize, extents, project, copySize uint32
	_                                             [8]byte
}

const (
	getAttributes = 0x801c581f // FS_IOC_FSGETXATTR
	setAttributes = 0x401c5820 // FS_IOC_FSSETXATTR
	inherit       = 0x200      // FS_XFLAG_PROJINHERIT: what is made in the directory belongs to its project
)

// Assign makes a directory, and all that will be made in it, a part of a project. What is in it already stays where it is.
func Assign(dir string, project uint32) error {
	fd, err := unix.Open(dir, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
	if err != nil {
		return &os.PathError{Op: "open", Path: dir, Err: err}
	}
	defer unix.Close(fd)
	var a attributes
	if err := ioctl(fd, getAttributes, &a); err != nil {
		return fmt.Errorf("cannot read the project of %s: %w", dir, err)
	}
	a.project, a.flags = project, a.flags|inherit
	if err := ioctl(fd, setAttributes, &a); err != nil {
		return fmt.Errorf("cannot make %s a part of project %d: %w", dir, project, err)
	}
	return nil
}

func ioctl(fd int, request uintptr, a *attributes) error {
	if _, _, errno := unix.Syscall(unix.SYS_IOCTL, uintptr(fd), request, uintptr(unsafe.Pointer(a))); errno != 0 {
		return errno
	}
	return nil
}

// books is struct if_dqblk of linux/quota.h.
type books struct {
	blockHard, blockSoft, bytes, inodeHard, inodeSoft, inodes, blockTime, inodeTime uint64
	valid, _                                                                        uint32
}

const getQuota = 0x800007<<8 | 2 // Q_GETQUOTA of PRJQUOTA

// Usage returns what a project has on the file system of dir: bytes as allocated, and inodes. An error that matches
// errors.ErrUnsupported says that the file system keeps no such books.
func Usage(dir string, project uint32) (bytes, inodes uint64, err error) {
	fd, err := unix.Open(dir, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return 0, 0, &os.PathError{Op: "open", Path: dir, Err: err}
	}
	defer unix.Close(fd)
	var b books
	_, _, errno := unix.Syscall6(unix.SYS_QUOTACTL_FD, uintptr(fd), getQuota, uintptr(project), uintptr(unsafe.Pointer(&b)), 0, 0)
	switch {
	case errno == unix.ENOSYS || errno == unix.ESRCH || errno == unix.ENOTSUP || errno == unix.EINVAL: // no quotactl_fd, or no quota
		return 0, 0, fmt.Errorf("no project quota below %s: %w: %w", dir, errors.ErrUnsupported, errno)
	case errno != 0:
		return 0, 0, fmt.Errorf("cannot read the quota of project %d below %s: %w", project, dir, errno)
	}
	return b.bytes, b.inodes, nil
}

// Probe reports whether projects can be used below dir: it makes one of a directory that it removes again.
func Probe(dir string, project uint32) error {
	if _, _, err := Usage(dir, project); err != nil {
		return err
	}
	temp, err := os.MkdirTemp(dir, ".project-")
	if err != nil {
		return err
	}
	defer os.Remove(temp)
	if err := Assign(temp, project); err != nil {
		return err
	}
	if _, inodes, err := Usage(dir, project); err != nil || inodes == 0 {
		return fmt.Errorf("the file system of %s does not count the files of a project: %w: %w", dir, errors.ErrUnsupported, err)
	}
	return nil
}

// registry is where administrators, and the kubelet, note the projects that they use (projects(5), "ID:PATH").
const registry = "/etc/projects"

// Reserved lists the projects that somebody has noted.
func Reserved() map[uint32]bool { return reservedIn(registry) }

func reservedIn(file string) map[uint32]bool {
	taken := map[uint32]bool{}
	f, err := os.Open(filepath.Clean(file))
	if err != nil {
		return taken
	}
	defer f.Close()
	for lines := bufio.NewScanner(f); lines.Scan(); {
		number, _, _ := strings.Cut(lines.Text(), ":")
		if id, err := strconv.ParseUint(strings.TrimSpace(number), 10, 32); err == nil {
			taken[uint32(id)] = true
		}
	}
	return taken
}
