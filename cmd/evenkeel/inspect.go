package main

import (
	"context"
	"encoding/json"
	"fmt"

	"github.com/spf13/cobra"
	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/evenkeel/evenkeel/cri/operator"
)

// inspected is all that the engine says about one pod or container.
type inspected struct {
	Kind   string                     `json:"kind"` // pod or container
	Status json.RawMessage            `json:"status"`
	Info   map[string]json.RawMessage `json:"info"`
	// NetworkCheck is what the network says of the pod now, where it was asked.
	NetworkCheck *operator.NetworkCheck `json:"networkCheck,omitempty"`
}

func inspectCommand() *cobra.Command {
	var t tool
	var checkNetwork bool
	c := &cobra.Command{
		Use:   "inspect POD|CONTAINER...",
		Short: "Print all that the engine knows about pods or containers, as JSON",
		Long: "Print all that the engine knows about pods or containers, as JSON. With --check-network the network is asked, too, whether a\n" +
			"pod still has what it was given; the exit code is 1 when one has not. CNI runs its plugins for that (CHECK).",
		Args: cobra.MinimumNArgs(1),
		RunE: t.looking(func(c *cobra.Command, e *engine, w *world, refs []string) error {
			all := []*inspected{}
			broken := false
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
				if !checkNetwork {
					continue
				}
				if one.NetworkCheck, err = e.checkNetwork(c.Context(), at); err != nil {
					return err
				}
				broken = broken || one.NetworkCheck.Status == "broken"
			}
			if err := printJSON(c.OutOrStdout(), all); err != nil || !broken {
				return err
			}
			return exitCode(1)
		}),
	}
	c.Flags().BoolVar(&checkNetwork, "check-network", false, "ask the network how each pod, or the pod of a container, is")
	return t.register(c)
}

func (e *engine) checkNetwork(ctx context.Context, at target) (*operator.NetworkCheck, error) {
	var id string
	if at.pod != nil {
		id = at.pod.Id
	} else {
		id = at.container.PodSandboxId
	}
	answer, err := (operator.Client{Conn: e.conn}).CheckNetwork(ctx, operator.CheckNetworkRequest{Pod: id})
	if err != nil {
		return nil, fmt.Errorf("cannot check the network of %s: %w", at.name(), err)
	}
	return &answer, nil
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
