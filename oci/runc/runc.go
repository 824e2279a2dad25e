// Package runc drives an OCI runtime by its command line: runc, or any program that takes runc's arguments.
//
// It is shared by the daemon and the shim, so it links nothing but the standard library.
//
// A runtime hands its own stdio to the container it creates, so what it has to say about itself is never read from
// there: each command logs, as JSON, into an unlinked file that is gone when the command is over, however that ends.
package runc

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"syscall"
)

// Runc is one OCI runtime on this machine. The zero value of every field but Path and Root works.
type Runc struct {
	Path          string                // the program, absolute
	Root          string                // its --root: where it keeps its own state; on tmpfs
	SystemdCgroup bool                  // pass --systemd-cgroup
	Run           func(*exec.Cmd) error // how a command is run to its end; nil means (*exec.Cmd).Run. The shim, which reaps every child itself, sets its own.
}

// IO is what a container's process gets as descriptors 0, 1 and 2. A nil file is /dev/null.
type IO struct{ Stdin, Stdout, Stderr *os.File }

// CreateOptions describes a `create`.
type CreateOptions struct {
	Bundle        string // directory with config.json
	PIDFile       string // where the runtime writes the pid of the container's first process
	ConsoleSocket string // unix socket that receives the pty master; only with process.terminal
	IO            IO
}

// ExecOptions describes an `exec`, always detached: the new process outlives the call and is reaped by the caller if
// the caller is a child subreaper.
type ExecOptions struct {
	ProcessFile   string // a runtime-spec process document
	PIDFile       string
	ConsoleSocket string // only with terminal
	Cgroup        string // sub cgroup below the container's; empty: the container's own
	IO            IO
}

// State is the answer to `state`.
type State struct {
	ID     string `json:"id"`
	Status string `json:"status"` // creating, created, running, paused, stopped
	PID    int    `json:"pid"`
	Bundle string `json:"bundle"`
}

// Create runs `create`. When it fails, nothing but the runtime's message has been written to o.IO; the runtime may have
// left state behind, which Delete removes.
func (r *Runc) Create(ctx context.Context, id string, o CreateOptions) error {
	args := []string{"create", "--bundle", o.Bundle, "--pid-file", o.PIDFile}
	if o.ConsoleSocket != "" {
		args = append(args, "--console-socket", o.ConsoleSocket)
	}
	return r.run(ctx, call{op: "create", id: id, args: append(args, id), io: &o.IO})
}

// Start runs `start`.
func (r *Runc) Start(ctx context.Context, id string) error {
	return r.run(ctx, call{op: "start", id: id, args: []string{"start", id}})
}

// Exec runs `exec --detach`. When it fails, the runtime may have written its message to o.IO.Stderr too.
func (r *Runc) Exec(ctx context.Context, id string, o ExecOptions) error {
	args := []string{"exec", "--detach", "--process", o.ProcessFile, "--pid-file", o.PIDFile}
	if o.ConsoleSocket != "" {
		args = append(args, "--console-socket", o.ConsoleSocket)
	}
	if o.Cgroup != "" {
		args = append(args, "--cgroup", o.Cgroup)
	}
	return r.run(ctx, call{op: "exec", id: id, args: append(args, id), io: &o.IO})
}

// SubCgroups is what a runtime takes as ExecOptions.Cgroup.
type SubCgroups struct {
	Path       bool // "/name", in all hierarchies at once
	Controller bool // "controller:/name", in one of cgroup v1's
}

// SubCgroups reads the runtime's own help, since a runtime that does not know an option says so to the stderr of the process
// it was to run. Without an answer nothing is taken.
func (r *Runc) SubCgroups(ctx context.Context) SubCgroups {
	help, err := r.unlinked("help")
	if err != nil {
		return SubCgroups{}
	}
	defer help.Close()
	if err := r.run(ctx, call{op: "help", args: []string{"exec", "--help"}, io: &IO{Stdout: help, Stderr: help}}); err != nil {
		return SubCgroups{}
	}
	return subCgroupsIn(string(tail(help)))
}

// subCgroupsIn: runc prints "--cgroup … run the process in an (existing) sub-cgroup(s). Format is [<controller>:]<cgroup>.",
// crun "--cgroup=PATH …".
func subCgroupsIn(help string) SubCgroups {
	_, after, found := strings.Cut(help, "--cgroup")
	line, _, _ := strings.Cut(after, "\n")
	return SubCgroups{Path: found, Controller: strings.Contains(line, "controller")}
}

// Kill runs `kill` for the container's first process.
func (r *Runc) Kill(ctx context.Context, id string, signal syscall.Signal) error {
	return r.run(ctx, call{op: "kill", id: id, args: []string{"kill", id, strconv.Itoa(int(signal))}})
}

// Delete kills the container if it runs and removes everything the runtime keeps about it. A nil error means the
// runtime knows no such container, whoever removed it.
//
// The plain form comes first because runc's --force sleeps 100 ms even for a container that has ended.
func (r *Runc) Delete(ctx context.Context, id string) error {
	err := r.delete(ctx, id)
	if err == nil || ctx.Err() != nil {
		return err
	}
	return r.delete(ctx, id, "--force")
}

func (r *Runc) delete(ctx context.Context, id string, flags ...string) error {
	err := r.run(ctx, call{op: "delete", id: id, args: append(append([]string{"delete"}, flags...), id)})
	if errors.Is(err, ErrNotExist) {
		return nil
	}
	return err
}

// State asks for one container.
func (r *Runc) State(ctx context.Context, id string) (State, error) {
	var s State
	return s, r.ask(ctx, call{op: "state", id: id, args: []string{"state", id}}, &s)
}

// List asks for all containers below Root.
func (r *Runc) List(ctx context.Context) ([]State, error) {
	var list []State
	return list, r.ask(ctx, call{op: "list", args: []string{"list", "--format", "json"}}, &list)
}

// Version returns the runtime's name and version, as in "runc version 1.5.2", and the version of the runtime-spec that it
// names in a line of its own, as runc and crun do ("spec: 1.0.0"); empty if it names none.
func (r *Runc) Version(ctx context.Context) (program, spec string, err error) {
	var out bytes.Buffer
	if err := r.run(ctx, call{op: "version", args: []string{"--version"}, out: &out}); err != nil {
		return "", "", err
	}
	first, rest, _ := strings.Cut(out.String(), "\n")
	for line := range strings.Lines(rest) {
		if version, ok := strings.CutPrefix(line, "spec:"); ok {
			spec = strings.TrimSpace(version)
		}
	}
	return strings.TrimSpace(first), spec, nil
}

// Update applies a runtime-spec LinuxResources document (JSON).
func (r *Runc) Update(ctx context.Context, id string, resources []byte) error {
	in, err := r.unlinked("resources")
	if err != nil {
		return fmt.Errorf("cannot update container %s: %w", id, err)
	}
	defer in.Close()
	_, err = in.Write(resources)
	if err == nil {
		_, err = in.Seek(0, io.SeekStart)
	}
	if err != nil {
		return fmt.Errorf("cannot update container %s: %w", id, err)
	}
	return r.run(ctx, call{op: "update", id: id, args: []string{"update", "--resources", "-", id}, io: &IO{Stdin: in}})
}

// Features returns the runtime's features document (runtime-spec features.md) as it printed it; a runtime without the
// command gives an error that matches errors.ErrUnsupported.
func (r *Runc) Features(ctx context.Context) ([]byte, error) {
	var out bytes.Buffer
	err := r.run(ctx, call{op: "features", args: []string{"features"}, out: &out})
	if e := (*Error)(nil); errors.As(err, &e) && e.Code > 0 {
		return nil, fmt.Errorf("%w: %w", err, errors.ErrUnsupported)
	}
	if err != nil {
		return nil, err
	}
	// A runtime that takes an unknown command for a request for help may well exit with 0.
	if !json.Valid(out.Bytes()) {
		return nil, fmt.Errorf("%s printed no features document: %w", r.Path, errors.ErrUnsupported)
	}
	return out.Bytes(), nil
}

// ask runs a command that prints one JSON document.
func (r *Runc) ask(ctx context.Context, c call, answer any) error {
	var out bytes.Buffer
	c.out = &out
	if err := r.run(ctx, c); err != nil {
		return err
	}
	if err := json.Unmarshal(out.Bytes(), answer); err != nil {
		return fmt.Errorf("cannot read what %s %s printed: %w", r.Path, c.op, err)
	}
	return nil
}
