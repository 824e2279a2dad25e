package cri

import (
	"slices"

	"google.golang.org/grpc"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// The Stream calls give what the List calls give, from the same snapshot, in messages that no node can outgrow
// (KEP-5825).

// batch is how many items a message holds. The largest item is a container with its labels and annotations, some 10 KiB
// where those are used heavily, so that a message stays below 2 MiB.
const batch = 128

func (s *Server) StreamPodSandboxes(req *cri.StreamPodSandboxesRequest, stream grpc.ServerStreamingServer[cri.StreamPodSandboxesResponse]) error {
	return inBatches(s.Pods.List(req.Filter), func(items []*cri.PodSandbox) error {
		return stream.Send(&cri.StreamPodSandboxesResponse{PodSandboxes: items})
	})
}

func (s *Server) StreamContainers(req *cri.StreamContainersRequest, stream grpc.ServerStreamingServer[cri.StreamContainersResponse]) error {
	return inBatches(s.Containers.List(req.Filter), func(items []*cri.Container) error {
		return stream.Send(&cri.StreamContainersResponse{Containers: items})
	})
}

func (s *Server) StreamContainerStats(req *cri.StreamContainerStatsRequest, stream grpc.ServerStreamingServer[cri.StreamContainerStatsResponse]) error {
	return inBatches(s.Containers.ListStats(stream.Context(), req.Filter), func(items []*cri.ContainerStats) error {
		return stream.Send(&cri.StreamContainerStatsResponse{ContainerStats: items})
	})
}

func (s *Server) StreamPodSandboxStats(req *cri.StreamPodSandboxStatsRequest, stream grpc.ServerStreamingServer[cri.StreamPodSandboxStatsResponse]) error {
	return inBatches(s.Pods.ListStats(stream.Context(), req.Filter), func(items []*cri.PodSandboxStats) error {
		return stream.Send(&cri.StreamPodSandboxStatsResponse{PodSandboxStats: items})
	})
}

func (s *Server) StreamImages(req *cri.StreamImagesRequest, stream grpc.ServerStreamingServer[cri.StreamImagesResponse]) error {
	images, err := s.listImages(req.Filter)
	if err != nil {
		return err
	}
	return inBatches(images, func(items []*cri.Image) error {
		return stream.Send(&cri.StreamImagesResponse{Images: items})
	})
}

// inBatches sends all items; none of them is no message at all.
func inBatches[T any](items []T, send func([]T) error) error {
	for part := range slices.Chunk(items, batch) {
		if err := send(part); err != nil {
			return err
		}
	}
	return nil
}
