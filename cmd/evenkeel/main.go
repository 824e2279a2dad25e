// Command evenkeel is the container runtime and its operator's tools. `evenkeel serve` is the daemon; every other
// subcommand is a client that speaks CRI to the daemon's socket and keeps no state of its own, apart from the volumes
// and logs of the pods that `evenkeel run` started.
package main

import (
	"errors"
	"fmt"
	"io"
	"os"

	"github.com/spf13/cobra"
)

// version is set by the build: -ldflags "-X main.version=…".
var version = "0.1.0-dev"

func main() {
	os.Exit(execute(os.Args[1:], os.Stdin, os.Stdout, os.Stderr))
}

// exitCode ends the program with a code of a container or of a finding. It has been reported already and prints nothing.
type exitCode int

func (c exitCode) Error() string { return fmt.Sprintf("exit code %d", int(c)) }

func execute(args []string, in io.Reader, out, errOut io.Writer) int {
	root := rootCommand()
	root.SetArgs(args)
	root.SetIn(in)
	root.SetOut(out)
	root.SetErr(errOut)
	nameUsage(root)
	err := root.Execute()
	var code exitCode
	switch {
	case err == nil:
		return 0
	case errors.As(err, &code):
		return int(code)
	}
	fmt.Fprintln(errOut, "evenkeel:", plain(err))
	return 1
}

// nameUsage has every error about arguments and flags say how the command is used.
func nameUsage(c *cobra.Command) {
	told := func(c *cobra.Command, err error) error {
		return fmt.Errorf("%w\nusage: %s; see %s --help", err, c.UseLine(), c.CommandPath())
	}
	c.SetFlagErrorFunc(told)
	if check := c.Args; check != nil {
		c.Args = func(c *cobra.Command, args []string) error {
			if err := check(c, args); err != nil {
				return told(c, err)
			}
			return nil
		}
	}
	for _, below := range c.Commands() {
		nameUsage(below)
	}
}

// noArgs is cobra.NoArgs, which takes an argument for a command that it does not know.
func noArgs(_ *cobra.Command, args []string) error {
	if len(args) > 0 {
		return fmt.Errorf("takes no argument, received %q", args[0])
	}
	return nil
}

func rootCommand() *cobra.Command {
	root := &cobra.Command{
		Use:           "evenkeel",
		Short:         "A container runtime for Kubernetes nodes",
		Long:          "Evenkeel runs pods for the kubelet through the Container Runtime Interface. `evenkeel serve` is the daemon;\nthe other commands are tools that talk to its socket.",
		Version:       version,
		SilenceErrors: true,
		SilenceUsage:  true,
	}
	root.AddGroup(
		&cobra.Group{ID: "engine", Title: "The engine:"},
		&cobra.Group{ID: "pods", Title: "Pods and containers:"},
		&cobra.Group{ID: "images", Title: "Images:"},
		&cobra.Group{ID: "machine", Title: "This machine:"},
	)
	add := func(group string, commands ...*cobra.Command) {
		for _, c := range commands {
			c.GroupID = group
			root.AddCommand(c)
		}
	}
	add("engine", serveCommand(), versionCommand())
	add("pods", runCommand(), podsCommand(), psCommand(), statsCommand(), inspectCommand(), explainCommand(), logsCommand(), execCommand(), attachCommand(), stopCommand(), rmCommand())
	add("images", imagesCommand(), pullCommand(), importCommand(), exportCommand(), rmiCommand(), fsckCommand())
	add("machine", checkCommand(), configCommand(), leftoversCommand())
	return root
}
