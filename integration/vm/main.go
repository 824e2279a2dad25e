// Command vm runs test binaries inside virtual machines of either architecture, with a real kernel and cgroup v2.
// docs/VM.md tells how; `make vm-test`, `make vm-shell` and `make vm-exec` call it.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"path/filepath"
	"runtime"
	"strings"
	"syscall"
	"time"

	"github.com/evenkeel/evenkeel/integration/vm/job"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	if err := run(ctx, os.Args[1:]); err != nil {
		fmt.Fprintln(os.Stderr, "vm:", err)
		code := exitCode(1)
		errors.As(err, &code)
		os.Exit(int(code))
	}
}

// options of the command line.
type options struct {
	arch, init   string
	suite        string
	packages     string
	short, long  bool
	selinux      bool
	merge        bool
	limit        time.Duration
	cache, out   string
	refresh      bool
	cpus, memory int
	slowdown     float64
	disk         int64
	cuts         int
	mode         string // of the power cuts
	seed         uint64
	add          string
	root         string // of the project
	env          []string
}

const usage = "usage: vm [flags] test | shell | exec COMMAND [ARGUMENT...] | powercut | shutdown"

func run(ctx context.Context, args []string) error {
	o := options{}
	flags := flag.NewFlagSet("vm", flag.ContinueOnError)
	flags.StringVar(&o.arch, "arch", runtime.GOARCH, "`architecture` of the machine: amd64 or arm64")
	flags.StringVar(&o.init, "init", "bare", "`init` of the machine: bare or systemd")
	flags.StringVar(&o.suite, "suite", "", "run only tests that match the regular `expression`")
	flags.StringVar(&o.packages, "packages", "./integration", "comma separated `packages` whose tests to run")
	flags.BoolVar(&o.short, "short", false, "leave out the long tests")
	flags.BoolVar(&o.merge, "merge", false, "put what this run comes to in the place of the same tests' results of the run before, and keep the others'")
	flags.BoolVar(&o.long, "long", false, "run the tests of ./integration at the full length that issues ask for; best with a suite")
	flags.DurationVar(&o.limit, "limit", time.Hour, "give up after this `time`")
	flags.StringVar(&o.cache, "cache", ".cache/vm", "`directory` of kernels and root file systems")
	flags.StringVar(&o.out, "out", "bin/vm", "`directory` for logs and results")
	flags.BoolVar(&o.refresh, "refresh", false, "fetch the newest kernel and packages")
	flags.IntVar(&o.cpus, "cpus", 2, "processors of the machine")
	flags.IntVar(&o.memory, "memory", 2048, "memory of the machine in `MiB`")
	flags.Float64Var(&o.slowdown, "slowdown", 10, "`factor` by which tests extend their deadlines")
	flags.Int64Var(&o.disk, "disk", 8, "size of the scratch disk in `GiB` (sparse)")
	flags.IntVar(&o.cuts, "rounds", 3, "power cuts")
	flags.BoolVar(&o.selinux, "selinux", false, "enforce an SELinux policy that knows containers, instead of having AppArmor; for TestSELinux")
	flags.StringVar(&o.mode, "mode", "images", "what goes on when the power is cut: `images` or pods")
	flags.StringVar(&o.add, "add", "", "comma separated `directories` that exec puts into the machine")
	flags.Uint64Var(&o.seed, "seed", 0, "of the power cuts; 0: another each time")
	if err := flags.Parse(args); err != nil {
		return err
	}
	if o.init != "bare" && o.init != job.Systemd {
		return fmt.Errorf("no machine with init %q: there are bare and systemd", o.init)
	}
	var err error
	if o.root, err = projectRoot(); err != nil {
		return err
	}
	ctx, cancel := context.WithTimeoutCause(ctx, o.limit, fmt.Errorf("the limit of %s has passed", o.limit))
	defer cancel()
	switch flags.Arg(0) {
	case "test":
		return o.test(ctx)
	case "shell":
		return o.shell(ctx)
	case "exec":
		return o.exec(ctx, flags.Args()[1:])
	case "shutdown":
		return o.shutdown(ctx)
	case "powercut":
		return o.powercut(ctx)
	default:
		return errors.New(usage)
	}
}

func projectRoot() (string, error) {
	dir, err := os.Getwd()
	for err == nil {
		if _, err := os.Stat(filepath.Join(dir, "go.mod")); err == nil {
			return dir, nil
		}
		if dir == "/" {
			return "", errors.New("there is no go.mod here or above")
		}
		dir = filepath.Dir(dir)
	}
	return "", err
}

// under is a path below the project's root.
func (o *options) under(path string) string {
	if filepath.IsAbs(path) {
		return path
	}
	return filepath.Join(o.root, path)
}

// home is where the machine's logs and results go.
func (o *options) home() string {
	name := o.arch + "-" + o.init
	if o.selinux {
		name += "-selinux"
	}
	return filepath.Join(o.under(o.out), name)
}

func (o *options) packageList() []string { return strings.Split(o.packages, ",") }
