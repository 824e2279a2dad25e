package main

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"regexp"
	"strings"
	"syscall"
	"time"

	"github.com/spf13/cobra"
	"google.golang.org/grpc"
	"google.golang.org/grpc/backoff"
	"google.golang.org/grpc/credentials/insecure"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"
)

const defaultAddress = "unix:///run/evenkeel/evenkeel.sock"

// maxMessage is what CRI clients accept at least (k8s.io/cri-client/pkg/utils.go).
const maxMessage = 16 << 20

// tool is what every client command has in common.
type tool struct {
	Address string // of the daemon's socket
	Output  string // text or json
}

// register adds the common flags to a command.
func (t *tool) register(c *cobra.Command) *cobra.Command {
	c.Flags().StringVar(&t.Address, "address", "", "socket of the engine (default $EVENKEEL_ADDRESS or "+defaultAddress+")")
	t.registerOutput(c)
	return c
}

// registerOutput adds --output alone, for commands that need no daemon.
func (t *tool) registerOutput(c *cobra.Command) {
	c.Flags().StringVarP(&t.Output, "output", "o", "text", "text or json")
	c.PreRunE = func(*cobra.Command, []string) error {
		if t.Output != "text" && t.Output != "json" {
			return fmt.Errorf("--output is text or json, not %q", t.Output)
		}
		return nil
	}
}

func (t *tool) json() bool { return t.Output == "json" }

func (t *tool) address() string {
	for _, a := range []string{t.Address, os.Getenv("EVENKEEL_ADDRESS")} {
		if a != "" {
			return a
		}
	}
	return defaultAddress
}

// reconnect is how long-lived commands come back to a daemon that restarts: as fast as the kubelet does.
var reconnect = backoff.Config{BaseDelay: 100 * time.Millisecond, Multiplier: 1.6, Jitter: 0.2, MaxDelay: 3 * time.Second}

// engine is a connection to the daemon.
type engine struct {
	address string
	conn    *grpc.ClientConn
	pods    cri.RuntimeServiceClient
	images  cri.ImageServiceClient
}

func (e *engine) Close() error { return e.conn.Close() }

// connect reaches the daemon, or says which socket was tried and how to start a daemon there.
func (t *tool) connect(ctx context.Context) (*engine, error) {
	address := t.address()
	path, err := socketPath(address)
	if err != nil {
		return nil, err
	}
	if err := knock(ctx, path); err != nil {
		return nil, noEngine(address, err)
	}
	return dial(address, path, answerLimit)
}

func dial(address, path string, limit time.Duration) (*engine, error) {
	conn, err := grpc.NewClient("unix://"+path,
		grpc.WithUnaryInterceptor(patience(address, limit)),
		grpc.WithTransportCredentials(insecure.NewCredentials()),
		grpc.WithAuthority("localhost"),
		grpc.WithConnectParams(grpc.ConnectParams{Backoff: reconnect, MinConnectTimeout: 5 * time.Second}),
		grpc.WithDefaultCallOptions(grpc.MaxCallRecvMsgSize(maxMessage)))
	if err != nil {
		return nil, fmt.Errorf("cannot connect to %s: %w", address, err)
	}
	return &engine{address, conn, cri.NewRuntimeServiceClient(conn), cri.NewImageServiceClient(conn)}, nil
}

// action is what cobra calls when a command is given.
type action = func(c *cobra.Command, args []string) error

// asking makes an action of one that needs the daemon.
func (t *tool) asking(act func(c *cobra.Command, e *engine, args []string) error) action {
	return func(c *cobra.Command, args []string) error {
		e, err := t.connect(c.Context())
		if err != nil {
			return err
		}
		defer e.Close()
		return act(c, e, args)
	}
}

// looking makes an action of one that is given names of pods or containers, and finds them in one look at the daemon.
func (t *tool) looking(act func(c *cobra.Command, e *engine, w *world, args []string) error) action {
	return t.asking(func(c *cobra.Command, e *engine, args []string) error {
		w, err := e.look(c.Context())
		if err != nil {
			return err
		}
		return act(c, e, w, args)
	})
}

// socketPath takes unix:///path and /path.
func socketPath(address string) (string, error) {
	path := strings.TrimPrefix(address, "unix://")
	if !strings.HasPrefix(path, "/") {
		return "", fmt.Errorf("address %q is not of the form unix:///path/to/socket", address)
	}
	return path, nil
}

// knock tells a missing socket, one without a listener and one out of reach apart, which gRPC would report alike and late.
func knock(ctx context.Context, path string) error {
	dialer := net.Dialer{Timeout: 5 * time.Second}
	c, err := dialer.DialContext(ctx, "unix", path)
	if err != nil {
		return err
	}
	return c.Close()
}

func noEngine(address string, err error) error {
	why, start := err.Error(), "evenkeel serve"
	if address != defaultAddress {
		start += " --listen " + address
	}
	switch {
	case errors.Is(err, os.ErrNotExist):
		why = "the socket does not exist"
	case errors.Is(err, syscall.ECONNREFUSED):
		why = "the socket exists but nobody listens on it"
	case errors.Is(err, os.ErrPermission):
		return fmt.Errorf("no access to the engine at %s: permission denied; run this command as root", address)
	}
	return fmt.Errorf("no engine answers at %s: %s; start it with `%s` as root, or give another socket with --address or EVENKEEL_ADDRESS", address, why, start)
}

// wrapping is what gRPC puts before an answer; the daemon's messages say what failed by themselves.
var wrapping = regexp.MustCompile(`rpc error: code = \w+ desc = `)

// plain is the text of an error without gRPC's wrapping.
func plain(err error) string { return wrapping.ReplaceAllString(err.Error(), "") }

// unlessSaid puts what was being done before an error of the engine that does not say so itself. One that says no more than what
// was being done, since the name stays here, gets the name.
func unlessSaid(what string, err error) error {
	verb, said := strings.Join(strings.SplitN(what, " ", 3)[:2], " "), plain(err)
	if why, found := strings.CutPrefix(said, verb+": "); found {
		return retold{what + ": " + why, err}
	}
	if strings.HasPrefix(said, verb) {
		return err
	}
	return fmt.Errorf("%s: %w", what, err)
}

// retold is an error in other words.
type retold struct {
	text string
	err  error
}

func (r retold) Error() string { return r.text }
func (r retold) Unwrap() error { return r.err }
