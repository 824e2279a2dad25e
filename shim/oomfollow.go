package shim

import (
	"os"
	"path/filepath"
	"sync"

	"golang.org/x/sys/unix"
)

// An oomFollower remembers what the kernel counted in a cgroup that goes with its last process: systemd removes a scope as soon
// as it is empty, often before the end of the first process is known here. The kernel tells of each change of memory.events
// (cgroup-v2.rst), at most every 10 ms.
type oomFollower struct {
	events *os.File // of inotify
	above  string   // the cgroup that holds this one, and outlives it
	before uint64   // kills counted there when this began

	mu            sync.Mutex // guards what follows
	kills, groups uint64
	limit         int64
}

// follow begins once the cgroup exists. Where there is nothing to follow, what can be read at the end must do.
func (w *oomWatch) follow() {
	for _, dir := range w.dirs {
		fd, err := unix.InotifyInit1(unix.IN_CLOEXEC | unix.IN_NONBLOCK)
		if err != nil {
			return
		}
		if _, err := unix.InotifyAddWatch(fd, filepath.Join(dir, "memory.events"), unix.IN_MODIFY); err != nil {
			unix.Close(fd)
			continue
		}
		f := &oomFollower{events: os.NewFile(uintptr(fd), "inotify"), above: filepath.Dir(dir)}
		f.before, _, _ = readOOM(f.above)
		f.look(dir)
		w.followed = f
		go f.run(dir)
		return
	}
}

// run ends when stop closes the file.
func (f *oomFollower) run(dir string) {
	var buffer [512]byte
	for {
		if _, err := f.events.Read(buffer[:]); err != nil {
			return
		}
		f.look(dir)
	}
}

func (f *oomFollower) look(dir string) {
	kills, groups, known := readOOM(dir)
	if !known {
		return // gone: what was seen before is the last
	}
	limit := memoryLimit(dir)
	f.mu.Lock()
	defer f.mu.Unlock()
	f.kills, f.groups = kills, groups
	if limit > 0 { // else it may have gone since
		f.limit = limit
	}
}

// last is what was seen last of the cgroup, which is gone. It is all if nothing was killed in the pod either: counters are
// those of the cgroups below, too. Otherwise the last kill may be missing.
func (f *oomFollower) last() (kills, groups uint64, all bool) {
	if f == nil {
		return 0, 0, false
	}
	now, _, known := readOOM(f.above)
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.kills, f.groups, known && now == f.before
}

func (f *oomFollower) lastLimit() int64 {
	if f == nil {
		return 0
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.limit
}

func (f *oomFollower) stop() {
	if f != nil {
		f.events.Close()
	}
}
