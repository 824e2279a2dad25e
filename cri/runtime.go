package cri

import (
	"cmp"
	"context"
	"encoding/json"
	"fmt"
	"maps"
	"net/netip"
	"runtime"
	"slices"
	"strings"

	cri "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/evenkeel/evenkeel/sandbox"
)

const (
	// RuntimeName is the prefix of every container id in the Kubernetes API; it can never change.
	RuntimeName = "evenkeel"
	// apiVersion is the kubelet's own version number, which it demands back (kuberuntime_manager.go).
	apiVersion = "0.1.0"
	// DefaultPauseImage is what kubeadm 1.36 compares sandboxImage with. Pods of this engine need no such image.
	DefaultPauseImage = "registry.k8s.io/pause:3.10"
)

// Version answers with four strings, none of which a kubelet accepts empty.
func (s *Server) Version(context.Context, *cri.VersionRequest) (*cri.VersionResponse, error) {
	return &cri.VersionResponse{
		Version:           apiVersion,
		RuntimeName:       RuntimeName,
		RuntimeVersion:    cmp.Or(s.Release, "0.0.0"),
		RuntimeApiVersion: "v1",
	}, nil
}

// Status is asked every few seconds: it reads what is known and touches nothing.
func (s *Server) Status(ctx context.Context, req *cri.StatusRequest) (*cri.StatusResponse, error) {
	resp := &cri.StatusResponse{
		Status:          &cri.RuntimeStatus{Conditions: []*cri.RuntimeCondition{s.runtimeReady(), s.networkReady()}},
		RuntimeHandlers: s.handlers(),
		Features: &cri.RuntimeFeatures{
			SupplementalGroupsPolicy: true, MountOptions: true, UserNamespacesHostNetwork: s.Pods.HasUserNamespaces(""),
		},
	}
	if !req.Verbose {
		return resp, nil
	}
	var err error
	resp.Info, err = s.statusInfo()
	return resp, err
}

func (s *Server) runtimeReady() *cri.RuntimeCondition {
	if s.Pods.Runtimes[""] == nil {
		return &cri.RuntimeCondition{Type: cri.RuntimeReady, Reason: "NoDefaultRuntime",
			Message: "no OCI runtime is configured as the default; see `evenkeel check`"}
	}
	return &cri.RuntimeCondition{Type: cri.RuntimeReady, Status: true}
}

// networkReady gives the reason that both peers give, for tools that look for it.
func (s *Server) networkReady() *cri.RuntimeCondition {
	if err := s.Pods.Network.Ready(); err != nil {
		return &cri.RuntimeCondition{Type: cri.NetworkReady, Reason: "NetworkPluginNotReady", Message: err.Error()}
	}
	return &cri.RuntimeCondition{Type: cri.NetworkReady, Status: true}
}

func (s *Server) handlers() []*cri.RuntimeHandler {
	var handlers []*cri.RuntimeHandler
	for _, name := range slices.Sorted(maps.Keys(s.Pods.Runtimes)) {
		r := s.Pods.Runtimes[name]
		handlers = append(handlers, &cri.RuntimeHandler{Name: name, Features: &cri.RuntimeHandlerFeatures{
			RecursiveReadOnlyMounts: r.RecursiveReadOnly,
			UserNamespaces:          s.Pods.HasUserNamespaces(name),
		}})
	}
	return handlers
}

// statusInfo is what crictl info prints. kubeadm reads sandboxImage from "config", critest stateDir.
func (s *Server) statusInfo() (map[string]string, error) {
	config := map[string]any{}
	if err := remarshal(s.Config, &config); err != nil {
		return nil, fmt.Errorf("cannot print the configuration: %w", err)
	}
	config["sandboxImage"] = cmp.Or(s.PauseImage, DefaultPauseImage)
	config["stateDir"] = s.Pods.State
	network := s.Pods.Network.Info()
	return infoOf(map[string]any{
		"config":  config,
		"golang":  runtime.Version(),
		"network": network,
		// containerd's names, which tools for the node look for
		"cniconfig": network, "lastCNILoadStatus": loaded(s.Pods.Network.Ready()),
	})
}

// loaded says OK or what is wrong.
func loaded(err error) string {
	if err != nil {
		return err.Error()
	}
	return "OK"
}

// remarshal turns any struct into the map that its JSON is. A nil one leaves to as it is.
func remarshal(from any, to *map[string]any) error {
	if from == nil {
		return nil
	}
	data, err := json.Marshal(from)
	if err != nil {
		return err
	}
	return json.Unmarshal(data, to)
}

// infoOf makes the verbose part of an answer: every value is a JSON document, so that clients can print it indented.
func infoOf(values map[string]any) (map[string]string, error) {
	info := make(map[string]string, len(values))
	for key, value := range values {
		data, err := json.Marshal(value)
		if err != nil {
			return nil, fmt.Errorf("cannot print %s: %w", key, err)
		}
		info[key] = string(data)
	}
	return info, nil
}

// RuntimeConfig always fills Linux: without it the kubelet would read the zero value, which means systemd.
func (s *Server) RuntimeConfig(context.Context, *cri.RuntimeConfigRequest) (*cri.RuntimeConfigResponse, error) {
	return &cri.RuntimeConfigResponse{Linux: &cri.LinuxRuntimeConfiguration{CgroupDriver: s.CgroupDriver}}, nil
}

// UpdateRuntimeConfig takes the node's pod range. The kubelet sends it when the node has one, and again after restarts.
func (s *Server) UpdateRuntimeConfig(ctx context.Context, req *cri.UpdateRuntimeConfigRequest) (*cri.UpdateRuntimeConfigResponse, error) {
	cidr := req.GetRuntimeConfig().GetNetworkConfig().GetPodCidr()
	if cidr == "" {
		return &cri.UpdateRuntimeConfigResponse{}, nil
	}
	for part := range strings.SplitSeq(cidr, ",") {
		if _, err := netip.ParsePrefix(strings.TrimSpace(part)); err != nil {
			return nil, fmt.Errorf("cannot use pod_cidr %q: %w: %w", cidr, sandbox.ErrInvalid, err)
		}
	}
	if err := s.Pods.Network.SetPodCIDR(cidr); err != nil {
		return nil, fmt.Errorf("cannot use pod_cidr %q: %w", cidr, err)
	}
	return &cri.UpdateRuntimeConfigResponse{}, nil
}
