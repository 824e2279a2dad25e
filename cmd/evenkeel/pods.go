package main

import (
	"context"
	"fmt"
	"slices"
	"time"

	"github.com/spf13/cobra"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// podRow is a pod in `pods --output json`.
type podRow struct {
	ID          string            `json:"id"`
	Name        string            `json:"name"`
	Namespace   string            `json:"namespace"`
	UID         string            `json:"uid"`
	Attempt     uint32            `json:"attempt"`
	State       string            `json:"state"` // ready or notready
	IPs         []string          `json:"ips"`   // the primary address first; empty on the host's network
	CreatedAt   time.Time         `json:"createdAt"`
	Containers  int               `json:"containers"` // running ones
	Handler     string            `json:"runtimeHandler"`
	Labels      map[string]string `json:"labels"`
	Annotations map[string]string `json:"annotations"`
}

func podsCommand() *cobra.Command {
	var t tool
	var l list
	c := &cobra.Command{
		Use:   "pods",
		Short: "List the pods",
		Args:  noArgs,
		RunE:  listing(&t, &l, (*engine).podRows, func(r podRow) string { return r.ID }, podTable),
	}
	l.register(c, "print whole ids")
	return t.register(c)
}

func (e *engine) podRows(ctx context.Context) ([]podRow, error) {
	w, err := e.look(ctx)
	if err != nil {
		return nil, err
	}
	rows := make([]podRow, len(w.pods))
	for i, p := range w.pods {
		rows[i] = w.podRow(p)
		if rows[i].IPs, err = e.addresses(ctx, p.Id); err != nil {
			return nil, fmt.Errorf("cannot ask for the addresses of pod %s: %w", podName(p), err)
		}
	}
	slices.SortStableFunc(rows, func(a, b podRow) int { return b.CreatedAt.Compare(a.CreatedAt) })
	return rows, nil
}

func (w *world) podRow(p *cri.PodSandbox) podRow {
	m := p.GetMetadata()
	row := podRow{
		ID: p.Id, Name: m.GetName(), Namespace: m.GetNamespace(), UID: m.GetUid(), Attempt: m.GetAttempt(),
		State: podState(p.State), CreatedAt: nanoTime(p.CreatedAt), Handler: p.RuntimeHandler,
		Labels: p.Labels, Annotations: p.Annotations,
	}
	for _, c := range w.containers {
		if c.PodSandboxId == p.Id && c.State == cri.ContainerState_CONTAINER_RUNNING {
			row.Containers++
		}
	}
	return row
}

// addresses of a pod, the primary first. A pod that has gone since it was listed has none. The error is that of an engine that does
// not answer.
func (e *engine) addresses(ctx context.Context, id string) ([]string, error) {
	ips := []string{}
	answer, err := e.pods.PodSandboxStatus(ctx, &cri.PodSandboxStatusRequest{PodSandboxId: id})
	if isUnanswered(err) {
		return nil, err
	}
	if err != nil {
		return ips, nil
	}
	net := answer.GetStatus().GetNetwork()
	if net.GetIp() != "" {
		ips = append(ips, net.GetIp())
	}
	for _, more := range net.GetAdditionalIps() {
		ips = append(ips, more.GetIp())
	}
	return ips, nil
}

func podTable(rows []podRow, noTrunc bool, now time.Time) *table {
	t := &table{head: []string{"POD", "NAMESPACE", "NAME", "STATE", "RUNNING", "ADDRESS", "AGE"}}
	for _, r := range rows {
		ip := ""
		if len(r.IPs) > 0 {
			ip = r.IPs[0]
		}
		t.add(truncated(r.ID, noTrunc), r.Namespace, r.Name, r.State, fmt.Sprint(r.Containers), ip, age(r.CreatedAt, now))
	}
	return t
}
