package main

import (
	"context"
	"fmt"
	"slices"
	"time"

	"github.com/spf13/cobra"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// containerRow is a container in `ps --output json`. The fields from startedAt on come from the container's status.
type containerRow struct {
	ID         string            `json:"id"`
	Name       string            `json:"name"`
	Attempt    uint32            `json:"attempt"`
	State      string            `json:"state"` // created, running, exited or unknown
	Image      string            `json:"image"` // as it was asked for
	ImageID    string            `json:"imageID"`
	Pod        string            `json:"pod"` // namespace/name
	PodID      string            `json:"podID"`
	CreatedAt  time.Time         `json:"createdAt"`
	StartedAt  *time.Time        `json:"startedAt,omitempty"`
	FinishedAt *time.Time        `json:"finishedAt,omitempty"`
	ExitCode   *int32            `json:"exitCode,omitempty"` // of an exited container only
	Reason     string            `json:"reason,omitempty"`
	Message    string            `json:"message,omitempty"`
	LogPath    string            `json:"logPath,omitempty"`
	Labels     map[string]string `json:"labels"`
}

func psCommand() *cobra.Command {
	var t tool
	var l list
	var all bool
	c := &cobra.Command{
		Use:   "ps",
		Short: "List the containers",
		Args:  noArgs,
		RunE:  listing(&t, &l, func(e *engine, ctx context.Context) ([]containerRow, error) { return e.containerRows(ctx, all) }, func(r containerRow) string { return r.ID }, containerTable),
	}
	c.Flags().BoolVarP(&all, "all", "a", false, "list containers that are not running, too")
	l.register(c, "print whole ids")
	return t.register(c)
}

func (e *engine) containerRows(ctx context.Context, all bool) ([]containerRow, error) {
	w, err := e.look(ctx)
	if err != nil {
		return nil, err
	}
	rows := []containerRow{}
	for _, c := range w.containers {
		// What could not be asked about may well be running: it is shown.
		if !all && c.State != cri.ContainerState_CONTAINER_RUNNING && c.State != cri.ContainerState_CONTAINER_UNKNOWN {
			continue
		}
		row := w.containerRow(c)
		answer, err := e.pods.ContainerStatus(ctx, &cri.ContainerStatusRequest{ContainerId: c.Id})
		if isUnanswered(err) {
			return nil, fmt.Errorf("cannot ask for the status of container %s: %w", row.Name, err)
		}
		if err == nil {
			row.addStatus(answer.Status)
		}
		rows = append(rows, row)
	}
	slices.SortStableFunc(rows, func(a, b containerRow) int { return b.CreatedAt.Compare(a.CreatedAt) })
	return rows, nil
}

func (w *world) containerRow(c *cri.Container) containerRow {
	row := containerRow{
		ID: c.Id, Name: c.GetMetadata().GetName(), Attempt: c.GetMetadata().GetAttempt(), State: containerState(c.State),
		Image: c.GetImage().GetUserSpecifiedImage(), ImageID: c.ImageId,
		Pod: w.podOf(c), PodID: c.PodSandboxId, CreatedAt: nanoTime(c.CreatedAt), Labels: c.Labels,
	}
	if row.Image == "" {
		row.Image = c.GetImage().GetImage()
	}
	return row
}

func (r *containerRow) addStatus(s *cri.ContainerStatus) {
	r.State = containerState(s.State)
	if s.StartedAt != 0 {
		t := nanoTime(s.StartedAt)
		r.StartedAt = &t
	}
	if s.FinishedAt != 0 {
		t := nanoTime(s.FinishedAt)
		r.FinishedAt = &t
	}
	if s.State == cri.ContainerState_CONTAINER_EXITED {
		r.ExitCode = &s.ExitCode
	}
	r.Reason, r.Message, r.LogPath = s.Reason, s.Message, s.LogPath
}

func containerTable(rows []containerRow, noTrunc bool, now time.Time) *table {
	t := &table{head: []string{"CONTAINER", "NAME", "POD", "IMAGE", "STATE", "ATTEMPT", "AGE"}}
	for _, r := range rows {
		t.add(truncated(r.ID, noTrunc), r.Name, r.Pod, shortImage(r.Image, noTrunc), r.stateText(now), fmt.Sprint(r.Attempt), age(r.CreatedAt, now))
	}
	return t
}

// stateText is the state with what one asks next: how it ended and when.
func (r *containerRow) stateText(now time.Time) string {
	if r.ExitCode == nil {
		return r.State
	}
	text := fmt.Sprintf("exited (%d)", *r.ExitCode)
	if r.Reason != "" && r.Reason != "Completed" && r.Reason != "Error" {
		text = fmt.Sprintf("exited (%d, %s)", *r.ExitCode, r.Reason)
	}
	if r.FinishedAt != nil {
		text += " " + age(*r.FinishedAt, now) + " ago"
	}
	return text
}

// shortImage cuts an image that was named by its id; a name stays whole.
func shortImage(image string, noTrunc bool) string {
	if !noTrunc && len(image) > 7 && image[:7] == "sha256:" {
		return shortID(image)
	}
	return image
}
