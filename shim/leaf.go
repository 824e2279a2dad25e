package shim

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

// leaf is a cgroup of an exec's own, below its container's. Whatever the exec starts is in it, also what has left the exec's
// process tree, and so all of it can be found and killed.
//
// On cgroup v2 it is a directory below the container's, for which no controller is enabled: the rule that only leaves hold
// processes does not apply then, and the exec is charged to the container. On v1 it is in one hierarchy only, the
// freezer's, and in all others the exec is in the container's cgroup itself.
type leaf struct {
	parent, dir string // the container's cgroup and the exec's own
	flag        string // what `runtime exec --cgroup` takes
	unified     bool
}

// cgroupMount is where every OCI runtime expects the hierarchies.
const cgroupMount = "/sys/fs/cgroup"

// How long killed processes may take to go, and what survives an exec to be moved.
const (
	leafKillLimit = 2 * time.Second
	leafMoveLimit = 200 * time.Millisecond
)

// leavesOf says where execs of a container may have leaves. It is asked before the first process runs, which may then go
// into a cgroup below, as systemd does.
func leavesOf(init Process) leaf {
	data, err := os.ReadFile("/proc/" + strconv.Itoa(init.PID) + "/cgroup")
	if err != nil {
		return leaf{}
	}
	return leafBelow(data)
}

// newLeaf makes a leaf for an exec in c.
func (s *server) newLeaf(c *container) (*leaf, error) {
	l := c.leaves
	if l.parent == "" {
		return nil, errNoLeaf
	}
	if takes := s.leaves(); !takes.Path || !l.unified && !takes.Controller {
		return nil, errors.New("the runtime's exec takes no sub cgroup")
	}
	name := s.unique("exec")
	l.dir = l.parent + "/" + name
	l.flag += name
	if err := unix.Mkdir(l.dir, 0o755); err != nil {
		return nil, &os.PathError{Op: "mkdir", Path: l.dir, Err: err}
	}
	return &l, nil
}

var errNoLeaf = errors.New("neither cgroup v2 nor the freezer of v1 holds the container")

// leafBelow reads /proc/PID/cgroup: lines of "ID:CONTROLLERS:PATH", where ID 0 without controllers is v2 (cgroups(7)).
func leafBelow(membership []byte) leaf {
	var unified leaf
	legacy := false
	for line := range bytes.Lines(membership) {
		fields := strings.SplitN(strings.TrimSuffix(string(line), "\n"), ":", 3)
		switch {
		case len(fields) != 3 || fields[2] == "/": // a container has a cgroup of its own
		case fields[1] == "freezer":
			return leaf{parent: filepath.Join(cgroupMount, "freezer", fields[2]), flag: "freezer:/"}
		case fields[0] == "0":
			unified = leaf{parent: filepath.Join(cgroupMount, fields[2]), flag: "/", unified: true}
		default:
			legacy = true
		}
	}
	if legacy {
		return leaf{}
	}
	return unified
}

// kill ends every process in the leaf. It returns when none is left, or with an error when some do not go.
func (l *leaf) kill() error {
	deadline := time.Now().Add(leafKillLimit)
	for pause := 200 * time.Microsecond; ; pause = min(2*pause, 20*time.Millisecond) {
		l.killNow()
		err := l.remove()
		if err == nil || time.Now().After(deadline) {
			return err
		}
		time.Sleep(pause) // v1 has no event that tells when a cgroup is empty, and v2's costs more than a killed process takes
	}
}

func (l *leaf) killNow() {
	if l.unified && os.WriteFile(filepath.Join(l.dir, "cgroup.kill"), []byte("1"), 0) == nil {
		return // since Linux 5.14
	}
	// Frozen, none can fork away from the list. Signals wait until it is thawed.
	freezer := func(v1, v2 string) {
		if l.unified {
			os.WriteFile(filepath.Join(l.dir, "cgroup.freeze"), []byte(v2), 0)
			return
		}
		os.WriteFile(filepath.Join(l.dir, "freezer.state"), []byte(v1), 0)
	}
	freezer("FROZEN", "1")
	defer freezer("THAWED", "0")
	for _, pid := range l.members() {
		l.killMember(pid)
	}
}

// killMember looks again after the process is pinned, since the pid may be another's by then.
func (l *leaf) killMember(pid int) {
	fd, err := unix.PidfdOpen(pid, 0)
	if err != nil {
		return
	}
	defer unix.Close(fd)
	data, err := os.ReadFile("/proc/" + strconv.Itoa(pid) + "/cgroup")
	if err == nil && bytes.Contains(data, []byte(strings.TrimPrefix(l.flag, "freezer:")+"\n")) {
		signalPidfd(fd, unix.SIGKILL)
	}
}

func (l *leaf) members() (pids []int) {
	data, err := os.ReadFile(filepath.Join(l.dir, "cgroup.procs"))
	if err != nil {
		return nil
	}
	for field := range bytes.FieldsSeq(data) {
		if pid, err := strconv.Atoi(string(field)); err == nil && pid > 0 {
			pids = append(pids, pid)
		}
	}
	return pids
}

// dissolve moves what survives the exec into the container's cgroup, where it would have been without a leaf, and removes the leaf.
func (l *leaf) dissolve() error {
	deadline := time.Now().Add(leafMoveLimit)
	for pause := 200 * time.Microsecond; ; pause *= 2 {
		err := l.remove()
		if err != nil {
			l.moveOut()
			err = l.remove()
		}
		if err == nil || time.Now().After(deadline) {
			return err
		}
		time.Sleep(pause) // until what is dying has died
	}
}

func (l *leaf) moveOut() {
	for _, pid := range l.members() {
		os.WriteFile(filepath.Join(l.parent, "cgroup.procs"), []byte(strconv.Itoa(pid)), 0)
	}
}

// remove succeeds when the leaf is gone, whoever removed it. Processes may have made cgroups inside: a privileged exec may
// do so; these go with the container.
func (l *leaf) remove() error {
	if err := unix.Rmdir(l.dir); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return &os.PathError{Op: "rmdir", Path: l.dir, Err: err}
	}
	return nil
}

// lateLeaves are those that could not be removed when their execs ended, since what was in them did not go in time: it is in state D,
// or the machine starves. The next execs of the pod try again, so that what stays is what is stuck now. Containers take theirs along.
type lateLeaves struct {
	mu   sync.Mutex // guards what follows
	list []lateLeaf
}

type lateLeaf struct {
	*leaf
	end func(*leaf) // what is to become of what is in it
}

// lateMost are more than a pod has in peace; containers that make cgroups in their execs' could lengthen the list for ever.
const lateMost = 64

func (l *lateLeaves) add(late lateLeaf) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if len(l.list) < lateMost {
		l.list = append(l.list, late)
	}
}

// retry does not wait.
func (l *lateLeaves) retry() {
	l.mu.Lock()
	list := l.list
	l.list = nil
	l.mu.Unlock()
	for _, late := range list {
		if late.remove() == nil {
			continue
		}
		if late.end(late.leaf); late.remove() != nil {
			l.add(late)
		}
	}
}

// openLeaf makes a leaf for an exec, or returns nil where there can be none.
func (s *server) openLeaf(c *container) *leaf {
	s.late.retry()
	if s.noLeaves.Load() {
		return nil
	}
	l, err := s.newLeaf(c)
	if err != nil {
		s.giveUpLeaves(err)
		return nil
	}
	return l
}

// giveUpLeaves is about this pod's shim only: a process that ends at its deadline then takes along its tree and its sessions.
func (s *server) giveUpLeaves(cause error) {
	// In a cgroup that is being removed mkdir gives ENODEV (kernel/cgroup/cgroup.c, cgroup_mkdir), in one that is gone ENOENT.
	if errors.Is(cause, fs.ErrNotExist) || errors.Is(cause, unix.ENODEV) || errors.Is(cause, context.Canceled) {
		return // the container is ending
	}
	if s.noLeaves.CompareAndSwap(false, true) {
		s.complain(fmt.Errorf("execs get no cgroups of their own: %w", cause))
	}
}
