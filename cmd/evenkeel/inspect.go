package main

import (
	"context"
	"encoding/json"
	"fmt"

	"github.com/spf13/cobra"
	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// inspected is all that the engine says about one pod or container.
type inspected struct {
	Kind   string                     `json:"kind"` // pod or container
	Status json.RawMessage            `json:"status"`
	Info   map[string]json.RawMessage `json:"info"`
}

func inspectCommand() *cobra.Command {
	var t tool
	c := &cobra.Command{
		Use:   "inspect POD|CONTAINER...",
		Short: "Print all that the engine knows about pods or containers, as JSON",
		Args:  cobra.MinimumNArgs(1),
		RunE: t.looking(func(c *cobra.Command, e *engine, w *world, refs []string) error {
			all := []*inspected{}
			for _, ref := range refs {
				at, err := w.find(ref)
				if err != nil {
					return err
				}
				one, err := e.inspect(c.Context(), at)
				if err != nil {
					return err
				}
				all = append(all, one)
			}
			return printJSON(c.OutOrStdout(), all)
		}),
	}
	return t.register(c)
}

func (e *engine) inspect(ctx context.Context, at target) (*inspected, error) {
	if at.pod != nil {
		answer, err := e.pods.PodSandboxStatus(ctx, &cri.PodSandboxStatusRequest{PodSandboxId: at.pod.Id, Verbose: true})
		if err != nil {
			return nil, fmt.Errorf("cannot inspect pod %s: %w", at.name(), err)
		}
		return newInspected("pod", answer.Status, answer.Info)
	}
	answer, err := e.pods.ContainerStatus(ctx, &cri.ContainerStatusRequest{ContainerId: at.container.Id, Verbose: true})
	if err != nil {
		return nil, fmt.Errorf("cannot inspect container %s: %w", at.name(), err)
	}
	return newInspected("container", answer.Status, answer.Info)
}

func newInspected(kind string, status proto.Message, info map[string]string) (*inspected, error) {
	data, err := protojson.Marshal(status)
	if err != nil {
		return nil, fmt.Errorf("cannot print the status: %w", err)
	}
	i := &inspected{Kind: kind, Status: data, Info: map[string]json.RawMessage{}}
	for key, value := range info {
		if !json.Valid([]byte(value)) { // a runtime may answer with plain text
			quoted, _ := json.Marshal(value)
			value = string(quoted)
		}
		i.Info[key] = json.RawMessage(value)
	}
	return i, nil
}

// detail decodes what the engine says beyond the CRI.
func (i *inspected) detail(into any) error {
	if i.Info["info"] == nil {
		return nil
	}
	return json.Unmarshal(i.Info["info"], into)
}
