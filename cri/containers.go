package cri

import (
	"context"
	"time"

	cri "k8s.io/cri-api/pkg/apis/runtime/v1"
)

func (s *Server) CreateContainer(ctx context.Context, req *cri.CreateContainerRequest) (*cri.CreateContainerResponse, error) {
	config := req.GetConfig()
	if err := need("pod_sandbox_id", req.PodSandboxId, "config.metadata.name", config.GetMetadata().GetName(),
		"config.image.image", config.GetImage().GetImage()); err != nil {
		return nil, err
	}
	id, err := s.Containers.Create(ctx, req.PodSandboxId, config)
	if err != nil {
		return nil, err
	}
	return &cri.CreateContainerResponse{ContainerId: id}, nil
}

func (s *Server) StartContainer(ctx context.Context, req *cri.StartContainerRequest) (*cri.StartContainerResponse, error) {
	if err := need("container_id", req.ContainerId); err != nil {
		return nil, err
	}
	return &cri.StartContainerResponse{}, s.Containers.Start(ctx, req.ContainerId)
}

func (s *Server) StopContainer(ctx context.Context, req *cri.StopContainerRequest) (*cri.StopContainerResponse, error) {
	if err := need("container_id", req.ContainerId); err != nil {
		return nil, err
	}
	return &cri.StopContainerResponse{}, known(s.Containers.Stop(ctx, req.ContainerId, seconds(req.Timeout)))
}

// seconds turns a count into a duration; what does not fit into one is as long as one can be, and no time runs backwards.
func seconds(n int64) time.Duration {
	const most = int64(1<<63-1) / int64(time.Second)
	return time.Duration(min(max(n, 0), most)) * time.Second
}

func (s *Server) RemoveContainer(ctx context.Context, req *cri.RemoveContainerRequest) (*cri.RemoveContainerResponse, error) {
	if err := need("container_id", req.ContainerId); err != nil {
		return nil, err
	}
	return &cri.RemoveContainerResponse{}, known(s.Containers.Remove(ctx, req.ContainerId))
}

func (s *Server) ContainerStatus(ctx context.Context, req *cri.ContainerStatusRequest) (*cri.ContainerStatusResponse, error) {
	if err := need("container_id", req.ContainerId); err != nil {
		return nil, err
	}
	if !req.Verbose {
		status, err := s.Containers.Status(req.ContainerId)
		return &cri.ContainerStatusResponse{Status: status}, err
	}
	status, info, err := s.Containers.Verbose(req.ContainerId)
	if err != nil {
		return nil, err
	}
	resp := &cri.ContainerStatusResponse{Status: status}
	resp.Info, err = verbose(info, nil)
	return resp, err
}

// ListContainers answers with items that are encoded already. To this side of the connection they are fields that the
// answer does not know; to the other they are its containers.
func (s *Server) ListContainers(ctx context.Context, req *cri.ListContainersRequest) (*cri.ListContainersResponse, error) {
	items, err := s.Containers.Encoded(req.Filter)
	resp := &cri.ListContainersResponse{}
	resp.ProtoReflect().SetUnknown(items)
	return resp, err
}

// UpdateContainerResources without Linux resources asks for no change, of a container that must exist all the same.
func (s *Server) UpdateContainerResources(ctx context.Context, req *cri.UpdateContainerResourcesRequest) (*cri.UpdateContainerResourcesResponse, error) {
	if err := need("container_id", req.ContainerId); err != nil {
		return nil, err
	}
	if req.Linux == nil {
		_, err := s.Containers.Status(req.ContainerId)
		return &cri.UpdateContainerResourcesResponse{}, err
	}
	return &cri.UpdateContainerResourcesResponse{}, s.Containers.Update(ctx, req.ContainerId, req.Linux)
}

func (s *Server) ReopenContainerLog(ctx context.Context, req *cri.ReopenContainerLogRequest) (*cri.ReopenContainerLogResponse, error) {
	if err := need("container_id", req.ContainerId); err != nil {
		return nil, err
	}
	return &cri.ReopenContainerLogResponse{}, s.Containers.ReopenLog(ctx, req.ContainerId)
}

func (s *Server) CheckpointContainer(ctx context.Context, req *cri.CheckpointContainerRequest) (*cri.CheckpointContainerResponse, error) {
	if err := need("container_id", req.ContainerId, "location", req.Location); err != nil {
		return nil, err
	}
	return &cri.CheckpointContainerResponse{}, s.Containers.Checkpoint(ctx, req.ContainerId, req.Location, seconds(req.Timeout))
}

func (s *Server) ContainerStats(ctx context.Context, req *cri.ContainerStatsRequest) (*cri.ContainerStatsResponse, error) {
	if err := need("container_id", req.ContainerId); err != nil {
		return nil, err
	}
	stats, err := s.Containers.Stats(ctx, req.ContainerId)
	if err != nil {
		return nil, err
	}
	return &cri.ContainerStatsResponse{Stats: stats}, nil
}

func (s *Server) ListContainerStats(ctx context.Context, req *cri.ListContainerStatsRequest) (*cri.ListContainerStatsResponse, error) {
	return &cri.ListContainerStatsResponse{Stats: s.Containers.ListStats(ctx, req.Filter)}, nil
}
