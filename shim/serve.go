package shim

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"

	"github.com/evenkeel/evenkeel/internal/atomicfile"
	"github.com/evenkeel/evenkeel/oci/runc"
)

// server is a running shim.
type server struct {
	config   Config
	self     Process
	listener *os.File
	dir      int // config.Dir, for paths that must be short
	quiet    quiet
	leaves   func() runc.SubCgroups // what the runtime takes, asked once
	noLeaves atomic.Bool            // execs in this pod get no cgroups of their own
	late     lateLeaves
	reaper   *reaper
	done     chan struct{} // closed once Shutdown was granted

	mu         sync.Mutex
	containers map[string]*container    // nil while one is being made
	making     map[string]chan struct{} // of those, closed when it is made or nothing is left of it
	init       Process
	initFD     *os.File
	starting   chan struct{} // closed when the init that is being started has started or failed
	stopped    bool
	serial     int // for names of temporary files
}

// Serve is the shim: it reads shim.json in the working directory and answers calls until one of them is Shutdown.
func Serve() error {
	c, err := readConfig()
	if err != nil {
		return err
	}
	s, err := newServer(c)
	if err != nil {
		return fmt.Errorf("cannot serve pod %s: %w", c.PodID, err)
	}
	go s.accept()
	<-s.done
	return nil
}

// CloseInherited closes descriptors that were passed on by accident: by a daemon whose own parent had forgotten some. All
// that Go opens is close-on-exec, so what is not has come from outside. Only stdio and descriptor 3 come on purpose.
func CloseInherited() {
	entries, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		return
	}
	for _, e := range entries {
		fd, err := strconv.Atoi(e.Name())
		if err != nil || fd <= listenerFD {
			continue
		}
		if flags, err := unix.FcntlInt(uintptr(fd), unix.F_GETFD, 0); err == nil && flags&unix.FD_CLOEXEC == 0 {
			unix.Close(fd)
		}
	}
}

func readConfig() (c Config, err error) {
	data, err := os.ReadFile(configName)
	if err != nil {
		return c, fmt.Errorf("cannot read the shim's configuration: %w", err)
	}
	if err := json.Unmarshal(data, &c); err != nil {
		return c, fmt.Errorf("cannot read %s: %w", configName, err)
	}
	return c, nil
}

func newServer(c Config) (*server, error) {
	resetLibcSignals()
	for _, knob := range runtimeKnobs {
		name, _, _ := strings.Cut(knob, "=")
		os.Unsetenv(name)
	}
	null, err := os.OpenFile(os.DevNull, os.O_RDWR, 0)
	if err != nil {
		return nil, err
	}
	// Orphans of the container runtime, among them every container and exec, become our children.
	if err := unix.Prctl(unix.PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0); err != nil {
		return nil, fmt.Errorf("cannot become a subreaper: %w", err)
	}
	s := &server{config: c, done: make(chan struct{}), containers: map[string]*container{}, making: map[string]chan struct{}{},
		reaper: &reaper{null: null, claims: map[int]chan<- ending{}, births: map[*birth]struct{}{}}}
	s.leaves = sync.OnceValue(func() runc.SubCgroups {
		ctx, cancel := context.WithTimeout(context.Background(), askLimit)
		defer cancel()
		return s.runtime(ctx).SubCgroups(ctx)
	})
	s.reaper.oom.protect(shimOOMScore)
	s.reaper.run()
	if s.dir, err = openDir(c.Dir); err != nil {
		return nil, err
	}
	if s.listener, err = s.inheritListener(); err != nil {
		return nil, err
	}
	if s.self, err = processOf(os.Getpid()); err != nil {
		return nil, err
	}
	pid := fmt.Sprintf("%d %d\n", s.self.PID, s.self.Start)
	return s, atomicfile.Write(filepath.Join(c.Dir, pidName), []byte(pid), 0o600)
}

// inheritListener takes what Spawn handed down, or makes a socket, for a shim that a human started.
func (s *server) inheritListener() (*os.File, error) {
	fd := listenerFD
	if on, err := unix.GetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_ACCEPTCONN); err != nil || on == 0 {
		if err := vacate(s.config.Dir); err != nil {
			return nil, err
		}
		if fd, err = listenAt(s.dir, socketName); err != nil {
			return nil, err
		}
	}
	unix.CloseOnExec(fd)
	return os.NewFile(uintptr(fd), socketName), unix.SetNonblock(fd, true)
}

func (s *server) accept() {
	for {
		conn, err := accept(s.listener)
		if err != nil && s.isStopped() {
			return
		}
		if err != nil {
			s.complain(fmt.Errorf("cannot accept a call: %w", err))
			time.Sleep(100 * time.Millisecond) // out of descriptors or memory: no event tells when there are some again
			continue
		}
		go s.serve(conn)
	}
}

// complain writes to shim.log, the shim's stderr. It holds what no caller hears of.
func (s *server) complain(err error) {
	fmt.Fprintln(os.Stderr, time.Now().UTC().Format(time.RFC3339Nano), err)
}

func (s *server) serve(conn *os.File) {
	defer conn.Close()
	var r request
	files, err := receive(conn, &r)
	if err != nil {
		return // nobody is there to be told
	}
	defer closeAll(files)
	answer, err := s.answer(conn, r, files)
	answer.Version = Version
	if err != nil {
		answer.Error = failureOf(err)
	}
	send(conn, answer)
	if r.Call == "shutdown" && err == nil {
		close(s.done)
	}
}

// answer calls one method. Calls that can take long end when the connection does.
func (s *server) answer(conn *os.File, r request, files []*os.File) (answer reply, err error) {
	if r.Version < 1 || r.Version > Version+reach {
		return answer, fmt.Errorf("this shim of version %d listens to version 1 to %d of the protocol, not %d", Version, Version+reach, r.Version)
	}
	streams, err := byStream(r, files)
	if err != nil {
		return answer, err
	}
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	if left(conn) {
		return answer, errors.New("the caller has gone") // while the shim could not take the call; what nobody waits for is not begun
	}
	hungUp := func() context.Context {
		go func() { io.ReadFull(conn, make([]byte, 1)); cancel() }()
		return ctx
	}
	switch r.Call {
	case "state":
		answer.State = s.state()
	case "create":
		answer.Process, err = s.create(hungUp(), r.Create)
	case "start":
		answer.At, err = s.start(r.ID)
	case "wait":
		answer.Exit, err = s.wait(hungUp(), r.ID)
	case "exec":
		defer s.quiet.worked()
		answer.Exit, err = s.exec(hungUp(), r, streams)
	case "attach":
		err = s.attach(hungUp(), r.ID, streams)
	case "reopenLog":
		err = s.reopenLog(hungUp(), r.ID)
	case "init":
		answer.Process, err = s.startInit(r.Init)
	case "forget":
		err = s.forget(hungUp(), r.ID)
	case "shutdown":
		err = s.shutdown()
	case "signal", "resize":
		err = s.touch(r)
	default: // of a later version; not to be confused with an unknown container
		err = fmt.Errorf("this shim of version %d knows no call %q", Version, r.Call)
	}
	return answer, err
}

// askLimit is how long the runtime may take to say what it takes.
const askLimit = 10 * time.Second

// left reports whether the caller has gone already.
func left(conn *os.File) (gone bool) {
	control(conn, func(fd int) error {
		n, _, err := unix.Recvfrom(fd, make([]byte, 1), unix.MSG_PEEK|unix.MSG_DONTWAIT)
		gone = n == 0 && err == nil
		return err
	})
	return gone
}

// touch is the calls that ask one thing of one container and return at once.
func (s *server) touch(r request) error {
	c, err := s.get(r.ID)
	if err != nil {
		return err
	}
	if r.Call == "signal" {
		return c.signal(unix.Signal(r.Signal))
	}
	return c.resize(r.Width, r.Height)
}

func (s *server) reopenLog(ctx context.Context, id string) error {
	c, err := s.get(id)
	if err != nil {
		return err
	}
	return c.reopenLog(ctx)
}

// byStream puts the received descriptors at the places they were sent for. The kernel leaves out those that the receiver has
// no numbers for (unix(7), SCM_RIGHTS), and a stream that is missing would read as one that is not wanted.
func byStream(r request, files []*os.File) (streams [3]*os.File, err error) {
	for i := range streams {
		if !r.Files[i] {
			continue
		}
		if len(files) == 0 {
			return streams, errors.New("the shim has not received all descriptors of the call: it may have too many open")
		}
		streams[i], files = files[0], files[1:]
	}
	return streams, nil
}

// runtime runs each command under ctx, through the reaper.
func (s *server) runtime(ctx context.Context) *runc.Runc {
	return &runc.Runc{Path: s.config.Runtime, Root: s.config.RuntimeRoot, SystemdCgroup: s.config.SystemdCgroup,
		Run: func(cmd *exec.Cmd) error { return s.reaper.command(ctx, cmd) }}
}

func (s *server) get(id string) (*container, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if c := s.containers[id]; c != nil {
		return c, nil
	}
	return nil, fmt.Errorf("container %s: %w", id, ErrNotFound)
}

func (s *server) state() *State {
	s.mu.Lock()
	defer s.mu.Unlock()
	state := &State{Version: Version, PodID: s.config.PodID, Process: s.self, Init: s.init}
	for _, c := range s.containers {
		if c != nil {
			state.Containers = append(state.Containers, c.state())
		}
	}
	slices.SortFunc(state.Containers, func(a, b ContainerState) int { return strings.Compare(a.ID, b.ID) })
	return state
}

// unique names a temporary file in Dir.
func (s *server) unique(kind string) string {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.serial++
	return fmt.Sprintf("%s-%d", kind, s.serial)
}

func (s *server) isStopped() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.stopped
}

func (s *server) shutdown() error {
	ended, err := s.stop()
	if err != nil {
		return err
	}
	for _, c := range ended {
		if s.take(c) {
			c.release()
		}
	}
	s.killCommands()
	s.listener.Close()
	unix.Unlinkat(s.dir, socketName, 0)
	unix.Unlinkat(s.dir, pidName, 0)
	return nil
}

// killCommands ends what the runtime's commands still do, which would be nobody's: one that hangs in an exec, for example.
func (s *server) killCommands() {
	for _, pid := range children(s.self.PID) {
		if stat, err := readStat(pid); err == nil && stat.state != 'Z' && pid != s.init.PID {
			killTree(pid)
		}
	}
}

// stop ends the init and lets nothing new begin, or refuses to.
func (s *server) stop() (ended []*container, err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.stopped {
		return nil, errors.New("shim is shutting down already")
	}
	for id, c := range s.containers {
		if c == nil || !c.hasEnded() {
			return nil, fmt.Errorf("cannot shut down the shim of pod %s: container %s lives", s.config.PodID, id)
		}
		ended = append(ended, c)
	}
	if s.starting != nil { // it would outlive its shim
		return nil, fmt.Errorf("cannot shut down the shim of pod %s: its init is being started", s.config.PodID)
	}
	s.stopped = true
	if s.initFD != nil {
		signalFile(s.initFD, unix.SIGKILL)
	}
	return ended, nil
}
