package shim

import (
	"fmt"
	"os"
	"os/signal"
	"runtime/debug"
	"syscall"
	"unsafe"

	"golang.org/x/sys/unix"
)

// RunInit is the first process of a PID namespace that the containers of a pod share: it reaps what is orphaned, and
// does nothing else for as long as the pod lives. It sees an empty, read-only file system and has no capabilities.
// It returns on SIGTERM or SIGINT; the kernel then kills whatever is left in the namespace.
func RunInit() error {
	debug.SetGCPercent(-1) // it allocates nothing once it runs
	ready := os.NewFile(listenerFD, "ready")
	if err := confine(); err != nil {
		fmt.Fprint(ready, err)
		return err
	}
	c := make(chan os.Signal, 1)
	signal.Ignore(unix.SIGHUP, unix.SIGQUIT, unix.SIGUSR1, unix.SIGUSR2, unix.SIGALRM, unix.SIGVTALRM, unix.SIGIO,
		unix.SIGPWR, unix.SIGTSTP, unix.SIGTTIN, unix.SIGTTOU, unix.SIGWINCH, unix.SIGXCPU, unix.SIGXFSZ)
	signal.Notify(c, unix.SIGCHLD, unix.SIGTERM, unix.SIGINT)
	fmt.Fprint(ready, readyWord)
	ready.Close()
	for s := range c {
		if s != unix.SIGCHLD {
			return nil
		}
		for {
			if pid, err := unix.Wait4(-1, nil, unix.WNOHANG, nil); pid <= 0 && err != unix.EINTR {
				break
			}
		}
	}
	return nil
}

func confine() error {
	// It was started through /proc/self/exe, which would leave it named "exe".
	os.WriteFile("/proc/self/comm", []byte("evenkeel-init"), 0)
	if err := emptyRoot(); err != nil {
		return err
	}
	return dropPrivileges()
}

// emptyRoot makes a file system without a single file the root. The working directory is only the place to mount it.
func emptyRoot() error {
	const flags = unix.MS_NOSUID | unix.MS_NODEV | unix.MS_NOEXEC
	dir, err := os.Getwd()
	if err != nil {
		return err
	}
	for _, step := range []struct {
		what string
		do   func() error
	}{
		{"keep mounts from spreading", func() error { return unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, "") }},
		{"mount an empty root", func() error { return unix.Mount("tmpfs", dir, "tmpfs", flags, "size=4k,nr_inodes=1,mode=555") }},
		{"enter it", func() error { return unix.Chdir(dir) }},
		// Root and old root in one place: the old one comes to lie on top, and is taken off (pivot_root(2), notes).
		{"make it the root", func() error { return unix.PivotRoot(".", ".") }},
		{"leave the old root", func() error { return unix.Unmount(".", unix.MNT_DETACH) }},
		{"make it read-only", func() error { return unix.Mount("", "/", "", unix.MS_REMOUNT|unix.MS_BIND|unix.MS_RDONLY|flags, "") }},
		{"go there", func() error { return unix.Chdir("/") }},
	} {
		if err := step.do(); err != nil {
			return fmt.Errorf("cannot %s: %w", step.what, err)
		}
	}
	return nil
}

// dropPrivileges works on all threads, since credentials are a thread's.
func dropPrivileges() error {
	if _, _, e := syscall.AllThreadsSyscall6(unix.SYS_PRCTL, unix.PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0, 0); e != 0 {
		return fmt.Errorf("cannot set no_new_privs: %w", e)
	}
	syscall.AllThreadsSyscall6(unix.SYS_PRCTL, unix.PR_CAP_AMBIENT, unix.PR_CAP_AMBIENT_CLEAR_ALL, 0, 0, 0, 0)
	for capability := uintptr(0); ; capability++ {
		_, _, e := syscall.AllThreadsSyscall(unix.SYS_PRCTL, unix.PR_CAPBSET_DROP, capability, 0)
		if e == unix.EINVAL {
			break // past the last one this kernel has
		}
		if e != 0 {
			return fmt.Errorf("cannot drop capability %d: %w", capability, e)
		}
	}
	head := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
	var none [2]unix.CapUserData
	_, _, e := syscall.AllThreadsSyscall(unix.SYS_CAPSET, uintptr(unsafe.Pointer(&head)), uintptr(unsafe.Pointer(&none)), 0)
	if e != 0 {
		return fmt.Errorf("cannot drop capabilities: %w", e)
	}
	return nil
}
