package main

import (
	"encoding/json"
	"fmt"
	"io"
	"math"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"
)

// A row of the table.
type row struct {
	name, unit   string
	builtin, cni float64 // goals by network; none: no goal
	ofPeer       float64 // goal as a share of containerd's own value in the same run
	more         bool    // more is better
}

// none stands for no goal, since 0 is one.
var none = math.NaN()

// goal for an engine. Containerd has none.
func (r row) goal(engine string, numbers results) float64 {
	switch {
	case engine == peerName:
		return none
	case r.ofPeer > 0 && len(numbers[r.name][peerName]) > 0:
		return r.ofPeer * median(numbers[r.name][peerName])
	case strings.HasSuffix(engine, "builtin"):
		return r.builtin
	}
	return r.cni
}

// against is how a value compares with a yardstick: 1 or less is at least as good.
func (r row) against(value, yardstick float64) float64 {
	if r.more {
		value, yardstick = yardstick, value
	}
	if yardstick == 0 && value == 0 {
		return 1
	}
	return value / yardstick // +Inf where the goal is none at all
}

// results holds the values of every row and engine, one per round.
type results map[string]map[string][]float64

func (r results) add(row, engine string, value float64) {
	if r[row] == nil {
		r[row] = map[string][]float64{}
	}
	r[row][engine] = append(r[row][engine], value)
}

func (r results) print(w io.Writer, engines []candidate) {
	head, line := "| what | unit |", "|---|---|"
	for _, e := range engines {
		head, line = head+" "+e.name+" |", line+"---|"
		if e.name != peerName {
			head, line = head+" goal | of goal |", line+"---|---|"
		} else {
			head, line = head+" evenkeel cni to it |", line+"---|"
		}
	}
	fmt.Fprintln(w, head)
	fmt.Fprintln(w, line)
	for _, row := range rows {
		if r[row.name] != nil {
			fmt.Fprintln(w, r.line(row, engines))
		}
	}
}

func (r results) line(row row, engines []candidate) string {
	line := fmt.Sprintf("| %s | %s |", row.name, row.unit)
	for _, e := range engines {
		values := r[row.name][e.name]
		line += " " + spread(values) + " |"
		if e.name != peerName {
			goal := row.goal(e.name, r)
			line += " " + short(goal) + " | " + share(row, values, goal) + " |"
		} else {
			line += " " + share(row, r[row.name]["evenkeel cni"], middle(values)) + " |"
		}
	}
	return line
}

func share(row row, values []float64, yardstick float64) string {
	if len(values) == 0 || math.IsNaN(yardstick) {
		return "-"
	}
	ratio := row.against(median(values), yardstick)
	if math.IsInf(ratio, 0) {
		return "missed" // a goal of 0, or a peer that needs nothing
	}
	return fmt.Sprintf("%.2f", ratio)
}

// spread shows the median and, in brackets, the least and the most.
func spread(values []float64) string {
	least, most := "", ""
	if len(values) > 0 {
		least, most = short(slices.Min(values)), short(slices.Max(values))
	}
	if least == most {
		return short(middle(values))
	}
	return fmt.Sprintf("%s (%s-%s)", short(median(values)), least, most)
}

func short(v float64) string {
	switch {
	case math.IsNaN(v):
		return "-"
	case v >= 100 || v == math.Trunc(v):
		return fmt.Sprintf("%.0f", v)
	case v >= 10:
		return fmt.Sprintf("%.1f", v)
	}
	return fmt.Sprintf("%.2f", v)
}

// median of at least one value.
func median(values []float64) float64 {
	sorted := slices.Sorted(slices.Values(values))
	return sorted[len(sorted)/2]
}

func middle(values []float64) float64 {
	if len(values) == 0 {
		return none
	}
	return median(values)
}

// saved is a row in the JSON.
type saved struct {
	Unit   string               `json:"unit"`
	Goals  map[string]float64   `json:"goals,omitempty"`  // by engine
	Values map[string][]float64 `json:"values,omitempty"` // by engine, one per round
}

func (r results) save(path string) error {
	if path == "" {
		return nil
	}
	table := map[string]saved{}
	for _, row := range rows {
		s := saved{Unit: row.unit, Goals: map[string]float64{}, Values: r[row.name]}
		for engine := range r[row.name] {
			if goal := row.goal(engine, r); !math.IsNaN(goal) {
				s.Goals[engine] = goal
			}
		}
		if s.Values != nil {
			table[row.name] = s
		}
	}
	data, err := json.MarshalIndent(map[string]any{"at": time.Now().UTC().Format(time.RFC3339), "kernel": kernel(), "rows": table}, "", "  ")
	if err != nil {
		return err
	}
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		return err
	}
	return os.WriteFile(path, append(data, '\n'), 0o644)
}

func kernel() string {
	data, _ := os.ReadFile("/proc/sys/kernel/osrelease")
	return strings.TrimSpace(string(data))
}
