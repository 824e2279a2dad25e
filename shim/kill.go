package shim

import (
	"fmt"
	"os"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// killTree ends a process and its descendants with SIGKILL. Each is stopped before its children are looked for, so that
// it cannot fork behind our back; all are killed only once nobody new is found, since the children of a dead process are
// given to another parent and no longer found below it.
//
// A process whose parent ended first is found by its session, as long as that is the one of a process of the tree. One that
// has made a session of its own as well, as daemons do, is not reached: that takes a cgroup of the exec's own (see leaf).
func killTree(root int) {
	tree := map[int]int{}
	stop(tree, root)
	killTrees(tree)
}

// killTrees does so with the trees of all processes in tree (pid -> pidfd), which are stopped already. It closes the descriptors.
func killTrees(tree map[int]int) {
	defer func() {
		for _, fd := range tree {
			signalPidfd(fd, unix.SIGKILL)
			unix.Close(fd)
		}
	}()
	// A stop takes effect when the process next leaves the kernel; until then it may finish a fork. Hence until nothing changes.
	for grown := true; grown; {
		grown = false
		for pid := range tree {
			for _, child := range children(pid) {
				if _, known := tree[child]; !known && stop(tree, child) {
					grown = true
				}
			}
		}
		for _, member := range ofSessions(tree) {
			if stop(tree, member) {
				grown = true
			}
		}
	}
}

// ofSessions finds processes outside the tree in a session that one of the tree leads.
func ofSessions(tree map[int]int) (found []int) {
	all, _ := os.ReadDir("/proc")
	for _, entry := range all {
		pid, err := strconv.Atoi(entry.Name())
		if err != nil {
			continue
		}
		if _, known := tree[pid]; known {
			continue
		}
		stat, err := readStat(pid)
		if err != nil {
			continue
		}
		if _, ours := tree[stat.session]; ours {
			found = append(found, pid)
		}
	}
	return found
}

func stop(tree map[int]int, pid int) bool {
	fd, err := unix.PidfdOpen(pid, 0)
	if err != nil {
		return false
	}
	tree[pid] = fd
	return signalPidfd(fd, unix.SIGSTOP) == nil
}

// children reads /proc/PID/task/*/children (CONFIG_PROC_CHILDREN), and where the kernel lacks it asks every process for its parent.
func children(pid int) (found []int) {
	tasks, err := os.ReadDir(fmt.Sprintf("/proc/%d/task", pid))
	if err != nil {
		return nil
	}
	for _, task := range tasks {
		data, err := os.ReadFile(fmt.Sprintf("/proc/%d/task/%s/children", pid, task.Name()))
		if os.IsNotExist(err) && len(tasks) > 0 {
			return childrenByParent(pid)
		}
		for _, field := range strings.Fields(string(data)) {
			if child, err := strconv.Atoi(field); err == nil {
				found = append(found, child)
			}
		}
	}
	return found
}

func childrenByParent(parent int) (found []int) {
	all, _ := os.ReadDir("/proc")
	for _, entry := range all {
		pid, err := strconv.Atoi(entry.Name())
		if err != nil {
			continue
		}
		if stat, err := readStat(pid); err == nil && stat.parent == parent {
			found = append(found, pid)
		}
	}
	return found
}
