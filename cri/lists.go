package cri

import (
	"google.golang.org/grpc"
	"google.golang.org/protobuf/proto"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// The Stream calls give what the List calls give, from the same snapshot, in messages that no node can outgrow
// (KEP-5825).

// A message holds this much, and one item at least. Clients take 16 MiB (cri-client pkg/utils.go). Most items are below a KiB,
// but Kubernetes lets the annotations of a single pod be 256 KiB.
const (
	batch      = 128     // items
	batchBytes = 1 << 20 // as they are on the wire
)

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
func inBatches[T proto.Message](items []T, send func([]T) error) error {
	for len(items) > 0 {
		n := fitting(items)
		if err := send(items[:n]); err != nil {
			return err
		}
		items = items[n:]
	}
	return nil
}

// fitting counts the items of the next message.
func fitting[T proto.Message](items []T) (n int) {
	for size := 0; n < min(len(items), batch); n++ {
		if size += proto.Size(items[n]); n > 0 && size > batchBytes {
			break
		}
	}
	return n
}
