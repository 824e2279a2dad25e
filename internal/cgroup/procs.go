package cgroup

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// Procs lists the processes in the cgroup and below, in ascending order. In v1 each hierarchy is asked, since nothing
// ties a process to the same path in all of them.
func (t *Tree) Procs(path string) ([]int, error) {
	if err := check(path); err != nil {
		return nil, fmt.Errorf("cannot list processes: %w", err)
	}
	pids, found := map[int]bool{}, false
	for _, dir := range t.Dirs(path) {
		err := collect(dir, pids)
		if errors.Is(err, os.ErrNotExist) {
			continue
		}
		if err != nil {
			return nil, fmt.Errorf("cannot list processes of cgroup %s: %w", path, err)
		}
		found = true
	}
	if !found {
		return nil, fmt.Errorf("cannot list processes of cgroup %s: %w", path, ErrNotExist)
	}
	return sortedKeys(pids), nil
}

// collect adds the processes of a directory and those below. Only a missing directory itself is an error; those below
// come and go.
func collect(dir string, pids map[int]bool) error {
	if err := processes(dir, pids); err != nil {
		return err
	}
	children, err := subdirectories(dir)
	if err != nil && !vanished(err) {
		return err
	}
	for _, child := range children {
		if err := collect(filepath.Join(dir, child), pids); err != nil && !errors.Is(err, os.ErrNotExist) {
			return err
		}
	}
	return nil
}

func processes(dir string, pids map[int]bool) error {
	data, err := os.ReadFile(filepath.Join(dir, "cgroup.procs"))
	if errors.Is(err, unix.ENODEV) { // removed between open and read
		return os.ErrNotExist
	}
	if errors.Is(err, unix.EOPNOTSUPP) { // a threaded cgroup of v2: its processes are listed above it
		return nil
	}
	if err != nil {
		return err
	}
	for field := range bytes.FieldsSeq(data) {
		if pid, err := strconv.Atoi(string(field)); err == nil && pid > 0 { // 0: out of this PID namespace's sight
			pids[pid] = true
		}
	}
	return nil
}

func vanished(err error) bool {
	return errors.Is(err, unix.ENOENT) || errors.Is(err, unix.ENODEV)
}

// stuck describes the processes that do not end: what the operator needs to find the broken disk or server.
func stuck(path string, pids []int) error {
	const enough = 10
	var lines []string
	for _, pid := range pids {
		if len(lines) == enough {
			lines = append(lines, fmt.Sprintf("and %d more", len(pids)-enough))
			break
		}
		lines = append(lines, describe(pid))
	}
	return fmt.Errorf("%w %s: %s", ErrBusy, path, strings.Join(lines, ", "))
}

// Stuck returns an error that matches ErrBusy and names the processes of a cgroup which wait in the kernel where no signal
// reaches them (state D), and where they wait; nil when there is none.
func (t *Tree) Stuck(path string) error {
	pids, err := t.Procs(path)
	if err != nil {
		return nil // nobody can be in it
	}
	pids = slices.DeleteFunc(pids, func(pid int) bool { _, _, state := command(waiting(pid)); return state != 'D' })
	if len(pids) == 0 {
		return nil
	}
	return stuck(path, pids)
}

// waiting is the directory in /proc of the process, or of its thread that is in state D: when a process is killed, the
// thread that it began with can be gone while another waits.
func waiting(pid int) string {
	dir := fmt.Sprintf("/proc/%d", pid)
	threads, _ := filepath.Glob(dir + "/task/[0-9]*")
	for _, thread := range threads {
		if _, _, state := command(thread); state == 'D' {
			return thread
		}
	}
	return dir
}

// describe says "pid 17 (dd, state D, in folio_wait_bit < filemap_read < vfs_read)".
func describe(pid int) string {
	dir := waiting(pid)
	id, name, state := command(dir)
	if state == 0 {
		return fmt.Sprintf("pid %d (just gone)", pid)
	}
	text := fmt.Sprintf("pid %d (%s", pid, name)
	if id != pid {
		text += fmt.Sprintf(", thread %d", id)
	}
	text += fmt.Sprintf(", state %c", state)
	if where := waitsIn(dir); where != "" {
		text += ", in " + where
	}
	return text + ")"
}

// command reads proc_pid_stat(5): what a process or thread is called, and its state, which is 0 for one that is gone.
func command(dir string) (id int, name string, state byte) {
	stat, err := os.ReadFile(dir + "/stat")
	open, end := bytes.IndexByte(stat, '('), bytes.LastIndexByte(stat, ')') // a name may contain both
	if err != nil || open < 1 || end < open || len(stat) < end+3 {
		return 0, "", 0
	}
	id, _ = strconv.Atoi(string(stat[:open-1]))
	return id, string(stat[open+1 : end]), stat[end+2]
}

// frames is how many callers are named: enough to tell the file system or device.
const frames = 5

// waitsIn names the function of the kernel in which the process waits, and who called it as far as we may know:
// proc_pid_stack(5) is for the privileged, and not in every kernel; proc_pid_wchan(5) names the function alone.
func waitsIn(dir string) string {
	var names []string
	stack, _ := os.ReadFile(dir + "/stack")
	for line := range strings.Lines(string(stack)) { // [<0>] request_wait_answer+0x1d2/0x280
		_, frame, _ := strings.Cut(strings.TrimSpace(line), "] ")
		if name, _, ok := strings.Cut(frame, "+"); ok && len(names) < frames {
			names = append(names, name)
		}
	}
	if len(names) > 0 {
		return strings.Join(names, " < ")
	}
	wait, err := os.ReadFile(dir + "/wchan")
	if err != nil || string(wait) == "0" {
		return ""
	}
	return string(wait)
}
