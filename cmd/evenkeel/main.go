// Command evenkeel is the container runtime and its operator's tools. `evenkeel serve` is the daemon; every other
// subcommand is a client that speaks CRI to the daemon's socket and keeps no state of its own, apart from the volumes
// and logs of the pods that `evenkeel run` started.
package main

import (
	"cmp"
	"errors"
	"fmt"
	"io"
	"os"
	"sync"
	"syscall"

	"github.com/spf13/cobra"
	"golang.org/x/term"
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
	written := &output{to: out}
	root := rootCommand()
	root.SetArgs(args)
	root.SetIn(in)
	root.SetOut(written)
	root.SetErr(errOut)
	nameUsage(root)
	err := root.Execute()
	var code exitCode
	if errors.As(err, &code) {
		err = nil
	}
	if failed := written.failure(); failed != nil && !errors.Is(err, failed) {
		err = errors.Join(err, fmt.Errorf("cannot write the output: %w", failed))
	}
	if err == nil {
		return int(code)
	}
	fmt.Fprintln(errOut, "evenkeel:", plain(err))
	return max(1, int(code))
}

// output is where a command prints. It keeps the first failure, so that no command has to look at each line that it prints,
// and none that lost its output ends with success.
type output struct {
	to     io.Writer
	broken func() // called when nobody reads any more; may be nil

	mu    sync.Mutex
	first error // guarded by mu
}

func (o *output) Write(p []byte) (int, error) {
	n, err := o.to.Write(p)
	if err != nil {
		o.mu.Lock()
		defer o.mu.Unlock()
		o.first = cmp.Or(o.first, err)
		if o.broken != nil && errors.Is(err, syscall.EPIPE) {
			o.broken()
		}
	}
	return n, err
}

func (o *output) failure() error {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.first
}

// terminalOf is the terminal that w writes to, or nil.
func terminalOf(w io.Writer) *os.File {
	switch w := w.(type) {
	case *output:
		return terminalOf(w.to)
	case *os.File:
		if term.IsTerminal(int(w.Fd())) {
			return w
		}
	}
	return nil
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
