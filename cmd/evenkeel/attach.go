package main

import (
	"context"
	"encoding/json"
	"fmt"

	"github.com/spf13/cobra"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"
)

func attachCommand() *cobra.Command {
	var t tool
	var name string
	var stdin bool
	c := &cobra.Command{
		Use:   "attach CONTAINER|POD",
		Short: "Connect to the output, and with -i to the input, of a running container",
		Args:  cobra.ExactArgs(1),
		RunE: t.looking(func(c *cobra.Command, e *engine, w *world, args []string) error {
			container, err := w.pickRunning(args[0], name)
			if err != nil {
				return err
			}
			return e.attach(c, container, stdin)
		}),
	}
	c.Flags().StringVarP(&name, "container", "c", "", "which container of the pod")
	c.Flags().BoolVarP(&stdin, "stdin", "i", false, "pass on standard input")
	c.Flags().StringVar(&t.Address, "address", "", "socket of the engine (default $EVENKEEL_ADDRESS or "+defaultAddress+")")
	return c
}

// attach uses a terminal exactly when the container was made with one, which its own manifest decided.
func (e *engine) attach(c *cobra.Command, container *cri.Container, stdin bool) error {
	tty, err := e.hasTerminal(c.Context(), container.Id)
	if err != nil {
		return err
	}
	answer, err := e.pods.Attach(c.Context(), &cri.AttachRequest{
		ContainerId: container.Id, Stdin: stdin, Stdout: true, Stderr: !tty, Tty: tty,
	})
	if err != nil {
		return fmt.Errorf("cannot attach to container %s: %w", container.GetMetadata().GetName(), err)
	}
	return stream(c.Context(), answer.Url, streams{in: inputOf(c, stdin), out: c.OutOrStdout(), err: c.ErrOrStderr(), tty: tty})
}

func (e *engine) hasTerminal(ctx context.Context, id string) (bool, error) {
	answer, err := e.pods.ContainerStatus(ctx, &cri.ContainerStatusRequest{ContainerId: id, Verbose: true})
	if err != nil {
		return false, fmt.Errorf("cannot ask for the status of container %s: %w", shortID(id), err)
	}
	var info struct {
		RuntimeSpec struct {
			Process struct {
				Terminal bool `json:"terminal"`
			} `json:"process"`
		} `json:"runtimeSpec"`
	}
	if err := json.Unmarshal([]byte(answer.Info["info"]), &info); err != nil {
		return false, fmt.Errorf("the engine does not tell whether container %s has a terminal", shortID(id))
	}
	return info.RuntimeSpec.Process.Terminal, nil
}
