package main

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/evenkeel/evenkeel/integration/vm/cpio"
	"github.com/evenkeel/evenkeel/integration/vm/job"
	"github.com/evenkeel/evenkeel/integration/vm/machine"
	"github.com/evenkeel/evenkeel/integration/vm/report"
)

// guestAdded is where the directories of -add stand in the guest, each under its own name.
const guestAdded = guestRoot + "/add"

// guestOut is on the scratch disk, which the host reads when the machine is off.
const guestOut = "/out"

// exec boots a machine, runs one command in it as tests are run, and brings back what it leaves in $OUT. Its error is an
// exitCode when the command failed.
func (o *options) exec(ctx context.Context, argv []string) error {
	if len(argv) == 0 {
		return errors.New(usage)
	}
	begin := time.Now()
	l, err := o.prepare(ctx)
	if err != nil {
		return err
	}
	defer l.close()
	if err := l.addDirectories(); err != nil {
		return err
	}
	m, err := l.withDisk(ctx, job.Job{Steps: []job.Step{l.command(argv)}})
	if err != nil {
		return err
	}
	r := &testRun{load: l, out: filepath.Join(o.home(), "exec"), prepared: time.Since(begin)}
	err = r.run(ctx, m, showOutput)
	fmt.Printf("ran for %s, logs and files: %s\n", report.Round(r.ran), o.home())
	return errors.Join(err, r.collect(), r.exit())
}

// collect brings back what the command left, in place of what an earlier one left under the same names.
func (r *testRun) collect() error {
	left := filepath.Join(r.out, "left")
	if err := os.Mkdir(left, 0o755); err != nil {
		return err
	}
	// A command that did not end in time left files, too.
	if err := machine.Extract(context.Background(), r.scratchFile(), guestOut, left); err != nil {
		return err
	}
	entries, err := os.ReadDir(left)
	for _, e := range entries {
		to := filepath.Join(r.home(), e.Name())
		err = errors.Join(err, os.RemoveAll(to), os.Rename(filepath.Join(left, e.Name()), to))
	}
	return errors.Join(err, os.Remove(left))
}

// addDirectories puts the directories of -add, without links and devices, into the machine.
func (l *load) addDirectories() error {
	if l.add == "" {
		return nil
	}
	for dir := range strings.SplitSeq(l.add, ",") {
		dir, err := filepath.Abs(dir)
		if err != nil {
			return err
		}
		if !isDir(dir) {
			return fmt.Errorf("-add: %s is not a directory", dir)
		}
		l.fill = append(l.fill, func(w *cpio.Writer) { w.Tree(guestAdded+"/"+filepath.Base(dir), dir) })
	}
	return nil
}

// command is a step that runs in guestAdded, with the project's binaries first in its path.
func (l *load) command(argv []string) job.Step {
	const out = "/var/lib" + guestOut
	l.fill = append(l.fill, func(w *cpio.Writer) { w.Directory(guestAdded, 0o755) })
	return job.Step{
		Name: argv[0], Dir: guestAdded,
		Argv: append([]string{"/bin/sh", "-c", `mkdir -p "$OUT" && exec "$@"`, "sh"}, argv...),
		Env:  append(job.Environment(guestRoot+"/bin/linux-"+l.arch), "OUT="+out),
	}
}

// showOutput prints what the only step prints.
func showOutput(_ context.Context, output io.Reader) error {
	lines := bufio.NewReader(output)
	for range strings.Count(job.Boundary, "\n") + 1 { // the line that ends Boundary, too
		if _, err := lines.ReadString('\n'); err != nil {
			return nil // the machine died before; r.exit says so
		}
	}
	_, err := io.Copy(os.Stdout, lines)
	return err
}

// An exitCode of a command other than 0; 128 and more: it was killed by a signal.
type exitCode int

func (c exitCode) Error() string { return fmt.Sprintf("the command ended with code %d", int(c)) }

// exit is nil when the command ended well.
func (r *testRun) exit() error {
	for _, e := range r.events {
		switch {
		case e.What == job.Failed:
			r.tail()
			return fmt.Errorf("the machine failed: %s", e.Detail)
		case e.What == job.Ended && e.Code != 0:
			return exitCode(e.Code)
		case e.What == job.Ended:
			return nil
		}
	}
	r.tail()
	return errors.New("the command did not end")
}
