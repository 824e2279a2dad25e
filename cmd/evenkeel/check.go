package main

import (
	"context"
	"fmt"

	"github.com/spf13/cobra"
)

// checked is one line in `check --output json`.
type checked struct {
	Name   string `json:"name"`
	Status string `json:"status"` // ok, warning or missing
	Detail string `json:"detail"`
	Cure   string `json:"cure,omitempty"`
}

const (
	isOK      = "ok"
	isWarning = "warning" // pods run, but something is lost
	isMissing = "missing" // pods do not run
)

func checkCommand() *cobra.Command {
	var t tool
	var flags configFlags
	c := &cobra.Command{
		Use:   "check",
		Short: "Tell what this machine lacks to run pods, and how to get it",
		Long: "Tell what this machine lacks to run pods, and how to get it. No engine needs to run.\n" +
			"The exit code is 1 when something is missing without which pods cannot run.",
		Args: noArgs,
	}
	flags.register(c)
	c.RunE = func(c *cobra.Command, _ []string) error {
		config, _, err := flags.load()
		if err != nil {
			return err
		}
		return t.printChecks(c, checkMachine(c.Context(), config))
	}
	t.registerOutput(c)
	return c
}

// checkMachine looks at everything and stops at nothing.
func checkMachine(ctx context.Context, c config) []checked {
	list := []checked{checkRoot(), checkCapabilities(), checkKernel(), checkOverlay(), checkNewMountAPI(), checkSeccomp()}
	list = append(list, checkCgroups()...)
	list = append(list, checkUnits(ctx, c)...)
	list = append(list, checkPrograms(ctx, c)...)
	list = append(list, checkDirectory("root directory", c.Root), checkDirectory("state directory", c.State))
	list = append(list, checkNetwork(c)...)
	return list
}

func (t *tool) printChecks(c *cobra.Command, list []checked) error {
	missing := 0
	rows := &table{head: []string{"STATUS", "WHAT", "DETAIL"}}
	for _, l := range list {
		if l.Status == isMissing {
			missing++
		}
		detail := l.Detail
		if l.Cure != "" {
			detail += ": " + l.Cure
		}
		rows.add(l.Status, l.Name, detail)
	}
	if t.json() {
		if err := printJSON(c.OutOrStdout(), list); err != nil {
			return err
		}
	} else if err := rows.print(c.OutOrStdout()); err != nil {
		return err
	}
	if missing == 0 {
		return nil
	}
	if !t.json() {
		fmt.Fprintf(c.OutOrStdout(), "\n%d missing: pods cannot run here yet\n", missing)
	}
	return exitCode(1)
}
