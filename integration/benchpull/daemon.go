package main

import (
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"google.golang.org/grpc"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/evenkeel/evenkeel/integration/engine"
	"github.com/evenkeel/evenkeel/integration/registry"
)

// daemon is an engine with an empty store.
type daemon struct {
	*engine.Engine // of containerd: for its directories alone
	pid            int
	cmd            *exec.Cmd // containerd
	conn           *grpc.ClientConn
	images         cri.ImageServiceClient
}

// made is removed at the end: deleting tens of thousands of files slows down who makes files next (ext4 looks at inodes
// that were freed in the last minutes again and again).
var made []*engine.Engine

func cleanAll() {
	for _, e := range made {
		if err := e.Clean(); err != nil {
			fmt.Fprintln(os.Stderr, "benchpull: cannot clean up:", err)
		}
	}
}

func startDaemon(o options, kind string, r *registry.Registry) (*daemon, error) {
	e, err := engine.New(o.bin, "builtin")
	if err != nil {
		return nil, err
	}
	made = append(made, e)
	e.LogLevel = "info"
	if err := r.Hosts(e.HostsDir()); err != nil {
		return nil, err
	}
	d := &daemon{Engine: e}
	if kind == "containerd" {
		return d, d.startContainerd(o.containerd)
	}
	if err := e.Start(); err != nil {
		return nil, err
	}
	d.pid, d.images = e.PID(), e.Images
	return d, nil
}

func (d *daemon) startContainerd(program string) error {
	text := fmt.Sprintf("version = 3\nroot = %q\nstate = %q\ndisabled_plugins = [\"io.containerd.nri.v1.nri\"]\n[grpc]\n  address = %q\n"+
		"[plugins.\"io.containerd.cri.v1.images\".registry]\n  config_path = %q\n", d.Root(), filepath.Join(d.State, "c"), d.Socket(), d.HostsDir())
	file := filepath.Join(d.Base, "containerd.toml")
	if err := os.WriteFile(file, []byte(text), 0o644); err != nil {
		return err
	}
	log, err := os.Create(d.LogFile())
	if err != nil {
		return err
	}
	defer log.Close()
	d.cmd = exec.Command(program, "--config", file)
	d.cmd.Stdout, d.cmd.Stderr = log, log
	if err := d.cmd.Start(); err != nil {
		return err
	}
	d.pid = d.cmd.Process.Pid
	for end := time.Now().Add(20 * time.Second); ; time.Sleep(50 * time.Millisecond) {
		c, err := net.Dial("unix", d.Socket())
		if err == nil {
			c.Close()
			break
		}
		if time.Now().After(end) {
			return fmt.Errorf("containerd does not answer; see %s", d.LogFile())
		}
	}
	if d.conn, err = engine.Dial(d.Socket()); err != nil {
		return err
	}
	d.images = cri.NewImageServiceClient(d.conn)
	return nil
}

func (d *daemon) stop() error {
	if d.cmd == nil {
		return d.Kill()
	}
	return errors.Join(d.conn.Close(), d.cmd.Process.Kill(), ignore(d.cmd.Wait()))
}

func ignore(error) error { return nil } // it was killed

// forgetPeak lets VmHWM begin anew (proc_pid_clear_refs(5)).
func (d *daemon) forgetPeak() {
	os.WriteFile(fmt.Sprintf("/proc/%d/clear_refs", d.pid), []byte("5"), 0o200)
}

// peak is the largest resident set in MiB.
func (d *daemon) peak() float64 {
	text, _ := os.ReadFile(fmt.Sprintf("/proc/%d/status", d.pid))
	_, rest, _ := strings.Cut(string(text), "VmHWM:")
	kib, _ := strconv.ParseFloat(strings.Fields(rest + " 0")[0], 64)
	return kib / 1024
}

// cpu is what the daemon has used so far, in seconds.
func (d *daemon) cpu() float64 {
	text, _ := os.ReadFile(fmt.Sprintf("/proc/%d/stat", d.pid))
	_, rest, _ := strings.Cut(string(text), ") ")
	f := strings.Fields(rest)
	if len(f) < 13 {
		return 0
	}
	user, _ := strconv.ParseFloat(f[11], 64)
	system, _ := strconv.ParseFloat(f[12], 64)
	return (user + system) / 100 // USER_HZ
}
