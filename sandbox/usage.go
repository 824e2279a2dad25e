package sandbox

import (
	"math"
	"path/filepath"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/evenkeel/evenkeel/internal/namespace"
)

// Where the file system does not count it (usage_project.go), a writable layer is counted by walking it, which can take seconds. No request waits for that: it gets the last count,
// with its time, and asks for a new one when that is old. One thread at a time counts, when nobody else wants the
// processor or the disk; there is none while nobody asks.

const (
	// usageMaxAge is how old a count may be before a request asks for the next.
	usageMaxAge = 15 * time.Second
	// usageShare bounds what counting costs: a walk that took a second is not repeated for twenty.
	usageShare = 20
)

// usageCache is what is known of a container's use of resources beyond the kernel's counters.
type usageCache struct {
	cpu   cpuRate
	layer atomic.Pointer[layerCount] // nil: never counted
	asked atomic.Bool                // in the queue of the counter
}

// layerCount is how large a writable layer was.
type layerCount struct {
	at            time.Time
	took          time.Duration
	bytes, inodes uint64
}

// layerCounter counts one layer after the other.
type layerCounter struct {
	mu       sync.Mutex
	waiting  []*container
	counting bool // a thread is at work
}

// writableLayer answers with the last count. Before the first one there is only what every layer begins with: its
// directory, and nothing in it.
func (c *container) writableLayer() *cri.FilesystemUsage {
	count := c.layerCount()
	return &cri.FilesystemUsage{
		Timestamp: count.at.UnixNano(), FsId: &cri.FilesystemIdentifier{Mountpoint: c.Root},
		UsedBytes: number(count.bytes), InodesUsed: number(count.inodes),
	}
}

func (c *container) layerCount() layerCount {
	if now, ok := c.countedLayer(); ok {
		return now
	}
	last := c.usage.layer.Load()
	if last == nil {
		c.layers.ask(c)
		return layerCount{at: c.facts().CreatedAt, bytes: 4096, inodes: 1}
	}
	if time.Since(last.at) > max(usageMaxAge, usageShare*last.took) {
		c.layers.ask(c)
	}
	return *last
}

// ask puts a container into the queue, once, and starts a thread if none is at work.
func (l *layerCounter) ask(c *container) {
	if c.usage.asked.Swap(true) {
		return
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	l.waiting = append(l.waiting, c)
	if !l.counting {
		l.counting = true
		go namespace.OnThrowawayThread(l.work)
	}
}

func (l *layerCounter) next() *container {
	l.mu.Lock()
	defer l.mu.Unlock()
	if len(l.waiting) == 0 {
		l.counting, l.waiting = false, nil
		return nil
	}
	c := l.waiting[0]
	l.waiting = l.waiting[1:]
	return c
}

// work counts until nobody waits. The thread is thrown away afterwards, and its low priority with it.
func (l *layerCounter) work() error {
	unix.Setpriority(unix.PRIO_PROCESS, 0, 19) // 0 is the calling thread, setpriority(2)
	const who, idle = 1, 3 << 13               // IOPRIO_WHO_PROCESS, IOPRIO_CLASS_IDLE
	unix.Syscall(unix.SYS_IOPRIO_SET, who, 0, idle)
	for c := l.next(); c != nil; c = l.next() {
		begun := time.Now()
		if bytes, inodes, err := occupied(filepath.Join(c.containerRoot(c.id), "upper")); err == nil {
			c.usage.layer.Store(&layerCount{at: begun, took: time.Since(begun), bytes: bytes, inodes: inodes})
		}
		c.usage.asked.Store(false)
	}
	return nil
}

// occupied counts the bytes, as allocated on disk, and the inodes below dir, hard links once. Whoever runs in the
// container may change the tree meanwhile: directories are opened below dir only, never through a link, and what is
// gone is not counted.
func occupied(dir string) (bytes, inodes uint64, err error) {
	w, err := beginWalk(dir)
	if err != nil {
		return 0, 0, err
	}
	defer unix.Close(w.root)
	for w.step() {
	}
	bytes, inodes = w.total()
	return bytes, inodes, nil
}

// linkedLimit is how many inodes with several names a walk remembers, to count them once: some MiB. Of the others each name counts
// for its share, which comes to the same unless some of the names are elsewhere.
const linkedLimit = 1 << 16

// layerWalk is one walk over a tree, depth first. It takes a descriptor or two, and per level of the tree no more than the
// directories of one read: a container can make a million of them beside each other, far below.
type layerWalk struct {
	root          int
	device        uint64
	bytes, inodes uint64
	linked        map[uint64]bool // inodes with several names
	limit         int             // of linked
	sharedBytes   float64         // of names beyond it
	sharedInodes  float64
	way           []place // from the root to where the walk is
	buffer        []byte
}

// place is a directory that is being read.
type place struct {
	path   string
	offset int64    // up to where it was read
	below  []string // directories of the last read that the walk has still to enter
}

func beginWalk(dir string) (*layerWalk, error) {
	root, err := unix.Open(dir, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, err
	}
	var st unix.Stat_t
	if err := unix.Fstat(root, &st); err != nil {
		unix.Close(root)
		return nil, err
	}
	w := &layerWalk{root: root, device: st.Dev, linked: map[uint64]bool{}, limit: linkedLimit, way: []place{{path: "."}}, buffer: make([]byte, 8<<10)}
	w.add(&st)
	return w, nil
}

// step enters one directory, or reads on in the one where the walk is. False means that it is over.
func (w *layerWalk) step() bool {
	if len(w.way) == 0 {
		return false
	}
	at := &w.way[len(w.way)-1]
	if last := len(at.below) - 1; last >= 0 {
		name := at.below[last]
		at.below = at.below[:last]
		w.way = append(w.way, place{path: filepath.Join(at.path, name)})
	} else if w.read(at); len(at.below) == 0 {
		w.way = w.way[:len(w.way)-1]
	}
	return true
}

func (w *layerWalk) total() (bytes, inodes uint64) {
	return w.bytes + uint64(math.Round(w.sharedBytes)), w.inodes + uint64(math.Round(w.sharedInodes))
}

func (w *layerWalk) add(st *unix.Stat_t) {
	if st.Nlink > 1 && st.Mode&unix.S_IFMT != unix.S_IFDIR {
		if w.linked[st.Ino] {
			return
		}
		if len(w.linked) == w.limit {
			w.sharedBytes += float64(st.Blocks) * 512 / float64(st.Nlink)
			w.sharedInodes += 1 / float64(st.Nlink)
			return
		}
		w.linked[st.Ino] = true
	}
	w.bytes += uint64(st.Blocks) * 512
	w.inodes++
}

// read goes on in a directory up to the next ones in it, or to its end.
func (w *layerWalk) read(at *place) {
	fd, err := unix.Openat2(w.root, at.path, &unix.OpenHow{
		Flags:   unix.O_RDONLY | unix.O_DIRECTORY | unix.O_CLOEXEC | unix.O_NOATIME,
		Resolve: unix.RESOLVE_BENEATH | unix.RESOLVE_NO_SYMLINKS | unix.RESOLVE_NO_XDEV,
	})
	if err != nil {
		return // gone, replaced, or deeper than a path may be long
	}
	defer unix.Close(fd)
	if _, err := unix.Seek(fd, at.offset, unix.SEEK_SET); err != nil {
		return
	}
	for len(at.below) == 0 {
		n, err := unix.ReadDirent(fd, w.buffer)
		if n <= 0 || err != nil {
			return
		}
		_, _, entries := unix.ParseDirent(w.buffer[:n], -1, nil)
		for _, entry := range entries {
			if w.entry(fd, entry) {
				at.below = append(at.below, entry)
			}
		}
	}
	if at.offset, err = unix.Seek(fd, 0, unix.SEEK_CUR); err != nil {
		at.below = nil
	}
}

// entry counts one entry, and tells whether it is a directory to be entered.
func (w *layerWalk) entry(fd int, name string) bool {
	var st unix.Stat_t
	if unix.Fstatat(fd, name, &st, unix.AT_SYMLINK_NOFOLLOW) != nil || st.Dev != w.device {
		return false
	}
	w.add(&st)
	return st.Mode&unix.S_IFMT == unix.S_IFDIR
}
