package layer

import (
	"errors"
	"fmt"
	"io"
	"maps"
	"os"
	"path"
	"slices"
	"strconv"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"
)

const (
	// beneath refuses every symbolic link; it is how nearly all directories are reached.
	beneath = unix.RESOLVE_BENEATH | unix.RESOLVE_NO_SYMLINKS | unix.RESOLVE_NO_MAGICLINKS | unix.RESOLVE_NO_XDEV
	// inRoot follows symbolic links as a process whose root the layer is would see them, absolute ones included.
	inRoot = unix.RESOLVE_IN_ROOT | unix.RESOLVE_NO_MAGICLINKS | unix.RESOLVE_NO_XDEV

	maxLinks = 40 // as the kernel's MAXSYMLINKS
)

// tree hands out descriptors of directories in the layer, and of nothing else.
type tree struct {
	path  string
	root  int   // O_PATH descriptor of the layer's directory
	limit int64 // bytes of the real path of a directory, relative to the root

	// recent holds open directories: archives keep the files of a directory together. An entry stays true as long as
	// nothing is removed, since creating something cannot change where a path that exists leads.
	recent [8]recent
	oldest int

	made     int64           // directories made because entries lie in them
	bare     map[string]bool // those of them that have no entry of their own so far
	bareSize int             // bytes that bare takes
	inherits bool            // a setgid bit or a default ACL may give new files what their entry does not say
	own      [2]int          // uid and gid that new files get
	umask    uint32          // bits that new files do not get
	lost     bool            // a file with content was removed
}

// recent is an open directory. Without a path it is forgotten, and closed when its place is needed: the entry at hand may
// still work in it.
type recent struct {
	path string
	real string // where it lies, if path leads through a symbolic link
	fd   int
	open bool
}

func openTree(dir string, limit int64) (*tree, error) {
	fd, err := unix.Open(dir, unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, fmt.Errorf("cannot open layer directory %s: %w", dir, err)
	}
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		unix.Close(fd)
		return nil, fmt.Errorf("cannot examine layer directory %s: %w", dir, err)
	}
	real, err := os.Readlink(descriptorPath(fd))
	if err != nil {
		unix.Close(fd)
		return nil, fmt.Errorf("cannot find the path of layer directory %s: %w", dir, err)
	}
	return &tree{
		path: real, root: fd, limit: limit, bare: map[string]bool{},
		inherits: st.Mode&unix.S_ISGID != 0 || hasDefaultACL(fd), own: [2]int{os.Geteuid(), os.Getegid()}, umask: umask(),
	}, nil
}

func hasDefaultACL(dir int) bool {
	_, err := unix.Getxattr(descriptorPath(dir), "system.posix_acl_default", nil)
	return err == nil
}

// umask is the calling thread's. umask(2) could only tell by changing it, for every thread (proc_pid_status(5)).
func umask() uint32 {
	text, _ := os.ReadFile("/proc/thread-self/status")
	_, rest, _ := strings.Cut(string(text), "\nUmask:")
	line, _, _ := strings.Cut(rest, "\n")
	mask, err := strconv.ParseUint(strings.TrimSpace(line), 8, 32)
	if err != nil {
		return 0o777 // every mode is set once more then
	}
	return uint32(mask)
}

func (t *tree) close() {
	for i := range t.recent {
		if t.recent[i].open {
			unix.Close(t.recent[i].fd)
		}
	}
	unix.Close(t.root)
}

// forget stops trusting the open directories; due after every removal.
func (t *tree) forget() {
	for i := range t.recent {
		t.recent[i].path = ""
	}
}

// dir returns an O_PATH descriptor of a directory given by its clean path, made with its parents if missing. It belongs
// to the tree and is valid until the next call of dir or find.
func (t *tree) dir(clean string) (int, error) { return t.follow(clean, 0) }

func (t *tree) follow(clean string, links int) (int, error) {
	fd, err := t.find(clean)
	if err != unix.ENOENT {
		return fd, err
	}
	fd, real, err := t.make(clean, links)
	if err != nil {
		return -1, err
	}
	return t.remember(clean, real, fd), nil
}

// find is dir for a directory that must be there already.
func (t *tree) find(clean string) (int, error) {
	if clean == "." {
		return t.root, nil
	}
	for i := range t.recent {
		if t.recent[i].path == clean {
			return t.recent[i].fd, nil
		}
	}
	fd, real, err := t.open(clean)
	if err != nil {
		return -1, err
	}
	return t.remember(clean, real, fd), nil
}

// whereabouts is the path of an entry without symbolic links on the way.
func (t *tree) whereabouts(at place) string {
	for i := range t.recent {
		if r := &t.recent[i]; r.open && r.fd == at.dir && r.real != "" {
			return path.Join(r.real, at.base)
		}
	}
	return at.path
}

func (t *tree) remember(clean, real string, fd int) int {
	slot := &t.recent[t.oldest]
	t.oldest = (t.oldest + 1) % len(t.recent)
	if slot.open {
		unix.Close(slot.fd)
	}
	*slot = recent{path: clean, real: real, fd: fd, open: true}
	return fd
}

// open opens a directory. If links lead to it, real is where.
func (t *tree) open(clean string) (fd int, real string, err error) {
	how := unix.OpenHow{Flags: unix.O_PATH | unix.O_DIRECTORY | unix.O_CLOEXEC, Resolve: beneath}
	fd, err = openat2(t.root, clean, &how)
	if err != unix.ELOOP {
		return fd, "", err
	}
	how.Resolve = inRoot
	if fd, err = openat2(t.root, clean, &how); err != nil {
		return -1, "", err
	}
	if real, err = t.locate(fd); err != nil {
		unix.Close(fd)
		return -1, "", err
	}
	return fd, real, nil
}

// openat2 repeats EAGAIN: the kernel gives it when a rename or mount anywhere raced with a bounded walk.
func openat2(dir int, name string, how *unix.OpenHow) (fd int, err error) {
	for range 1000 {
		fd, err = unix.Openat2(dir, name, how)
		if err != unix.EAGAIN && err != unix.EINTR {
			break
		}
	}
	return fd, err
}

// locate finds the real path of a directory and bounds it: symbolic links can make it longer than any name in the stream,
// and who removes the layer one day holds a descriptor per level.
func (t *tree) locate(fd int) (string, error) {
	real, err := os.Readlink(descriptorPath(fd))
	if err != nil && !errors.Is(err, unix.ENAMETOOLONG) { // longer than a page
		return "", err
	}
	if err != nil || int64(len(real)-len(t.path)) > t.limit {
		return "", fmt.Errorf("%w: its directory lies more than %d bytes of path deep", ErrLimit, t.limit)
	}
	return first(strings.TrimPrefix(strings.TrimPrefix(real, t.path), "/"), "."), nil
}

func first(a, b string) string {
	if a != "" {
		return a
	}
	return b
}

// make makes a missing directory. A dangling symbolic link in its place is followed, within the layer, and its target
// made, as other unpackers do: var/run -> /run often comes before run.
func (t *tree) make(clean string, links int) (fd int, real string, err error) {
	above, base := split(clean)
	parent, err := t.follow(above, links)
	if err != nil {
		return -1, "", err
	}
	switch err := unix.Mkdirat(parent, base, 0o755); err {
	case nil:
		if err := t.describe(parent, base); err != nil {
			return -1, "", err
		}
		if err := t.noteBare(clean); err != nil {
			return -1, "", err
		}
		return t.enter(parent, base, clean)
	case unix.EEXIST:
		if fd, err = t.followDangling(parent, above, base, links); err != nil {
			return -1, "", err
		}
		real, err = t.locate(fd)
		return fd, real, err
	default:
		return -1, "", fmt.Errorf("make directory %q: %w", shorten(clean), err)
	}
}

// enter opens a directory that was just made. Opening it from the root would make deep paths cost their depth at every
// level: two thousand directories in one name took half a second.
func (t *tree) enter(parent int, base, clean string) (fd int, real string, err error) {
	how := unix.OpenHow{Flags: unix.O_PATH | unix.O_DIRECTORY | unix.O_CLOEXEC, Resolve: beneath}
	if fd, err = openat2(parent, base, &how); err != nil {
		return -1, "", err
	}
	if t.whereabouts(place{parent, base, clean}) == clean {
		return fd, "", nil
	}
	if real, err = t.locate(fd); err != nil {
		unix.Close(fd)
		return -1, "", err
	}
	return fd, real, nil
}

func (t *tree) followDangling(parent int, above, base string, links int) (int, error) {
	if links >= maxLinks {
		return -1, fmt.Errorf("%w: its directory %q is a loop of symbolic links", ErrMalformed, shorten(base))
	}
	target := make([]byte, unix.PathMax)
	n, err := unix.Readlinkat(parent, base, target)
	if err != nil {
		return -1, fmt.Errorf("%w: %q is used as a directory and is none", ErrMalformed, shorten(base))
	}
	next := string(target[:n])
	if !strings.HasPrefix(next, "/") {
		next = above + "/" + next
	}
	next = path.Clean("/" + next)[1:]
	if next == "" {
		next = "."
	}
	fd, err := t.follow(next, links+1)
	if err != nil {
		return -1, err
	}
	return unix.FcntlInt(uintptr(fd), unix.F_DUPFD_CLOEXEC, 0) // the slot of the first path owns one of its own
}

// describe gives a directory without an entry the owner and mode that the umask and its parent may have kept from it.
func (t *tree) describe(parent int, base string) error {
	if err := unix.Fchownat(parent, base, 0, 0, unix.AT_SYMLINK_NOFOLLOW); err != nil {
		return fmt.Errorf("own directory %q: %w", shorten(base), err)
	}
	if err := unix.Fchmodat(parent, base, 0o755, 0); err != nil {
		return fmt.Errorf("set mode of directory %q: %w", shorten(base), err)
	}
	return nil
}

// maxBareSize bounds the memory for names of directories that entries only imply; honest layers have a handful.
const maxBareSize = 32 << 20

// perName is about what a map takes for a name besides its bytes. Names of hostile layers are short where many are kept.
const perName = 64

func (t *tree) noteBare(clean string) error {
	t.made++
	t.bare[clean] = true
	if t.bareSize += perName + len(clean); t.bareSize > maxBareSize {
		return fmt.Errorf("%w: the names of directories without an entry of their own take more than %d MiB; a layer with an entry for each directory has no such bound", ErrLimit, maxBareSize>>20)
	}
	return nil
}

// noLongerBare tells of an entry for a directory, or in its place.
func (t *tree) noLongerBare(clean string) {
	if t.bare[clean] {
		delete(t.bare, clean)
		t.bareSize -= perName + len(clean)
	}
}

// implied lists the directories that got no entry and are still there.
func (t *tree) implied() []string {
	var paths []string
	for _, path := range slices.Sorted(maps.Keys(t.bare)) {
		if _, err := t.find(path); err == nil {
			paths = append(paths, path)
		}
	}
	return paths
}

// removed is what a removal took away.
type removed struct {
	bytes, inodes int64
	whiteout      bool
	content       bool // of a file, even if another name keeps it
}

// remove removes base from a directory, with all below it if it is a directory itself.
func (t *tree) remove(dir int, base string) (removed, error) {
	var st unix.Stat_t
	if err := unix.Fstatat(dir, base, &st, unix.AT_SYMLINK_NOFOLLOW); err != nil {
		return removed{}, err
	}
	defer t.forget()
	if st.Mode&unix.S_IFMT == unix.S_IFDIR {
		gone, err := removeAll(dir, base)
		t.lost = t.lost || gone.content
		return gone, err
	}
	t.lost = t.lost || st.Mode&unix.S_IFMT == unix.S_IFREG && st.Size > 0
	gone := removed{whiteout: st.Mode&unix.S_IFMT == unix.S_IFCHR && st.Rdev == 0}
	gone.count(uint32(st.Mode), uint64(st.Nlink), st.Size)
	return gone, unix.Unlinkat(dir, base, 0)
}

func (r *removed) count(mode uint32, links uint64, size int64) {
	r.content = r.content || mode&unix.S_IFMT == unix.S_IFREG && size > 0
	if mode&unix.S_IFMT != unix.S_IFDIR && links > 1 {
		return // another name keeps it
	}
	r.inodes++
	if mode&unix.S_IFMT == unix.S_IFREG {
		r.bytes += size
	}
}

// countAll counts a file or directory with all below it. A directory is read in pieces: it can have millions of entries.
func (r *removed) countAll(root *os.Root, path string) error {
	info, err := root.Lstat(path)
	if err != nil {
		return err
	}
	if st, ok := info.Sys().(*syscall.Stat_t); ok {
		r.count(uint32(st.Mode), uint64(st.Nlink), st.Size)
	}
	if !info.IsDir() {
		return nil
	}
	dir, err := root.Open(path)
	if err != nil {
		return err
	}
	defer dir.Close()
	for {
		names, err := dir.Readdirnames(1024)
		for _, name := range names {
			if err := r.countAll(root, path+"/"+name); err != nil {
				return err
			}
		}
		if err == io.EOF {
			return nil
		}
		if err != nil {
			return err
		}
	}
}

func removeAll(dir int, base string) (removed, error) {
	var gone removed
	root, err := os.OpenRoot(descriptorPath(dir))
	if err != nil {
		return gone, err
	}
	defer root.Close()
	if err := gone.countAll(root, base); err != nil {
		return gone, err
	}
	return gone, root.RemoveAll(base)
}

// descriptorPath names an open descriptor for calls that take none. The kernel goes straight to the open file; only
// what follows the path is looked up.
func descriptorPath(fd int) string { return "/proc/self/fd/" + strconv.Itoa(fd) }
