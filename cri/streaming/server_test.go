package streaming

import (
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/url"
	"os"
	"os/exec"
	"runtime"
	"strings"
	"sync"
	"testing"
	"time"

	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/portforward"
	"k8s.io/client-go/tools/remotecommand"
	"k8s.io/client-go/transport/spdy"
	clientexec "k8s.io/client-go/util/exec"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"
	"k8s.io/streaming/pkg/httpstream"

	"github.com/evenkeel/evenkeel/sandbox"
)

func TestMain(m *testing.M) {
	QuietLibraries(slog.New(slog.DiscardHandler))
	if len(os.Args) == 4 && os.Args[1] == "client" {
		actClient(os.Args[2], os.Args[3])
		return
	}
	os.Exit(m.Run())
}

// local runs commands as processes of this machine, and forwards to ports of its loopback.
type local struct {
	ended chan error // the cause for which each session's context ended, if it did
}

func (l *local) Exec(ctx context.Context, id string, command []string, s sandbox.Streams) (int, error) {
	if command[0] == "sizes" {
		return 0, printSizes(ctx, s)
	}
	err := l.run(ctx, exec.CommandContext(ctx, command[0], command[1:]...), s)
	var exit *exec.ExitError
	if errors.As(err, &exit) && exit.Exited() {
		return exit.ExitCode(), nil
	}
	return 0, err
}

func (l *local) Attach(ctx context.Context, id string, s sandbox.Streams) error {
	return l.run(ctx, exec.CommandContext(ctx, "cat"), s)
}

func (l *local) run(ctx context.Context, cmd *exec.Cmd, s sandbox.Streams) error {
	if s.Stdout != nil {
		cmd.Stdout = s.Stdout
	}
	if s.Stderr != nil {
		cmd.Stderr = s.Stderr
	}
	stdin, err := cmd.StdinPipe()
	if err != nil {
		return err
	}
	if err := cmd.Start(); err != nil {
		return err
	}
	go func() {
		if s.Stdin != nil {
			io.Copy(stdin, s.Stdin)
		}
		stdin.Close()
	}()
	err = cmd.Wait()
	if ctx.Err() != nil {
		l.ended <- context.Cause(ctx)
	}
	return err
}

// printSizes writes each size it gets, and ends at the first that is 99 wide.
func printSizes(ctx context.Context, s sandbox.Streams) error {
	for {
		select {
		case size, ok := <-s.Resize:
			if !ok {
				return errors.New("no more sizes")
			}
			fmt.Fprintf(s.Stdout, "%dx%d\n", size.Width, size.Height)
			if size.Width == 99 {
				return nil
			}
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

func (l *local) PortForward(ctx context.Context, id string, port int32, stream io.ReadWriteCloser) error {
	conn, err := net.Dial("tcp", fmt.Sprintf("127.0.0.1:%d", port))
	if err != nil {
		return err
	}
	defer conn.Close()
	defer context.AfterFunc(ctx, func() { conn.Close() })()
	go func() {
		io.Copy(conn, stream)
		conn.(*net.TCPConn).CloseWrite()
	}()
	io.Copy(stream, conn)
	if ctx.Err() != nil {
		l.ended <- context.Cause(ctx)
	}
	return nil
}

func serve(t *testing.T) (*Server, *local) {
	t.Helper()
	l := &local{ended: make(chan error, 100)}
	s := &Server{Runtime: l, Log: slog.New(slog.DiscardHandler)}
	if err := s.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { stop(t, s) })
	return s, l
}

func stop(t *testing.T, s *Server) {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
	defer cancel()
	if err := s.Stop(ctx); err != nil {
		t.Error(err)
	}
}

// transports are the ways in which the kubelet, crictl and older clients come.
var transports = map[string]func(address string) (remotecommand.Executor, error){
	"SPDY": func(address string) (remotecommand.Executor, error) {
		u, err := url.Parse(address)
		if err != nil {
			return nil, err
		}
		return remotecommand.NewSPDYExecutor(&rest.Config{}, "POST", u)
	},
	"WebSocket v4": func(address string) (remotecommand.Executor, error) {
		return remotecommand.NewWebSocketExecutorForProtocols(&rest.Config{}, "GET", address, "v4.channel.k8s.io")
	},
	"WebSocket v5": func(address string) (remotecommand.Executor, error) {
		return remotecommand.NewWebSocketExecutor(&rest.Config{}, "GET", address)
	},
}

func eachTransport(t *testing.T, f func(t *testing.T, s *Server, l *local, open func(address string) remotecommand.Executor)) {
	for name, dial := range transports {
		t.Run(name, func(t *testing.T) {
			s, l := serve(t)
			f(t, s, l, func(address string) remotecommand.Executor {
				t.Helper()
				e, err := dial(address)
				if err != nil {
					t.Fatal(err)
				}
				return e
			})
		})
	}
}

func execURL(t *testing.T, s *Server, req *cri.ExecRequest) string {
	t.Helper()
	req.ContainerId = "c"
	address, err := s.Exec(req)
	if err != nil {
		t.Fatal(err)
	}
	return address
}

func TestExecSeparatesStreamsAndTellsTheExitCode(t *testing.T) {
	eachTransport(t, func(t *testing.T, s *Server, _ *local, open func(string) remotecommand.Executor) {
		e := open(execURL(t, s, &cri.ExecRequest{Cmd: []string{"sh", "-c", "echo out; echo err >&2; exit 7"}, Stdout: true, Stderr: true}))
		var out, errs bytes.Buffer
		err := e.StreamWithContext(t.Context(), remotecommand.StreamOptions{Stdout: &out, Stderr: &errs})
		var exit clientexec.CodeExitError
		if !errors.As(err, &exit) || exit.Code != 7 {
			t.Errorf("exit code 7 arrived as %v", err)
		}
		if out.String() != "out\n" || errs.String() != "err\n" {
			t.Errorf("stdout %q, stderr %q", out.String(), errs.String())
		}
	})
}

func TestExecThatSucceedsGivesNoError(t *testing.T) {
	eachTransport(t, func(t *testing.T, s *Server, _ *local, open func(string) remotecommand.Executor) {
		e := open(execURL(t, s, &cri.ExecRequest{Cmd: []string{"true"}, Stdout: true}))
		if err := e.StreamWithContext(t.Context(), remotecommand.StreamOptions{Stdout: io.Discard}); err != nil {
			t.Error(err)
		}
	})
}

func TestExecThatCannotRunSaysWhy(t *testing.T) {
	eachTransport(t, func(t *testing.T, s *Server, _ *local, open func(string) remotecommand.Executor) {
		e := open(execURL(t, s, &cri.ExecRequest{Cmd: []string{"/no/such/program"}, Stdout: true}))
		err := e.StreamWithContext(t.Context(), remotecommand.StreamOptions{Stdout: io.Discard})
		if err == nil || !strings.Contains(err.Error(), "/no/such/program") {
			t.Errorf("got %v", err)
		}
	})
}

func TestExecCarriesEveryByte(t *testing.T) {
	data := make([]byte, 4<<20)
	for i := range data {
		data[i] = byte(i * 7 / 3)
	}
	eachTransport(t, func(t *testing.T, s *Server, _ *local, open func(string) remotecommand.Executor) {
		// head ends by itself: WebSocket clients before v5 cannot close stdin
		count := fmt.Sprint(len(data))
		e := open(execURL(t, s, &cri.ExecRequest{Cmd: []string{"head", "-c", count}, Stdin: true, Stdout: true}))
		hash := sha256.New()
		err := e.StreamWithContext(t.Context(), remotecommand.StreamOptions{Stdin: bytes.NewReader(data), Stdout: hash})
		if err != nil {
			t.Fatal(err)
		}
		if want := sha256.Sum256(data); !bytes.Equal(hash.Sum(nil), want[:]) {
			t.Error("what came back is not what was sent")
		}
	})
}

func TestAttachEndsWithStdin(t *testing.T) {
	eachTransport(t, func(t *testing.T, s *Server, _ *local, open func(string) remotecommand.Executor) {
		if strings.HasSuffix(t.Name(), "v4") {
			t.Skip("the protocol cannot close stdin")
		}
		address, err := s.Attach(&cri.AttachRequest{ContainerId: "c", Stdin: true, Stdout: true})
		if err != nil {
			t.Fatal(err)
		}
		var out bytes.Buffer
		err = open(address).StreamWithContext(t.Context(), remotecommand.StreamOptions{Stdin: strings.NewReader("hello\n"), Stdout: &out})
		if err != nil || out.String() != "hello\n" {
			t.Errorf("got %q, %v", out.String(), err)
		}
	})
}

// sizes gives a few sizes in a row, the last one 99 wide.
type sizes struct {
	mu   sync.Mutex // guards left
	left []remotecommand.TerminalSize
}

func (s *sizes) Next() *remotecommand.TerminalSize {
	s.mu.Lock()
	defer s.mu.Unlock()
	if len(s.left) == 0 {
		return nil
	}
	next := s.left[0]
	s.left = s.left[1:]
	return &next
}

func TestTheLastTerminalSizeAlwaysArrives(t *testing.T) {
	eachTransport(t, func(t *testing.T, s *Server, _ *local, open func(string) remotecommand.Executor) {
		e := open(execURL(t, s, &cri.ExecRequest{Cmd: []string{"sizes"}, Tty: true, Stdin: true, Stdout: true}))
		queue := &sizes{left: []remotecommand.TerminalSize{{Width: 80, Height: 24}, {Width: 100, Height: 30}, {Width: 99, Height: 33}}}
		stdin, w := io.Pipe()
		defer w.Close()
		var out bytes.Buffer
		err := e.StreamWithContext(t.Context(), remotecommand.StreamOptions{Stdin: stdin, Stdout: &out, Tty: true, TerminalSizeQueue: queue})
		if err != nil || !strings.HasSuffix(out.String(), "99x33\n") {
			t.Errorf("got %q, %v", out.String(), err)
		}
	})
}

func TestExecEndsWithItsClient(t *testing.T) {
	eachTransport(t, func(t *testing.T, s *Server, l *local, open func(string) remotecommand.Executor) {
		e := open(execURL(t, s, &cri.ExecRequest{Cmd: []string{"sh", "-c", "echo up; exec sleep 1000"}, Stdout: true}))
		ctx, cancel := context.WithCancel(t.Context())
		defer cancel()
		out, w := io.Pipe()
		go func() {
			out.Read(make([]byte, 8))
			cancel()
			io.Copy(io.Discard, out)
		}()
		e.StreamWithContext(ctx, remotecommand.StreamOptions{Stdout: w})
		w.Close()
		endsWithin(t, l, 5*time.Second)
	})
}

func endsWithin(t *testing.T, l *local, limit time.Duration) {
	t.Helper()
	select {
	case cause := <-l.ended:
		// a SPDY client says goodbye first, which ends the request before the connection
		if !errors.Is(cause, errGone) && !errors.Is(cause, context.Canceled) {
			t.Errorf("the session ended for another cause: %v", cause)
		}
	case <-time.After(limit):
		t.Errorf("the session outlives its client")
	}
}

func TestStopEndsSessions(t *testing.T) {
	s, l := serve(t)
	e, err := transports["SPDY"](execURL(t, s, &cri.ExecRequest{Cmd: []string{"sh", "-c", "echo up; exec sleep 1000"}, Stdout: true}))
	if err != nil {
		t.Fatal(err)
	}
	out, w := io.Pipe()
	done := make(chan error, 1)
	go func() { done <- e.StreamWithContext(context.Background(), remotecommand.StreamOptions{Stdout: w}) }()
	out.Read(make([]byte, 8))
	stop(t, s)
	<-done
	endsWithin(t, l, time.Second)
}

// dialers are the ways of port-forwarding.
var dialers = map[string]func(address string) (httpstream.Dialer, error){
	"SPDY": func(address string) (httpstream.Dialer, error) {
		u, err := url.Parse(address)
		if err != nil {
			return nil, err
		}
		transport, upgrader, err := spdy.RoundTripperFor(&rest.Config{})
		if err != nil {
			return nil, err
		}
		return spdy.NewDialerForStreaming(upgrader, &http.Client{Transport: transport}, "POST", u), nil
	},
	"SPDY in WebSocket": func(address string) (httpstream.Dialer, error) {
		u, err := url.Parse(address)
		if err != nil {
			return nil, err
		}
		return portforward.NewSPDYOverWebsocketDialerForStreaming(u, &rest.Config{})
	},
}

// forward gives a local address that leads to target through the server, and a function that ends the client.
func forward(t *testing.T, s *Server, dial func(string) (httpstream.Dialer, error), target net.Addr) (string, func()) {
	t.Helper()
	address, err := s.PortForward(&cri.PortForwardRequest{PodSandboxId: "p"})
	if err != nil {
		t.Fatal(err)
	}
	dialer, err := dial(address)
	if err != nil {
		t.Fatal(err)
	}
	end, ready := make(chan struct{}), make(chan struct{})
	ports := []string{fmt.Sprintf("0:%d", target.(*net.TCPAddr).Port)}
	f, err := portforward.NewOnAddressesForStreaming(dialer, []string{"127.0.0.1"}, ports, end, ready, io.Discard, io.Discard)
	if err != nil {
		t.Fatal(err)
	}
	failed := make(chan error, 1)
	go func() { failed <- f.ForwardPorts() }()
	select {
	case <-ready:
	case err := <-failed:
		t.Fatal(err)
	}
	list, err := f.GetPorts()
	if err != nil {
		t.Fatal(err)
	}
	return fmt.Sprintf("127.0.0.1:%d", list[0].Local), sync.OnceFunc(func() { close(end); <-failed })
}

func listen(t *testing.T, handle func(net.Conn)) net.Addr {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	go func() {
		for {
			conn, err := l.Accept()
			if err != nil {
				return
			}
			go handle(conn)
		}
	}()
	return l.Addr()
}

func TestPortForwardCarriesSeveralConnections(t *testing.T) {
	for name, dial := range dialers {
		t.Run(name, func(t *testing.T) {
			s, _ := serve(t)
			echo := listen(t, func(c net.Conn) { io.Copy(c, c); c.Close() })
			address, end := forward(t, s, dial, echo)
			defer end()
			var group sync.WaitGroup
			for i := range 5 {
				group.Go(func() {
					if got, err := say(address, strings.Repeat(fmt.Sprint(i), 100_000)); err != nil || got != strings.Repeat(fmt.Sprint(i), 100_000) {
						t.Errorf("connection %d: %d bytes came back, %v", i, len(got), err)
					}
				})
			}
			group.Wait()
		})
	}
}

func say(address, text string) (string, error) {
	conn, err := net.Dial("tcp", address)
	if err != nil {
		return "", err
	}
	defer conn.Close()
	go func() {
		io.WriteString(conn, text)
		conn.(*net.TCPConn).CloseWrite()
	}()
	answer, err := io.ReadAll(conn)
	return string(answer), err
}

func TestPortForwardEndsWithItsClientThoughTheServerIsSilent(t *testing.T) {
	for name, dial := range dialers {
		t.Run(name, func(t *testing.T) {
			s, l := serve(t)
			heard := make(chan struct{}, 1)
			silent := listen(t, func(c net.Conn) {
				c.Read(make([]byte, 1))
				heard <- struct{}{}
				<-t.Context().Done()
				c.Close()
			})
			address, end := forward(t, s, dial, silent)
			conn, err := net.Dial("tcp", address)
			if err != nil {
				t.Fatal(err)
			}
			defer conn.Close()
			conn.Write([]byte("x"))
			<-heard
			end()
			endsWithin(t, l, 5*time.Second)
		})
	}
}

func TestURLsAreGoodOnce(t *testing.T) {
	s, _ := serve(t)
	address := execURL(t, s, &cri.ExecRequest{Cmd: []string{"true"}, Stdout: true})
	wrong := strings.Replace(address, "/exec/", "/attach/", 1)
	for _, try := range []struct {
		method, url string
		want        int
	}{
		{"GET", wrong, http.StatusNotFound},
		{"DELETE", address, http.StatusMethodNotAllowed},
		{"GET", address, http.StatusBadRequest}, // it is taken, though it is no upgrade
		{"GET", address, http.StatusNotFound},
	} {
		req, err := http.NewRequest(try.method, try.url, nil)
		if err != nil {
			t.Fatal(err)
		}
		resp, err := http.DefaultClient.Do(req)
		if err != nil {
			t.Fatal(err)
		}
		resp.Body.Close()
		if resp.StatusCode != try.want {
			t.Errorf("%s %s: %s, want %d", try.method, try.url, resp.Status, try.want)
		}
	}
}

func TestURLsThatNobodyUsesAreLimited(t *testing.T) {
	s, _ := serve(t)
	for range maxTokens {
		execURL(t, s, &cri.ExecRequest{Cmd: []string{"true"}, Stdout: true})
	}
	if _, err := s.Exec(&cri.ExecRequest{}); !errors.Is(err, ErrTooMany) {
		t.Errorf("got %v", err)
	}
}

func TestSessionsLeaveNoGoroutine(t *testing.T) {
	s, _ := serve(t)
	run := func() {
		for _, dial := range transports {
			e, err := dial(execURL(t, s, &cri.ExecRequest{Cmd: []string{"true"}, Stdin: true, Stdout: true}))
			if err != nil {
				t.Fatal(err)
			}
			if err := e.StreamWithContext(t.Context(), remotecommand.StreamOptions{Stdin: strings.NewReader("x"), Stdout: io.Discard}); err != nil {
				t.Fatal(err)
			}
		}
	}
	run() // whatever is started once is started now
	before := settled(0)
	for range 10 {
		run()
	}
	if after := settled(before); after > before+2 {
		stacks := make([]byte, 1<<20)
		t.Errorf("%d goroutines before, %d after 30 sessions:\n%s", before, after, stacks[:runtime.Stack(stacks, true)])
	}
}

// settled counts goroutines once they are no more than want, or no longer get fewer.
func settled(want int) int {
	count := runtime.NumGoroutine()
	for range 20 {
		time.Sleep(50 * time.Millisecond)
		if count = runtime.NumGoroutine(); want > 0 && count <= want {
			break
		}
	}
	return count
}

func TestListenErrorsSayWhere(t *testing.T) {
	s := &Server{Addr: "256.0.0.1:0"}
	if err := s.Start(); err == nil || !strings.Contains(err.Error(), "256.0.0.1") {
		t.Errorf("got %v", err)
	}
	stop(t, s)
}
