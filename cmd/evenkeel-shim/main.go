// One thread's worth of Go is enough for a shim, whatever its cgroup's quota: the runtime need not watch that.
//go:debug containermaxprocs=0
//go:debug updatemaxprocs=0

// Evenkeel-shim is the one process per pod that outlives the daemon. The daemon starts it; see package shim.
//
//	evenkeel-shim [serve]   serve the pod whose shim.json is in the working directory
//	evenkeel-shim init      be the first process of a PID namespace; started by a serving shim
//	evenkeel-shim hostpath  look at a path that may never answer; started by the daemon, with a deadline
//	evenkeel-shim version   print the version of the protocol
package main

import (
	"fmt"
	"os"

	"github.com/evenkeel/evenkeel/internal/hostpath"
	"github.com/evenkeel/evenkeel/shim"
)

func main() {
	if err := run(os.Args[1:]); err != nil {
		fmt.Fprintln(os.Stderr, "evenkeel-shim:", err)
		os.Exit(1)
	}
}

func run(args []string) error {
	shim.CloseInherited()
	mode := "serve"
	if len(args) > 0 {
		mode = args[0]
	}
	switch mode {
	case "serve":
		return shim.Serve()
	case "init":
		return shim.RunInit()
	case hostpath.Mode:
		return hostpath.Help(args[1:], os.Stdout)
	case "version":
		_, err := fmt.Fprintf(os.Stdout, "evenkeel-shim protocol %d\n", shim.Version)
		return err
	}
	return fmt.Errorf("unknown mode %q: there are serve, init, hostpath and version", mode)
}
