package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"syscall"

	"github.com/spf13/cobra"

	"github.com/evenkeel/evenkeel/cri/operator"
	"github.com/evenkeel/evenkeel/internal/leftovers"
)

// finding is one thing in `leftovers --output json`.
type finding struct {
	Kind   string `json:"kind"` // process, mount, namespace, cgroup, link, address, rule, directory, ...
	Name   string `json:"name"` // pid, path or key
	Detail string `json:"detail"`
}

func leftoversCommand() *cobra.Command {
	var t tool
	var file string
	flags := defaultConfig()
	c := &cobra.Command{
		Use:   "leftovers",
		Short: "Look for what belongs to no pod: processes, mounts, cgroups, units, devices, rules, directories",
		Long: "Look for what belongs to no pod: processes, mounts, namespaces, cgroups, systemd units, network devices and rules, directories.\n" +
			"A running engine is asked what it knows to be its own; without one, everything that an engine made is a leftover.\n" +
			"The engine is the one at --address or EVENKEEL_ADDRESS, else the one of the configuration or of --root and --state.\n" +
			"The exit code is 1 when anything is found.",
		Args: noArgs,
	}
	f := c.Flags()
	f.StringVar(&file, "config", "", "without a running engine: its configuration file (default "+configFile+")")
	f.StringVar(&flags.Root, "root", flags.Root, "without a running engine: its root directory")
	f.StringVar(&flags.State, "state", flags.State, "without a running engine: its state directory")
	c.RunE = func(c *cobra.Command, _ []string) error {
		config, _, err := loadConfig(file)
		if err != nil {
			return err
		}
		if f.Changed("root") {
			config.Root = flags.Root
		}
		if f.Changed("state") {
			config.State = flags.State
		}
		byHand := f.Changed("root") || f.Changed("state")
		found, err := t.leftovers(c.Context(), config, f.Changed("address") || !byHand)
		if err != nil {
			return err
		}
		return t.printFindings(c, found)
	}
	return t.register(c)
}

// leftovers asks the engine where there is one. Directories given by hand mean the engine that used them, and not
// whichever answers at the default socket.
func (t *tool) leftovers(ctx context.Context, c config, ask bool) ([]finding, error) {
	instance, live, uids := instanceOf(c), map[string]bool{}, map[string]bool{}
	answered, err := false, error(nil)
	if ask {
		instance, live, uids, answered, err = t.inventory(ctx, instance, c.Listen)
	}
	if err == nil && !answered {
		err = nobodyRuns(instance.State)
	}
	if err != nil {
		return nil, err
	}
	list, err := instance.Find(ctx, func(id string) bool { return live[id] })
	if err != nil {
		return nil, fmt.Errorf("cannot look everywhere: %w", err)
	}
	found := []finding{}
	base := filepath.Join(instance.Root, "run")
	for _, l := range list {
		// Memory-backed volumes are mounted below a directory that is named by its pod's uid.
		if below, err := filepath.Rel(base, l.Name); err == nil && uids[strings.Split(below, "/")[0]] {
			continue
		}
		found = append(found, finding{l.Kind, l.Name, l.Detail})
	}
	orphans, err := orphanDirs(base, func() (map[string]bool, error) { return uids, nil })
	for _, d := range orphans {
		found = append(found, finding{"directory", d.Path, "volumes and logs of a pod of `evenkeel run` that does not exist any more"})
	}
	return found, err
}

// nobodyRuns is an error when an engine works on the state directory, since what its pods need is no leftover. The lock is looked
// for and not tried, which could turn away an engine that starts just now.
func nobodyRuns(state string) error {
	lock, err := filepath.EvalSymlinks(filepath.Join(state, "lock"))
	if errors.Is(err, os.ErrNotExist) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("cannot tell whether an engine runs: %w", err)
	}
	descriptors, err := filepath.Glob("/proc/[0-9]*/fd/*")
	if err != nil {
		return err
	}
	for _, d := range descriptors {
		if file, err := os.Readlink(d); err == nil && file == lock {
			return fmt.Errorf("an engine works on %s (process %s) and has not been asked what is its own: name its socket with --address", state, strings.Split(d, "/")[2])
		}
	}
	return nil
}

// inventory is the running engine's own account. When no engine runs at all, which is not an error, it has not answered.
func (t *tool) inventory(ctx context.Context, fallback leftovers.Instance, listen string) (_ leftovers.Instance, live, uids map[string]bool, answered bool, err error) {
	if t.Address == "" && os.Getenv("EVENKEEL_ADDRESS") == "" {
		t.Address = listen
	}
	path, err := socketPath(t.address())
	if err != nil {
		return fallback, nil, nil, false, err
	}
	// An engine that crashed, or whose socket unit was stopped, leaves the socket behind.
	if err := knock(ctx, path); errors.Is(err, os.ErrNotExist) || errors.Is(err, syscall.ECONNREFUSED) {
		if t.address() != listen {
			// Another engine's directories would be searched, and its pods be found.
			return fallback, nil, nil, false, fmt.Errorf("%w; or tell what that engine used, with --root and --state", noEngine(t.address(), err))
		}
		return fallback, map[string]bool{}, map[string]bool{}, false, nil
	}
	e, err := t.connect(ctx)
	if err != nil {
		return fallback, nil, nil, false, err
	}
	defer e.Close()
	if uids, err = e.uids(ctx); err != nil {
		return fallback, nil, nil, false, err
	}
	answer, err := operator.Client{Conn: e.conn}.Inventory(ctx)
	if err != nil {
		return fallback, nil, nil, false, fmt.Errorf("cannot ask the engine what is its own: %w", err)
	}
	instance := fallback
	if len(answer.Instance) > 0 {
		if err := json.Unmarshal(answer.Instance, &instance); err != nil {
			return fallback, nil, nil, false, fmt.Errorf("cannot read the engine's inventory: %w", err)
		}
	}
	live = map[string]bool{}
	for _, id := range append(answer.Pods, answer.Containers...) {
		live[id] = true
	}
	return instance, live, uids, true, nil
}

func (t *tool) printFindings(c *cobra.Command, found []finding) error {
	if t.json() {
		if err := printJSON(c.OutOrStdout(), found); err != nil {
			return err
		}
	} else if len(found) == 0 {
		fmt.Fprintln(c.OutOrStdout(), "nothing is left over")
	}
	if len(found) == 0 {
		return nil
	}
	if !t.json() {
		rows := &table{head: []string{"KIND", "NAME", "DETAIL"}}
		for _, f := range found {
			rows.add(f.Kind, f.Name, strings.TrimSpace(f.Detail))
		}
		if err := rows.print(c.OutOrStdout()); err != nil {
			return err
		}
	}
	return exitCode(1)
}
