package shim

import (
	"bytes"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// oomVictim is a process that the kernel's log says was killed for want of memory.
type oomVictim struct {
	pid     int
	name    string
	group   string // its cgroup, and
	limited string // the one that was full, "/" if the machine was; both empty: the log was not allowed to say (rate limit)
}

type oomVictims []oomVictim

// find takes the last one of a pid.
func (v oomVictims) find(pid int) (oomVictim, bool) {
	for i := len(v) - 1; i >= 0; i-- {
		if v[i].pid == pid {
			return v[i], true
		}
	}
	return oomVictim{}, false
}

// inGroup counts those of whom the log says which cgroup they were in.
func (v oomVictims) inGroup() (n int) {
	for _, victim := range v {
		if victim.group != "" {
			n++
		}
	}
	return n
}

// logReach: a log that reaches back neither to the container's start nor to so long ago may have lost what we look for.
const logReach = 10 * time.Second

// logDrift is what the kernel log's clock and CLOCK_MONOTONIC may have drifted apart: the latter is disciplined by NTP, by 100
// parts in a million for long at most. It must be small, since pids are used again.
func logDrift(now time.Duration) time.Duration { return time.Second + now/10_000 }

// initialPIDNamespace is the inode of the namespace whose numbers the kernel logs (PROC_PID_INIT_INO).
const initialPIDNamespace = 0xEFFFFFFC

// readVictims reads the whole kernel log. Told is false where it cannot be relied on: not readable, other pids than
// ours, or flooded.
func readVictims(since time.Duration) (victims oomVictims, told bool) {
	var namespace unix.Stat_t
	if err := unix.Stat("/proc/self/ns/pid", &namespace); err != nil || namespace.Ino != initialPIDNamespace {
		return nil, false
	}
	fd, err := unix.Open("/dev/kmsg", unix.O_RDONLY|unix.O_NONBLOCK|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, false
	}
	defer unix.Close(fd)
	var l kernelLog
	buffer := make([]byte, 8<<10) // a longer record is refused (EINVAL) and skipped
	for {
		n, err := unix.Read(fd, buffer)
		switch err {
		case nil:
			l.record(buffer[:n])
		case unix.EAGAIN:
			now := monotonic()
			return l.after(since - logDrift(now)), l.reachesBack(max(since, now-logReach) - logDrift(now))
		case unix.EPIPE, unix.EINTR, unix.EINVAL: // records were overwritten meanwhile, or one is too long: on to the next
		default:
			return nil, false
		}
	}
}

// kernelLog collects what records of the kernel's log say (Documentation/ABI/testing/dev-kmsg):
//
//	4,1234,5550091694,-;oom-kill:constraint=CONSTRAINT_MEMCG,nodemask=(null),cpuset=c,mems_allowed=0,oom_memcg=/a,task_memcg=/a/b,task=sh,pid=77,uid=0
//	3,1235,5550091699,-;Memory cgroup out of memory: Killed process 77 (sh) total-vm:...
type kernelLog struct {
	records int
	whole   bool          // nothing was ever overwritten
	first   time.Duration // time of the oldest record
	victims []timedVictim
	causes  map[int]oomVictim // by pid, from the lines that say why
}

type timedVictim struct {
	oomVictim
	at time.Duration
}

func (l *kernelLog) after(since time.Duration) (victims oomVictims) {
	for _, v := range l.victims {
		if v.at >= since {
			victims = append(victims, v.oomVictim)
		}
	}
	return victims
}

func (l *kernelLog) reachesBack(to time.Duration) bool {
	return l.records > 0 && (l.whole || l.first < to)
}

func (l *kernelLog) record(data []byte) {
	head, message, _ := bytes.Cut(data, []byte(";"))
	at := recordTime(head)
	if l.records++; l.records == 1 {
		l.first, l.whole = at, bytes.Contains(head, []byte(",0,"))
	}
	message, _, _ = bytes.Cut(message, []byte("\n"))
	if cause, ok := bytes.CutPrefix(message, []byte("oom-kill:")); ok {
		l.cause(string(cause))
		return
	}
	// "Memory cgroup out of memory: Killed process …", "Out of memory: Killed process …"
	if _, victim, ok := bytes.Cut(message, []byte("ut of memory: Killed process ")); ok {
		l.victim(string(victim), at)
	} else if _, victim, ok := bytes.Cut(message, []byte("ut of memory (oom_kill_allocating_task): Killed process ")); ok {
		l.victim(string(victim), at)
	}
}

func recordTime(head []byte) time.Duration {
	fields := bytes.SplitN(head, []byte(","), 4)
	if len(fields) < 3 {
		return 0
	}
	micros, _ := strconv.ParseInt(string(fields[2]), 10, 64)
	return time.Duration(micros) * time.Microsecond
}

func (l *kernelLog) victim(text string, at time.Duration) {
	number, rest, _ := strings.Cut(text, " (")
	pid, err := strconv.Atoi(number)
	if err != nil {
		return
	}
	name := rest
	if end := strings.Index(rest, ") total-vm:"); end >= 0 {
		name = rest[:end]
	}
	v := l.causes[pid]
	v.pid, v.name = pid, name
	l.victims = append(l.victims, timedVictim{v, at})
}

// cause reads the fields from behind, since names of cgroups may hold commas.
func (l *kernelLog) cause(text string) {
	v := oomVictim{}
	text, _, _ = cutLast(text, ",uid=")
	text, pid, _ := cutLast(text, ",pid=")
	text, v.name, _ = cutLast(text, ",task=")
	text, v.group, _ = cutLast(text, ",task_memcg=")
	if _, group, found := cutLast(text, ",oom_memcg="); found {
		v.limited = group
	} else if strings.HasSuffix(text, ",global_oom") {
		v.limited = "/"
	}
	if v.pid, _ = strconv.Atoi(pid); v.pid == 0 {
		return
	}
	if l.causes == nil {
		l.causes = map[int]oomVictim{}
	}
	l.causes[v.pid] = v
}

func cutLast(s, separator string) (before, after string, found bool) {
	if i := strings.LastIndex(s, separator); i >= 0 {
		return s[:i], s[i+len(separator):], true
	}
	return s, "", false
}
