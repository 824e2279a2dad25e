package integration

import (
	"context"
	"encoding/hex"
	"fmt"
	"net"
	"slices"
	"sync"
	"testing"
	"time"

	collector "go.opentelemetry.io/proto/otlp/collector/trace/v1"
	otlp "go.opentelemetry.io/proto/otlp/trace/v1"
	"google.golang.org/grpc"
	"google.golang.org/grpc/metadata"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/evenkeel/evenkeel/integration/engine"
)

// spans is a collector's service over OTLP/gRPC that keeps what it gets.
type spans struct {
	collector.UnimplementedTraceServiceServer

	mu   sync.Mutex
	kept map[string][]*otlp.Span // by trace id, in hex
}

func (s *spans) Export(_ context.Context, req *collector.ExportTraceServiceRequest) (*collector.ExportTraceServiceResponse, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, resource := range req.ResourceSpans {
		for _, scope := range resource.ScopeSpans {
			for _, span := range scope.Spans {
				id := hex.EncodeToString(span.TraceId)
				s.kept[id] = append(s.kept[id], span)
			}
		}
	}
	return &collector.ExportTraceServiceResponse{}, nil
}

func (s *spans) of(trace string) []*otlp.Span {
	s.mu.Lock()
	defer s.mu.Unlock()
	return slices.Clone(s.kept[trace])
}

// The spans of a request are parts of the client's trace: one for the request, and one for each of its effects. What comes
// without a trace is not traced.
func TestRequestsAreTraced(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	must(t, err)
	got := &spans{kept: map[string][]*otlp.Span{}}
	g := grpc.NewServer()
	collector.RegisterTraceServiceServer(g, got)
	go g.Serve(l)
	t.Cleanup(g.Stop)

	n := prepareNode(t, "builtin")
	n.Config = fmt.Sprintf("tracing.endpoint = %q\n", l.Addr().String())
	must(t, n.Start())
	n.pull(busybox)
	const trace, parent = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"
	traced := metadata.AppendToOutgoingContext(n.ctx(), "traceparent", "00-"+trace+"-"+parent+"-01")
	cfg := n.Pod("p")
	pod, err := n.Runtime.RunPodSandbox(traced, &cri.RunPodSandboxRequest{Config: cfg})
	must(t, err)
	c, err := n.Runtime.CreateContainer(traced, &cri.CreateContainerRequest{PodSandboxId: pod.PodSandboxId, Config: engine.Sleeper("main", busybox), SandboxConfig: cfg})
	must(t, err)
	n.startContainer(c.ContainerId)

	byName := map[string]*otlp.Span{}
	n.eventually(30*time.Second, func() error { // spans are sent every five seconds
		for _, s := range got.of(trace) {
			byName[s.Name] = s
		}
		for _, name := range []string{"runtime.v1.RuntimeService/RunPodSandbox", "pod.network", "runtime.v1.RuntimeService/CreateContainer", "container.create"} {
			if byName[name] == nil {
				return fmt.Errorf("there is no span %s among %d", name, len(byName))
			}
		}
		return nil
	})
	run, create := byName["runtime.v1.RuntimeService/RunPodSandbox"], byName["runtime.v1.RuntimeService/CreateContainer"]
	for name, want := range map[string][]byte{"pod.namespaces": run.SpanId, "pod.network": run.SpanId, "pod.ready": run.SpanId, "container.create": create.SpanId} {
		if s := byName[name]; s == nil || !slices.Equal(s.ParentSpanId, want) {
			t.Errorf("%s is not a part of its request: %v", name, s)
		}
	}
	for _, s := range []*otlp.Span{run, create} {
		if hex.EncodeToString(s.ParentSpanId) != parent {
			t.Errorf("%s has parent %x", s.Name, s.ParentSpanId)
		}
	}
	got.mu.Lock()
	defer got.mu.Unlock()
	if len(got.kept) != 1 {
		t.Errorf("spans of %d traces came, and one was asked for", len(got.kept))
	}
}
