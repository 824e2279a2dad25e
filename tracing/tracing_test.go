package tracing

import (
	"context"
	"errors"
	"log/slog"
	"net"
	"slices"
	"sync"
	"testing"
	"time"

	collector "go.opentelemetry.io/proto/otlp/collector/trace/v1"
	otlp "go.opentelemetry.io/proto/otlp/trace/v1"
	"google.golang.org/grpc"

	"github.com/evenkeel/evenkeel/internal/effect"
)

// A receiver is a collector's service over OTLP/gRPC.
type receiver struct {
	collector.UnimplementedTraceServiceServer
	address string

	mu    sync.Mutex
	spans []*otlp.Span
}

func (r *receiver) Export(_ context.Context, req *collector.ExportTraceServiceRequest) (*collector.ExportTraceServiceResponse, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, resource := range req.ResourceSpans {
		for _, scope := range resource.ScopeSpans {
			r.spans = append(r.spans, scope.Spans...)
		}
	}
	return &collector.ExportTraceServiceResponse{}, nil
}

func receive(t *testing.T) *receiver {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	r := &receiver{address: l.Addr().String()}
	g := grpc.NewServer()
	collector.RegisterTraceServiceServer(g, r)
	go g.Serve(l)
	t.Cleanup(g.Stop)
	return r
}

var (
	first  = effect.New("tracing.test.first")
	second = effect.New("tracing.test.second")
)

const client = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"

// request sends one request through a tracer and returns the spans that reached the collector.
func request(t *testing.T, perMillion int, parent string) []*otlp.Span {
	t.Helper()
	r := receive(t)
	tracer, err := Open(t.Context(), r.address, perMillion, "1.2.3", slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	ctx, end := tracer.Begin(t.Context(), "/runtime.v1.RuntimeService/RunPodSandbox", func(key string) string {
		return map[string]string{"traceparent": parent}[key]
	})
	first.Do(ctx, func() error { time.Sleep(time.Millisecond); return nil })
	end("Internal", []slog.Attr{slog.String("pod", "p1")}, errors.New("it failed"))
	second.Do(context.WithoutCancel(ctx), func() error { return errors.New("later") }) // the work goes on without its caller
	if err := tracer.Close(t.Context()); err != nil {
		t.Fatal(err)
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.spans
}

func TestSpansContinueTheClientsTrace(t *testing.T) {
	spans := request(t, 0, client)
	byName := map[string]*otlp.Span{}
	for _, s := range spans {
		byName[s.Name] = s
	}
	server := byName["runtime.v1.RuntimeService/RunPodSandbox"]
	if len(spans) != 3 || server == nil {
		t.Fatalf("spans are %v", spans)
	}
	trace, parent := []byte{0x0a, 0xf7, 0x65, 0x19, 0x16, 0xcd, 0x43, 0xdd, 0x84, 0x48, 0xeb, 0x21, 0x1c, 0x80, 0x31, 0x9c}, []byte{0xb7, 0xad, 0x6b, 0x71, 0x69, 0x20, 0x33, 0x31}
	if !slices.Equal(server.TraceId, trace) || !slices.Equal(server.ParentSpanId, parent) || server.Kind != otlp.Span_SPAN_KIND_SERVER {
		t.Errorf("the request's span is %v", server)
	}
	if server.Status.GetCode() != otlp.Status_STATUS_CODE_ERROR || server.Status.GetMessage() != "it failed" {
		t.Errorf("its status is %v", server.Status)
	}
	for name, status := range map[string]otlp.Status_StatusCode{"tracing.test.first": otlp.Status_STATUS_CODE_UNSET, "tracing.test.second": otlp.Status_STATUS_CODE_ERROR} {
		s := byName[name]
		if s == nil || !slices.Equal(s.ParentSpanId, server.SpanId) || s.Status.GetCode() != status {
			t.Errorf("%s is %v", name, s)
		}
	}
	if s := byName["tracing.test.first"]; s.EndTimeUnixNano-s.StartTimeUnixNano < uint64(time.Millisecond) {
		t.Errorf("an effect of a millisecond took %d ns", s.EndTimeUnixNano-s.StartTimeUnixNano)
	}
}

func TestSampling(t *testing.T) {
	const unsampled = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-00"
	for _, test := range []struct {
		perMillion int
		parent     string
		want       int
	}{{0, "", 0}, {million, "", 3}, {million, unsampled, 0}, {0, client, 3}, {0, "nonsense", 0}} {
		if got := len(request(t, test.perMillion, test.parent)); got != test.want {
			t.Errorf("%d per million and parent %q: %d spans, want %d", test.perMillion, test.parent, got, test.want)
		}
	}
}

// Without a collector requests go on as they are.
func TestNoCollector(t *testing.T) {
	tracer, err := Open(t.Context(), "127.0.0.1:1", million, "1", slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	ctx, end := tracer.Begin(t.Context(), "/s/m", func(string) string { return "" })
	if err := first.Do(ctx, func() error { return nil }); err != nil {
		t.Error(err)
	}
	end("OK", nil, nil)
	ctx, cancel := context.WithTimeout(t.Context(), 100*time.Millisecond)
	defer cancel()
	tracer.Close(ctx)
}
