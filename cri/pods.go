package cri

import (
	"context"
	"fmt"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"
)

func (s *Server) RunPodSandbox(ctx context.Context, req *cri.RunPodSandboxRequest) (*cri.RunPodSandboxResponse, error) {
	if err := s.checkPod(req); err != nil {
		return nil, err
	}
	id, err := s.Pods.Run(ctx, req.Config, req.RuntimeHandler)
	if err != nil {
		return nil, err
	}
	return &cri.RunPodSandboxResponse{PodSandboxId: id}, nil
}

// checkPod demands what identifies a pod; the kubelet demands the same of every status.
func (s *Server) checkPod(req *cri.RunPodSandboxRequest) error {
	meta := req.GetConfig().GetMetadata()
	if err := need("metadata.name", meta.GetName(), "metadata.namespace", meta.GetNamespace(), "metadata.uid", meta.GetUid()); err != nil {
		return err
	}
	if err := s.Pods.CheckHandler(req.RuntimeHandler); err != nil {
		return fmt.Errorf("cannot run pod %s/%s: %w", meta.Namespace, meta.Name, err)
	}
	return nil
}

func (s *Server) StopPodSandbox(ctx context.Context, req *cri.StopPodSandboxRequest) (*cri.StopPodSandboxResponse, error) {
	if err := need("pod_sandbox_id", req.PodSandboxId); err != nil {
		return nil, err
	}
	return &cri.StopPodSandboxResponse{}, known(s.Pods.Stop(ctx, req.PodSandboxId))
}

func (s *Server) RemovePodSandbox(ctx context.Context, req *cri.RemovePodSandboxRequest) (*cri.RemovePodSandboxResponse, error) {
	if err := need("pod_sandbox_id", req.PodSandboxId); err != nil {
		return nil, err
	}
	return &cri.RemovePodSandboxResponse{}, known(s.Pods.Remove(ctx, req.PodSandboxId))
}

func (s *Server) PodSandboxStatus(ctx context.Context, req *cri.PodSandboxStatusRequest) (*cri.PodSandboxStatusResponse, error) {
	if err := need("pod_sandbox_id", req.PodSandboxId); err != nil {
		return nil, err
	}
	status, containers, err := s.Pods.Status(req.PodSandboxId)
	if err != nil {
		return nil, err
	}
	resp := &cri.PodSandboxStatusResponse{Status: status, ContainersStatuses: containers, Timestamp: time.Now().UnixNano()}
	if req.Verbose {
		resp.Info, err = verbose(s.Pods.Info(req.PodSandboxId))
	}
	return resp, err
}

// verbose puts what a room knows beyond the CRI under the key that crictl's users and their jq scripts look at.
func verbose(values map[string]any, err error) (map[string]string, error) {
	if err != nil {
		return nil, err
	}
	return infoOf(map[string]any{"info": values})
}

// ListPodSandbox answers as ListContainers does.
func (s *Server) ListPodSandbox(ctx context.Context, req *cri.ListPodSandboxRequest) (*cri.ListPodSandboxResponse, error) {
	items, err := s.Pods.Encoded(req.Filter)
	resp := &cri.ListPodSandboxResponse{}
	resp.ProtoReflect().SetUnknown(items)
	return resp, err
}

func (s *Server) PodSandboxStats(ctx context.Context, req *cri.PodSandboxStatsRequest) (*cri.PodSandboxStatsResponse, error) {
	if err := need("pod_sandbox_id", req.PodSandboxId); err != nil {
		return nil, err
	}
	stats, err := s.Pods.Stats(ctx, req.PodSandboxId)
	if err != nil {
		return nil, err
	}
	return &cri.PodSandboxStatsResponse{Stats: stats}, nil
}

func (s *Server) UpdatePodSandboxResources(ctx context.Context, req *cri.UpdatePodSandboxResourcesRequest) (*cri.UpdatePodSandboxResourcesResponse, error) {
	if err := need("pod_sandbox_id", req.PodSandboxId); err != nil {
		return nil, err
	}
	return &cri.UpdatePodSandboxResourcesResponse{}, s.Pods.UpdateResources(ctx, req.PodSandboxId, req.Overhead, req.Resources)
}

func (s *Server) ListPodSandboxStats(ctx context.Context, req *cri.ListPodSandboxStatsRequest) (*cri.ListPodSandboxStatsResponse, error) {
	return &cri.ListPodSandboxStatsResponse{Stats: s.Pods.ListStats(ctx, req.Filter)}, nil
}

// CheckpointPod has no counterpart in any runtime yet.
func (s *Server) CheckpointPod(context.Context, *cri.CheckpointPodRequest) (*cri.CheckpointPodResponse, error) {
	return nil, status.Error(codes.Unimplemented, "checkpoints of whole pods are not implemented; CheckpointContainer writes one of a container")
}

// RestorePod has none, either.
func (s *Server) RestorePod(context.Context, *cri.RestorePodRequest) (*cri.RestorePodResponse, error) {
	return nil, status.Error(codes.Unimplemented, "restoring pods is not implemented; what CheckpointContainer writes can be restored with `runc restore`")
}
