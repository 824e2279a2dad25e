package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/signal"
	"path/filepath"
	"syscall"

	"github.com/spf13/cobra"

	"github.com/evenkeel/evenkeel/cri/operator"
)

const runHelp = `Run a Kubernetes Pod manifest on this machine, without a kubelet.

The images are pulled, the init containers run one after the other, the containers start together, and their logs are
shown until all of them have ended. Ctrl-C stops the pod within its terminationGracePeriodSeconds and removes it with its
volumes and logs; a second Ctrl-C kills it. So does the loss of the terminal, or of the reader of the output. A pod that
ends by itself is kept, stopped, for a look at its logs, unless --rm is given. The exit code is that of the first container
that failed; 130 after Ctrl-C; 1 when the pod could not be run.

Containers restart by restartPolicy as long as this command runs, after 1s, 2s, 4s and so on up to 5m; ten minutes
without a failure start the count anew. A pod that is left running with --detach has nobody to restart its containers.

Supported are: initContainers (also as sidecars), containers with command, args, workingDir, env (value, fieldRef),
ports, resources (cpu, memory), volumeMounts, imagePullPolicy, securityContext, lifecycle.stopSignal, stdin and tty;
emptyDir and hostPath volumes; hostNetwork, hostPID, hostIPC, shareProcessNamespace, hostname, hostAliases, dnsPolicy,
dnsConfig, restartPolicy, terminationGracePeriodSeconds and the pod's securityContext. Fields for the scheduler and the
API server (nodeSelector, tolerations, serviceAccountName, ...) have no meaning here and are passed over, and so are
terminationMessagePath and terminationMessagePolicy. Any other field is an error that names it.

With --output json each line of the output is one object: {"type":"pod"} with id, name, namespace, uid, ips, ports and
containers when the pod is up, {"type":"log"} with time, container, stream, text for each line, and {"type":"exit"} with
container, id, attempt, exitCode and reason.`

type runOptions struct {
	remove, detach bool
	pull           string // missing, always, never; empty: each container's imagePullPolicy
}

func runCommand() *cobra.Command {
	var t tool
	var o runOptions
	c := &cobra.Command{
		Use:   "run POD.yaml",
		Short: "Run a Kubernetes Pod manifest on this machine",
		Long:  runHelp,
		Args:  cobra.ExactArgs(1),
		RunE:  func(c *cobra.Command, args []string) error { return t.run(c, args[0], o) },
	}
	f := c.Flags()
	f.BoolVar(&o.remove, "rm", false, "remove the pod also when it ends by itself")
	f.BoolVarP(&o.detach, "detach", "d", false, "leave the pod running; `evenkeel rm -f` removes it")
	f.StringVar(&o.pull, "pull", "", "missing, always or never (default: each container's imagePullPolicy, or missing)")
	return t.register(c)
}

func (t *tool) run(c *cobra.Command, file string, o runOptions) error {
	switch {
	case o.pull != "" && o.pull != "missing" && o.pull != "always" && o.pull != "never":
		return fmt.Errorf("--pull is missing, always or never, not %q", o.pull)
	case o.remove && o.detach:
		return errors.New("--rm waits for the end of the pod and --detach does not: give one of them")
	}
	pod, err := readManifest(file, c.InOrStdin())
	if err != nil {
		return err
	}
	e, err := t.connect(c.Context())
	if err != nil {
		return err
	}
	defer e.Close()
	if pod.UID == "" {
		pod.UID = newUID()
	}
	ctx, lost, kill, end := interrupts(c.Context())
	defer end()
	logs := &logPrinter{stdout: &output{to: c.OutOrStdout(), broken: lost}, stderr: &output{to: c.ErrOrStderr(), broken: lost}, json: t.json(), kind: "log"}
	r := &podRun{engine: e, pod: pod, options: o, kill: kill, out: newRunOutput(logs, o.detach, pod)}
	return r.run(ctx)
}

// interrupts gives a context that ends at the first SIGINT or SIGTERM and a channel that closes at the second. The loss of the
// terminal ends the context, too, and that of the output's reader, which is told with lost: nobody would be there to stop the pod, or
// to restart its containers.
func interrupts(parent context.Context) (ctx context.Context, lost func(), kill <-chan struct{}, end func()) {
	ctx, cancel := context.WithCancel(parent)
	signals, losses := make(chan os.Signal, 2), make(chan os.Signal, 1)
	signal.Notify(signals, syscall.SIGINT, syscall.SIGTERM)
	if !signal.Ignored(syscall.SIGHUP) { // as under nohup
		signal.Notify(losses, syscall.SIGHUP)
	}
	// Taken, so that a write to a broken pipe fails and does not end this process, and read by nobody: the connection to a daemon that
	// died sends one as well.
	pipes := make(chan os.Signal, 1)
	signal.Notify(pipes, syscall.SIGPIPE)
	second, quit := make(chan struct{}), make(chan struct{})
	go func() {
		for {
			select {
			case <-signals:
				if ctx.Err() != nil {
					close(second)
					return
				}
			case <-losses:
			case <-quit:
				return
			}
			cancel()
		}
	}()
	return ctx, cancel, second, func() {
		signal.Stop(signals)
		signal.Stop(losses)
		signal.Stop(pipes)
		close(quit)
		cancel()
	}
}

// runBase is where this engine's pods of `run` have their directories: below the engine's root, as each engine on a machine
// has its own.
func (e *engine) runBase(ctx context.Context) string {
	return filepath.Join(e.root(ctx), "run")
}

func (e *engine) root(ctx context.Context) string {
	var instance struct{ Root string }
	inventory, err := operator.Client{Conn: e.conn}.Inventory(ctx)
	if err == nil && json.Unmarshal(inventory.Instance, &instance) == nil && instance.Root != "" {
		return instance.Root
	}
	return defaultConfig().Root
}
