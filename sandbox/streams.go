package sandbox

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"github.com/evenkeel/evenkeel/internal/namespace"
	"github.com/evenkeel/evenkeel/oci"
	"github.com/evenkeel/evenkeel/shim"
)

// Streams of an Exec or Attach; nil ones are not wanted. Resize is closed by the caller when it ends.
type Streams struct {
	Stdin          io.Reader
	Stdout, Stderr io.WriteCloser
	TTY            bool
	Resize         <-chan Size
}

// Size of a terminal in characters.
type Size struct{ Width, Height uint16 }

// captureLimit is how much of each stream an ExecSync answers with, in bytes (CRI, ExecSync); the rest is read and dropped.
const captureLimit = 16 << 20

// ExecSync runs a command and captures up to 16 MiB of each stream. After timeout (0: never) it is killed with all it has started, and the error matches ErrTimeout.
// What a command with a timeout has left running when it ends is killed then: that is a probe, which the kubelet repeats for
// ever. Its lifecycle hooks come without one, and may start what is to stay.
func (c *Containers) ExecSync(ctx context.Context, id string, command []string, timeout time.Duration) (stdout, stderr []byte, code int32, err error) {
	found, process, err := c.execProcess(id, command, false)
	if err != nil {
		return nil, nil, 0, err
	}
	whole := ctx
	ctx, stop := beforeDeadline(ctx)
	defer stop()
	if timeout > 0 {
		var end context.CancelFunc
		ctx, end = context.WithTimeoutCause(ctx, timeout, fmt.Errorf("it did not end within %s: %w", timeout, ErrTimeout))
		defer end()
	}
	var out, errs capture
	request := shim.ExecRequest{ID: found.id, Process: process, KillRest: timeout > 0}
	exit, err := found.runExec(ctx, request, Streams{Stdout: &out, Stderr: &errs})
	if ctx.Err() != nil {
		if silence := found.silence(whole); silence != "" {
			return nil, nil, 0, fmt.Errorf("command %q in container %s has not ended%s: %w", command, found.id, silence, context.Cause(ctx))
		}
		return nil, nil, 0, fmt.Errorf("command %q in container %s was ended: %w", command, found.id, context.Cause(ctx))
	}
	if err != nil {
		return nil, nil, 0, fmt.Errorf("cannot run %q in container %s: %w", command, found.id, err)
	}
	return out.data, errs.data, int32(exit.Code), nil
}

// capture keeps the first captureLimit bytes.
type capture struct{ data []byte }

func (c *capture) Write(b []byte) (int, error) {
	c.data = append(c.data, b[:min(len(b), captureLimit-len(c.data))]...)
	return len(b), nil
}

func (c *capture) Close() error { return nil }

// Exec runs a command with the caller's streams and returns its exit code.
func (c *Containers) Exec(ctx context.Context, id string, command []string, s Streams) (code int, err error) {
	found, process, err := c.execProcess(id, command, s.TTY)
	if err != nil {
		return 0, err
	}
	var exit shim.Exit
	if s.TTY {
		exit, err = found.runExecTTY(ctx, process, s)
	} else {
		exit, err = found.runExec(ctx, shim.ExecRequest{ID: found.id, Process: process}, s)
	}
	if err != nil {
		return 0, fmt.Errorf("cannot run %q in container %s: %w", command, found.id, err)
	}
	return exit.Code, nil
}

func (c *Containers) execProcess(id string, command []string, tty bool) (*container, []byte, error) {
	found, err := c.running(id)
	if err != nil {
		return nil, nil, err
	}
	if len(command) == 0 {
		return nil, nil, fmt.Errorf("cmd is empty: say what to run in container %s: %w", found.id, ErrInvalid)
	}
	spec, err := found.readBundle()
	if err != nil {
		return nil, nil, err
	}
	process, err := oci.ExecProcess(spec, command, tty)
	if err != nil {
		return nil, nil, fmt.Errorf("cannot run %q in container %s: %w: %w", command, found.id, err, ErrInvalid)
	}
	document, err := json.Marshal(process)
	return found, document, err
}

// runExec gives the process pipes of its own: its output passes through no other process.
func (c *container) runExec(ctx context.Context, r shim.ExecRequest, s Streams) (shim.Exit, error) {
	var pipes pipes
	defer pipes.close()
	stdin, err := pipes.toProcess(s.Stdin)
	if err != nil {
		return shim.Exit{}, err
	}
	stdout, err := pipes.fromProcess(s.Stdout)
	if err != nil {
		return shim.Exit{}, err
	}
	stderr, err := pipes.fromProcess(s.Stderr)
	if err != nil {
		return shim.Exit{}, err
	}
	pipes.start()
	exit, err := c.shim().Exec(ctx, r, stdin, stdout, stderr)
	pipes.drain()
	return exit, err
}

// runExecTTY shows the terminal that the process gets from the runtime.
func (c *container) runExecTTY(ctx context.Context, process []byte, s Streams) (shim.Exit, error) {
	return withTerminal(ctx, c.podState(c.podID), s, func(console string) (shim.Exit, error) {
		return c.shim().Exec(ctx, shim.ExecRequest{ID: c.id, Process: process, ConsoleSocket: console}, nil, nil, nil)
	})
}

// withTerminal receives a terminal over a socket in dir, which run can name however deep dir lies, and shows it while run
// lasts. What was written to it by then still arrives.
func withTerminal(ctx context.Context, dir string, s Streams, run func(console string) (shim.Exit, error)) (shim.Exit, error) {
	console, err := listenConsole(dir)
	if err != nil {
		return shim.Exit{}, err
	}
	defer console.close()
	waiting, end := context.WithCancel(ctx)
	defer end()
	terminals := make(chan *os.File, 1) // gets one, which is nil if none came
	var shown sync.WaitGroup
	shown.Go(func() {
		master, err := console.receive(waiting)
		terminals <- master
		if err == nil {
			showTerminal(master, s)
		}
	})
	exit, err := run(console.path)
	if err != nil {
		end()
	}
	// A process that was short-lived can have ended before we got to its terminal, which is on its way then.
	patience := time.AfterFunc(drainPatience, end)
	defer patience.Stop()
	if master := <-terminals; master != nil { // it hangs up when its last process is gone; a descendant is not waited for
		defer master.Close()
		master.SetReadDeadline(time.Now().Add(drainPatience))
	}
	shown.Wait()
	return exit, err
}

// showTerminal connects a pty master with the client until the terminal hangs up.
func showTerminal(master *os.File, s Streams) {
	go func() {
		for size := range s.Resize {
			resize(master, size)
		}
	}()
	if s.Stdin != nil {
		go io.Copy(master, s.Stdin)
	}
	if s.Stdout == nil {
		copyOutput(io.Discard, master)
		return
	}
	copyOutput(s.Stdout, master)
}

// resize goes through SyscallConn since (*os.File).Fd would make the descriptor blocking.
func resize(terminal *os.File, size Size) {
	conn, err := terminal.SyscallConn()
	if err != nil {
		return
	}
	conn.Control(func(fd uintptr) {
		unix.IoctlSetWinsize(int(fd), unix.TIOCSWINSZ, &unix.Winsize{Row: size.Height, Col: size.Width})
	})
}

// Attach connects the caller to a running container's streams until its output ends.
func (c *Containers) Attach(ctx context.Context, id string, s Streams) error {
	found, err := c.running(id)
	if err != nil {
		return err
	}
	var pipes pipes
	defer pipes.close()
	stdin, err := pipes.toProcess(s.Stdin)
	if err != nil {
		return err
	}
	stdout, err := pipes.fromProcess(s.Stdout)
	if err != nil {
		return err
	}
	stderr, err := pipes.fromProcess(s.Stderr)
	if err != nil {
		return err
	}
	pipes.start()
	go func() {
		for size := range s.Resize {
			found.shim().Resize(ctx, found.id, size.Width, size.Height)
		}
	}()
	err = found.shim().Attach(ctx, found.id, stdin, stdout, stderr)
	pipes.drain()
	return err
}

// ReopenLog makes the container's log go on in a new file of the same name, after the old one was renamed.
func (c *Containers) ReopenLog(ctx context.Context, id string) error {
	found, err := c.running(id)
	if err != nil {
		return err
	}
	ctx, stop := context.WithTimeoutCause(ctx, hostPathLimit, fmt.Errorf("no answer within %s: %w", hostPathLimit, ErrTimeout))
	defer stop()
	if err := found.reopenLog(ctx); err != nil {
		return fmt.Errorf("cannot reopen the log of container %s at %s: %w", found.id, found.facts().LogPath, err)
	}
	return nil
}

// reopenLog asks for the log's directory before the shim does: what is silent already costs no thread of the shim.
func (c *container) reopenLog(ctx context.Context) error {
	if path := c.facts().LogPath; path != "" {
		if _, err := c.paths.Resolve(ctx, filepath.Dir(path)); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return err
		}
	}
	err := c.shim().ReopenLog(ctx, c.id)
	if err != nil && ctx.Err() != nil {
		return fmt.Errorf("%w; the log goes on in the file it had", context.Cause(ctx))
	}
	return err
}

// CheckExec tells early, before a URL is handed out, what Exec would refuse.
func (c *Containers) CheckExec(id string) error {
	_, err := c.running(id)
	return err
}

// CheckAttach does so for Attach, and tells what the container was made with.
func (c *Containers) CheckAttach(id string) (tty, stdin bool, err error) {
	found, err := c.running(id)
	if err != nil {
		return false, false, err
	}
	cfg := found.facts().Config.Message
	return cfg.GetTty(), cfg.GetStdin(), nil
}

// CheckPortForward does so for PortForward.
func (p *Pods) CheckPortForward(id string) error {
	pod, err := p.index.pod(id)
	if err != nil {
		return err
	}
	if !pod.facts().ready() {
		return fmt.Errorf("pod %s is not ready: %w", pod.id, ErrState)
	}
	return nil
}

// PortForward copies between stream and a port of the pod, dialled on localhost (IPv4, then IPv6) inside its network namespace.
func (p *Pods) PortForward(ctx context.Context, id string, port int32, stream io.ReadWriteCloser) error {
	if err := p.CheckPortForward(id); err != nil {
		return err
	}
	pod, err := p.index.pod(id)
	if err != nil {
		return err
	}
	conn, err := pod.dial(ctx, port)
	if err != nil {
		return fmt.Errorf("cannot reach port %d of pod %s: %w", port, pod.id, err)
	}
	defer conn.Close()
	stop := context.AfterFunc(ctx, func() { conn.Close() })
	defer stop()
	go func() {
		io.Copy(conn, stream)
		conn.(*net.TCPConn).CloseWrite()
	}()
	_, err = io.Copy(stream, conn)
	return err
}

// dial tries each loopback address by its number: a name would make the resolver open sockets on other threads.
func (p *pod) dial(ctx context.Context, port int32) (conn net.Conn, err error) {
	connect := func() error {
		var errs []error
		for _, host := range []string{"127.0.0.1", "::1"} {
			var d net.Dialer
			if conn, err = d.DialContext(ctx, "tcp", net.JoinHostPort(host, strconv.Itoa(int(port)))); err == nil {
				return nil
			}
			errs = append(errs, err)
		}
		return errors.Join(errs...)
	}
	if p.onHostNetwork() {
		return conn, connect()
	}
	err = namespace.InNet(filepath.Join(p.namespaceDir(), "net"), connect)
	return conn, err
}

// drainPatience is how long output may still come after its process has ended: what the process wrote is in the pipe
// by then, what comes later is a descendant's.
const drainPatience = 200 * time.Millisecond

// pipes are the descriptors of one exec or attach: remote ends go to the shim, local ends are copied from and to.
type pipes struct {
	remote, local []*os.File
	copies        []func()
	outputs       []*os.File
	busy          sync.WaitGroup
}

func (p *pipes) pair() (r, w *os.File, err error) {
	if r, w, err = os.Pipe(); err != nil {
		return nil, nil, fmt.Errorf("cannot make a pipe: %w", err)
	}
	return r, w, nil
}

// toProcess returns the end to hand over, or nil when there is nothing to read from. The copy is not waited for: it ends
// when the client does.
func (p *pipes) toProcess(from io.Reader) (*os.File, error) {
	if from == nil {
		return nil, nil
	}
	r, w, err := p.pair()
	if err != nil {
		return nil, err
	}
	p.remote, p.local = append(p.remote, r), append(p.local, w)
	p.copies = append(p.copies, func() {
		go func() {
			io.Copy(w, from)
			w.Close()
		}()
	})
	return r, nil
}

func (p *pipes) fromProcess(to io.WriteCloser) (*os.File, error) {
	if to == nil {
		return nil, nil
	}
	r, w, err := p.pair()
	if err != nil {
		return nil, err
	}
	p.remote, p.local, p.outputs = append(p.remote, w), append(p.local, r), append(p.outputs, r)
	p.copies = append(p.copies, func() { p.busy.Go(func() { copyOutput(to, r) }) })
	return w, nil
}

func (p *pipes) start() {
	for _, begin := range p.copies {
		begin()
	}
}

// pipeCapacity is the most that a pipe can hold, in bytes (/proc/sys/fs/pipe-max-size).
const pipeCapacity = 1 << 20

// copyOutput copies until the end of the stream, or until the reader's deadline and then what was already there: a slow
// client must not lose what the process wrote before it ended.
func copyOutput(to io.Writer, from *os.File) {
	if _, err := io.Copy(to, from); errors.Is(err, os.ErrDeadlineExceeded) {
		copyRest(to, from)
	}
}

// copyRest copies what is there without waiting. It reads past the deadline: a thread that got no processor for so long has
// read nothing yet.
func copyRest(to io.Writer, from *os.File) {
	raw, err := from.SyscallConn()
	if err != nil {
		return
	}
	buffer := make([]byte, 32<<10)
	for rest := 0; rest < pipeCapacity; {
		n := 0
		if raw.Control(func(fd uintptr) { n, err = unix.Read(int(fd), buffer) }) != nil || n <= 0 {
			return
		}
		if _, err := to.Write(buffer[:n]); err != nil {
			return
		}
		rest += n
	}
}

// drain closes our copies of the remote ends, so that the end of the last writer is seen, and waits for the copies. A
// descendant that keeps the pipe open is not waited for longer than drainPatience.
func (p *pipes) drain() {
	for _, f := range p.remote {
		f.Close()
	}
	for _, f := range p.outputs {
		f.SetReadDeadline(time.Now().Add(drainPatience))
	}
	p.busy.Wait()
}

func (p *pipes) close() {
	for _, f := range append(p.remote, p.local...) {
		f.Close()
	}
}
