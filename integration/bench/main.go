// Command bench measures Evenkeel as a kubelet meets it, over plain CRI gRPC, and containerd beside it where it is
// installed. All engines run at once and take turns, part by part, so that a machine that gets slower gets slower for
// each of them. It prints a table of medians beside the goals and, with -json, the numbers behind it.
//
// Run it with `make bench` on a machine that does nothing else.
package main

import (
	"cmp"
	"context"
	"flag"
	"fmt"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"github.com/evenkeel/evenkeel/integration/engine"
	"github.com/evenkeel/evenkeel/integration/registry"
)

// options of a run.
type options struct {
	Bin      string
	Rounds   int
	Cycles   int
	Pods     int
	LogMB    int
	PullMiB  int
	Idle     time.Duration
	JSON     string
	Only     string
	Networks string
	Peer     string // path of containerd; empty: Evenkeel alone

	own string // where each network has binaries of its own
}

func (o options) networks() []string { return strings.Split(o.Networks, ",") }

// quick is enough to see that every part works, and for nothing else.
func (o options) quick() options {
	o.Rounds, o.Cycles, o.Pods, o.LogMB, o.PullMiB, o.Idle = 1, 2, 3, 10, 8, 200*time.Millisecond
	return o
}

func main() {
	var o options
	flag.StringVar(&o.Bin, "bin", "", "directory of Evenkeel's binaries, runc and the CNI plugins (default: what make build made)")
	flag.IntVar(&o.Rounds, "rounds", 3, "rounds; the table shows medians over them")
	flag.IntVar(&o.Cycles, "cycles", 15, "pods made one after another in a round")
	flag.IntVar(&o.Pods, "pods", 50, "pods that run together")
	flag.IntVar(&o.LogMB, "log", 200, "MB of log written, in steps of 10")
	flag.IntVar(&o.PullMiB, "pull", 300, "MiB of files in a pulled image")
	flag.DurationVar(&o.Idle, "idle", 10*time.Second, "how long idle CPU is watched")
	flag.StringVar(&o.JSON, "json", "bin/bench.json", "file for the numbers; empty: none")
	flag.StringVar(&o.Only, "only", "", "comma-separated parts: "+partNames()+" (default: all)")
	flag.StringVar(&o.Networks, "networks", "builtin,cni", "networks Evenkeel is measured on")
	flag.StringVar(&o.Peer, "containerd", findContainerd(), "containerd to measure beside, its shim in the same directory; empty: none")
	quick := flag.Bool("quick", false, "one small round: shows that the benchmark works, and no numbers worth keeping")
	flag.Parse()
	if *quick {
		o = o.quick()
	}
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGINT, syscall.SIGTERM)
	defer stop()
	numbers, err := run(ctx, o)
	if err == nil {
		numbers.print(os.Stdout, candidates(o))
		err = numbers.save(o.JSON)
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "bench:", err)
		os.Exit(1)
	}
}

// run measures and returns the numbers. Nothing that it started is left, also after an error.
func run(ctx context.Context, o options) (results, error) {
	if os.Getuid() != 0 {
		return nil, fmt.Errorf("containers cannot be made without root: sudo make bench")
	}
	if o.Bin == "" {
		var err error
		if o.Bin, err = engine.Binaries(); err != nil {
			return nil, err
		}
	}
	// Once for all rounds, and before the images are made: an engine must not start while its program is being written.
	binaries, err := os.MkdirTemp("/var/lib", "ektest-bin-")
	if err != nil {
		return nil, err
	}
	defer os.RemoveAll(binaries)
	for _, network := range o.networks() {
		if err := ownBinaries(o.Bin, filepath.Join(binaries, network)); err != nil {
			return nil, err
		}
	}
	o.own = binaries
	images, err := publish(o)
	if err != nil {
		return nil, err
	}
	defer images.Close()
	numbers := results{}
	for round := range o.Rounds {
		if err := measure(ctx, o, round, images, numbers); err != nil {
			return nil, fmt.Errorf("round %d: %w", round+1, err)
		}
	}
	return numbers, nil
}

// A candidate is an engine that can be measured.
type candidate struct {
	name  string
	start func(images *registry.Registry) (subject, error)
}

const peerName = "containerd cni"

func candidates(o options) []candidate {
	var list []candidate
	for _, network := range o.networks() {
		bin := filepath.Join(o.own, network)
		list = append(list, candidate{"evenkeel " + network, func(r *registry.Registry) (subject, error) { return startEvenkeel(bin, network, r) }})
	}
	if o.Peer != "" {
		list = append(list, candidate{peerName, func(r *registry.Registry) (subject, error) { return startContainerd(o.Bin, o.Peer, r) }})
	}
	return list
}

// findContainerd looks at CONTAINERD first, then along PATH.
func findContainerd() string {
	path, err := exec.LookPath(cmp.Or(os.Getenv("CONTAINERD"), "containerd"))
	if err != nil {
		return ""
	}
	if path, err = filepath.Abs(path); err != nil {
		return ""
	}
	return path
}
