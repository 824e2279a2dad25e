package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"sync"
	"time"

	"github.com/spf13/cobra"
	"golang.org/x/sync/errgroup"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// logRecord is one line of `logs --output json`; each stands on a line of its own.
type logRecord struct {
	Type      string    `json:"type,omitempty"` // log, where lines of other kinds may stand beside it
	Time      time.Time `json:"time"`
	Container string    `json:"container"`
	Stream    string    `json:"stream"`
	Partial   bool      `json:"partial,omitempty"` // the line goes on in the next record of this stream
	Text      string    `json:"text"`
}

type logsOptions struct {
	container  string
	follow     bool
	timestamps bool
	lines      int
	since      time.Duration
}

func logsCommand() *cobra.Command {
	var t tool
	var o logsOptions
	c := &cobra.Command{
		Use:   "logs CONTAINER|POD",
		Short: "Print the logs of a container, or of all containers of a pod",
		Args:  cobra.ExactArgs(1),
		RunE: t.looking(func(c *cobra.Command, e *engine, w *world, args []string) error {
			containers, err := w.pick(args[0], o.container)
			if err != nil {
				return err
			}
			return e.logs(c, containers, o, t.json())
		}),
	}
	f := c.Flags()
	f.StringVarP(&o.container, "container", "c", "", "which container of the pod")
	f.BoolVarP(&o.follow, "follow", "f", false, "go on until the containers have exited")
	f.BoolVarP(&o.timestamps, "timestamps", "t", false, "begin each line with its time")
	f.IntVar(&o.lines, "tail", -1, "begin with the last `N` lines of each container")
	f.DurationVar(&o.since, "since", 0, "skip what is older than this, as in 10m")
	return t.register(c)
}

func (e *engine) logs(c *cobra.Command, containers []*cri.Container, o logsOptions, json bool) error {
	out := &logPrinter{stdout: c.OutOrStdout(), stderr: c.ErrOrStderr(), json: json, timestamps: o.timestamps, names: nameWidth(containers)}
	// Without -f the logs stand one after the other; with it they mix as they are written.
	group, ctx := errgroup.WithContext(c.Context())
	if !o.follow {
		group.SetLimit(1)
	}
	for _, container := range containers {
		group.Go(func() error { return e.containerLogs(ctx, container, o, out) })
	}
	return group.Wait()
}

func nameWidth(containers []*cri.Container) (width int) {
	if len(containers) == 1 {
		return 0
	}
	for _, c := range containers {
		width = max(width, len(c.GetMetadata().GetName()))
	}
	return width
}

func (e *engine) containerLogs(ctx context.Context, c *cri.Container, o logsOptions, out *logPrinter) error {
	name := c.GetMetadata().GetName()
	answer, err := e.pods.ContainerStatus(ctx, &cri.ContainerStatusRequest{ContainerId: c.Id})
	if err != nil {
		return fmt.Errorf("cannot ask for the log of container %s: %w", name, err)
	}
	if answer.Status.LogPath == "" {
		return fmt.Errorf("container %s was made without a log", name)
	}
	t := &tail{Path: answer.Status.LogPath, Lines: o.lines, Follow: o.follow, Line: out.lines(name), Skipped: out.skipped}
	if o.since > 0 {
		t.Since = time.Now().Add(-o.since)
	}
	return e.tailUntilExit(ctx, c.Id, t)
}

// tailUntilExit follows a log until its container runs no longer.
func (e *engine) tailUntilExit(ctx context.Context, id string, t *tail) error {
	ended := make(chan struct{})
	if !t.Follow {
		return t.run(ctx, ended)
	}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	var waited error
	go func() {
		defer close(ended)
		_, waited = e.wait(ctx, id)
	}()
	err := t.run(ctx, ended)
	if err == nil && !errors.Is(waited, context.Canceled) {
		err = waited
	}
	return err
}

// logPrinter writes the lines of several containers, each whole.
type logPrinter struct {
	stdout, stderr   io.Writer
	json, timestamps bool
	kind             string // the type of JSON records
	names            int    // width of the containers' names before each line; 0: none

	mu   sync.Mutex
	open map[string]bool // guarded by mu: streams in the middle of a line
}

func (p *logPrinter) lines(container string) func(logLine) error {
	return func(l logLine) error { return p.print(container, l) }
}

// skipped tells of lines that cannot be printed. It is no failure: all the others were.
func (p *logPrinter) skipped(count int, first error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	fmt.Fprintf(p.stderr, "evenkeel: skipped lines that are no log lines: %d, the first in %s\n", count, first)
}

func (p *logPrinter) print(container string, l logLine) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.json {
		raw, err := json.Marshal(logRecord{p.kind, l.Time, container, l.Stream, l.Partial, string(l.Text)})
		if err != nil {
			return err
		}
		_, err = p.stdout.Write(append(raw, '\n'))
		return err
	}
	w := p.stdout
	if l.Stream == "stderr" {
		w = p.stderr
	}
	_, err := w.Write(p.format(container, l))
	return err
}

func (p *logPrinter) format(container string, l logLine) []byte {
	var text []byte
	stream := container + "/" + l.Stream
	// With several containers the parts of a long line may be mixed with others' lines, so each part is a line of its own.
	if p.names > 0 || !p.open[stream] {
		if p.names > 0 {
			text = fmt.Appendf(text, "%-*s | ", p.names, container)
		}
		if p.timestamps {
			text = append(l.Time.AppendFormat(text, time.RFC3339Nano), ' ')
		}
	}
	if p.open == nil {
		p.open = map[string]bool{}
	}
	p.open[stream] = l.Partial
	text = append(text, l.Text...)
	if !l.Partial || p.names > 0 {
		text = append(text, '\n')
	}
	return text
}
