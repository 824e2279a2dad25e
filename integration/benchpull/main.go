// Command benchpull pulls the same three images with Evenkeel and, in turn, with containerd, and prints how long each took
// and how much memory the daemons used at most. Every pull starts with a daemon of its own and an empty store on the same
// disk, from a registry in this process. Evenkeel's time includes making the image durable; containerd does not do that.
package main

import (
	"context"
	"flag"
	"fmt"
	"os"
	"os/exec"
	"slices"
	"strings"
	"time"

	cri "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/evenkeel/evenkeel/integration/registry"
)

type options struct {
	bin, containerd string
	rounds          int
	scale           float64
	only            string
}

func main() {
	var o options
	flag.StringVar(&o.bin, "bin", "bin/linux-amd64", "directory of our binaries")
	flag.StringVar(&o.containerd, "containerd", os.Getenv("CONTAINERD"), "containerd's program; empty: none is measured")
	flag.IntVar(&o.rounds, "rounds", 3, "pulls of each image by each engine")
	flag.Float64Var(&o.scale, "scale", 1, "size of the images, compared with 600 and 300 MB")
	flag.StringVar(&o.only, "image", "", "measure this image alone: gzip, zstd or one")
	flag.Parse()
	if err := run(o); err != nil {
		fmt.Fprintln(os.Stderr, "benchpull:", err)
		os.Exit(1)
	}
}

// picture is an image of the benchmark with its goal.
type picture struct {
	name, what string
	goal       float64 // of Evenkeel's time over containerd's
}

var pictures = []picture{
	{"gzip", "8 layers, 600 MB in 60,000 files, gzip", 0.6},
	{"zstd", "the same in zstd", 0.7},
	{"one", "one layer of 300 MB, gzip", 0.8},
}

const memoryGoal = 50 // MiB

// measured is what one engine needed for one image.
type measured struct {
	times []float64 // s
	peak  float64   // MiB
}

func run(o options) error {
	r := registry.Serve()
	defer r.Close()
	fmt.Fprintln(os.Stderr, "making the images")
	if err := publish(r, o); err != nil {
		return err
	}
	results := map[string]*measured{}
	defer func() { cleanAll() }()
	for round := range o.rounds {
		for _, p := range pictures {
			if o.only != "" && o.only != p.name {
				continue
			}
			for _, kind := range engines(o, round) {
				key := kind + " " + p.name
				if results[key] == nil {
					results[key] = &measured{}
				}
				if err := pull(o, kind, r, p.name, results[key]); err != nil {
					return fmt.Errorf("%s, %s: %w", kind, p.what, err)
				}
			}
		}
	}
	print(o, results)
	return nil
}

// engines takes turns at going first.
func engines(o options, round int) []string {
	list := []string{"evenkeel"}
	if o.containerd != "" {
		list = append(list, "containerd")
	}
	if round%2 == 1 {
		slices.Reverse(list)
	}
	return list
}

func pull(o options, kind string, r *registry.Registry, name string, m *measured) error {
	d, err := startDaemon(o, kind, r)
	if err != nil {
		return err
	}
	defer d.stop()
	exec.Command("sync").Run() // what others wrote is not this pull's to wait for
	d.forgetPeak()
	begin := time.Now()
	_, err = d.images.PullImage(context.Background(), &cri.PullImageRequest{Image: &cri.ImageSpec{Image: r.Host + "/" + name + ":1"}})
	if err != nil {
		return err
	}
	took := time.Since(begin).Seconds()
	m.times = append(m.times, took)
	m.peak = max(m.peak, d.peak())
	fmt.Fprintf(os.Stderr, "%-10s %-4s %6.2f s %6.1f MiB, CPU %5.2f s\n", kind, name, took, d.peak(), d.cpu())
	return nil
}

func median(list []float64) float64 {
	if len(list) == 0 {
		return 0
	}
	sorted := slices.Sorted(slices.Values(list))
	return sorted[len(sorted)/2]
}

func print(o options, results map[string]*measured) {
	fmt.Printf("%-42s %10s %10s %7s %6s %22s\n", "image", "evenkeel", "containerd", "ratio", "goal", "peak memory, MiB")
	for _, p := range pictures {
		ours, peer := results["evenkeel "+p.name], results["containerd "+p.name]
		if ours == nil {
			continue
		}
		line := fmt.Sprintf("%-42s %8.2f s ", p.what, median(ours.times))
		if peer == nil {
			line += fmt.Sprintf("%10s %7s %6.2f %22s", "-", "-", p.goal, fmt.Sprintf("%.0f (goal %d)", ours.peak, memoryGoal))
		} else {
			line += fmt.Sprintf("%8.2f s %7.2f %6.2f %22s", median(peer.times), median(ours.times)/median(peer.times), p.goal,
				fmt.Sprintf("%.0f : %.0f (goal %d)", ours.peak, peer.peak, memoryGoal))
		}
		fmt.Println(strings.TrimRight(line, " "))
	}
}
