package cri

import (
	"context"
	"net"
	"path/filepath"
	"testing"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// TestStreamsOfEventsDoNotKeepTheEngine: they have no end of their own, and a stop does not wait for the client's.
func TestStreamsOfEventsDoNotKeepTheEngine(t *testing.T) {
	s := empty(t)
	l, err := net.Listen("unix", filepath.Join(t.TempDir(), "s"))
	if err != nil {
		t.Fatal(err)
	}
	ctx, stop := context.WithCancel(t.Context())
	served := make(chan error, 1)
	go func() { served <- s.Serve(ctx, l) }()
	events, err := cri.NewRuntimeServiceClient(dial(t, "unix://"+l.Addr().String())).GetContainerEvents(t.Context(), &cri.GetEventsRequest{})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := events.Header(); err != nil { // from here on every event comes
		t.Fatal(err)
	}
	begun := time.Now()
	stop()
	if err := <-served; err != nil || time.Since(begun) > time.Second {
		t.Errorf("stopped after %s: %v", time.Since(begun), err)
	}
	if _, err := events.Recv(); status.Code(err) != codes.Unavailable {
		t.Errorf("the client hears %v", err)
	}
}

func TestMetricsOfNothing(t *testing.T) {
	r := cri.NewRuntimeServiceClient(dial(t, serve(t, empty(t))))
	descriptors, err := r.ListMetricDescriptors(t.Context(), &cri.ListMetricDescriptorsRequest{})
	if err != nil || len(descriptors.Descriptors) < 56 {
		t.Errorf("%d descriptors, %v", len(descriptors.GetDescriptors()), err)
	}
	if metrics, err := r.ListPodSandboxMetrics(t.Context(), &cri.ListPodSandboxMetricsRequest{}); err != nil || len(metrics.PodMetrics) != 0 {
		t.Errorf("metrics of no pod: %v, %v", metrics, err)
	}
}
