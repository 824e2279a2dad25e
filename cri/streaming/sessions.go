package streaming

import (
	"context"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"time"

	cri "k8s.io/cri-api/pkg/apis/runtime/v1"
	"k8s.io/cri-streaming/pkg/streaming/portforward"
	"k8s.io/cri-streaming/pkg/streaming/remotecommand"
	"k8s.io/streaming/pkg/httpstream/wsstream"
	"k8s.io/utils/exec"

	"github.com/evenkeel/evenkeel/sandbox"
)

func (s *Server) serveExec(w http.ResponseWriter, r *http.Request, req *cri.ExecRequest) {
	opts := &remotecommand.Options{Stdin: req.Stdin, Stdout: req.Stdout, Stderr: req.Stderr, TTY: req.Tty}
	e := executor{s, opts}
	if wsstream.IsWebSocketRequestWithStreamCloseProtocol(r) {
		s.serveV5(w, r, opts, func(ctx context.Context, in io.Reader, out, errs io.WriteCloser, resize <-chan remotecommand.TerminalSize) error {
			return e.ExecInContainer(ctx, "", "", req.ContainerId, req.Cmd, in, out, errs, req.Tty, resize, 0)
		})
		return
	}
	remotecommand.ServeExec(w, r, e, "", "", req.ContainerId, req.Cmd, opts, idle, creation, remotecommand.SupportedStreamingProtocols)
}

func (s *Server) serveAttach(w http.ResponseWriter, r *http.Request, req *cri.AttachRequest) {
	opts := &remotecommand.Options{Stdin: req.Stdin, Stdout: req.Stdout, Stderr: req.Stderr, TTY: req.Tty}
	e := executor{s, opts}
	if wsstream.IsWebSocketRequestWithStreamCloseProtocol(r) {
		s.serveV5(w, r, opts, func(ctx context.Context, in io.Reader, out, errs io.WriteCloser, resize <-chan remotecommand.TerminalSize) error {
			return e.AttachContainer(ctx, "", "", req.ContainerId, in, out, errs, req.Tty, resize)
		})
		return
	}
	remotecommand.ServeAttach(w, r, e, "", "", req.ContainerId, opts, idle, creation, remotecommand.SupportedStreamingProtocols)
}

func (s *Server) servePortForward(w http.ResponseWriter, r *http.Request, req *cri.PortForwardRequest) {
	if wsstream.IsWebSocketRequestWithTunnelingProtocol(r) {
		s.serveTunnel(w, r, req)
		return
	}
	s.forward(w, r, req)
}

// forward serves what the library knows: SPDY, and WebSocket with a channel per port of the request.
func (s *Server) forward(w http.ResponseWriter, r *http.Request, req *cri.PortForwardRequest) {
	portforward.ServePortForward(w, r, forwarder{s, r.Context()}, req.PodSandboxId, "",
		&portforward.V4Options{Ports: req.Port}, idle, creation, portforward.SupportedProtocols)
}

// executor is the Runtime as remotecommand wants it. Names and uids are the kubelet's and stay empty in the CRI.
type executor struct {
	server *Server
	opts   *remotecommand.Options
}

// ExecInContainer returns the library's kind of error for an exit code, which it looks for without unwrapping.
func (e executor) ExecInContainer(ctx context.Context, _, _, id string, command []string, in io.Reader, out, errs io.WriteCloser,
	tty bool, resize <-chan remotecommand.TerminalSize, _ time.Duration) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	begun := time.Now()
	code, err := e.server.Runtime.Exec(ctx, id, command, e.streams(ctx, in, out, errs, resize))
	e.server.ended(ctx, "exec session", slog.String("container", id), begun, err)
	if err != nil || code == 0 {
		return err
	}
	return exec.CodeExitError{Err: fmt.Errorf("exit code %d", code), Code: code}
}

func (e executor) AttachContainer(ctx context.Context, _, _, id string, in io.Reader, out, errs io.WriteCloser,
	tty bool, resize <-chan remotecommand.TerminalSize) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	begun := time.Now()
	err := e.server.Runtime.Attach(ctx, id, e.streams(ctx, in, out, errs, resize))
	e.server.ended(ctx, "attach session", slog.String("container", id), begun, err)
	return err
}

// streams keeps only what was asked for: over WebSocket the library hands out every stream, wanted or not.
func (e executor) streams(ctx context.Context, in io.Reader, out, errs io.WriteCloser, resize <-chan remotecommand.TerminalSize) sandbox.Streams {
	s := sandbox.Streams{TTY: e.opts.TTY}
	if e.opts.Stdin {
		s.Stdin = in
	}
	if e.opts.Stdout {
		s.Stdout = out
	}
	if e.opts.Stderr {
		s.Stderr = errs
	}
	if !e.opts.TTY {
		resize = nil
	}
	s.Resize = latest(ctx, resize)
	return s
}

// latest passes on the sizes of a terminal. A reader that is busy gets the newest size and none of those in between,
// and the client is never held up. The returned channel is closed once ctx or in has ended, and at once if in is nil, so
// that whoever ranges over it comes to an end.
func latest(ctx context.Context, in <-chan remotecommand.TerminalSize) <-chan sandbox.Size {
	out := make(chan sandbox.Size)
	go func() {
		defer close(out)
		var size sandbox.Size
		var ready chan<- sandbox.Size // nil while there is nothing to send
		for in != nil || ready != nil {
			select {
			case s, ok := <-in:
				if !ok {
					in = nil
					continue
				}
				size, ready = sandbox.Size(s), out
			case ready <- size:
				ready = nil
			case <-ctx.Done():
				return
			}
		}
	}()
	return out
}

// ended logs a session, whose request was logged when its URL was handed out. That the client hung up is an end like
// any other.
func (s *Server) ended(ctx context.Context, what string, about slog.Attr, begun time.Time, err error) {
	level, attrs := slog.LevelInfo, []slog.Attr{about, slog.Duration("took", time.Since(begun).Round(time.Millisecond))}
	switch {
	case ctx.Err() != nil:
		attrs = append(attrs, slog.String("cause", context.Cause(ctx).Error()))
	case err != nil:
		level, attrs = slog.LevelError, append(attrs, slog.String("error", err.Error()))
	}
	s.log().LogAttrs(ctx, level, what, attrs...)
}

// forwarder is the Runtime as portforward wants it. The library gives port-forwards no context that would ever end, so it
// brings the request's.
type forwarder struct {
	server *Server
	ctx    context.Context
}

func (f forwarder) PortForward(_ context.Context, id, _ string, port int32, stream io.ReadWriteCloser) error {
	begun := time.Now()
	err := f.server.Runtime.PortForward(f.ctx, id, port, stream)
	f.server.ended(f.ctx, "forwarded connection", slog.String("pod", id), begun, err)
	return err
}
