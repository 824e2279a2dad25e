package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/url"
	"os"
	"time"

	"github.com/spf13/cobra"
	"k8s.io/apimachinery/pkg/util/httpstream"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/remotecommand"
	utilexec "k8s.io/client-go/util/exec"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// execResult is `exec --output json`.
type execResult struct {
	Container string `json:"container"`
	ExitCode  int32  `json:"exitCode"`
	Stdout    string `json:"stdout"`
	Stderr    string `json:"stderr"`
}

type execOptions struct {
	container  string
	stdin, tty bool
	timeout    time.Duration
}

func execCommand() *cobra.Command {
	var t tool
	var o execOptions
	var ref string
	var command []string
	c := &cobra.Command{
		Use:   "exec CONTAINER|POD [--] COMMAND [ARG...]",
		Short: "Run a command in a container and pass on its exit code",
		Long: "Run a command in a container and pass on its exit code.\n\n" +
			"Flags of evenkeel stand before the command, on either side of the container. What follows the command is its own, also\n" +
			"without --, which is needed only where the command's name begins with a dash.",
		Example: "  evenkeel exec -it web sh\n  evenkeel exec web -c server ls -l /etc",
		Args: func(c *cobra.Command, args []string) (err error) {
			ref, command, err = splitCommand(c, args)
			return err
		},
		RunE: func(c *cobra.Command, _ []string) error {
			if help, _ := c.Flags().GetBool("help"); help { // after the container, where cobra does not look for it
				return c.Help()
			}
			return t.exec(c, ref, command, o)
		},
	}
	f := c.Flags()
	f.SetInterspersed(false)
	f.StringVarP(&o.container, "container", "c", "", "which container of the pod")
	f.BoolVarP(&o.stdin, "stdin", "i", false, "pass on standard input")
	f.BoolVarP(&o.tty, "tty", "t", false, "give the command a terminal")
	f.DurationVar(&o.timeout, "timeout", 0, "with --output json: kill the command after this time")
	return t.register(c)
}

// splitCommand parts the container from the command, and reads the flags between the two: the first reading ended at the container.
// After a -- there are none.
func splitCommand(c *cobra.Command, args []string) (ref string, command []string, err error) {
	if len(args) == 0 {
		return "", nil, errors.New("requires a container and a command")
	}
	ref, command = args[0], args[1:]
	if c.ArgsLenAtDash() != 0 {
		if err := c.Flags().Parse(command); err != nil {
			return "", nil, err
		}
		command = c.Flags().Args()
	}
	if help, _ := c.Flags().GetBool("help"); len(command) == 0 && !help {
		return "", nil, fmt.Errorf("requires a command to run in %s", ref)
	}
	return ref, command, nil
}

func (t *tool) exec(c *cobra.Command, ref string, command []string, o execOptions) error {
	if t.json() && (o.stdin || o.tty) {
		return errors.New("--output json collects the output: it does not go with -i and -t")
	}
	if o.timeout != 0 && !t.json() {
		return errors.New("--timeout goes with --output json only: a session has none")
	}
	ctx := c.Context()
	e, err := t.connect(ctx)
	if err != nil {
		return err
	}
	defer e.Close()
	w, err := e.look(ctx)
	if err != nil {
		return err
	}
	container, err := w.pickRunning(ref, o.container)
	if err != nil {
		return err
	}
	if t.json() {
		return e.execSync(c, container, command, o.timeout)
	}
	answer, err := e.pods.Exec(ctx, &cri.ExecRequest{
		ContainerId: container.Id, Cmd: command, Tty: o.tty, Stdin: o.stdin, Stdout: true, Stderr: !o.tty,
	})
	if err != nil {
		return fmt.Errorf("cannot exec in container %s: %w", container.GetMetadata().GetName(), err)
	}
	return stream(ctx, answer.Url, streams{in: inputOf(c, o.stdin), out: c.OutOrStdout(), err: c.ErrOrStderr(), tty: o.tty})
}

func (e *engine) execSync(c *cobra.Command, container *cri.Container, command []string, timeout time.Duration) error {
	name := container.GetMetadata().GetName()
	answer, err := e.pods.ExecSync(c.Context(), &cri.ExecSyncRequest{
		ContainerId: container.Id, Cmd: command, Timeout: int64((timeout + time.Second - 1) / time.Second),
	})
	if err != nil {
		return fmt.Errorf("cannot exec in container %s: %w", name, err)
	}
	if err := printJSON(c.OutOrStdout(), execResult{name, answer.ExitCode, string(answer.Stdout), string(answer.Stderr)}); err != nil {
		return err
	}
	if answer.ExitCode != 0 {
		return exitCode(answer.ExitCode)
	}
	return nil
}

func inputOf(c *cobra.Command, wanted bool) io.Reader {
	if !wanted {
		return nil
	}
	return c.InOrStdin()
}

// streams of an exec or attach session; nil ones are not wanted.
type streams struct {
	in       io.Reader
	out, err io.Writer
	tty      bool
}

// stream runs one session over the URL that the engine handed out and ends with the exit code of the command.
func stream(ctx context.Context, address string, s streams) error {
	executor, err := executorFor(address)
	if err != nil {
		return err
	}
	options := remotecommand.StreamOptions{Stdin: s.in, Stdout: s.out, Tty: s.tty}
	if s.tty {
		terminal, err := openTerminal(s.in)
		if err != nil {
			return err
		}
		defer terminal.Close()
		if terminal != nil {
			options.TerminalSizeQueue = terminal
		}
	} else {
		options.Stderr = s.err
	}
	err = executor.StreamWithContext(ctx, options)
	var ended utilexec.ExitError
	if errors.As(err, &ended) && ended.Exited() {
		return exitCode(ended.ExitStatus())
	}
	return err
}

// executorFor speaks WebSocket and falls back to SPDY for engines of before it.
func executorFor(address string) (remotecommand.Executor, error) {
	u, err := url.Parse(address)
	if err != nil {
		return nil, fmt.Errorf("the engine's streaming address %q cannot be used: %w", address, err)
	}
	config := &rest.Config{Host: u.Host, TLSClientConfig: rest.TLSClientConfig{Insecure: u.Scheme == "https"}}
	ws, err := remotecommand.NewWebSocketExecutor(config, "GET", address)
	if err != nil {
		return nil, err
	}
	spdy, err := remotecommand.NewSPDYExecutor(config, "POST", u)
	if err != nil {
		return nil, err
	}
	return remotecommand.NewFallbackExecutor(ws, spdy, func(err error) bool {
		return httpstream.IsUpgradeFailure(err) || httpstream.IsHTTPSProxyError(err)
	})
}

var _ remotecommand.TerminalSizeQueue = (*terminal)(nil)

// stdinFile is the terminal behind a reader, when it is one.
func stdinFile(in io.Reader) *os.File {
	f, _ := in.(*os.File)
	return f
}
