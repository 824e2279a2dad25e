// Package cri is the gRPC face of the engine: it speaks the Container Runtime Interface, v1, to the kubelet, crictl and
// every other client of the socket.
//
// A handler checks the request, makes one call into the room that does the work, and answers. It decides nothing about
// pods or images itself. Three things happen here and nowhere else: a sentinel of a lower room becomes a gRPC code
// (errors.go), a request is logged, once, with its ids, its duration and the steps it took (log.go), and the CRI's rules
// about what may be missing are applied: Stop and Remove of the unknown succeed, Status of the unknown is NotFound, and
// ImageStatus of the unknown is an empty answer.
//
// RPCs without a method of their own answer Unimplemented, through the embedded Unimplemented servers. Clients treat
// that as "not there yet" and fall back.
package cri

import (
	"cmp"
	"context"
	"log/slog"
	"net"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/keepalive"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/evenkeel/evenkeel/cri/operator"
	"github.com/evenkeel/evenkeel/cri/streaming"
	"github.com/evenkeel/evenkeel/image"
	"github.com/evenkeel/evenkeel/sandbox"
)

// Server implements runtime.v1's RuntimeService and ImageService, and the operator's service, over the rooms below it.
type Server struct {
	cri.UnimplementedRuntimeServiceServer
	cri.UnimplementedImageServiceServer

	Pods       *sandbox.Pods
	Containers *sandbox.Containers
	Images     *image.Store
	Streams    *streaming.Server

	Release      string           // the engine's version, as semver: the kubelet refuses what it cannot parse
	CgroupDriver cri.CgroupDriver // told to the kubelet; mind that the zero value means systemd
	PauseImage   string           // named for kubeadm's sake, never pulled; empty: DefaultPauseImage
	Config       any              // printed as JSON in info["config"] of a verbose Status
	Instance     any              // how this daemon names what it makes; the operator's Inventory hands it on as JSON
	Log          *slog.Logger     // nil: slog.Default
	Metrics      *Metrics         // nil: nothing is counted
	Tracer       Tracer           // nil: nothing is traced

	// StopLimit is how long requests may take to end once Serve's context has; zero: 5 s. A request that is cut off
	// leaves what a crash would leave, which recovery knows how to finish or undo.
	StopLimit time.Duration
}

// A Tracer follows requests. Effects of the returned context are a part of what it follows; end says what the request came to.
type Tracer interface {
	Begin(ctx context.Context, method string, header func(string) string) (_ context.Context, end func(code string, about []slog.Attr, err error))
}

// maxMessage is twice what clients of the CRI send and take (cri-client pkg/utils.go: 16 MiB).
const maxMessage = 32 << 20

// Register adds both services, and the operator's, to a gRPC server.
func (s *Server) Register(g *grpc.Server) {
	cri.RegisterRuntimeServiceServer(g, s)
	cri.RegisterImageServiceServer(g, s)
	operator.Register(g, tools{s})
}

// Serve answers requests on l until ctx ends, then lets running requests finish within StopLimit, and cuts off the rest.
// It closes l. A nil error means it was told to stop.
func (s *Server) Serve(ctx context.Context, l net.Listener) error {
	g := grpc.NewServer(s.options()...)
	s.Register(g)
	stopped, door := make(chan struct{}), newDoor(l)
	release := context.AfterFunc(ctx, func() {
		defer close(stopped)
		door.shutWithin(time.Second)
		s.stop(g)
	})
	err := g.Serve(door)
	if !release() {
		<-stopped
		return nil
	}
	return err
}

func (s *Server) options() []grpc.ServerOption {
	return []grpc.ServerOption{
		grpc.UnaryInterceptor(s.unary),
		grpc.StreamInterceptor(s.stream),
		grpc.MaxRecvMsgSize(maxMessage),
		grpc.MaxSendMsgSize(maxMessage),
		// Clients may ping often and while idle: on a local socket a ping costs nothing, and the default would
		// answer with GOAWAY "too_many_pings" and take the client's running requests with it.
		grpc.KeepaliveEnforcementPolicy(keepalive.EnforcementPolicy{MinTime: time.Second, PermitWithoutStream: true}),
		// Idle connections hold no write buffer; a node has several clients and the daemon's memory is counted.
		grpc.SharedWriteBuffer(true),
	}
}

// stop does not wait for GracefulStop once Stop has been called: it would still wait for handlers that never return.
func (s *Server) stop(g *grpc.Server) {
	limit := cmp.Or(s.StopLimit, 5*time.Second)
	s.Pods.EndEvents() // those streams have no end of their own
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		g.GracefulStop()
	}()
	select {
	case <-ended:
	case <-time.After(limit):
		g.Stop()
	}
}

func (s *Server) log() *slog.Logger {
	if s.Log == nil {
		return slog.Default()
	}
	return s.Log
}
