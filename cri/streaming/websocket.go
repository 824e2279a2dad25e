package streaming

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"slices"

	"golang.org/x/net/websocket"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"
	"k8s.io/cri-streaming/pkg/streaming/portforward"
	"k8s.io/cri-streaming/pkg/streaming/remotecommand"
	"k8s.io/streaming/pkg/httpstream"
	"k8s.io/streaming/pkg/httpstream/spdy"
	"k8s.io/streaming/pkg/httpstream/wsstream"
	"k8s.io/utils/exec"
)

// The library's server speaks the WebSocket protocols that the kubelet uses. Clients that come without a kubelet in
// between, crictl and critest with their websocket transport, ask for newer ones only: v5 for exec and attach, which
// can close stdin, and SPDY inside a WebSocket for port-forward (KEP-4006).

// The channels of v5, which are those of v4.
const (
	stdinChannel = iota
	stdoutChannel
	stderrChannel
	statusChannel
	resizeChannel
)

// session is an exec or an attach, over whatever streams.
type session func(ctx context.Context, in io.Reader, out, errs io.WriteCloser, resize <-chan remotecommand.TerminalSize) error

// serveV5 runs a session over a WebSocket with protocol v5.
func (s *Server) serveV5(w http.ResponseWriter, r *http.Request, opts *remotecommand.Options, run session) {
	conn := wsstream.NewConn(map[string]wsstream.ChannelProtocolConfig{
		remotecommand.StreamProtocolV5Name: {Binary: true, Channels: channelsOf(opts)},
	})
	conn.SetIdleTimeout(idle)
	_, channels, err := conn.Open(w, r)
	if err != nil {
		s.log().Debug("cannot open a WebSocket", "error", err)
		return
	}
	defer conn.Close()
	resize := make(chan remotecommand.TerminalSize)
	go decodeSizes(r.Context(), channels[resizeChannel], resize)
	err = run(r.Context(), channels[stdinChannel], channels[stdoutChannel], channels[stderrChannel], resize)
	if err := json.NewEncoder(channels[statusChannel]).Encode(statusOf(err)); err != nil {
		s.log().Debug("cannot tell a client how its session ended", "error", err)
	}
}

func channelsOf(opts *remotecommand.Options) []wsstream.ChannelType {
	channels := []wsstream.ChannelType{wsstream.IgnoreChannel, wsstream.IgnoreChannel, wsstream.IgnoreChannel,
		wsstream.WriteChannel, wsstream.ReadChannel}
	if opts.Stdin {
		channels[stdinChannel] = wsstream.ReadChannel
	}
	if opts.Stdout {
		channels[stdoutChannel] = wsstream.WriteChannel
	}
	if opts.Stderr {
		channels[stderrChannel] = wsstream.WriteChannel
	}
	return channels
}

// decodeSizes closes sizes when the client has no more of them.
func decodeSizes(ctx context.Context, r io.Reader, sizes chan<- remotecommand.TerminalSize) {
	defer close(sizes)
	decoder := json.NewDecoder(r)
	for {
		var size remotecommand.TerminalSize
		if decoder.Decode(&size) != nil {
			return
		}
		select {
		case sizes <- size:
		case <-ctx.Done():
			return
		}
	}
}

// status is as much of a Kubernetes Status as clients of the v4 and v5 protocols read (client-go
// tools/remotecommand/v4.go).
type status struct {
	Status  string   `json:"status"`
	Message string   `json:"message,omitempty"`
	Reason  string   `json:"reason,omitempty"`
	Details *details `json:"details,omitempty"`
	Code    int      `json:"code,omitempty"`
}

type details struct {
	Causes []cause `json:"causes"`
}

type cause struct {
	Type    string `json:"reason"`
	Message string `json:"message"`
}

func statusOf(err error) status {
	var exit exec.ExitError
	switch {
	case err == nil:
		return status{Status: "Success"}
	case errors.As(err, &exit) && exit.Exited():
		return status{
			Status:  "Failure",
			Message: fmt.Sprintf("command terminated with non-zero exit code: %v", exit),
			Reason:  remotecommand.NonZeroExitCodeReason,
			Details: &details{[]cause{{remotecommand.ExitCodeCauseType, fmt.Sprint(exit.ExitStatus())}}},
		}
	}
	return status{Status: "Failure", Message: err.Error(), Reason: "InternalError", Code: http.StatusInternalServerError}
}

// tunnelProtocol is SPDY, as port-forward uses it, inside of a WebSocket.
const tunnelProtocol = "SPDY/3.1+" + portforward.ProtocolV1Name

// serveTunnel takes the SPDY connection out of the WebSocket and serves it as if it had come without one.
func (s *Server) serveTunnel(w http.ResponseWriter, r *http.Request, req *cri.PortForwardRequest) {
	inner := r.Clone(r.Context())
	inner.Header = http.Header{}
	inner.Header.Set(httpstream.HeaderConnection, httpstream.HeaderUpgrade)
	inner.Header.Set(httpstream.HeaderUpgrade, spdy.HeaderSpdy31)
	inner.Header.Set(httpstream.HeaderProtocolVersion, portforward.ProtocolV1Name)
	websocket.Server{Handshake: agreeOnTunnel, Handler: func(ws *websocket.Conn) {
		ws.PayloadType = websocket.BinaryFrame
		s.forward(&tunnel{ws: ws, header: http.Header{}}, inner, req)
	}}.ServeHTTP(w, r)
}

func agreeOnTunnel(config *websocket.Config, _ *http.Request) error {
	if !slices.Contains(config.Protocol, tunnelProtocol) {
		return websocket.ErrBadWebSocketProtocol
	}
	config.Protocol = []string{tunnelProtocol}
	config.Origin = &url.URL{} // it becomes the connection's address, which must not be nil; nobody looks at it
	return nil
}

// tunnel is the ResponseWriter of a request whose upgrade has been agreed on already: it says nothing, and its
// connection is the WebSocket.
type tunnel struct {
	ws     *websocket.Conn
	header http.Header
}

func (t *tunnel) Header() http.Header         { return t.header }
func (t *tunnel) Write(p []byte) (int, error) { return len(p), nil }
func (t *tunnel) WriteHeader(int)             {}

func (t *tunnel) Hijack() (net.Conn, *bufio.ReadWriter, error) {
	return t.ws, bufio.NewReadWriter(bufio.NewReader(t.ws), bufio.NewWriter(t.ws)), nil
}
