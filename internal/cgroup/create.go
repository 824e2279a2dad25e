package cgroup

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// Create makes the cgroup in every hierarchy that a runtime would use, so that cAdvisor finds it in each. Existing ones
// are kept. On error those that it made are removed again.
func (t *Tree) Create(path string) error {
	if err := check(path); err != nil {
		return fmt.Errorf("cannot create cgroup: %w", err)
	}
	var made []string
	for _, h := range t.hierarchies {
		if err := h.create(path, &made); err != nil {
			slices.Reverse(made)
			for _, dir := range made {
				unix.Rmdir(dir)
			}
			return fmt.Errorf("cannot create cgroup %s: %w", path, err)
		}
	}
	return nil
}

// create makes a cgroup with its parents and lists what was not there before.
func (h hierarchy) create(path string, made *[]string) error {
	dir := h.mount
	for _, element := range strings.Split(strings.Trim(path, "/"), "/") {
		if element == "" {
			continue
		}
		if h.unified {
			enableControllers(dir)
		}
		parent := dir
		dir = filepath.Join(dir, element)
		err := os.Mkdir(dir, 0o755)
		if err == nil {
			*made = append(*made, dir)
		} else if !errors.Is(err, os.ErrExist) {
			return err
		}
		if h.has("cpuset") {
			if err := inheritCPUs(parent, dir); err != nil {
				return err
			}
		}
	}
	return nil
}

// inheritCPUs fills a new v1 cpuset: it begins empty, and no process can enter it then.
func inheritCPUs(parent, dir string) error {
	for _, name := range []string{"cpuset.cpus", "cpuset.mems"} {
		own, err := os.ReadFile(filepath.Join(dir, name))
		if err != nil {
			return err
		}
		if strings.TrimSpace(string(own)) != "" {
			continue
		}
		inherited, err := os.ReadFile(filepath.Join(parent, name))
		if err != nil {
			return err
		}
		if err := write(filepath.Join(dir, name), string(inherited)); err != nil {
			return err
		}
	}
	return nil
}

// enableControllers hands all controllers of a v2 cgroup down to its children, as runc does (fs2/create.go), all at once
// or, where one is refused, each that can be. What could not be enabled shows when a limit is set: a cgroup with
// processes of its own, for one, can enable none, and needs none as long as nobody sets limits below it.
func enableControllers(dir string) {
	available, err := os.ReadFile(filepath.Join(dir, "cgroup.controllers"))
	if err != nil {
		return
	}
	enabled, err := os.ReadFile(filepath.Join(dir, "cgroup.subtree_control"))
	if err != nil {
		return
	}
	var missing []string
	for _, name := range strings.Fields(string(available)) {
		if !slices.Contains(strings.Fields(string(enabled)), name) {
			missing = append(missing, "+"+name)
		}
	}
	control := filepath.Join(dir, "cgroup.subtree_control")
	if len(missing) == 0 || write(control, strings.Join(missing, " ")) == nil {
		return
	}
	for _, name := range missing {
		write(control, name)
	}
}

// Add moves a process into the cgroup, in every hierarchy.
func (t *Tree) Add(path string, pid int) error {
	if err := check(path); err != nil {
		return fmt.Errorf("cannot move process %d: %w", pid, err)
	}
	for _, dir := range t.Dirs(path) {
		if err := addProcess(dir, pid); err != nil {
			return fmt.Errorf("cannot move process %d into cgroup %s: %w", pid, path, missing(err))
		}
	}
	return nil
}

// addProcess repeats EINVAL, which the kernel also gives for a task that was forked this instant and never ran (TASK_NEW).
func addProcess(dir string, pid int) error {
	for try := range 5 {
		err := write(filepath.Join(dir, "cgroup.procs"), fmt.Sprint(pid))
		if try == 4 || !errors.Is(err, unix.EINVAL) {
			return err
		}
		time.Sleep(10 * time.Millisecond)
	}
	return nil
}

// missing adds ErrNotExist to errors about files that a removed cgroup no longer has.
func missing(err error) error {
	if errors.Is(err, unix.ENOENT) || errors.Is(err, unix.ENODEV) {
		return fmt.Errorf("%w: %w", ErrNotExist, err)
	}
	return err
}

// write fills a control file in one call, which is how the kernel takes a value.
func write(path, value string) error {
	fd, err := unix.Open(path, unix.O_WRONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		return &os.PathError{Op: "open", Path: path, Err: err}
	}
	defer unix.Close(fd)
	if _, err := unix.Write(fd, []byte(value)); err != nil {
		return &os.PathError{Op: "write", Path: path, Err: err}
	}
	return nil
}
