package main

import (
	"context"
	"fmt"
	"slices"
	"time"

	"github.com/spf13/cobra"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// statsRow is what a container uses in `stats --output json`. What the engine could not measure is left out.
type statsRow struct {
	ID           string  `json:"id"`
	Name         string  `json:"name"`
	Pod          string  `json:"pod"` // namespace/name
	PodID        string  `json:"podID"`
	CPUNanoCores *uint64 `json:"cpuNanoCores,omitempty"` // over the last seconds
	CPUNanos     *uint64 `json:"cpuNanoseconds,omitempty"`
	Memory       *uint64 `json:"memoryBytes,omitempty"` // working set: what the kernel cannot take back at once
	Available    *uint64 `json:"memoryAvailableBytes,omitempty"`
	Swap         *uint64 `json:"swapBytes,omitempty"`
	Disk         *uint64 `json:"diskBytes,omitempty"` // of the writable layer
	Inodes       *uint64 `json:"diskInodes,omitempty"`
}

func statsCommand() *cobra.Command {
	var t tool
	c := &cobra.Command{
		Use:   "stats [POD|CONTAINER...]",
		Short: "Show what running containers use: CPU, memory, disk",
		Long: "Show what running containers use: thousandths of a CPU over the last seconds, working set, swap and writable layer.\n" +
			"It takes a second where nobody has asked the engine lately. The size of a writable layer may be half a minute old.",
		RunE: t.looking(func(c *cobra.Command, e *engine, w *world, refs []string) error {
			wanted, err := w.containersNamed(refs)
			if err != nil {
				return err
			}
			rows, err := e.measure(c.Context(), w, wanted)
			if err != nil {
				return err
			}
			if t.json() {
				return printJSON(c.OutOrStdout(), rows)
			}
			return statsTable(rows).print(c.OutOrStdout())
		}),
	}
	return t.register(c)
}

// containersNamed are the ids of the containers that are meant, those of a pod where a pod is named; nil without names: all.
func (w *world) containersNamed(refs []string) (ids map[string]bool, err error) {
	for _, ref := range refs {
		at, err := w.find(ref)
		if err != nil {
			return nil, err
		}
		if ids == nil {
			ids = map[string]bool{}
		}
		ids[at.id()] = true
		for _, c := range w.containers {
			if at.pod != nil && c.PodSandboxId == at.pod.Id {
				ids[c.Id] = true
			}
		}
	}
	return ids, nil
}

// rateWindow is a little more than the time over which the engine takes an average.
const rateWindow = 1100 * time.Millisecond

// measure asks twice where the engine has no rate yet, since it takes none of its own accord.
func (e *engine) measure(ctx context.Context, w *world, wanted map[string]bool) ([]statsRow, error) {
	rows, err := e.statsRows(ctx, w, wanted)
	if err == nil && slices.ContainsFunc(rows, func(r statsRow) bool { return r.CPUNanos != nil && r.CPUNanoCores == nil }) {
		if err = sleep(ctx, rateWindow); err == nil {
			rows, err = e.statsRows(ctx, w, wanted)
		}
	}
	return rows, err
}

func (e *engine) statsRows(ctx context.Context, w *world, wanted map[string]bool) ([]statsRow, error) {
	answer, err := e.pods.ListContainerStats(ctx, &cri.ListContainerStatsRequest{})
	if err != nil {
		return nil, fmt.Errorf("cannot ask for statistics: %w", err)
	}
	rows := []statsRow{}
	for _, c := range w.containers {
		if wanted != nil && !wanted[c.Id] {
			continue
		}
		i := slices.IndexFunc(answer.Stats, func(s *cri.ContainerStats) bool { return s.GetAttributes().GetId() == c.Id })
		if i < 0 { // it does not run
			continue
		}
		s := answer.Stats[i]
		rows = append(rows, statsRow{
			ID: c.Id, Name: c.GetMetadata().GetName(), Pod: w.podOf(c), PodID: c.PodSandboxId,
			CPUNanoCores: value(s.GetCpu().GetUsageNanoCores()), CPUNanos: value(s.GetCpu().GetUsageCoreNanoSeconds()),
			Memory: value(s.GetMemory().GetWorkingSetBytes()), Available: value(s.GetMemory().GetAvailableBytes()),
			Swap: value(s.GetSwap().GetSwapUsageBytes()),
			Disk: value(s.GetWritableLayer().GetUsedBytes()), Inodes: value(s.GetWritableLayer().GetInodesUsed()),
		})
	}
	slices.SortStableFunc(rows, func(a, b statsRow) int { return slices.Compare([]string{a.Pod, a.Name}, []string{b.Pod, b.Name}) })
	return rows, nil
}

func value(n *cri.UInt64Value) *uint64 {
	if n == nil {
		return nil
	}
	return &n.Value
}

func statsTable(rows []statsRow) *table {
	t := &table{head: []string{"CONTAINER", "NAME", "POD", "CPU", "MEMORY", "SWAP", "DISK"}}
	bytes := func(n *uint64) string {
		if n == nil {
			return ""
		}
		return byteCount(*n)
	}
	for _, r := range rows {
		cpu := ""
		if r.CPUNanoCores != nil {
			cpu = fmt.Sprintf("%dm", (*r.CPUNanoCores+999_999)/1_000_000) // as Kubernetes rounds it
		}
		t.add(shortID(r.ID), r.Name, r.Pod, cpu, bytes(r.Memory), bytes(r.Swap), bytes(r.Disk))
	}
	return t
}
