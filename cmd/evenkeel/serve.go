package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"os/signal"
	"path"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"github.com/spf13/cobra"
	"golang.org/x/sync/errgroup"
	"golang.org/x/sys/unix"

	"github.com/evenkeel/evenkeel/cri"
	"github.com/evenkeel/evenkeel/cri/streaming"
	"github.com/evenkeel/evenkeel/image"
	"github.com/evenkeel/evenkeel/internal/cgroup"
	"github.com/evenkeel/evenkeel/internal/effect"
	"github.com/evenkeel/evenkeel/internal/systemd"
	"github.com/evenkeel/evenkeel/network"
	"github.com/evenkeel/evenkeel/nri"
	"github.com/evenkeel/evenkeel/oci/runc"
	"github.com/evenkeel/evenkeel/sandbox"
)

func serveCommand() *cobra.Command {
	var flags configFlags
	command := &cobra.Command{
		Use: "serve", Short: "Serve the Container Runtime Interface", Args: noArgs,
		Long: "Serve the Container Runtime Interface. No configuration is needed; flags override " + configFile + ".",
	}
	flags.register(command)
	command.RunE = func(c *cobra.Command, _ []string) error {
		loaded, _, err := flags.load()
		if err != nil {
			return err
		}
		ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM, syscall.SIGINT)
		defer stop()
		// A second Ctrl-C ends what takes too long to stop. SIGTERM does not: scripts and managers may send it more than once.
		context.AfterFunc(ctx, func() { signal.Reset(syscall.SIGINT) })
		return serve(ctx, loaded)
	}
	return command
}

// serve opens the parts, recovers, listens, and answers until ctx ends. Pods go on when it returns.
func serve(ctx context.Context, c config) error {
	log, err := logger(c.LogLevel)
	if err != nil {
		return err
	}
	streaming.QuietLibraries(log)
	begun := time.Now()
	service, err := systemd.TakeService()
	if err != nil {
		return err
	}
	if fault := effect.Fault(); fault != "" {
		log.Warn("this process was told to fail on purpose", effect.FaultEnv, fault)
	}
	lock, err := takeState(c.State)
	if err != nil {
		return err
	}
	defer lock.Close()

	parts, err := open(ctx, c, log)
	if err != nil {
		return err
	}
	defer parts.close(log)
	flush, err := c.Tracing.trace(ctx, parts.server, log)
	if err != nil {
		return err
	}
	defer flush()
	listener, err := listen(service, c.Listen)
	if err != nil {
		return err
	}
	if err := parts.streams.Start(); err != nil {
		return err
	}
	if err := serveMetrics(ctx, c.Metrics.Address, parts.server, log); err != nil {
		return err
	}
	log.Info("serving", "version", version, "listen", c.Listen, "root", c.Root, "state", c.State, "network", c.Network.Mode, "ready_after", time.Since(begun).Round(time.Millisecond))
	parts.collectGarbage(ctx, c.Network.CNI)
	told := tell(service, log)
	told(systemd.Ready)
	context.AfterFunc(ctx, func() { told(systemd.Stopping) })
	if service.Watchdog > 0 {
		go watch(ctx, service.Watchdog, c.Listen, told, log)
	}
	if err := shrink(); err != nil {
		log.Debug("the memory that starting took is kept", "error", err)
	}
	return parts.server.Serve(ctx, listener)
}

// engineParts are the rooms, joined.
type engineParts struct {
	server  *cri.Server
	streams *streaming.Server
	pods    *sandbox.Pods
	images  *image.Store
	network network.Provider
	cgroups *cgroup.Tree
	plugins *nri.Plugins // nil: there are none
	units   *systemd.Units
}

// open joins the rooms and recovers what an earlier process left, before anybody can ask for anything.
func open(ctx context.Context, c config, log *slog.Logger) (*engineParts, error) {
	instance := instanceOf(c)
	manager := units(instance)
	tree, err := cgroup.Detect()
	if err != nil {
		return nil, err
	}
	boot, err := os.ReadFile("/proc/sys/kernel/random/boot_id")
	if err != nil {
		return nil, fmt.Errorf("cannot read this boot's id: %w", err)
	}
	shim, err := program(c.Shim, "evenkeel-shim")
	if err != nil {
		return nil, err
	}
	images := imageStore(c, log)
	pods := &sandbox.Pods{
		Root: c.Root, State: c.State, Shim: shim, CgroupParent: instance.CgroupRoot, BootID: strings.TrimSpace(string(boot)),
		Images: images, Network: provider(c, log), Cgroups: tree, Host: sandbox.DetectHost(tree), Log: log,
		Systemd: manager, Scopes: c.Cgroup.scopes(),
	}
	if pods.Logs, err = c.Logs.parse(); err != nil {
		return nil, fmt.Errorf("logs: %w", err)
	}
	images.InUse = pods.InUse
	plugins, err := pluginsOf(c.NRI, pods, log)
	if err != nil {
		return nil, err
	}
	var starting errgroup.Group
	starting.Go(func() (err error) { pods.Runtimes, pods.BrokenRuntimes, err = handlers(ctx, c); return err })
	starting.Go(func() error { confine(ctx, log); return nil })
	starting.Go(func() error {
		if pods.NoUserNamespaces = sandbox.ProbeUserNamespaces(ctx, c.Root, c.State); pods.NoUserNamespaces != nil {
			log.Warn("pods cannot have user namespaces", "reason", pods.NoUserNamespaces)
		}
		return nil
	})
	starting.Go(func() error {
		if err := pods.Load(); err != nil {
			return err // the store must not clean up without knowing which layers are in use
		}
		return images.Open(ctx)
	})
	if err := starting.Wait(); err != nil {
		return nil, err
	}
	streams := &streaming.Server{Runtime: streamed{pods, pods.Open(ctx)}, Addr: c.Stream.Address, Log: log}
	if plugins != nil {
		plugins.Start()
	}
	return &engineParts{
		streams: streams, pods: pods, plugins: plugins, images: images, network: pods.Network, cgroups: tree, units: manager,
		server: &cri.Server{
			Pods: pods, Containers: streams.Runtime.(streamed).Containers, Images: images, Streams: streams, Instance: instance,
			Release: version, CgroupDriver: c.Cgroup.driver(), PauseImage: c.Images.Pause,
			Config: map[string]any{"sandboxImage": c.Images.Pause, "stateDir": c.State, "rootDir": c.Root, "network": c.Network.Mode, "cgroupParent": instance.CgroupRoot},
			Log:    log,
		},
	}, nil
}

// confine loads the default AppArmor profile where the machine has AppArmor.
func confine(ctx context.Context, log *slog.Logger) {
	if _, err := sandbox.LoadAppArmor(ctx); err != nil {
		log.Warn("containers run without the default AppArmor profile, and are refused if they ask for it", "error", err)
	}
}

// streamed is what the streaming server needs of both.
type streamed struct {
	*sandbox.Pods
	*sandbox.Containers
}

// close leaves pods alone. Where there is none, it takes away what pods shared, so that an engine that has come and
// gone leaves nothing but its directories.
func (e *engineParts) close(log *slog.Logger) {
	ctx, end := context.WithTimeout(context.Background(), 10*time.Second)
	defer end()
	e.streams.Stop(ctx)
	if e.plugins != nil {
		e.plugins.Stop()
	}
	e.finishDeletions(ctx)
	if !e.pods.Empty() {
		return
	}
	if builtin, ok := e.network.(*network.Builtin); ok {
		if err := builtin.Teardown(ctx); err != nil {
			log.Warn("cannot take down the built-in network", "error", err)
		}
	}
	if err := e.cgroups.Remove(ctx, e.pods.CgroupParent); err != nil {
		log.Warn("cannot remove the engine's cgroup", "error", err)
	}
	if slice := path.Base(e.pods.CgroupParent); e.pods.Scopes {
		if err := e.units.Discard(ctx, slice); err != nil {
			log.Warn("cannot stop the engine's slice", "error", err)
		}
	}
}

// collectGarbage has the CNI plugins look for what no pod holds, where the configuration asks for it.
func (e *engineParts) collectGarbage(ctx context.Context, c cniConfig) {
	_, every, err := c.parse()
	if cni, ok := e.network.(*network.CNI); ok && err == nil && every > 0 {
		go cni.CollectEvery(ctx, every, e.pods.Known)
	}
}

// finishDeletions waits for files that are being deleted, but not for long: what is left is deleted at the next start.
func (e *engineParts) finishDeletions(ctx context.Context) {
	done := make(chan struct{})
	go func() {
		defer close(done)
		e.pods.Close()
		e.images.Close()
	}()
	select {
	case <-done:
	case <-ctx.Done():
	}
}

// defaultSubnets is for nodes whose configuration and CRI client name no pod range.
var defaultSubnets = []netip.Prefix{netip.MustParsePrefix("10.199.0.0/16")}

func provider(c config, log *slog.Logger) network.Provider {
	instance := instanceOf(c)
	if c.Network.Mode == "builtin" {
		b := c.Network.Builtin
		return &network.Builtin{Dir: filepath.Join(c.Root, "network"), Bridge: instance.Bridge, Table: instance.NFTable, Subnets: b.Subnets, Default: defaultSubnets, MTU: b.MTU, Log: log}
	}
	timeout, _, _ := c.Network.CNI.parse() // check has seen it
	return &network.CNI{Dir: filepath.Join(c.Root, "network", "cni"), ConfDir: c.Network.ConfDir, BinDirs: c.Network.BinDirs, Timeout: timeout, Log: log}
}

// handlers probes every configured OCI runtime. One that is missing is an error only if it is the default: pods that
// ask for another handler are refused with the reason.
func handlers(ctx context.Context, c config) (found map[string]*sandbox.Runtime, broken map[string]error, err error) {
	found, broken = map[string]*sandbox.Runtime{}, map[string]error{}
	for name, r := range c.Handler {
		path, err := program(r.Path, name)
		var runtime *sandbox.Runtime
		if err == nil {
			runtime, err = sandbox.ProbeRuntime(ctx, runc.Runc{Path: path, Root: filepath.Join(c.State, name)})
		}
		if err == nil && r.BaseSpec != "" {
			runtime.Rlimits, err = sandbox.BaseRlimits(r.BaseSpec)
		}
		if err == nil {
			runtime.CreateLimit = time.Duration(r.Create)
		}
		if err != nil && name == c.Runtime {
			return nil, nil, fmt.Errorf("the default runtime handler %q cannot be used: %w", name, err)
		} else if err != nil {
			slog.Warn("a runtime handler cannot be used", "handler", name, "error", err)
			broken[name] = err
			continue
		}
		found[name] = runtime
	}
	found[""] = found[c.Runtime]
	return found, broken, nil
}

// program finds one of our programs: where the configuration says, beside this program, or in PATH.
func program(configured, name string) (string, error) {
	if configured != "" {
		return configured, nil
	}
	if self, err := os.Executable(); err == nil {
		beside := filepath.Join(filepath.Dir(self), name)
		if _, err := os.Stat(beside); err == nil {
			return beside, nil
		}
	}
	path, err := exec.LookPath(name)
	if err != nil {
		return "", fmt.Errorf("cannot find %s: put it beside evenkeel or into PATH, or name it in %s: %w", name, configFile, err)
	}
	return filepath.Abs(path)
}

// takeState makes sure that one daemon at a time works on a state directory. The lock goes with the process.
func takeState(dir string) (*os.File, error) {
	if err := os.MkdirAll(dir, 0o711); err != nil {
		return nil, fmt.Errorf("cannot make the state directory: %w", err)
	}
	path := filepath.Join(dir, "lock")
	f, err := os.OpenFile(path, os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		return nil, fmt.Errorf("cannot open the lock of the state directory: %w", err)
	}
	for begun := time.Now(); ; time.Sleep(10 * time.Millisecond) {
		err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB)
		if err == nil {
			return f, nil
		}
		if time.Since(begun) > lockPatience {
			f.Close()
			return nil, fmt.Errorf("another engine works on %s: stop it, or give this one --root, --state and --listen of its own (lock %s: %w)", dir, path, err)
		}
	}
}

// lockPatience is for a daemon that was killed while it started a program: its child has the lock until its execve, which on a busy
// machine can take a moment.
const lockPatience = time.Second

// listen takes the socket that systemd holds, so that clients wait while the engine restarts, or else makes it, readable
// and writable by root and its group. The lock on the state directory is held by then, so a socket that is there is nobody's,
// unless another engine was told to use the same one.
func listen(service *systemd.Service, address string) (net.Listener, error) {
	path := strings.TrimPrefix(address, "unix://")
	if l, err := service.Listener(path); l != nil || err != nil {
		return l, err
	}
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		return nil, fmt.Errorf("cannot make the directory of the socket: %w", err)
	}
	if conn, err := net.Dial("unix", path); err == nil {
		conn.Close()
		return nil, fmt.Errorf("somebody answers on %s already: stop it, or choose another --listen", path)
	}
	if err := os.Remove(path); err != nil && !errors.Is(err, os.ErrNotExist) {
		return nil, fmt.Errorf("cannot remove the stale socket: %w", err)
	}
	l, err := net.Listen("unix", path)
	if err != nil {
		return nil, fmt.Errorf("cannot listen on %s (a socket's path has at most 107 bytes): %w", path, err)
	}
	return l, os.Chmod(path, 0o660)
}

func logger(level string) (*slog.Logger, error) {
	l, err := parseLevel(level)
	if err != nil {
		return nil, err
	}
	log := slog.New(slog.NewTextHandler(os.Stderr, &slog.HandlerOptions{Level: l}))
	slog.SetDefault(log)
	return log, nil
}
