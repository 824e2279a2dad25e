package shim

import (
	"bytes"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// OOM says what the kernel killed in a container for want of memory. Victims are known by name only from the kernel's log.
type OOM struct {
	Kills  int    // processes killed, as the cgroup counts them or the kernel's log names them
	Victim string `json:",omitempty"` // name of the last one, or of the first process if it was one of them; empty: not known
	PID    int    `json:",omitempty"` // its pid
	Limit  int64  `json:",omitempty"` // bytes, of the cgroup that was full; 0: not known
	Group  string `json:",omitempty"` // that cgroup, if it is not the container's own; "/": the whole machine was out of memory
}

// oomWatch is what must be known from before a container starts.
type oomWatch struct {
	dirs   []string      // CreateRequest.Cgroup
	kills  uint64        // counted before: the cgroup may not be new
	groups uint64        // kills of the whole cgroup (memory.oom.group), before
	since  time.Duration // CLOCK_MONOTONIC, which the kernel's log goes by, but for its drift

	followed *oomFollower // nil: the counters are still there at the end
}

func watchOOM(dirs []string) oomWatch {
	w := oomWatch{dirs: dirs, since: monotonic()}
	w.kills, w.groups, _ = w.count()
	return w
}

func monotonic() time.Duration {
	var now unix.Timespec
	unix.ClockGettime(unix.CLOCK_MONOTONIC, &now)
	return time.Duration(now.Nano())
}

// count reads the counters. Not known: no cgroup is there, be it not yet or no longer.
func (w *oomWatch) count() (kills, groups uint64, known bool) {
	for _, dir := range w.dirs {
		if kills, groups, known = readOOM(dir); known {
			return kills, groups, known
		}
	}
	return 0, 0, false
}

func readOOM(dir string) (kills, groups uint64, known bool) {
	for _, name := range []string{"memory.oom_control", "memory.events"} {
		data, err := os.ReadFile(filepath.Join(dir, name))
		if err != nil {
			continue
		}
		kills, _ = oomCounter(data, "oom_kill ")
		groups, _ = oomCounter(data, "oom_group_kill ")
		return kills, groups, true
	}
	return 0, 0, false
}

// oomCounter finds a line: oom_kill in memory.oom_control since Linux 4.13 (v1), in memory.events (v2), where oom_group_kill
// came with 5.17.
func oomCounter(data []byte, name string) (uint64, bool) {
	for line := range bytes.Lines(data) {
		if value, ok := bytes.CutPrefix(line, []byte(name)); ok {
			n, err := strconv.ParseUint(string(bytes.TrimSpace(value)), 10, 64)
			return n, err == nil
		}
	}
	return 0, false
}

// How long the kernel may take from the signal to the line in its log, which the same function writes.
const kernelLogLag = 50 * time.Millisecond

// judge decides whether the end x of the first process was the work of the OOM killer, and tells what that killed.
//
// The counters cannot tell: a child may have been killed, and somebody else have killed the first process later. The kernel's log
// can: it names each victim's pid, never rate limited (mm/oom_kill.c, __oom_kill_process). Where it cannot be read, or we live in
// a PID namespace whose numbers it does not use, a SIGKILL that is not our own counts as the OOM killer's if it has killed anything.
func (w *oomWatch) judge(x *Exit, first Process, killedByUs bool) {
	kills, groups, known := w.count()
	if !known {
		kills, groups, known = w.followed.last()
	}
	defer w.followed.stop()
	killed := int(kills - min(kills, w.kills))
	bySignal := x.Signal == int(unix.SIGKILL)
	if known && killed == 0 || !known && !bySignal && w.followed == nil {
		return
	}
	victims, told := w.victims(first, bySignal)
	if !known {
		killed = max(killed, victims.inGroup())
	}
	switch _, isVictim := victims.find(first.PID); {
	case told:
		x.OOMKilled = bySignal && isVictim
	case groups > w.groups:
		x.OOMKilled = bySignal
	default:
		x.OOMKilled = bySignal && !killedByUs && (known || killed > 0)
	}
	if killed > 0 || x.OOMKilled {
		x.OOM = w.describe(victims, first, killed)
	}
}

// victims reads the kernel's log, and again while the first process may still be missing from it.
func (w *oomWatch) victims(first Process, bySignal bool) (v oomVictims, told bool) {
	for pause := time.Millisecond; ; pause *= 2 {
		v, told = readVictims(w.since)
		v = slices.DeleteFunc(v, func(v oomVictim) bool { return v.group != "" && !w.owns(v.group) })
		_, found := v.find(first.PID)
		if !told || found || !bySignal || pause > kernelLogLag/2 {
			return v, told
		}
		time.Sleep(pause)
	}
}

// describe prefers the first process, and among others the last.
func (w *oomWatch) describe(victims oomVictims, first Process, kills int) *OOM {
	o := &OOM{Kills: kills}
	victim, found := victims.find(first.PID)
	for _, v := range victims { // without a cgroup it may be another container's
		if !found && v.group != "" {
			victim = v
		}
	}
	o.Victim, o.PID = victim.name, victim.pid
	o.Kills = max(o.Kills, 1)
	switch {
	case len(w.dirs) == 0:
	case victim.limited != "" && victim.limited != victim.group:
		o.Group = victim.limited
		if root, ok := w.rootOf(victim.group); ok && victim.limited != "/" {
			o.Limit = memoryLimit(filepath.Join(root, victim.limited))
		}
	default:
		for _, dir := range w.dirs {
			o.Limit = max(o.Limit, memoryLimit(dir))
		}
		if o.Limit == 0 {
			o.Limit = w.followed.lastLimit()
		}
	}
	return o
}

// owns tells whether a cgroup, as the kernel names it, is the container's or below it. The kernel's path may begin above what is
// mounted here, so the container's own name decides, which no other has.
func (w *oomWatch) owns(group string) bool {
	for _, dir := range w.dirs {
		if strings.Contains(group+"/", "/"+filepath.Base(dir)+"/") {
			return true
		}
	}
	return len(w.dirs) == 0
}

// rootOf is where the hierarchy of a cgroup of the container is mounted.
func (w *oomWatch) rootOf(group string) (string, bool) {
	for _, dir := range w.dirs {
		if root, ok := strings.CutSuffix(dir, group); ok {
			return root, true
		}
	}
	return "", false
}

// memoryLimit of a cgroup in bytes; 0: none, or not known. Without a limit v1 shows a number near the greatest there is.
func memoryLimit(dir string) int64 {
	for _, name := range []string{"memory.max", "memory.limit_in_bytes"} {
		data, err := os.ReadFile(filepath.Join(dir, name))
		if err != nil {
			continue
		}
		if n, err := strconv.ParseInt(string(bytes.TrimSpace(data)), 10, 64); err == nil && n < 1<<62 {
			return n
		}
	}
	return 0
}
