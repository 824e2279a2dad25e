package image

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/evenkeel/evenkeel/internal/namespace"
	"github.com/evenkeel/evenkeel/internal/projectquota"
)

// Rootfs is an overlay mount of an image's layers with a writable one on top.
type Rootfs struct {
	Layers []Layer // lowest first
	Upper  string  // made if missing; empty: nothing can be written
	Work   string  // made if missing; on the same file system as Upper; empty with Upper
	// Project is the one that counts what is written (internal/projectquota); 0: none. Both directories belong to it,
	// since a file cannot be moved from one project to another, and that is how overlayfs copies up.
	Project uint32
	Target  string // mount point, made if missing
	IDMap   *IDMap // nil: owners as they are on disk
	// Label is the SELinux label of every file in the mount, whatever is on disk (mount option context; overlayfs looks below
	// with the rights of who mounts); empty: none. Only kernels where SELinux is on take one.
	Label string
	// Volatile leaves out every sync of the upper directory: fsync(2) in the container answers at once, and unmounting
	// does not write back all that is dirty on the whole upper file system, as overlayfs otherwise does (0.4 s for
	// 700 MB here). Kernels before 6.5 mount as if it were false. What the container wrote lasts as long as the machine stays up; a container lives no longer either.
	Volatile bool
}

// maxLayers is how many lower directories an overlay may have: OVL_MAX_STACK (fs/overlayfs/params.h).
const maxLayers = 500

// overlayOptions are the same on every kernel, whatever defaults it was built with: no inode index, which ties an upper
// directory to the first lower ones it saw, and no files whose data stays below.
var overlayOptions = [][2]string{{"index", "off"}, {"metacopy", "off"}}

// errNoLowerdirPlus means that this kernel lacks the mount API or, before 6.5, its way to add one lower layer at a time.
var errNoLowerdirPlus = errors.New("this kernel cannot add overlay layers one by one")

// Mount mounts the overlay through the new mount API (fsopen, fsconfig lowerdir+), which has no limit on the length of
// the layer list, and falls back to mount(2). A target that is mounted already is kept.
//
// The mount lies in the caller's mount namespace, where the OCI runtime finds it.
func (r Rootfs) Mount(ctx context.Context) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	mounted, err := isMountPoint(r.Target)
	if err != nil || mounted {
		return err
	}
	lower, err := r.prepare()
	if err != nil {
		return err
	}
	if r.IDMap != nil {
		err = r.mountMapped(lower)
	} else if err = r.mountNew(lower); errors.Is(err, errNoLowerdirPlus) {
		err = r.mountOld(lower)
	}
	if err != nil {
		return fmt.Errorf("cannot mount overlay of %d layers on %s: %w", len(lower), r.Target, err)
	}
	return nil
}

// prepare makes the directories and returns the lower ones, top-most first.
func (r Rootfs) prepare() ([]string, error) {
	lower := r.lower()
	if len(lower) > maxLayers {
		return nil, fmt.Errorf("cannot mount overlay on %s: the image has %d layers, and the kernel takes %d", r.Target, len(lower), maxLayers)
	}
	if r.Upper == "" {
		if len(lower) < 2 { // overlayfs wants two directories where there is no upper one, and the mount point is an empty one
			lower = append(lower, r.Target)
		}
		return lower, makeDir(r.Target, 0o755)
	}
	if len(lower) == 0 { // an image without content; overlayfs wants one lower directory
		lower = []string{filepath.Join(filepath.Dir(r.Upper), "lower")}
		if err := makeDir(lower[0], 0o755); err != nil {
			return nil, err
		}
	}
	// A volatile mount marks its work directory, lest somebody trusts it after a power cut. The caller decides that: what a
	// container wrote before this boot is never mounted again.
	if err := os.RemoveAll(filepath.Join(r.Work, "work/incompat")); err != nil {
		return nil, fmt.Errorf("cannot remove mark of a volatile mount: %w", err)
	}
	// The root of the container is the upper directory: every user in it must be able to enter.
	err := errors.Join(makeDir(r.Upper, 0o755), r.own(), makeDir(r.Work, 0o700), makeDir(r.Target, 0o700))
	if err == nil && r.Project != 0 {
		err = errors.Join(projectquota.Assign(r.Upper, r.Project), projectquota.Assign(r.Work, r.Project))
	}
	return lower, err
}

// lower lists the layers' directories, top-most first, each once: overlayfs refuses a directory that is given twice, and
// what a layer says again further up covers all that it said below.
func (r Rootfs) lower() []string {
	var dirs []string
	for _, layer := range slices.Backward(r.Layers) {
		if !slices.Contains(dirs, layer.Dir) {
			dirs = append(dirs, layer.Dir)
		}
	}
	return dirs
}

// makeDir makes a directory with its parents, and gives a new one exactly its mode, whatever the umask.
func makeDir(path string, mode os.FileMode) error {
	if err := os.MkdirAll(filepath.Dir(path), 0o711); err != nil {
		return fmt.Errorf("cannot make directory for overlay: %w", err)
	}
	err := os.Mkdir(path, mode)
	if err == nil {
		err = os.Chmod(path, mode)
	}
	if err != nil && !errors.Is(err, os.ErrExist) {
		return fmt.Errorf("cannot make directory for overlay: %w", err)
	}
	return nil
}

// mountNew makes the overlay and attaches it when it is whole.
func (r Rootfs) mountNew(lower []string) error {
	overlay, err := r.overlay(lower)
	if err != nil {
		return err
	}
	defer unix.Close(overlay)
	return r.attach(overlay)
}

// overlay configures the file system step by step (fsopen(2)) and returns it, attached nowhere.
func (r Rootfs) overlay(lower []string) (int, error) {
	context, err := unix.Fsopen("overlay", unix.FSOPEN_CLOEXEC)
	if err == unix.ENOSYS {
		return -1, errNoLowerdirPlus
	}
	if err != nil {
		return -1, fmt.Errorf("fsopen: %w", err)
	}
	defer unix.Close(context)
	names := descriptors{}
	defer names.close()
	if err := r.configure(context, lower, &names); err != nil {
		return -1, err
	}
	mount, err := unix.Fsmount(context, unix.FSMOUNT_CLOEXEC, 0)
	if err != nil {
		return -1, fmt.Errorf("fsmount: %w", explain(context, err))
	}
	return mount, nil
}

func (r Rootfs) attach(mount int) error {
	if err := unix.MoveMount(mount, "", unix.AT_FDCWD, r.Target, unix.MOVE_MOUNT_F_EMPTY_PATH); err != nil {
		return fmt.Errorf("move_mount: %w", err)
	}
	return nil
}

func (r Rootfs) configure(context int, lower []string, names *descriptors) error {
	set := func(key, value string) error {
		if err := unix.FsconfigSetString(context, key, value); err != nil {
			return fmt.Errorf("%s=%s: %w", key, value, explain(context, err))
		}
		return nil
	}
	setDir := func(key, dir string) error {
		name, err := names.name(dir)
		if err != nil {
			return err
		}
		return set(key, name)
	}
	for i, dir := range lower {
		err := setDir("lowerdir+", dir)
		if i == 0 && errors.Is(err, unix.EINVAL) && isDir(dir) {
			return errNoLowerdirPlus
		}
		if err != nil {
			return err
		}
	}
	for _, option := range overlayOptions {
		if err := set(option[0], option[1]); err != nil {
			return err
		}
	}
	if r.Label != "" {
		if err := set("context", r.Label); err != nil {
			return err
		}
	}
	if r.Volatile {
		if err := unix.FsconfigSetFlag(context, "volatile"); err != nil && err != unix.EINVAL { // since 5.10
			return fmt.Errorf("volatile: %w", explain(context, err))
		}
	}
	if err := set("source", "overlay"); err != nil {
		return err
	}
	if r.Upper != "" {
		if err := errors.Join(setDir("upperdir", r.Upper), setDir("workdir", r.Work)); err != nil {
			return err
		}
	}
	if err := unix.FsconfigCreate(context); err != nil {
		return fmt.Errorf("create: %w", explain(context, err))
	}
	return nil
}

func isDir(path string) bool {
	info, err := os.Stat(path)
	return err == nil && info.IsDir()
}

// explain adds what the kernel wrote about a failed step: reading the context gives its messages, each with a letter for
// its level (fsopen(2)).
func explain(context int, err error) error {
	var messages []string
	buffer := make([]byte, 1024)
	for {
		n, readErr := unix.Read(context, buffer)
		if n <= 0 || readErr != nil {
			break
		}
		if text := strings.TrimSpace(string(buffer[:n])); strings.HasPrefix(text, "e ") {
			messages = append(messages, text[2:])
		}
	}
	if len(messages) == 0 {
		return err
	}
	return fmt.Errorf("%w (%s)", err, strings.Join(messages, "; "))
}

// descriptors gives directories names that fit into a mount option: fsconfig(2) takes 255 bytes, and overlayfs reads
// backslashes as escapes. A path that has neither trouble stays as it is, for whoever reads mountinfo.
type descriptors []int

func (d *descriptors) name(dir string) (string, error) {
	if len(dir) <= 255 && !strings.Contains(dir, `\`) {
		return dir, nil
	}
	fd, err := d.open(dir)
	return "/proc/self/fd/" + strconv.Itoa(fd), err
}

func (d *descriptors) open(dir string) (int, error) {
	fd, err := unix.Open(dir, unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return -1, fmt.Errorf("open %s: %w", dir, err)
	}
	*d = append(*d, fd)
	return fd, nil
}

func (d *descriptors) close() {
	for _, fd := range *d {
		unix.Close(fd)
	}
}

// mountOld gives all options to mount(2) in one page. Where the paths are too long for it, a thread of its own goes to
// the directory of its descriptors, and each layer is named by a number.
func (r Rootfs) mountOld(lower []string) error {
	const room = 4095
	if options := r.options(lower, r.Upper, r.Work); len(options) <= room {
		return unix.Mount("overlay", r.Target, "overlay", 0, options)
	}
	names := descriptors{}
	defer names.close()
	for _, dir := range append(slices.Clone(lower), r.Upper, r.Work) {
		if dir == "" {
			continue
		}
		if _, err := names.open(dir); err != nil {
			return err
		}
	}
	numbers := make([]string, len(lower)+2) // the last two stay empty without an upper directory
	for i, fd := range names {
		numbers[i] = strconv.Itoa(fd)
	}
	options := r.options(numbers[:len(lower)], numbers[len(lower)], numbers[len(lower)+1])
	if len(options) > room {
		return fmt.Errorf("the image has more layers than fit into %d bytes of mount options, and the kernel is older than 6.5", room)
	}
	target, err := filepath.Abs(r.Target)
	if err != nil {
		return err
	}
	return namespace.OnThrowawayThread(func() error {
		if err := unix.Unshare(unix.CLONE_FS); err != nil {
			return fmt.Errorf("unshare working directory: %w", err)
		}
		if err := unix.Chdir("/proc/self/fd"); err != nil {
			return fmt.Errorf("enter /proc/self/fd: %w", err)
		}
		return unix.Mount("overlay", target, "overlay", 0, options)
	})
}

func (r Rootfs) options(lower []string, upper, work string) string {
	escape := strings.NewReplacer(`\`, `\\`, ",", `\,`, ":", `\:`).Replace
	var layers []string
	for _, dir := range lower {
		layers = append(layers, escape(dir))
	}
	options := []string{"lowerdir=" + strings.Join(layers, ":")}
	for _, option := range overlayOptions {
		options = append(options, option[0]+"="+option[1])
	}
	if upper != "" {
		// Colons divide lower directories only; escaped ones elsewhere are unescaped all the same.
		options = append(options, "upperdir="+escape(upper), "workdir="+escape(work))
	}
	if r.Label != "" {
		options = append(options, ContextOption(r.Label))
	}
	return strings.Join(options, ",")
}

// ContextOption has mount(2) give every file of a file system this SELinux label. The kernel takes the quotation marks away before
// it divides the options at commas, which labels have in their levels (security/selinux/hooks.c, selinux_sb_eat_lsm_opts).
func ContextOption(label string) string { return `context="` + label + `"` }

// Unmount unmounts target and removes the mount point. A nil error means nothing is mounted there, whoever unmounted it.
// A mount that is in use is detached: it disappears from here now, and from the kernel with its last user.
func Unmount(target string) error {
	for {
		err := unix.Unmount(target, unix.UMOUNT_NOFOLLOW)
		if err == unix.EBUSY {
			err = unix.Unmount(target, unix.UMOUNT_NOFOLLOW|unix.MNT_DETACH)
		}
		if err == nil {
			continue // another one may lie below
		}
		if err == unix.EINVAL || err == unix.ENOENT || err == unix.ENOTDIR {
			break // no mount point
		}
		return fmt.Errorf("cannot unmount %s: %w", target, err)
	}
	if err := unix.Rmdir(target); err != nil && err != unix.ENOENT && err != unix.ENOTDIR {
		return fmt.Errorf("cannot remove mount point %s: %w", target, err)
	}
	return nil
}

// isMountPoint reports whether something is mounted on a path. A path that does not exist is none.
func isMountPoint(path string) (bool, error) {
	var st unix.Statx_t
	err := unix.Statx(unix.AT_FDCWD, path, unix.AT_SYMLINK_NOFOLLOW|unix.AT_STATX_DONT_SYNC, unix.STATX_TYPE, &st)
	if err == unix.ENOENT {
		return false, nil
	}
	if err != nil {
		return false, fmt.Errorf("cannot examine mount point %s: %w", path, err)
	}
	return st.Attributes&unix.STATX_ATTR_MOUNT_ROOT != 0, nil // 5.8
}
