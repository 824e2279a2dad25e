package hostpath

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"

	"golang.org/x/sys/unix"
)

// local are the file systems that answer as long as the machine does, once what is asked for is in a cache. A type that
// is not here costs a helper process; a wrong one here can cost a thread of the daemon.
var local = []string{
	"ext2", "ext3", "ext4", "xfs", "btrfs", "f2fs", "zfs", "erofs", "squashfs", "tmpfs", "ramfs", "devtmpfs", "proc", "sysfs", "cgroup", "cgroup2",
	"hugetlbfs", "mqueue", "bpf", "debugfs", "tracefs", "securityfs", "configfs", "devpts", "efivarfs", "pstore",
}

const resolveCached = 0x20 // RESOLVE_CACHED, linux/openat2.h

// cached answers from the kernel's caches, or not at all. RESOLVE_CACHED (openat2(2), 5.12) fails with EAGAIN where the
// way to the path would have to be asked for, O_PATH opens without telling the file system, and AT_STATX_DONT_SYNC takes
// what is remembered. Where the kernel is older or the file system unknown, there is no answer.
func cached(path string) (Path, bool) {
	if !filepath.IsAbs(path) {
		return Path{}, false
	}
	fd, err := unix.Openat2(unix.AT_FDCWD, path, &unix.OpenHow{Flags: unix.O_PATH | unix.O_CLOEXEC, Resolve: resolveCached})
	if err != nil {
		return Path{}, false
	}
	defer unix.Close(fd)
	m, err := statmount(fd)
	if err != nil || !slices.Contains(local, m.Type) {
		return Path{}, false
	}
	p, err := describe(fd, unix.AT_STATX_DONT_SYNC)
	p.Mount = m
	return p, err == nil
}

// describe names what an O_PATH descriptor stands for.
func describe(fd, sync int) (Path, error) {
	var st unix.Statx_t
	if err := unix.Statx(fd, "", unix.AT_EMPTY_PATH|sync, unix.STATX_TYPE, &st); err != nil {
		return Path{}, err
	}
	name, err := os.Readlink(fmt.Sprintf("/proc/self/fd/%d", fd))
	if err != nil {
		return Path{}, err
	}
	return Path{Real: name, Dir: st.Mode&unix.S_IFMT == unix.S_IFDIR}, nil
}
