package cri

import (
	"context"
	"slices"

	"google.golang.org/grpc"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/evenkeel/evenkeel/sandbox"
)

// The kubelet publishes what these calls answer under /metrics/cadvisor, with the gate PodAndContainerStatsFromCRI.

func (s *Server) ListMetricDescriptors(context.Context, *cri.ListMetricDescriptorsRequest) (*cri.ListMetricDescriptorsResponse, error) {
	return &cri.ListMetricDescriptorsResponse{Descriptors: sandbox.MetricDescriptors()}, nil
}

func (s *Server) ListPodSandboxMetrics(ctx context.Context, _ *cri.ListPodSandboxMetricsRequest) (*cri.ListPodSandboxMetricsResponse, error) {
	return &cri.ListPodSandboxMetricsResponse{PodMetrics: s.Pods.Metrics(ctx)}, nil
}

// podBatch: the metrics of a pod with ten containers take some 200 KiB.
const podBatch = 16

func (s *Server) StreamPodSandboxMetrics(_ *cri.StreamPodSandboxMetricsRequest, stream grpc.ServerStreamingServer[cri.StreamPodSandboxMetricsResponse]) error {
	for part := range slices.Chunk(s.Pods.Metrics(stream.Context()), podBatch) {
		if err := stream.Send(&cri.StreamPodSandboxMetricsResponse{PodSandboxMetrics: part}); err != nil {
			return err
		}
	}
	return nil
}
