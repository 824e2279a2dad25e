package integration

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"strings"
	"testing"
	"time"

	"k8s.io/apimachinery/pkg/util/httpstream"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/portforward"
	"k8s.io/client-go/tools/remotecommand"
	"k8s.io/client-go/transport/spdy"
	utilexec "k8s.io/client-go/util/exec"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/evenkeel/evenkeel/integration/engine"
)

// transports are the two ways in which clients open a stream.
var transports = map[string]func(rawURL string) (remotecommand.Executor, error){
	"spdy": func(rawURL string) (remotecommand.Executor, error) {
		u, err := url.Parse(rawURL)
		if err != nil {
			return nil, err
		}
		return remotecommand.NewSPDYExecutor(&rest.Config{}, http.MethodPost, u)
	},
	"websocket": func(rawURL string) (remotecommand.Executor, error) {
		return remotecommand.NewWebSocketExecutor(&rest.Config{}, http.MethodGet, rawURL)
	},
}

func TestExecStreams(t *testing.T) {
	n := start(t, "builtin")
	_, id := n.up("streams")
	for name, open := range transports {
		t.Run(name, func(t *testing.T) {
			n := &node{n.Engine, t}
			t.Run("output and code", func(t *testing.T) {
				var out, errs bytes.Buffer
				err := n.exec(open, id, []string{"sh", "-c", "echo out; echo err >&2; exit 5"}, remotecommand.StreamOptions{Stdout: &out, Stderr: &errs})
				if code, ok := err.(utilexec.CodeExitError); !ok || code.Code != 5 || out.String() != "out\n" || errs.String() != "err\n" {
					t.Errorf("%v, %q, %q", err, out.String(), errs.String())
				}
			})
			t.Run("input", func(t *testing.T) {
				var out bytes.Buffer
				text := strings.Repeat("0123456789abcdef", 1<<16) // 1 MiB there and back
				err := n.exec(open, id, []string{"cat"}, remotecommand.StreamOptions{Stdin: strings.NewReader(text), Stdout: &out})
				if err != nil || out.String() != text {
					t.Errorf("%v, %d bytes came back of %d", err, out.Len(), len(text))
				}
			})
			t.Run("terminal", func(t *testing.T) {
				var out bytes.Buffer
				err := n.exec(open, id, []string{"sh", "-c", "tty; stty size"}, remotecommand.StreamOptions{
					Stdin: idleReader{t.Context()}, Stdout: &out, Tty: true, TerminalSizeQueue: &oneSize{size: remotecommand.TerminalSize{Width: 132, Height: 43}}})
				if err != nil || !strings.Contains(out.String(), "/dev/pts/") {
					t.Errorf("%v, %q", err, out.String())
				}
			})
		})
	}
}

// idleReader is a keyboard nobody types on.
type idleReader struct{ ctx context.Context }

func (r idleReader) Read([]byte) (int, error) {
	<-r.ctx.Done()
	return 0, io.EOF
}

type oneSize struct {
	size remotecommand.TerminalSize
	sent bool
}

func (s *oneSize) Next() *remotecommand.TerminalSize {
	if s.sent {
		return nil
	}
	s.sent = true
	return &s.size
}

func (n *node) exec(open func(string) (remotecommand.Executor, error), id string, argv []string, o remotecommand.StreamOptions) error {
	n.t.Helper()
	r, err := n.Runtime.Exec(n.ctx(), &cri.ExecRequest{ContainerId: id, Cmd: argv, Tty: o.Tty,
		Stdin: o.Stdin != nil, Stdout: o.Stdout != nil, Stderr: o.Stderr != nil && !o.Tty})
	must(n.t, err)
	executor, err := open(r.Url)
	must(n.t, err)
	return executor.StreamWithContext(n.ctx(), o)
}

func TestAttach(t *testing.T) {
	n := start(t, "builtin")
	cfg := n.Pod("attach")
	pod := n.runPod(cfg)
	for name, open := range transports {
		t.Run(name, func(t *testing.T) {
			n := &node{n.Engine, t}
			c := engine.Container("cat-"+name, busybox, "sh", "-c", "while read line; do echo got $line; test $line = end && exit 0; done")
			c.Stdin, c.StdinOnce = true, true
			id := n.run(pod, cfg, c)
			r, err := n.Runtime.Attach(n.ctx(), &cri.AttachRequest{ContainerId: id, Stdin: true, Stdout: true, Stderr: true})
			must(t, err)
			executor, err := open(r.Url)
			must(t, err)
			var out, errs bytes.Buffer
			err = executor.StreamWithContext(n.ctx(), remotecommand.StreamOptions{Stdin: strings.NewReader("one\ntwo\nend\n"), Stdout: &out, Stderr: &errs})
			if err != nil || out.String() != "got one\ngot two\ngot end\n" {
				t.Errorf("%v, %q, %q", err, out.String(), errs.String())
			}
			n.awaitState(id, cri.ContainerState_CONTAINER_EXITED)
			if lines := n.log(n.logPath(cfg, c)); len(lines) != 3 || lines[2].Text != "got end" {
				t.Errorf("the log of an attached container: %v", lines)
			}
		})
	}
}

func TestAttachedReaderThatStopsReadingBlocksNobody(t *testing.T) {
	n := start(t, "builtin")
	cfg := n.Pod("slow")
	pod := n.runPod(cfg)
	c := engine.Container("loud", busybox, "sh", "-c", "sleep 0.3; yes 0123456789012345678901234567890123456789 | head -n 100000; sleep 1000")
	id := n.run(pod, cfg, c)
	r, err := n.Runtime.Attach(n.ctx(), &cri.AttachRequest{ContainerId: id, Stdout: true})
	must(t, err)
	executor, err := transports["spdy"](r.Url)
	must(t, err)
	ctx, cancel := context.WithCancel(n.ctx())
	defer cancel()
	go executor.StreamWithContext(ctx, remotecommand.StreamOptions{Stdout: stuckWriter{ctx}})
	n.eventually(20*time.Second, func() error {
		if got := len(n.logSoFar(n.logPath(cfg, c))); got != 100000 {
			return fmt.Errorf("the log has %d of 100000 lines", got)
		}
		return nil
	})
}

// logSoFar is log without complaint about a record that is being written.
func (n *node) logSoFar(path string) []string {
	data, err := readFile(path)
	must(n.t, err)
	return strings.Split(strings.TrimSuffix(data, "\n"), "\n")
}

type stuckWriter struct{ ctx context.Context }

func (w stuckWriter) Write(p []byte) (int, error) {
	<-w.ctx.Done()
	return 0, w.ctx.Err()
}

// A client that is killed ends its exec also where nobody reads what it has sent: its FIN is behind that.
func TestExecThatDoesNotReadEndsWithItsClient(t *testing.T) {
	waits(t)
	n := start(t, "builtin")
	cfg := n.Pod("p")
	id := n.run(n.runPod(cfg), cfg, engine.Sleeper("main", busybox))
	for _, terminal := range []bool{false, true} {
		r, err := n.Runtime.Exec(n.ctx(), &cri.ExecRequest{ContainerId: id, Cmd: []string{"sh", "-c", "exec sleep 4711"}, Stdin: true, Stdout: true, Tty: terminal})
		must(t, err)
		conn := webSocket(t, r.Url)
		// More than the pipe and the sockets hold; a write that goes nowhere for two seconds is one too many. A terminal never
		// stalls: the kernel drops what nobody reads from it.
		frame, stalled := append([]byte{0x82, 0xfe, 0x10, 0x00, 0, 0, 0, 0}, make([]byte, 4096)...), false
		for sent := 0; sent < 16<<20 && !stalled; sent += len(frame) {
			conn.SetWriteDeadline(time.Now().Add(2 * time.Second))
			_, err := conn.Write(frame)
			stalled = err != nil
		}
		if !terminal && !stalled {
			t.Error("somebody reads all that the client sends, so nothing is shown")
		}
		if out := n.output(id, "ps"); !strings.Contains(out, "4711") {
			t.Errorf("terminal %t: the exec has ended already:\n%s", terminal, out)
		}
		conn.Close()
		n.eventually(15*time.Second, func() error {
			if out := n.output(id, "ps"); strings.Contains(out, "sleep 4711") {
				return fmt.Errorf("terminal %t: the exec outlives its client:\n%s", terminal, out)
			}
			return nil
		})
	}
}

// webSocket opens a session by hand, so that the connection can be left with its data under way.
func webSocket(t *testing.T, address string) net.Conn {
	t.Helper()
	u, err := url.Parse(address)
	must(t, err)
	conn, err := net.Dial("tcp", u.Host)
	must(t, err)
	t.Cleanup(func() { conn.Close() })
	_, err = fmt.Fprintf(conn, "GET %s HTTP/1.1\r\nHost: %s\r\nOrigin: http://%s\r\nUpgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Version: 13\r\n"+
		"Sec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\nSec-WebSocket-Protocol: v5.channel.k8s.io\r\n\r\n", u.Path, u.Host, u.Host)
	must(t, err)
	answer := make([]byte, 12)
	_, err = io.ReadFull(conn, answer)
	must(t, err)
	if string(answer) != "HTTP/1.1 101" {
		t.Fatalf("no session: %q", answer)
	}
	go io.Copy(io.Discard, conn)
	return conn
}

func TestPortForward(t *testing.T) {
	n := start(t, "builtin")
	p, err := n.webPod("forwarded")
	must(t, err)
	must(t, fetch(n.ctx(), "http://"+p.ip+"/"))
	for _, transport := range []string{"spdy", "websocket"} {
		t.Run(transport, func(t *testing.T) {
			n := &node{n.Engine, t}
			r, err := n.Runtime.PortForward(n.ctx(), &cri.PortForwardRequest{PodSandboxId: p.pod, Port: []int32{80}})
			must(t, err)
			dialer, err := forwardDialer(transport, r.Url)
			must(t, err)
			port := freePort(t)
			stop, ready := make(chan struct{}), make(chan struct{})
			defer close(stop)
			forwarder, err := portforward.New(dialer, []string{fmt.Sprintf("%d:80", port)}, stop, ready, io.Discard, io.Discard)
			must(t, err)
			failed := make(chan error, 1)
			go func() { failed <- forwarder.ForwardPorts() }()
			select {
			case <-ready:
			case err := <-failed:
				t.Fatalf("cannot forward: %v", err)
			}
			for range 5 {
				must(t, fetch(n.ctx(), fmt.Sprintf("http://127.0.0.1:%d/", port)))
			}
		})
	}
}

func forwardDialer(transport, rawURL string) (httpstream.Dialer, error) {
	u, err := url.Parse(rawURL)
	if err != nil {
		return nil, err
	}
	if transport == "websocket" {
		return portforward.NewSPDYOverWebsocketDialer(u, &rest.Config{})
	}
	roundTripper, upgrader, err := spdy.RoundTripperFor(&rest.Config{})
	if err != nil {
		return nil, err
	}
	return spdy.NewDialer(upgrader, &http.Client{Transport: roundTripper}, http.MethodPost, u), nil
}

func freePort(t *testing.T) int {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	must(t, err)
	defer l.Close()
	return l.Addr().(*net.TCPAddr).Port
}

func TestURLsAreGoodOnce(t *testing.T) {
	n := start(t, "builtin")
	_, id := n.up("once")
	r, err := n.Runtime.Exec(n.ctx(), &cri.ExecRequest{ContainerId: id, Cmd: []string{"true"}, Stdout: true})
	must(t, err)
	for i := range 2 {
		executor, err := transports["spdy"](r.Url)
		must(t, err)
		err = executor.StreamWithContext(n.ctx(), remotecommand.StreamOptions{Stdout: io.Discard})
		if (err == nil) != (i == 0) {
			t.Errorf("use %d of a one-time URL: %v", i+1, err)
		}
	}
}

func TestHostPort(t *testing.T) {
	for _, network := range []string{"builtin", "cni"} {
		t.Run(network, func(t *testing.T) {
			n := start(t, network)
			cfg := n.Pod("hostport")
			port := freePort(t)
			cfg.PortMappings = []*cri.PortMapping{{HostPort: int32(port), ContainerPort: 80}}
			pod := n.runPod(cfg)
			n.run(pod, cfg, engine.Container("web", busybox, "httpd", "-f", "-p", "80", "-h", "/etc"))
			must(t, fetch(n.ctx(), fmt.Sprintf("http://127.0.0.1:%d/passwd", port)))
			must(t, fetch(n.ctx(), fmt.Sprintf("http://%s:%d/passwd", gateway(n.ip(pod)), port)))
		})
	}
}
