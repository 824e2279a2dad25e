// Package namespace makes Linux namespaces that live without a process: each is pinned by a bind mount of its nsfs
// file (namespaces(7)), so a pod needs no pause container.
//
// A namespace is made by a thread that enters it and is thrown away afterwards. Everything that must be true inside
// (host name, sysctls, loopback) is done by that thread before the pin appears: what is pinned is complete, and a
// crash in between leaves nothing, since the kernel frees a namespace with its last thread.
//
// The pins are ordinary bind mounts in the caller's mount namespace, where the OCI runtime and CNI plugins find them.
// Where the mount below is shared, they spread to its peers like any other mount, and so does their removal; a copy
// in a private mount namespace goes when Unpin unlinks the file (the kernel detaches mounts on an unlinked name
// everywhere, since 3.18).
package namespace

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"

	"golang.org/x/sys/unix"
)

// Options says which namespaces to make, and how they look inside.
type Options struct {
	Net, IPC, UTS bool
	User          *IDs              // a user namespace that owns the others; nil: the caller's owns them
	Hostname      string            // set in the new UTS namespace
	Sysctls       map[string]string // written inside, keys with dots or slashes as sysctl(8) takes them; those of interfaces by SetOfLinks
}

// kinds are the namespaces that Pin makes, by the name of their file in /proc/PID/ns and in the directory of pins.
var kinds = []struct {
	name   string
	flag   int
	wanted func(Options) bool
}{
	{"net", unix.CLONE_NEWNET, func(o Options) bool { return o.Net }},
	{"ipc", unix.CLONE_NEWIPC, func(o Options) bool { return o.IPC }},
	{"uts", unix.CLONE_NEWUTS, func(o Options) bool { return o.UTS }},
	{"user", unix.CLONE_NEWUSER, func(o Options) bool { return o.User != nil }},
}

// pid is the pin of a PID namespace, which has a process already.
const pid = "pid"

// Pin makes the namespaces and pins them as dir/net, dir/ipc, dir/uts and dir/user; loopback is up in a new network
// namespace. Those that are pinned already are kept, as they are, except that namespaces of one user namespace are made
// together or not at all. On error nothing stays pinned that was not pinned before.
// A sysctl that does not belong to a namespace asked for is ErrSysctl, and nothing is made.
func Pin(ctx context.Context, dir string, o Options) error {
	settings, err := o.settings()
	if err != nil {
		return err
	}
	if err := ctx.Err(); err != nil {
		return err
	}
	missing, flags := o.missing(dir)
	if len(missing) == 0 {
		return nil
	}
	if o.User == nil {
		return pinNew(dir, missing, func() error { return furnishNew(dir, o, flags, missing, settings) })
	}
	if err := o.unpin(dir); err != nil {
		return err
	}
	missing, flags = o.missing(dir)
	return pinNew(dir, missing, func() error { return furnishOwned(dir, o, flags, missing, settings) })
}

// pinNew lets a thread make and pin namespaces, and takes back what it pinned when it fails.
func pinNew(dir string, names []string, furnish func() error) error {
	made := os.Mkdir(dir, 0o700) == nil
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return fmt.Errorf("cannot make directory of namespaces %s: %w", dir, err)
	}
	err := OnThrowawayThread(furnish)
	if err == nil {
		return nil
	}
	for _, name := range names {
		err = errors.Join(err, unpin(filepath.Join(dir, name)))
	}
	if made {
		os.Remove(dir)
	}
	return err
}

func (o Options) missing(dir string) (names []string, flags int) {
	for _, kind := range kinds {
		if kind.wanted(o) && !pinned(filepath.Join(dir, kind.name)) {
			names, flags = append(names, kind.name), flags|kind.flag
		}
	}
	return names, flags
}

// furnishNew makes the namespaces on the calling thread, sets them up and pins them.
func furnishNew(dir string, o Options, flags int, names []string, settings []setting) error {
	if err := unix.Unshare(flags); err != nil {
		return fmt.Errorf("cannot make namespaces %v of %s: %w", names, dir, err)
	}
	if err := o.furnish(dir, flags, settings); err != nil {
		return err
	}
	return bindAll("/proc/thread-self/ns", dir, names)
}

// furnish sets up the namespaces that the calling thread is in.
func (o Options) furnish(dir string, flags int, settings []setting) error {
	if flags&unix.CLONE_NEWUTS != 0 && o.Hostname != "" {
		if err := unix.Sethostname([]byte(o.Hostname)); err != nil {
			return fmt.Errorf("cannot set host name %q: %w", o.Hostname, err)
		}
	}
	if flags&unix.CLONE_NEWNET != 0 {
		if err := loopbackUp(); err != nil {
			return fmt.Errorf("cannot bring up loopback in %s/net: %w", dir, err)
		}
	}
	return o.write(slices.DeleteFunc(slices.Clone(settings), func(s setting) bool {
		return s.flag&flags == 0 || s.ofLink() // its namespace was pinned before, and complete; or its turn comes with SetOfLinks
	}))
}

func bindAll(from, dir string, names []string) error {
	for _, name := range names {
		if err := bind(filepath.Join(from, name), filepath.Join(dir, name)); err != nil {
			return err
		}
	}
	return nil
}

// loopbackUp uses the ioctl of netdevice(7): one socket and two calls, where netlink would need a message parser.
func loopbackUp() error {
	socket, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer unix.Close(socket)
	lo, err := unix.NewIfreq("lo")
	if err != nil {
		return err
	}
	if err := unix.IoctlIfreq(socket, unix.SIOCGIFFLAGS, lo); err != nil {
		return err
	}
	lo.SetUint16(lo.Uint16() | unix.IFF_UP)
	return unix.IoctlIfreq(socket, unix.SIOCSIFFLAGS, lo)
}

// PinPID pins the PID namespace of a process as dir/pid. Another namespace that was pinned there is released.
func PinPID(dir string, process int) error {
	source, target := fmt.Sprintf("/proc/%d/ns/pid", process), filepath.Join(dir, pid)
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return fmt.Errorf("cannot make directory of namespaces %s: %w", dir, err)
	}
	if pinned(target) {
		same, err := sameFile(source, target)
		if err != nil {
			return fmt.Errorf("cannot compare PID namespace of process %d with %s: %w", process, target, err)
		}
		if same {
			return nil
		}
		if err := unpin(target); err != nil {
			return err
		}
	}
	if err := bind(source, target); err != nil {
		return errors.Join(err, unpin(target))
	}
	return nil
}

func sameFile(a, b string) (bool, error) {
	first, err := os.Stat(a)
	if err != nil {
		return false, err
	}
	second, err := os.Stat(b)
	if err != nil {
		return false, err
	}
	return os.SameFile(first, second), nil
}

// Unpin releases every namespace pinned in dir and removes dir. A nil error means nothing is pinned there, whoever
// released it.
func Unpin(dir string) error {
	var errs []error
	for _, kind := range kinds {
		errs = append(errs, unpin(filepath.Join(dir, kind.name)))
	}
	errs = append(errs, unpin(filepath.Join(dir, pid)))
	if err := os.Remove(dir); err != nil && !errors.Is(err, os.ErrNotExist) {
		errs = append(errs, fmt.Errorf("cannot remove directory of namespaces: %w", err))
	}
	return errors.Join(errs...)
}

// bind pins a namespace. The file may be there already, left by a crash before the mount.
func bind(source, target string) error {
	file, err := os.OpenFile(target, os.O_RDONLY|os.O_CREATE, 0o444)
	if err != nil {
		return fmt.Errorf("cannot make the file to pin a namespace on: %w", err)
	}
	file.Close()
	if err := unix.Mount(source, target, "", unix.MS_BIND, ""); err != nil {
		return fmt.Errorf("cannot pin namespace %s on %s: %w", source, target, err)
	}
	return nil
}

// unpin detaches whatever is mounted on a pin's file, since somebody may still have it open, and removes the file.
func unpin(target string) error {
	for {
		err := unix.Unmount(target, unix.MNT_DETACH|unix.UMOUNT_NOFOLLOW)
		if err == nil {
			continue // another one may lie below
		}
		if err == unix.EINVAL || err == unix.ENOENT || err == unix.ENOTDIR {
			break // no mount point
		}
		return fmt.Errorf("cannot unmount namespace %s: %w", target, err)
	}
	if err := os.Remove(target); err != nil && !errors.Is(err, os.ErrNotExist) {
		return fmt.Errorf("cannot remove pin of a namespace: %w", err)
	}
	return nil
}

func pinned(path string) bool {
	var st unix.Statfs_t
	return unix.Statfs(path, &st) == nil && st.Type == unix.NSFS_MAGIC
}
