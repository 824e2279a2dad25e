package cri

import (
	"context"
	"log/slog"
	"path"
	"strings"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/evenkeel/evenkeel/cri/operator"
	"github.com/evenkeel/evenkeel/internal/effect"
)

// unary is around every call: it records the steps, turns the error into a status, and logs the whole once.
func (s *Server) unary(ctx context.Context, req any, info *grpc.UnaryServerInfo, handle grpc.UnaryHandler) (any, error) {
	ctx, followed := s.follow(ctx, info.FullMethod)
	ctx, trace := effect.WithTrace(ctx)
	start := time.Now()
	resp, err := handle(ctx, req)
	err = answer(ctx, err, trace)
	about := append(ids(req), ids(resp)...)
	s.note(ctx, entry{method: path.Base(info.FullMethod), about: about, took: time.Since(start), trace: trace, err: err})
	followed(about, err)
	return resp, err
}

// stream is unary's counterpart for streamed answers.
func (s *Server) stream(srv any, stream grpc.ServerStream, info *grpc.StreamServerInfo, handle grpc.StreamHandler) error {
	ctx, followed := s.follow(stream.Context(), info.FullMethod)
	ctx, trace := effect.WithTrace(ctx)
	start := time.Now()
	traced := &traced{ServerStream: stream, ctx: ctx}
	err := answer(ctx, handle(srv, traced), trace)
	s.note(ctx, entry{method: path.Base(info.FullMethod), about: traced.about, took: time.Since(start), trace: trace, err: err})
	followed(traced.about, err)
	return err
}

// follow lets the tracer follow a request, if there is one.
func (s *Server) follow(ctx context.Context, method string) (_ context.Context, followed func([]slog.Attr, error)) {
	if s.Tracer == nil {
		return ctx, func([]slog.Attr, error) {}
	}
	ctx, end := s.Tracer.Begin(ctx, method, func(key string) string {
		return strings.Join(metadata.ValueFromIncomingContext(ctx, key), ",")
	})
	return ctx, func(about []slog.Attr, err error) { end(status.Code(err).String(), about, err) }
}

// traced is a stream whose handlers see the context that carries the trace. It remembers what the call is about.
type traced struct {
	grpc.ServerStream
	ctx   context.Context
	about []slog.Attr
}

func (t *traced) Context() context.Context { return t.ctx }

func (t *traced) RecvMsg(m any) error {
	err := t.ServerStream.RecvMsg(m)
	if err == nil && t.about == nil {
		t.about = ids(m)
	}
	return err
}

// entry is one line of the log.
type entry struct {
	method string
	about  []slog.Attr
	took   time.Duration
	trace  *effect.Trace
	err    error
}

func (s *Server) note(ctx context.Context, e entry) {
	s.Metrics.observe(e)
	level := levelOf(e.method, status.Code(e.err))
	if !s.log().Enabled(ctx, level) {
		return
	}
	attrs := append(e.about, slog.Duration("took", e.took.Round(time.Microsecond)))
	if steps := e.trace.String(); steps != "" {
		attrs = append(attrs, slog.String("steps", steps))
	}
	if e.err != nil {
		attrs = append(attrs, slog.String("code", status.Code(e.err).String()), slog.String("error", status.Convert(e.err).Message()))
	}
	s.log().LogAttrs(ctx, level, e.method, attrs...)
}

// levelOf keeps the log readable: questions are asked every second and change nothing, and a kubelet that finds a method
// unimplemented has been answered, not failed.
func levelOf(method string, code codes.Code) slog.Level {
	switch {
	case question(method), code == codes.Unimplemented:
		return slog.LevelDebug
	case code == codes.OK && method == "ExecSync": // probes
		return slog.LevelDebug
	case code == codes.OK, code == codes.Canceled:
		return slog.LevelInfo
	}
	return slog.LevelError
}

// question reports whether a method only asks.
func question(method string) bool {
	switch method {
	case "Version", "RuntimeConfig", "ImageFsInfo", "Inventory", "Gone":
		return true
	}
	for _, prefix := range []string{"List", "Stream"} {
		if strings.HasPrefix(method, prefix) {
			return true
		}
	}
	return strings.HasSuffix(method, "Status") || strings.HasSuffix(method, "Stats")
}

// ids names what a request or an answer is about, and nothing else of it: requests carry credentials and environments.
func ids(message any) []slog.Attr {
	var attrs []slog.Attr
	if m, ok := message.(interface{ GetPodSandboxId() string }); ok && m.GetPodSandboxId() != "" {
		attrs = append(attrs, slog.String("pod", m.GetPodSandboxId()))
	}
	if m, ok := message.(interface{ GetContainerId() string }); ok && m.GetContainerId() != "" {
		attrs = append(attrs, slog.String("container", m.GetContainerId()))
	}
	switch m := message.(type) {
	case *cri.RunPodSandboxRequest:
		meta := m.GetConfig().GetMetadata()
		attrs = append(attrs, slog.String("name", meta.GetNamespace()+"/"+meta.GetName()), slog.String("uid", meta.GetUid()))
	case *cri.CreateContainerRequest:
		attrs = append(attrs, slog.String("name", m.GetConfig().GetMetadata().GetName()))
	case *cri.PullImageRequest:
		attrs = append(attrs, slog.String("image", m.GetImage().GetImage()))
	case *cri.RemoveImageRequest:
		attrs = append(attrs, slog.String("image", m.GetImage().GetImage()))
	case *operator.PullRequest:
		attrs = append(attrs, slog.String("image", m.Image))
	case *cri.PullImageResponse:
		attrs = append(attrs, slog.String("id", m.GetImageRef()))
	}
	return attrs
}
