package integration

import (
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// A fuseServer is a file system with one directory, "dir", that answers or does not, as a test wants. It speaks the
// kernel's protocol itself (linux/fuse.h, 7.31), since a library would answer what must stay unanswered.
type fuseServer struct {
	dir string // where it is mounted
	dev *os.File

	mu            sync.Mutex
	silent        func(command string) bool // whether a process of this name gets no answer; nil: nobody does
	ignored       string                    // a name in the root whose lookups get no answer from now on
	interruptible bool                      // whether a request whose process was killed is given up
	unanswered    map[uint64]bool
	once          sync.Once
}

// The requests that are answered.
const (
	fuseLookup    = 1
	fuseForget    = 2
	fuseGetattr   = 3
	fuseInit      = 26
	fuseInterrupt = 36
	fuseForgets   = 42
	fuseHeader    = 40
)

// serveFuse mounts a file system that answers everything, until it is told otherwise. It is gone when the test ends.
func serveFuse(t *testing.T) *fuseServer {
	t.Helper()
	fd, err := unix.Open("/dev/fuse", unix.O_RDWR|unix.O_NONBLOCK|unix.O_CLOEXEC, 0)
	if err != nil {
		t.Fatalf("cannot open /dev/fuse: %v: load the kernel's fuse module", err)
	}
	dir, err := os.MkdirTemp("/tmp", "ektest-fuse-") // t.TempDir would be removed with a blocking walk
	must(t, err)
	err = unix.Mount("ektest", dir, "fuse.ektest", unix.MS_NOSUID|unix.MS_NODEV, fmt.Sprintf("fd=%d,rootmode=40000,user_id=0,group_id=0,allow_other", fd))
	// Go's poller may see the descriptor only now: before the mount, the kernel registers nobody for its events.
	s := &fuseServer{dir: dir, dev: os.NewFile(uintptr(fd), "/dev/fuse"), unanswered: map[uint64]bool{}, silent: func(string) bool { return false }}
	t.Cleanup(func() { s.close(); os.Remove(dir) })
	must(t, err)
	go s.serve()
	return s
}

// close is the end of the server: whoever waits gets an error from the kernel.
func (s *fuseServer) close() {
	s.once.Do(func() {
		s.dev.Close()
		unix.Unmount(s.dir, unix.MNT_DETACH)
	})
}

// quieten lets processes wait for ever.
func (s *fuseServer) quieten(interruptible bool, who func(command string) bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.silent, s.interruptible = who, interruptible
}

// ignore lets whoever looks for this name wait for ever; everything else is answered.
func (s *fuseServer) ignore(name string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.ignored = name
}

// waiting counts the requests that nobody will answer.
func (s *fuseServer) waiting() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return len(s.unanswered)
}

func (s *fuseServer) serve() {
	request := make([]byte, 1<<20)
	for {
		n, err := s.dev.Read(request)
		if errors.Is(err, unix.ENOENT) || errors.Is(err, unix.EINTR) { // the request was taken back
			continue
		}
		if err != nil || n < fuseHeader {
			return
		}
		s.answer(request[:n])
	}
}

func (s *fuseServer) answer(request []byte) {
	op, unique, pid := binary.LittleEndian.Uint32(request[4:]), binary.LittleEndian.Uint64(request[8:]), binary.LittleEndian.Uint32(request[32:])
	switch {
	case op == fuseForget || op == fuseForgets:
		return
	case op == fuseInterrupt:
		s.interrupt(binary.LittleEndian.Uint64(request[fuseHeader:]))
		return
	case op != fuseInit && s.ignores(unique, pid):
		return
	case op == fuseLookup && s.ignoresName(unique, strings.TrimRight(string(request[fuseHeader:]), "\x00")):
		return
	}
	switch body := request[fuseHeader:]; op {
	case fuseInit:
		out := binary.LittleEndian.AppendUint32(nil, 7)
		out = binary.LittleEndian.AppendUint32(out, 31)
		s.reply(unique, 0, append(out, make([]byte, 56)...))
	case fuseGetattr:
		s.reply(unique, 0, append(make([]byte, 16), directory(binary.LittleEndian.Uint64(request[16:]))...))
	case fuseLookup:
		if name := strings.TrimRight(string(body), "\x00"); name != "dir" {
			s.reply(unique, unix.ENOENT, nil)
			return
		}
		s.reply(unique, 0, append(append(binary.LittleEndian.AppendUint64(nil, 2), make([]byte, 32)...), directory(2)...))
	default:
		s.reply(unique, unix.ENOSYS, nil)
	}
}

func (s *fuseServer) ignores(unique uint64, pid uint32) bool {
	name, _ := os.ReadFile(fmt.Sprintf("/proc/%d/comm", pid))
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.silent != nil && !s.silent(strings.TrimSpace(string(name))) {
		return false
	}
	s.unanswered[unique] = true
	return true
}

func (s *fuseServer) ignoresName(unique uint64, name string) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if name != s.ignored {
		return false
	}
	s.unanswered[unique] = true
	return true
}

// interrupt is sent for a request whose process has got a signal.
func (s *fuseServer) interrupt(unique uint64) {
	s.mu.Lock()
	gives := s.interruptible && s.unanswered[unique]
	if gives {
		delete(s.unanswered, unique)
	}
	s.mu.Unlock()
	if gives {
		s.reply(unique, unix.EINTR, nil)
	}
}

func (s *fuseServer) reply(unique uint64, errno unix.Errno, body []byte) {
	if errno != 0 {
		body = nil
	}
	out := binary.LittleEndian.AppendUint32(nil, uint32(16+len(body)))
	out = binary.LittleEndian.AppendUint32(out, uint32(-int32(errno)))
	out = binary.LittleEndian.AppendUint64(out, unique)
	s.dev.Write(append(out, body...))
}

// directory is a struct fuse_attr. It is valid for no time, so that every look at it is a request.
func directory(node uint64) []byte {
	out := make([]byte, 88)
	binary.LittleEndian.PutUint64(out, node)
	binary.LittleEndian.PutUint32(out[60:], unix.S_IFDIR|0o755)
	binary.LittleEndian.PutUint32(out[64:], 2)
	binary.LittleEndian.PutUint32(out[80:], 4096)
	return out
}

func TestFuseServer(t *testing.T) {
	s := serveFuse(t)
	if info, err := os.Stat(s.dir + "/dir"); err != nil || !info.IsDir() {
		t.Fatalf("%v, %v", info, err)
	}
	s.quieten(false, nil)
	done := make(chan error, 1)
	go func() { _, err := os.Stat(s.dir + "/dir"); done <- err }()
	select {
	case err := <-done:
		t.Fatalf("a silent file system answered: %v", err)
	case <-time.After(100 * time.Millisecond):
	}
	s.close()
	if err := <-done; err == nil {
		t.Error("a file system that is gone answered")
	}
}
