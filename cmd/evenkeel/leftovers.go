package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"

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
			"The exit code is 1 when anything is found.",
		Args: cobra.NoArgs,
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
		found, err := t.leftovers(c.Context(), config, f.Changed("address") || !(f.Changed("root") || f.Changed("state")))
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
	instance, live, uids, err := instanceOf(c), map[string]bool{}, map[string]bool{}, error(nil)
	if ask {
		instance, live, uids, err = t.inventory(ctx, instance)
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

// inventory is the running engine's own account, or nothing when no engine runs at all.
func (t *tool) inventory(ctx context.Context, fallback leftovers.Instance) (_ leftovers.Instance, live, uids map[string]bool, err error) {
	path, err := socketPath(t.address())
	if err != nil {
		return fallback, nil, nil, err
	}
	if _, err := os.Stat(path); errors.Is(err, os.ErrNotExist) {
		return fallback, map[string]bool{}, map[string]bool{}, nil
	}
	e, err := t.connect(ctx)
	if err != nil {
		return fallback, nil, nil, err
	}
	defer e.Close()
	if uids, err = e.uids(ctx); err != nil {
		return fallback, nil, nil, err
	}
	answer, err := operator.Client{Conn: e.conn}.Inventory(ctx)
	if err != nil {
		return fallback, nil, nil, fmt.Errorf("cannot ask the engine what is its own: %w", err)
	}
	instance := fallback
	if len(answer.Instance) > 0 {
		if err := json.Unmarshal(answer.Instance, &instance); err != nil {
			return fallback, nil, nil, fmt.Errorf("cannot read the engine's inventory: %w", err)
		}
	}
	live = map[string]bool{}
	for _, id := range append(answer.Pods, answer.Containers...) {
		live[id] = true
	}
	return instance, live, uids, nil
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
