package streaming

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"sync"
	"time"

	cri "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/evenkeel/evenkeel/sandbox"
)

// Runtime is what sessions are sessions with: the three methods of sandbox.Containers and sandbox.Pods. Each returns
// when its session is over, and soon after ctx has ended.
type Runtime interface {
	Exec(ctx context.Context, id string, command []string, s sandbox.Streams) (code int, err error)
	Attach(ctx context.Context, id string, s sandbox.Streams) error
	PortForward(ctx context.Context, id string, port int32, stream io.ReadWriteCloser) error
}

// Server hands out URLs and serves them. Addr and Runtime are set before Start, and left alone after it.
type Server struct {
	Addr    string // host:port to listen on; empty: DefaultAddr
	Runtime Runtime
	Log     *slog.Logger // nil: slog.Default

	base     string // http://host:port, known after Start
	http     *http.Server
	tokens   tokens
	conns    conns
	sessions sync.WaitGroup
}

// DefaultAddr is loopback only: the kubelet is on this machine and proxies for everyone else.
const DefaultAddr = "127.0.0.1:0"

const (
	idle     = 4 * time.Hour    // a session without a byte in either direction ends after this; the library's default
	creation = 30 * time.Second // how long a SPDY client may take to open its streams; the library's default
)

// Start listens and serves in the background, until Stop. URLs can be handed out once it has returned.
func (s *Server) Start() error {
	l, err := net.Listen("tcp", cmp.Or(s.Addr, DefaultAddr))
	if err != nil {
		return fmt.Errorf("cannot listen for streaming sessions: %w", err)
	}
	s.base = "http://" + l.Addr().String()
	s.http = &http.Server{
		Handler:           http.HandlerFunc(s.serve),
		ReadHeaderTimeout: 10 * time.Second,
		ConnContext:       connContext,
		ErrorLog:          slog.NewLogLogger(s.log().Handler(), slog.LevelDebug),
	}
	go s.run(tracking{l, &s.conns})
	return nil
}

func (s *Server) run(l net.Listener) {
	if err := s.http.Serve(l); !errors.Is(err, http.ErrServerClosed) {
		s.log().Error("streaming server ended", "error", err)
	}
}

// Stop closes the listener and every connection, and waits until the sessions have ended or ctx has. A server that was
// never started is stopped.
func (s *Server) Stop(ctx context.Context) error {
	if s.http == nil {
		return nil
	}
	err := s.http.Close()
	s.conns.closeAll()
	ended := make(chan struct{})
	go func() { s.sessions.Wait(); close(ended) }()
	select {
	case <-ended:
		return err
	case <-ctx.Done():
		return errors.Join(err, fmt.Errorf("streaming sessions did not end: %w", context.Cause(ctx)))
	}
}

// Exec returns the URL at which the request can be carried out, once, within a minute. The request must be valid: one
// stream at least, and no stderr with a terminal.
func (s *Server) Exec(req *cri.ExecRequest) (url string, err error) {
	return s.issue("exec", func(w http.ResponseWriter, r *http.Request) { s.serveExec(w, r, req) })
}

// Attach does for an attach what Exec does for an exec.
func (s *Server) Attach(req *cri.AttachRequest) (url string, err error) {
	return s.issue("attach", func(w http.ResponseWriter, r *http.Request) { s.serveAttach(w, r, req) })
}

// PortForward does so for any number of connections to the pod's ports, all over the one connection of the client.
func (s *Server) PortForward(req *cri.PortForwardRequest) (url string, err error) {
	return s.issue("portforward", func(w http.ResponseWriter, r *http.Request) { s.servePortForward(w, r, req) })
}

func (s *Server) issue(kind string, h http.HandlerFunc) (string, error) {
	path, err := s.tokens.issue("/"+kind+"/", h)
	if err != nil {
		return "", fmt.Errorf("cannot hand out a URL for %s: %w", kind, err)
	}
	return s.base + path, nil
}

func (s *Server) serve(w http.ResponseWriter, r *http.Request) {
	if r.Method != http.MethodGet && r.Method != http.MethodPost {
		http.Error(w, "use GET or POST", http.StatusMethodNotAllowed)
		return
	}
	h, ok := s.tokens.take(r.URL.Path)
	if !ok {
		http.NotFound(w, r)
		return
	}
	s.sessions.Add(1)
	defer s.sessions.Done()
	r.Context().Value(connKey{}).(*conn).upgrade(framingOf(r))
	h(w, r)
}

func (s *Server) log() *slog.Logger {
	if s.Log == nil {
		return slog.Default()
	}
	return s.Log
}
