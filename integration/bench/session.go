package main

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"strings"
	"sync"
	"time"

	cri "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/evenkeel/evenkeel/integration/engine"
	"github.com/evenkeel/evenkeel/integration/registry"
)

// A session measures one engine in one round.
type session struct {
	options
	subject
	name    string // of the engine
	group   string // cgroup of the daemon and all its pods
	busybox string
	images  *registry.Registry
	results results

	mu   sync.Mutex // guards what follows
	made int        // pods so far, for names
}

// parts of a round, in order. Each is measured on every engine before the next one begins.
var parts = []struct {
	name    string
	measure func(*session, context.Context) error
}{
	{"start", (*session).starts}, {"cycle", (*session).cycles}, {"exec", (*session).execs}, {"trace", (*session).traced},
	{"log", (*session).logs}, {"many", (*session).many}, {"pull", (*session).pulls},
}

func partNames() string {
	var names []string
	for _, p := range parts {
		names = append(names, p.name)
	}
	return strings.Join(names, ", ")
}

func (o options) wants(part string) bool {
	return o.Only == "" || strings.Contains(","+o.Only+",", ","+part+",")
}

// measure is one round: all engines, part by part. Who begins changes with the round.
func measure(ctx context.Context, o options, round int, images *registry.Registry, r results) (err error) {
	var sessions []*session
	defer func() {
		for _, s := range sessions {
			err = errors.Join(err, s.end())
		}
	}()
	for i, c := range candidates(o) {
		s, err := begin(ctx, o, c, fmt.Sprintf("/evenkeel-bench-%d-%d", os.Getpid(), i), images, r)
		if s != nil {
			sessions = append(sessions, s)
		}
		if err != nil {
			return fmt.Errorf("%s: %w", c.name, err)
		}
	}
	for _, part := range parts {
		if !o.wants(part.name) {
			continue
		}
		for i := range sessions {
			s := sessions[(i+round)%len(sessions)]
			fmt.Fprintf(os.Stderr, "round %d of %d: %s: %s\n", round+1, o.Rounds, part.name, s.name)
			if err := part.measure(s, ctx); err != nil {
				return fmt.Errorf("%s: %s: %w\n%s", s.name, part.name, err, s.LastWords(5))
			}
		}
	}
	return nil
}

// begin starts an engine and gives it the image that most parts need. A session that is returned wants end.
func begin(ctx context.Context, o options, c candidate, group string, images *registry.Registry, r results) (*session, error) {
	if err := engine.MakeCgroup(group + "/pods"); err != nil {
		engine.RemoveCgroup(group)
		return nil, err
	}
	s := &session{options: o, name: c.name, group: group, busybox: images.Host + "/busybox:latest", images: images, results: r}
	var err error
	if s.subject, err = c.start(images); err != nil {
		engine.RemoveCgroup(group)
		return nil, err
	}
	if err := account(group+"/daemon", s.PID()); err != nil {
		return s, err
	}
	return s, s.pull(ctx, s.busybox)
}

// end takes down what is left, also of a measurement that broke off, and looks for what an engine forgot.
func (s *session) end() error {
	err := errors.Join(s.removeAll(), s.Leftovers())
	err = errors.Join(err, s.Clean())
	engine.RemoveCgroup(s.group)
	if err != nil {
		err = fmt.Errorf("%s: cannot end cleanly: %w", s.name, err)
	}
	return err
}

// restarted brings the daemon back into its cgroup: a killed one's successor starts in ours.
func (s *session) restarted() error { return account(s.group+"/daemon", s.PID()) }

func (s *session) add(row string, value float64) { s.results.add(row, s.name, value) }

func milliseconds(d time.Duration) float64 { return float64(d.Microseconds()) / 1000 }

func (s *session) pull(ctx context.Context, ref string) error {
	_, images := s.Client()
	_, err := images.PullImage(ctx, &cri.PullImageRequest{Image: &cri.ImageSpec{Image: ref}})
	return err
}

// removeAll takes down what a broken-off measurement left.
func (s *session) removeAll() error {
	ctx, cancel := context.WithTimeout(context.Background(), 2*time.Minute)
	defer cancel()
	runtime, _ := s.Client()
	list, err := runtime.ListPodSandbox(ctx, &cri.ListPodSandboxRequest{})
	if err != nil {
		return err
	}
	return inParallel(10, len(list.Items), func(i int) error { return s.down(ctx, list.Items[i].Id) })
}

const restLimit = 5 * time.Second // removed directories are emptied in the background

// Leftovers is an error if anything of a pod is still there, or if what pods shared outlives a daemon without pods.
func (e *evenkeel) Leftovers() error {
	for begin := time.Now(); ; time.Sleep(20 * time.Millisecond) {
		found, err := e.Instance().Find(context.Background(), nil)
		if err == nil && len(found) == 0 {
			break
		}
		if time.Since(begin) > restLimit {
			return errors.Join(err, fmt.Errorf("left over: %v", found))
		}
	}
	if err := e.Stop(); err != nil {
		return err
	}
	if _, err := net.InterfaceByName(e.Bridge); e.Network == "builtin" && err == nil {
		return fmt.Errorf("left over: bridge %s", e.Bridge)
	}
	return nil
}
