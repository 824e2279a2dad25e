package shim

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// A Process is a pid that cannot be confused with a later process of the same number.
type Process struct {
	PID   int
	Start uint64 // field 22 of /proc/PID/stat, clock ticks since boot
}

// Alive reports whether exactly this process still exists and is not a zombie. One that cannot be looked at counts as alive.
func (p Process) Alive() bool {
	gone, err := p.gone()
	return err != nil || !gone
}

// gone tells an end from an answer that did not come, for want of descriptors for example: that says nothing.
func (p Process) gone() (bool, error) {
	if p.PID <= 0 {
		return true, nil
	}
	stat, err := readStat(p.PID)
	if noSuchProcess(err) {
		return true, nil
	}
	return err == nil && (stat.start != p.Start || stat.state == 'Z' || stat.state == 'X'), err
}

// Pin opens a pidfd of exactly this process. Its error matches os.ErrProcessDone when the process is gone, also when its number is
// a thread's or another process's by now, and then only.
func (p Process) Pin() (fd int, err error) {
	fd, err = unix.PidfdOpen(p.PID, 0)
	if NoProcess(err) {
		return -1, os.ErrProcessDone
	}
	if err != nil {
		return -1, fmt.Errorf("cannot open pidfd of process %d: %w", p.PID, err)
	}
	gone, err := p.gone()
	if err == nil && !gone {
		return fd, nil
	}
	unix.Close(fd)
	if err != nil {
		return -1, fmt.Errorf("cannot tell whether process %d is the one that was meant: %w", p.PID, err)
	}
	return -1, os.ErrProcessDone
}

// Await returns when this process has ended. It keeps a goroutine meanwhile, and no thread. An error says that nobody can tell.
func (p Process) Await() error {
	fd, err := p.Pin()
	if errors.Is(err, os.ErrProcessDone) {
		return nil
	}
	if err != nil {
		return err
	}
	if err := unix.SetNonblock(fd, true); err != nil { // PIDFD_NONBLOCK is of 5.10
		unix.Close(fd)
		return err
	}
	pidfd := os.NewFile(uintptr(fd), "pidfd")
	defer pidfd.Close()
	raw, err := pidfd.SyscallConn()
	if err != nil {
		return err
	}
	return raw.Read(func(fd uintptr) bool {
		n, err := unix.Poll([]unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}, 0)
		return err == nil && n > 0
	})
}

// NoProcess reports whether pidfd_open(2), called without flags, failed because no process has the pid: nobody (ESRCH), or a thread,
// for which kernels answer EINVAL or, newer ones, ENOENT. With a flag that the kernel lacks, EINVAL would say nothing about the process.
func NoProcess(err error) bool {
	return errors.Is(err, unix.ESRCH) || errors.Is(err, unix.EINVAL) || errors.Is(err, unix.ENOENT)
}

// ReadProcess reads Dir/shim.pid, which a shim writes when it begins to serve: pid, space, start time.
func ReadProcess(dir string) (Process, error) {
	data, err := os.ReadFile(dir + "/" + pidName)
	if err != nil {
		return Process{}, err
	}
	var p Process
	if _, err := fmt.Sscan(string(data), &p.PID, &p.Start); err != nil {
		return Process{}, fmt.Errorf("cannot read %s/%s: %w", dir, pidName, err)
	}
	return p, nil
}

// processOf completes a pid that is known to be right at this moment.
func processOf(pid int) (Process, error) {
	stat, err := readStat(pid)
	if err != nil {
		return Process{}, err
	}
	return Process{PID: pid, Start: stat.start}, nil
}

// noSuchProcess: open gives ENOENT for a process that is gone, read ESRCH for one that has gone since.
func noSuchProcess(err error) bool {
	return errors.Is(err, fs.ErrNotExist) || errors.Is(err, unix.ESRCH)
}

type procStat struct {
	state           byte
	parent, session int
	start           uint64
}

// readStat reads proc_pid_stat(5). The name of the program may hold spaces and parentheses, so fields count from the last ")".
func readStat(pid int) (procStat, error) {
	data, err := os.ReadFile("/proc/" + strconv.Itoa(pid) + "/stat")
	if err != nil {
		return procStat{}, err
	}
	fields := strings.Fields(string(data[bytes.LastIndexByte(data, ')')+1:]))
	if len(fields) < 20 {
		return procStat{}, fmt.Errorf("cannot read /proc/%d/stat: %d fields", pid, len(fields))
	}
	parent, _ := strconv.Atoi(fields[1])
	session, _ := strconv.Atoi(fields[3])
	start, err := strconv.ParseUint(fields[19], 10, 64)
	return procStat{state: fields[0][0], parent: parent, session: session, start: start}, err
}

// signalPidfd sends a signal to exactly the process the pidfd was opened for. One that has ended is no error.
func signalPidfd(fd int, signal unix.Signal) error {
	err := unix.PidfdSendSignal(fd, signal, nil, 0)
	if err == unix.ESRCH {
		return nil
	}
	return err
}

// signalFile is signalPidfd for a pidfd that another goroutine may close.
func signalFile(pidfd *os.File, signal unix.Signal) error {
	return control(pidfd, func(fd int) error { return signalPidfd(fd, signal) })
}

// control runs f while the descriptor cannot be closed, and so cannot have become another file's.
func control(file *os.File, f func(fd int) error) error {
	raw, err := file.SyscallConn()
	if err != nil {
		return err
	}
	var inner error
	if err := raw.Control(func(fd uintptr) { inner = f(int(fd)) }); err != nil {
		return err
	}
	return inner
}
