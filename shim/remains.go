package shim

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

// What a shim runs that is no container: commands of the OCI runtime. They have no cgroup of their own, and the shim ends them. Where
// it is gone, or does not answer, the daemon does so from outside: they are in the session that the shim leads, and work below
// the state directory or name it.

// KillAll ends the shim and every command that it runs or has left behind. state is the engine's state directory.
func (p Process) KillAll(state string) error {
	tree := map[int]int{}
	switch fd, err := p.Pin(); {
	case err == nil:
		tree[p.PID] = fd
		signalPidfd(fd, unix.SIGSTOP) // or it would start more
	case !errors.Is(err, os.ErrProcessDone):
		return fmt.Errorf("cannot end the shim: %w", err)
	}
	for _, pid := range p.commands(state, "") {
		stop(tree, pid)
	}
	killTrees(tree)
	return nil
}

// KillCommands ends the commands about one container, of a shim that is gone or that cannot be asked to.
func (p Process) KillCommands(state, id string) {
	tree := map[int]int{}
	for _, pid := range p.commands(state, id) {
		stop(tree, pid)
	}
	killTrees(tree)
}

// commands lists the processes of the shim's session, other than the shim, whose command line names about. A session's number is not
// given to another process while it has members; it may be another session's once it had none.
func (p Process) commands(state, about string) (found []int) {
	if stat, err := readStat(p.PID); p.PID <= 0 || err == nil && stat.start != p.Start {
		return nil
	}
	all, _ := os.ReadDir("/proc")
	for _, entry := range all {
		pid, err := strconv.Atoi(entry.Name())
		if err != nil || pid == p.PID {
			continue
		}
		stat, err := readStat(pid)
		if err != nil || stat.session != p.PID || stat.start < p.Start {
			continue
		}
		line, _ := os.ReadFile(filepath.Join("/proc", entry.Name(), "cmdline"))
		cwd, _ := os.Readlink(filepath.Join("/proc", entry.Name(), "cwd"))
		below := strings.TrimSuffix(state, "/") + "/"
		if (strings.HasPrefix(cwd, below) || bytes.Contains(line, []byte(below))) && bytes.Contains(line, []byte(about)) {
			found = append(found, pid)
		}
	}
	return found
}

// Find looks for a shim that serves dir and has not said so in its pid file yet: one that has just been started, or that hung before
// its first word. Its error matches os.ErrProcessDone when there is none.
func Find(dir string) (Process, error) {
	all, err := os.ReadDir("/proc")
	if err != nil {
		return Process{}, err
	}
	for _, entry := range all {
		pid, err := strconv.Atoi(entry.Name())
		if err != nil {
			continue
		}
		if cwd, err := os.Readlink(filepath.Join("/proc", entry.Name(), "cwd")); err != nil || cwd != dir {
			continue
		}
		line, _ := os.ReadFile(filepath.Join("/proc", entry.Name(), "cmdline"))
		arguments := strings.Split(strings.TrimSuffix(string(line), "\x00"), "\x00")
		if stat, err := readStat(pid); err == nil && stat.session == pid && slices.Index(arguments, "serve") == len(arguments)-1 {
			return Process{PID: pid, Start: stat.start}, nil
		}
	}
	return Process{}, os.ErrProcessDone
}
