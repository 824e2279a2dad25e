package main

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"slices"

	v1 "k8s.io/api/core/v1"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// runOutput is what `run` says: logs and JSON on standard output, the rest beside it.
type runOutput struct {
	logs   *logPrinter
	json   bool
	silent bool // detached: no logs
}

// podEvent, logRecord and exitEvent are the lines of `run --output json`.
type podEvent struct {
	Type       string           `json:"type"` // pod
	ID         string           `json:"id"`
	Name       string           `json:"name"`
	Namespace  string           `json:"namespace"`
	UID        string           `json:"uid"`
	IPs        []string         `json:"ips"`
	Ports      []portEvent      `json:"ports"`
	Containers []containerEvent `json:"containers"`
}

type portEvent struct {
	HostIP        string `json:"hostIP,omitempty"` // empty: all of the machine's
	HostPort      int32  `json:"hostPort"`
	ContainerPort int32  `json:"containerPort"`
	Protocol      string `json:"protocol"`
}

type containerEvent struct {
	ID   string `json:"id"`
	Name string `json:"name"`
}

type exitEvent struct {
	Type      string `json:"type"` // exit
	Container string `json:"container"`
	ID        string `json:"id"`
	Attempt   uint32 `json:"attempt"`
	ExitCode  int32  `json:"exitCode"`
	Reason    string `json:"reason,omitempty"`
}

func newRunOutput(p *logPrinter, silent bool, pod *v1.Pod) *runOutput {
	if len(pod.Spec.InitContainers)+len(pod.Spec.Containers) > 1 {
		for _, c := range slices.Concat(pod.Spec.InitContainers, pod.Spec.Containers) {
			p.names = max(p.names, len(c.Name))
		}
	}
	return &runOutput{logs: p, json: p.json, silent: silent}
}

// note tells the operator how things go.
func (o *runOutput) note(format string, args ...any) {
	o.logs.mu.Lock()
	defer o.logs.mu.Unlock()
	fmt.Fprintf(o.logs.stderr, format+"\n", args...)
}

func (o *runOutput) progress() io.Writer { return o.logs.stderr }

func (o *runOutput) line(container string) func(logLine) error {
	if o.silent {
		return func(logLine) error { return nil }
	}
	return o.logs.lines(container)
}

// lastLines shows why a container failed where its log was not shown anyway.
func (o *runOutput) lastLines(container, path string) {
	if !o.silent || path == "" {
		return
	}
	t := &tail{Path: path, Lines: 10, Skipped: o.logs.skipped, Line: func(l logLine) error {
		o.note("%s | %s", container, l.Text)
		return nil
	}}
	if err := t.run(context.Background(), nil); err != nil {
		o.note("%s", err)
	}
}

func (o *runOutput) emit(v any) {
	raw, err := json.Marshal(v)
	if err != nil {
		o.note("%s", err)
		return
	}
	o.logs.mu.Lock()
	defer o.logs.mu.Unlock()
	fmt.Fprintf(o.logs.stdout, "%s\n", raw)
}

// sandboxUp tells id, address and ports as soon as they are known: the init containers may take their time.
func (o *runOutput) sandboxUp(r *podRun) {
	if o.json {
		return
	}
	address := "on the host's network"
	if len(r.at.ips) > 0 {
		address = "at " + r.at.ips[0]
	}
	o.note("pod %s (%s) %s", podTitle(r.pod), shortID(r.id), address)
	for _, p := range hostPorts(r.pod) {
		host := p.HostIP
		if host == "" {
			host = "*"
		}
		o.note("  host port %s:%d leads to port %d/%s", host, p.HostPort, p.ContainerPort, p.Protocol)
	}
}

func hostPorts(pod *v1.Pod) []portEvent {
	list := []portEvent{}
	for _, p := range portMappings(pod) {
		if p.HostPort != 0 {
			list = append(list, portEvent{p.HostIp, p.HostPort, p.ContainerPort, p.Protocol.String()})
		}
	}
	return list
}

func (o *runOutput) podUp(r *podRun) {
	if !o.json {
		return
	}
	e := podEvent{
		Type: "pod", ID: r.id, Name: r.pod.Name, Namespace: r.pod.Namespace, UID: string(r.pod.UID),
		IPs: append([]string{}, r.at.ips...), Ports: hostPorts(r.pod), Containers: []containerEvent{},
	}
	for _, c := range r.started {
		e.Containers = append(e.Containers, containerEvent{c.id, c.spec.Name})
	}
	o.emit(e)
}

func (o *runOutput) detached(r *podRun) {
	if r.pod.Spec.RestartPolicy != v1.RestartPolicyNever {
		o.note("note: restartPolicy %s is not kept for a detached pod: nobody is there to restart its containers", r.pod.Spec.RestartPolicy)
	}
	if !o.json {
		fmt.Fprintln(o.logs.stdout, r.id)
	}
}

func (o *runOutput) exited(container string, s *cri.ContainerStatus) {
	switch {
	case o.json && !o.silent:
		o.emit(exitEvent{"exit", container, s.Id, s.GetMetadata().GetAttempt(), s.ExitCode, s.Reason})
	case !o.silent:
		o.note("container %s %s", container, ending(s))
	}
}

func (o *runOutput) removed(r *podRun) {
	if !o.json {
		o.note("pod %s is removed", podTitle(r.pod))
	}
}
