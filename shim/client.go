package shim

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// Version of the protocol between daemon and shim. A daemon speaks with shims of this version and the two before it.
const Version = 1

// reach is how many versions a daemon may be ahead of its shims. Both ends keep to it: a shim lives on while the daemon is
// replaced, so the shims of today have to listen to the daemons to come.
const reach = 2

// oldest is the first version this daemon still speaks with.
const oldest = max(1, Version-reach)

// Client calls the shim whose socket is Dir/shim.sock. Each call is one connection; ending ctx closes it, which cancels
// the call in the shim. A shim that is gone gives an error matching ErrGone; one that is silent blocks until ctx ends.
type Client struct{ Dir string }

// ErrGone matches the error of a call to a shim that no longer listens, or died while it was asked.
// ErrNotFound matches the error of a call about a container the shim does not hold.
// What the OCI runtime refused arrives as a *runc.Error. Everything else is told apart by message only.
var (
	ErrGone     = errors.New("shim is gone")
	ErrNotFound = errors.New("shim holds no such container")
)

// State is all a shim knows; a daemon that restarts rebuilds its view from it.
type State struct {
	Version    int
	PodID      string
	Process    Process // the shim itself
	Init       Process // the reaping init of a pod with a shared PID namespace, else zero
	Containers []ContainerState
}

// ContainerState is one container as its shim knows it.
type ContainerState struct {
	ID        string
	Process   Process
	StartedAt time.Time // zero until started
	Starting  bool      `json:",omitempty"` // a start is under way, and began at StartedAt: it may fail yet
	Exit      *Exit     // nil while it lives
	LogBytes  uint64    // written to its log, notices included
	LogLost   uint64    // bytes of log that were dropped
	Runtime   bool      // false once the OCI runtime's own state was deleted, which the shim does after an exit
}

// CreateRequest asks for `runtime create`.
type CreateRequest struct {
	ID        string
	Bundle    string // directory with config.json
	LogPath   string // absolute; empty: output is read and dropped
	TTY       bool
	Stdin     bool       // keep stdin open for attach
	StdinOnce bool       // close it after the first attach that had one
	Owner     Owner      // of the pipes, so that the container can open its /dev/stdout anew
	Log       *LogPolicy `json:",omitempty"`
	Cgroup    []string   // absolute directories whose OOM counters belong to the container (memory.oom_control on v1, memory.events on v2)
}

// Owner is a user and a group as the host sees them; the zero value is root.
type Owner struct{ UID, GID int }

// State asks for everything at once.
func (c Client) State(ctx context.Context) (State, error) {
	r, err := c.call(ctx, request{Call: "state"})
	if err != nil || r.State == nil {
		return State{}, err
	}
	return *r.State, nil
}

// Create makes a container and leaves it before its entrypoint. After an error, or when ctx ends before the answer, the
// shim removes whatever the attempt had made.
func (c Client) Create(ctx context.Context, r CreateRequest) (Process, error) {
	answer, err := c.call(ctx, request{Call: "create", ID: r.ID, Create: &r})
	if err != nil || answer.Process == nil {
		return Process{}, err
	}
	return *answer.Process, nil
}

// Start lets the entrypoint run. Starting again what was started answers with the same time; the end of ctx does not stop
// a start that is under way.
func (c Client) Start(ctx context.Context, id string) (startedAt time.Time, err error) {
	r, err := c.call(ctx, request{Call: "start", ID: id})
	return r.At, err
}

// Wait returns when the container's first process has ended; the exit file exists by then.
func (c Client) Wait(ctx context.Context, id string) (Exit, error) {
	return c.exit(ctx, request{Call: "wait", ID: id})
}

// Signal sends a signal to the container's first process through its pidfd; a process that has ended is no error.
func (c Client) Signal(ctx context.Context, id string, signal syscall.Signal) error {
	_, err := c.call(ctx, request{Call: "signal", ID: id, Signal: int(signal)})
	return err
}

// ExecRequest asks for `runtime exec --detach`.
type ExecRequest struct {
	ID            string // container
	Process       []byte // runtime-spec process document
	ConsoleSocket string // absolute path of a listening unix socket of the caller, if the process has a terminal

	// KillRest ends what the process has left running when it ends: daemons that a probe started. It takes a cgroup of
	// the exec's own; where there can be none (see leaf) only the end of ctx kills, and only what is still below the process.
	KillRest bool
}

// Exec runs a process in a container and returns when it has ended. The descriptors (nil: /dev/null) are handed to the
// process itself, so its output never passes through the shim. When ctx ends the process and all it
// has started get SIGKILL.
//
// An error that is a *runc.Error means the process never ran. The runtime may have written the same message to stderr,
// which was already the process's.
func (c Client) Exec(ctx context.Context, r ExecRequest, stdin, stdout, stderr *os.File) (Exit, error) {
	return c.exit(ctx, request{Call: "exec", ID: r.ID, Process: r.Process, ConsoleSocket: r.ConsoleSocket, KillRest: r.KillRest}, stdin, stdout, stderr)
}

// Attach connects descriptors (nil: not wanted) to a running container's streams, and returns when its output ends, the
// peer of all descriptors has gone, or ctx ends. What a slow reader does not take in time is dropped for that reader only.
//
// The shim makes the descriptors non-blocking, which their other owners see: hand over pipes or sockets made for this.
func (c Client) Attach(ctx context.Context, id string, stdin, stdout, stderr *os.File) error {
	_, err := c.call(ctx, request{Call: "attach", ID: id}, stdin, stdout, stderr)
	return err
}

// Resize sets the size of a container's terminal.
func (c Client) Resize(ctx context.Context, id string, width, height uint16) error {
	_, err := c.call(ctx, request{Call: "resize", ID: id, Width: width, Height: height})
	return err
}

// ReopenLog opens the log path anew; where the output has ended it leaves an empty file. On error the shim goes on with the file it has; when ctx ends before storage that does
// not answer, it takes the new one whenever it gets it.
func (c Client) ReopenLog(ctx context.Context, id string) error {
	_, err := c.call(ctx, request{Call: "reopenLog", ID: id})
	return err
}

// Forget drops an ended container from the shim; one that is not there is no error. It first waits until the OCI runtime's
// state is deleted: after a nil error the runtime knows no such container either, and its log is closed.
func (c Client) Forget(ctx context.Context, id string) error {
	_, err := c.call(ctx, request{Call: "forget", ID: id})
	return err
}

// InitRequest asks for the first process of a pod that shares one PID namespace.
type InitRequest struct {
	Namespaces []string // namespace files to join first: network, ipc, uts
	Cgroups    []string // directories to whose cgroup.procs it is added
	// Owned, if set, are namespaces to make instead of joining any: no program with threads can join a user namespace.
	Owned *OwnedNamespaces
}

// OwnedNamespaces are a new user namespace and what it owns.
type OwnedNamespaces struct {
	FirstID, IDs int  // user and group ids from 0 on are those of the host from FirstID on
	Flags        uint // CLONE_NEWNET, CLONE_NEWIPC, CLONE_NEWUTS; the PID namespace is always among them
}

// Init starts the reaping init in a new PID namespace; a second call answers with the same process.
func (c Client) Init(ctx context.Context, r InitRequest) (Process, error) {
	answer, err := c.call(ctx, request{Call: "init", Init: &r})
	if err != nil || answer.Process == nil {
		return Process{}, err
	}
	return *answer.Process, nil
}

// Shutdown ends the shim: it closes its logs and kills the init. It refuses while a container lives.
func (c Client) Shutdown(ctx context.Context) error {
	_, err := c.call(ctx, request{Call: "shutdown"})
	return err
}

func (c Client) exit(ctx context.Context, r request, files ...*os.File) (Exit, error) {
	answer, err := c.call(ctx, r, files...)
	if err != nil || answer.Exit == nil {
		return Exit{}, err
	}
	return *answer.Exit, nil
}

func (c Client) call(ctx context.Context, r request, files ...*os.File) (reply, error) {
	if err := ctx.Err(); err != nil {
		return reply{}, err
	}
	fd, err := c.connect(ctx)
	if err != nil && ctx.Err() != nil {
		return reply{}, ctx.Err()
	}
	if err != nil {
		return reply{}, fmt.Errorf("cannot %s: %w", r.describe(), gone(err))
	}
	conn := os.NewFile(uintptr(fd), socketName)
	defer conn.Close()
	defer context.AfterFunc(ctx, func() { conn.Close() })()
	answer, err := converse(conn, r, files)
	if err != nil && ctx.Err() != nil {
		return reply{}, ctx.Err()
	}
	if err != nil {
		return reply{}, fmt.Errorf("cannot %s: %w", r.describe(), gone(err))
	}
	if answer.Error != nil {
		return reply{}, answer.Error.error()
	}
	return answer, nil
}

// connect waits for room in the shim's backlog (net.core.somaxconn): a shim that was silent, or has very many calls at once, may
// well take this one later. The kernel has no event for that on a socket that is not blocking.
func (c Client) connect(ctx context.Context) (fd int, err error) {
	for pause := time.Millisecond; ; pause = min(2*pause, 100*time.Millisecond) {
		if fd, err = connect(c.Dir, socketName); !errors.Is(err, unix.EAGAIN) {
			return fd, err
		}
		select {
		case <-time.After(pause):
		case <-ctx.Done():
			return -1, ctx.Err()
		}
	}
}

func converse(conn *os.File, r request, files []*os.File) (answer reply, err error) {
	r.Version = Version
	var sent []*os.File
	for i, f := range files {
		if f != nil {
			r.Files[i] = true
			sent = append(sent, f)
		}
	}
	if err := send(conn, r, sent...); err != nil {
		return answer, err
	}
	if _, err := receive(conn, &answer); err != nil {
		return answer, err
	}
	if answer.Error == nil && (answer.Version < oldest || answer.Version > Version) {
		return answer, fmt.Errorf("shim speaks version %d of the protocol, not %d to %d", answer.Version, oldest, Version)
	}
	return answer, nil
}

func (r request) describe() string {
	if r.ID == "" {
		return "ask shim for " + r.Call
	}
	return "ask shim to " + r.Call + " container " + r.ID
}

// gone recognises the errors of a socket nobody listens on, and of a connection that the other side has dropped. All others, such
// as those of a descriptor that cannot be sent, say nothing about the shim.
func gone(err error) error {
	for _, sign := range []error{unix.ECONNREFUSED, unix.ENOENT, unix.EPIPE, unix.ECONNRESET, io.EOF, io.ErrUnexpectedEOF} {
		if errors.Is(err, sign) {
			return fmt.Errorf("%w: %w", ErrGone, err)
		}
	}
	return err
}
