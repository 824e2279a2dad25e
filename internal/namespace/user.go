package namespace

import (
	"errors"
	"fmt"
	"path/filepath"
	"syscall"

	"golang.org/x/sys/unix"
)

// IDs maps user and group ids alike: 0 to Length-1 inside a user namespace are Host to Host+Length-1 outside.
type IDs struct{ Host, Length uint32 }

// mapping is a map of one line as user_namespaces(7) writes it.
func (i IDs) mapping() []syscall.SysProcIDMap {
	return []syscall.SysProcIDMap{{ContainerID: 0, HostID: int(i.Host), Size: int(i.Length)}}
}

// Attributes makes a process (os.ProcAttr, syscall.ProcAttr) the first one of a new user namespace and of the namespaces
// of flags, which that namespace owns (clone(2): CLONE_NEWUSER goes first). The process is root inside.
func (i IDs) Attributes(flags int) *syscall.SysProcAttr {
	return &syscall.SysProcAttr{
		Cloneflags:  uintptr(flags) | unix.CLONE_NEWUSER,
		UidMappings: i.mapping(), GidMappings: i.mapping(), GidMappingsEnableSetgroups: true,
		Credential: &syscall.Credential{Uid: 0, Gid: 0},
	}
}

// PinProcess pins the namespaces asked for of a process that was made for them, as Pin does with those it makes itself:
// what is pinned is furnished. What was pinned in dir before is released.
func PinProcess(dir string, process int, o Options) error {
	settings, err := o.settings()
	if err != nil {
		return err
	}
	if err := o.unpin(dir); err != nil {
		return err
	}
	names, flags := o.missing(dir)
	return pinNew(dir, names, func() error { return furnishProcess(dir, process, o, flags, names, settings) })
}

func (o Options) unpin(dir string) error {
	var errs []error
	for _, kind := range kinds {
		errs = append(errs, unpin(filepath.Join(dir, kind.name)))
	}
	return errors.Join(errs...)
}

// furnishOwned makes a user namespace with the others in it, on a thread of its own. Threads of a process cannot enter
// a new user namespace one by one (unshare(2)), so a child does. It never runs a single instruction of its program: it
// is traced, stops at the end of its execve (ptrace(2), PTRACE_TRACEME), and is killed as soon as all is pinned. The
// thread is its parent and tracer, and takes it along if the engine dies (PR_SET_PDEATHSIG).
func furnishOwned(dir string, o Options, flags int, names []string, settings []setting) error {
	pidfd := -1
	attributes := o.User.Attributes(flags)
	attributes.Ptrace, attributes.Pdeathsig, attributes.PidFD = true, unix.SIGKILL, &pidfd
	pid, err := syscall.ForkExec("/proc/self/exe", []string{"namespaces"}, &syscall.ProcAttr{Sys: attributes})
	if err != nil {
		return fmt.Errorf("cannot make user namespace of %s (see /proc/sys/user/max_user_namespaces and kernel.yama.ptrace_scope): %w", dir, err)
	}
	defer end(pid, pidfd)
	return furnishProcess(dir, pid, o, flags, names, settings)
}

// end kills and reaps a traced child.
func end(pid, pidfd int) {
	if pidfd >= 0 {
		defer unix.Close(pidfd)
	}
	unix.Kill(pid, unix.SIGKILL) // not reaped, so the pid is still its own
	for {
		var status unix.WaitStatus
		_, err := unix.Wait4(pid, &status, 0, nil)
		if err != nil && err != unix.EINTR || err == nil && !status.Stopped() {
			return
		}
	}
}

// furnishProcess enters the namespaces of a process with the calling thread, sets them up and pins them. The user
// namespace itself is not entered, and need not be: its parent's root has every capability in it.
func furnishProcess(dir string, process int, o Options, flags int, names []string, settings []setting) error {
	for _, kind := range kinds {
		if kind.flag&flags == 0 || kind.flag == unix.CLONE_NEWUSER {
			continue
		}
		if err := enter(fmt.Sprintf("/proc/%d/ns/%s", process, kind.name), kind.flag); err != nil {
			return fmt.Errorf("cannot enter the namespaces of process %d for %s: %w", process, dir, err)
		}
	}
	if flags&unix.CLONE_NEWIPC != 0 && o.User != nil {
		if err := giveQueues(*o.User); err != nil {
			return fmt.Errorf("cannot give the message queues of %s to its user namespace: %w", dir, err)
		}
	}
	if err := o.furnish(dir, flags, settings); err != nil {
		return err
	}
	return bindAll(fmt.Sprintf("/proc/%d/ns", process), dir, names)
}

// giveQueues makes the root of the user namespace own the directory of message queues (/dev/mqueue) of the IPC namespace that
// the calling thread is in. The kernel makes it as it makes the namespace, for whoever called clone(2), and that is the root of
// the node, who is nobody inside. With SELinux no container could start: the runtime may not label what is nobody's.
func giveQueues(ids IDs) error {
	context, err := unix.Fsopen("mqueue", unix.FSOPEN_CLOEXEC)
	if err == unix.ENODEV || err == unix.ENOSYS { // no message queues, or a kernel before 5.2, which has no idmapped mounts either
		return nil
	}
	if err != nil {
		return err
	}
	defer unix.Close(context)
	if err := unix.FsconfigCreate(context); err != nil {
		return err
	}
	root, err := unix.Fsmount(context, unix.FSMOUNT_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer unix.Close(root)
	return unix.Fchownat(root, "", int(ids.Host), int(ids.Host), unix.AT_EMPTY_PATH)
}

func enter(path string, flag int) error {
	fd, err := unix.Open(path, unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	return unix.Setns(fd, flag)
}

// asRootOf runs f with the calling thread's effective user being another one: parameters of an IPC namespace may be
// written by the root of its user namespace alone, whatever capabilities others have (ipc/ipc_sysctl.c, since 6.9). The raw
// system call changes this thread and no other.
func asRootOf(ids *IDs, f func() error) error {
	const same = ^uintptr(0)
	if _, _, e := unix.RawSyscall(unix.SYS_SETRESUID, same, uintptr(ids.Host), same); e != 0 {
		return e
	}
	defer unix.RawSyscall(unix.SYS_SETRESUID, same, 0, same)
	return f()
}
