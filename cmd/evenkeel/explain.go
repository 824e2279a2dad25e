package main

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"strings"
	"time"

	"github.com/spf13/cobra"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/evenkeel/evenkeel/cri/operator"
	"github.com/evenkeel/evenkeel/sandbox"
)

// explanation is a pod's past: what was done with it, how long each step took and what went wrong.
type explanation struct {
	ID         string               `json:"id"`
	Namespace  string               `json:"namespace"`
	Name       string               `json:"name"`
	Attempt    uint32               `json:"attempt"`
	State      string               `json:"state"` // ready, notready or gone
	Containers []explainedContainer `json:"containers"`
	Timeline   []sandbox.Operation  `json:"timeline"`
}

type explainedContainer struct {
	ID       string `json:"id"`
	Name     string `json:"name"`
	Attempt  uint32 `json:"attempt"`
	State    string `json:"state"`
	ExitCode int32  `json:"exitCode"`
	Reason   string `json:"reason,omitempty"`
	Message  string `json:"message,omitempty"`
}

func explainCommand() *cobra.Command {
	var t tool
	c := &cobra.Command{
		Use:   "explain POD",
		Short: "Tell what was done with a pod, how long each step took and what failed",
		Long: "Tell what was done with a pod, how long each step took and what failed. Pods that could not be made, and those that\n" +
			"were removed lately, are found by their name too, for as long as the daemon has run.",
		Args: cobra.ExactArgs(1),
		RunE: t.asking(func(c *cobra.Command, e *engine, args []string) error {
			x, err := e.explain(c.Context(), args[0])
			if err != nil {
				return err
			}
			if t.json() {
				return printJSON(c.OutOrStdout(), x)
			}
			return x.print(c.OutOrStdout())
		}),
	}
	return t.register(c)
}

func (e *engine) explain(ctx context.Context, ref string) (*explanation, error) {
	w, err := e.look(ctx)
	if err != nil {
		return nil, err
	}
	at, err := w.find(ref)
	if err == nil && at.container != nil { // a container's past is told with its pod's
		at, err = w.find(at.container.PodSandboxId)
	}
	if err == nil {
		return e.explainPod(ctx, at)
	}
	var missing notFound
	if !errors.As(err, &missing) { // of several that live, none that is gone is meant
		return nil, err
	}
	gone, askErr := e.goneNamed(ctx, ref)
	if askErr != nil {
		return nil, askErr
	}
	if gone == nil {
		return nil, err
	}
	return &explanation{
		ID: gone.ID, Namespace: gone.Namespace, Name: gone.Name, Attempt: gone.Attempt, State: "gone", Containers: []explainedContainer{}, Timeline: gone.Operations,
	}, nil
}

func (e *engine) explainPod(ctx context.Context, at target) (*explanation, error) {
	pod, err := e.inspect(ctx, at)
	if err != nil {
		return nil, err
	}
	m := at.pod.GetMetadata()
	x := &explanation{ID: at.pod.Id, Namespace: m.GetNamespace(), Name: m.GetName(), Attempt: m.GetAttempt(), State: podState(at.pod.State), Containers: []explainedContainer{}}
	if err := pod.detail(x); err != nil { // the field timeline
		return nil, fmt.Errorf("cannot read the timeline of pod %s: %w", at.name(), err)
	}
	answer, err := e.pods.PodSandboxStatus(ctx, &cri.PodSandboxStatusRequest{PodSandboxId: at.pod.Id})
	if err != nil {
		return nil, fmt.Errorf("cannot ask for pod %s: %w", at.name(), err)
	}
	for _, c := range answer.ContainersStatuses {
		x.Containers = append(x.Containers, explainedContainer{
			ID: c.Id, Name: c.GetMetadata().GetName(), Attempt: c.GetMetadata().GetAttempt(), State: containerState(c.State),
			ExitCode: c.ExitCode, Reason: c.Reason, Message: c.Message,
		})
	}
	return x, nil
}

// goneNamed finds the newest pod of that name, or whose id begins so, among those that no list shows any more.
func (e *engine) goneNamed(ctx context.Context, ref string) (*sandbox.GonePod, error) {
	answer, err := (operator.Client{Conn: e.conn}).Gone(ctx)
	if err != nil {
		return nil, fmt.Errorf("cannot ask for pods that are gone: %w", err)
	}
	var pods []sandbox.GonePod
	if err := json.Unmarshal(answer.Pods, &pods); err != nil {
		return nil, fmt.Errorf("cannot read the list of pods that are gone: %w", err)
	}
	for _, p := range pods {
		if ref == p.Name || ref == p.Namespace+"/"+p.Name || ref != "" && strings.HasPrefix(p.ID, ref) {
			return &p, nil
		}
	}
	return nil, nil
}

func (x *explanation) print(w io.Writer) error {
	fmt.Fprintf(w, "pod %s/%s %s is %s\n", x.Namespace, x.Name, shortID(x.ID), x.State)
	for _, c := range x.Containers {
		fmt.Fprintf(w, "container %s %s is %s%s\n", c.Name, shortID(c.ID), c.State, c.ending())
	}
	for _, o := range x.Timeline {
		fmt.Fprintln(w)
		printOperation(w, o)
	}
	if len(x.Timeline) == 0 {
		fmt.Fprintln(w, "nothing is remembered of what was done with it")
	}
	return nil
}

func (c explainedContainer) ending() string {
	if c.State != "exited" {
		return ""
	}
	text := fmt.Sprintf(" with code %d", c.ExitCode)
	for _, more := range []string{c.Reason, c.Message} {
		if more != "" {
			text += ": " + more
		}
	}
	return text
}

func printOperation(w io.Writer, o sandbox.Operation) {
	result := ""
	switch {
	case o.Error != "":
		result = "  FAILED"
	case o.Unfinished:
		result = "  not finished"
	}
	fmt.Fprintf(w, "%s  %s  %s%s\n", o.Start.Local().Format("2006-01-02 15:04:05.000"), strings.TrimSpace(o.Name+" "+o.Container), took(o.Took), result)
	depths := depthsOf(o.Steps)
	for i, s := range o.Steps {
		failed := ""
		if s.Error != "" {
			failed = "  failed: " + s.Error
		}
		fmt.Fprintf(w, "%13s %10s  %s%s%s\n", "+"+took(s.At), took(s.Took), strings.Repeat("  ", depths[i]), s.Name, failed)
	}
	if o.More > 0 {
		fmt.Fprintf(w, "    and %d steps more\n", o.More)
	}
	if o.Error != "" {
		fmt.Fprintf(w, "    %s\n", strings.ReplaceAll(o.Error, "\n", "\n    "))
	}
}

func took(d sandbox.Milliseconds) string {
	return fmt.Sprintf("%.1f ms", float64(d)/float64(time.Millisecond))
}

// depthsOf tells how deep each step lies in those that began before it and had not ended.
func depthsOf(steps []sandbox.Step) []int {
	depths := make([]int, len(steps))
	var open []sandbox.Milliseconds // ends of the steps around
	for i, s := range steps {
		for len(open) > 0 && cmp.Compare(s.At+s.Took, open[len(open)-1]) > 0 {
			open = open[:len(open)-1]
		}
		depths[i] = len(open)
		open = append(open, s.At+s.Took)
	}
	return depths
}
