package main

import (
	"context"
	"fmt"
	"time"

	cri "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/evenkeel/evenkeel/integration/engine"
)

// rows of the table, in its order. Values are the p50 of a round, then the median of the rounds. An exec of runc counts
// twice where runc executes itself again as init (create, exec): the goal is 1 shim and runc's create, start, exec, kill
// and delete.
var rows = []row{
	{name: startRow, unit: "ms", builtin: 25, cni: 25},
	{name: emptyPSS, unit: "MiB", builtin: 15, cni: 15},
	{name: runRow, unit: "ms", builtin: 4, cni: 22},
	{name: runHostRow, unit: "ms", builtin: 4, cni: 4},
	{name: upRow, unit: "ms", builtin: 42, cni: 60},
	{name: cycleRow, unit: "ms", builtin: 75, cni: 150},
	{name: cycleCPURow, unit: "ms", builtin: 60, cni: 90},
	{name: execRow, unit: "ms", builtin: 17, cni: 17},
	{name: execParallelRow, unit: "1/s", builtin: 130, cni: 130, more: true},
	{name: podDownRow, unit: "ms", builtin: 8, cni: 62},
	{name: removeRow, unit: "ms", builtin: 5, cni: 5},
	{name: manyUpRow, unit: "s", builtin: 1.4, cni: 1.4},
	{name: manyDownRow, unit: "s", builtin: 1, cni: 1},
	{name: syncRow, builtin: 0, cni: 0},
	{name: execsRow, builtin: 8, cni: none},
	{name: daemonPSS, unit: "MiB", builtin: 25, cni: 25},
	{name: perPodPSS, unit: "MiB", builtin: 1, cni: 1},
	{name: perContainerPSS, unit: "MiB", builtin: 0.1, cni: 0.1},
	{name: enginePSS, unit: "MiB", builtin: 70, cni: 70},
	{name: processesRow, builtin: 1, cni: 1},
	{name: idleRow, unit: "ms", builtin: 1, cni: 1},
	{name: listRow, unit: "ms", builtin: 0.2, cni: 0.2},
	{name: statsRow, unit: "ms", builtin: 8, cni: 8},
	{name: podStatsRow, unit: "ms", builtin: 10, cni: 10},
	{name: restartRow, unit: "ms", builtin: 120, cni: 120},
	{name: logRow, unit: "MB/s", builtin: 350, cni: 350, more: true},
	{name: logCPURow, unit: "s", builtin: 0.3, cni: 0.3},
	{name: logPartialRow, builtin: 0, cni: 0},
	{name: pullEightRow, unit: "s", builtin: none, cni: none, ofPeer: 0.6},
	{name: pullOneRow, unit: "s", builtin: none, cni: none, ofPeer: 0.8},
	{name: pullPeakRow, unit: "MiB", builtin: 50, cni: 50},
	{name: removeImageRow, unit: "ms", builtin: 50, cni: 50},
}

const (
	startRow        = "daemon start to first answer"
	emptyPSS        = "daemon PSS, no pods"
	runRow          = "RunPodSandbox"
	runHostRow      = "RunPodSandbox, host network"
	upRow           = "pod up (run, create, start)"
	cycleRow        = "whole cycle: up, exec, stop, remove"
	cycleCPURow     = "CPU per whole cycle, all processes"
	execRow         = "ExecSync true"
	execParallelRow = "ExecSync true, 4 at once"
	podDownRow      = "StopPodSandbox + RemovePodSandbox"
	removeRow       = "RemoveContainer"
	manyUpRow       = "many pods, 10 at a time, up"
	manyDownRow     = "teardown of them"
	syncRow         = "fsync and its like in a pod's life"
	execsRow        = "execs in a pod's life, without the workload's"
	daemonPSS       = "daemon PSS with many pods"
	perPodPSS       = "PSS per pod, without daemon and workload"
	perContainerPSS = "PSS per further container"
	enginePSS       = "whole engine with many pods"
	processesRow    = "processes per pod besides the workload"
	idleRow         = "idle CPU with many pods, per 30 s"
	listRow         = "ListContainers with many pods"
	statsRow        = "ListContainerStats with many pods"
	podStatsRow     = "ListPodSandboxStats with many pods"
	restartRow      = "kill -9 and restart with many pods: all known again"
	logRow          = "log, 100-byte lines, payload"
	logCPURow       = "CPU of daemon and helpers for it"
	logPartialRow   = "partial records of whole short lines"
	pullEightRow    = "pull 8 layers, gzip"
	pullOneRow      = "pull one layer of the same size, gzip"
	pullPeakRow     = "peak daemon memory during pulls (RSS)"
	removeImageRow  = "RemoveImage of it"
)

// starts measures a daemon without pods, killed and started again.
func (s *session) starts(context.Context) error {
	values := []float64{milliseconds(s.Ready())}
	for range 2 {
		if err := s.Restart(); err != nil {
			return err
		}
		values = append(values, milliseconds(s.Ready()))
	}
	s.add(startRow, median(values))
	s.add(emptyPSS, pss(s.PID()))
	return s.restarted()
}

// cycles measures pods one after another.
func (s *session) cycles(ctx context.Context) error {
	series := map[string][]float64{}
	before := cpuOfGroup(s.group)
	for range s.Cycles {
		if err := s.cycle(ctx, series); err != nil {
			return err
		}
	}
	s.add(cycleCPURow, milliseconds(cpuOfGroup(s.group)-before)/float64(s.Cycles))
	for range s.Cycles {
		p, err := s.runPod(ctx, true)
		if err != nil {
			return err
		}
		series[runHostRow] = append(series[runHostRow], p.took)
		if err := s.down(ctx, p.id); err != nil {
			return err
		}
	}
	for row, values := range series {
		s.add(row, median(values))
	}
	return nil
}

func (s *session) cycle(ctx context.Context, series map[string][]float64) error {
	runtime, _ := s.Client()
	note := func(row string, since time.Time) { series[row] = append(series[row], milliseconds(time.Since(since))) }
	begin := time.Now()
	p, err := s.up(ctx)
	if err != nil {
		return err
	}
	note(upRow, begin)
	series[runRow] = append(series[runRow], p.took)
	if err := s.execTrue(ctx, p.container); err != nil {
		return err
	}
	if _, err := runtime.StopContainer(ctx, &cri.StopContainerRequest{ContainerId: p.container}); err != nil {
		return err
	}
	remove := time.Now()
	if _, err := runtime.RemoveContainer(ctx, &cri.RemoveContainerRequest{ContainerId: p.container}); err != nil {
		return err
	}
	note(removeRow, remove)
	down := time.Now()
	if err := s.down(ctx, p.id); err != nil {
		return err
	}
	note(podDownRow, down)
	note(cycleRow, begin)
	return nil
}

// execs measures ExecSync alone and four at once.
func (s *session) execs(ctx context.Context) error {
	p, err := s.up(ctx)
	if err != nil {
		return err
	}
	var values []float64
	for range 3 * s.Cycles {
		begin := time.Now()
		if err := s.execTrue(ctx, p.container); err != nil {
			return err
		}
		values = append(values, milliseconds(time.Since(begin)))
	}
	s.add(execRow, median(values))
	count := 40 * 4
	begin := time.Now()
	if err := inParallel(4, count, func(int) error { return s.execTrue(ctx, p.container) }); err != nil {
		return err
	}
	s.add(execParallelRow, float64(count)/time.Since(begin).Seconds())
	if err := s.further(ctx, p); err != nil {
		return err
	}
	return s.down(ctx, p.id)
}

// further measures what more containers of a pod cost in memory.
func (s *session) further(ctx context.Context, p pod) error {
	const count = 4
	before := pssOf(s.Helpers())
	for i := range count {
		if _, err := s.start(ctx, p, engine.Container(fmt.Sprint("further", i), s.busybox, "sleep", "100000")); err != nil {
			return err
		}
	}
	s.add(perContainerPSS, max(0, pssOf(s.Helpers())-before)/count)
	return nil
}

// many measures an engine that holds many pods.
func (s *session) many(ctx context.Context) error {
	pods := make([]pod, s.Pods)
	begin := time.Now()
	err := inParallel(10, s.Pods, func(i int) (err error) {
		pods[i], err = s.up(ctx)
		return err
	})
	if err != nil {
		return err
	}
	s.add(manyUpRow, time.Since(begin).Seconds())
	s.memory()
	s.idle(ctx)
	if err := s.lists(ctx); err != nil {
		return err
	}
	if err := s.restart(ctx); err != nil {
		return err
	}
	begin = time.Now()
	err = inParallel(10, s.Pods, func(i int) error { return s.down(ctx, pods[i].id) })
	s.add(manyDownRow, time.Since(begin).Seconds())
	return err
}

func (s *session) memory() {
	helpers := s.Helpers()
	total, daemon := pssOf(helpers), pss(s.PID())
	s.add(daemonPSS, daemon)
	s.add(perPodPSS, total/float64(s.Pods))
	s.add(enginePSS, total+daemon)
	s.add(processesRow, float64(len(helpers))/float64(s.Pods))
}

func (s *session) idle(ctx context.Context) {
	pids := append(s.Helpers(), s.PID())
	sleep(ctx, 2*time.Second) // let what the starts began come to rest
	before := cpuOf(pids)
	sleep(ctx, s.Idle)
	s.add(idleRow, milliseconds(cpuOf(pids)-before)*float64(30*time.Second)/float64(s.Idle))
}

func sleep(ctx context.Context, d time.Duration) {
	select {
	case <-ctx.Done():
	case <-time.After(d):
	}
}

func (s *session) lists(ctx context.Context) error {
	runtime, _ := s.Client()
	for row, call := range map[string]func() error{
		listRow:  func() error { _, err := runtime.ListContainers(ctx, &cri.ListContainersRequest{}); return err },
		statsRow: func() error { _, err := runtime.ListContainerStats(ctx, &cri.ListContainerStatsRequest{}); return err },
		podStatsRow: func() error {
			_, err := runtime.ListPodSandboxStats(ctx, &cri.ListPodSandboxStatsRequest{})
			return err
		},
	} {
		var values []float64
		for range 20 {
			begin := time.Now()
			if err := call(); err != nil {
				return err
			}
			values = append(values, milliseconds(time.Since(begin)))
		}
		s.add(row, median(values))
	}
	return nil
}

// restart is timed from the signal until every pod is ready and every container running again, as the kubelet sees it.
func (s *session) restart(ctx context.Context) error {
	begin := time.Now()
	if err := s.Restart(); err != nil {
		return err
	}
	for !s.allKnown(ctx) {
		if time.Since(begin) > 30*time.Second {
			return fmt.Errorf("30 s after a restart not all %d pods are known", s.Pods)
		}
		time.Sleep(time.Millisecond)
	}
	s.add(restartRow, milliseconds(time.Since(begin)))
	return s.restarted()
}

func (s *session) allKnown(ctx context.Context) bool {
	runtime, _ := s.Client()
	pods, err := runtime.ListPodSandbox(ctx, &cri.ListPodSandboxRequest{
		Filter: &cri.PodSandboxFilter{State: &cri.PodSandboxStateValue{State: cri.PodSandboxState_SANDBOX_READY}}})
	if err != nil || len(pods.Items) != s.Pods {
		return false
	}
	containers, err := runtime.ListContainers(ctx, &cri.ListContainersRequest{
		Filter: &cri.ContainerFilter{State: &cri.ContainerStateValue{State: cri.ContainerState_CONTAINER_RUNNING}}})
	return err == nil && len(containers.Containers) == s.Pods
}
