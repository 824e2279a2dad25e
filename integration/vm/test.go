package main

import (
	"bufio"
	"bytes"
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/evenkeel/evenkeel/integration/vm/job"
	"github.com/evenkeel/evenkeel/integration/vm/machine"
	"github.com/evenkeel/evenkeel/integration/vm/report"
)

// test boots a machine, runs the tests of the packages in it and fails when one of them failed, also when it was tried again
// in a machine of its own (report.Again), or none ran.
func (o *options) test(ctx context.Context) error {
	r, err := o.once(ctx)
	if r != nil && r.panic != "" {
		// No program may bring a kernel down, so this is the kernel's fault or, more often, the emulator's.
		died := r.panic
		fmt.Fprintf(os.Stderr, "vm: the kernel died under the tests, which begin again in a new machine: %s\n", died)
		if r, err = o.once(ctx); r != nil {
			r.died = died
		}
	}
	if r == nil {
		return err
	}
	results := r.report.Results()
	if tests := report.Again(results); err == nil && len(tests) > 0 && r.ended() {
		fmt.Printf("once more, alone: %s\n", strings.Join(tests, ", "))
		alone := *o
		alone.suite, alone.merge, alone.out = report.Suite(tests), false, filepath.Join(o.out, "again")
		if second, err := alone.once(ctx); err == nil {
			results = report.SecondTry(results, second.report.Results())
			r.again = second
		}
	}
	return errors.Join(err, r.conclude(results))
}

// once boots a machine and runs the tests in it.
func (o *options) once(ctx context.Context) (*testRun, error) {
	begin := time.Now()
	l, err := o.prepare(ctx)
	if err != nil {
		return nil, err
	}
	defer l.close()
	m, err := l.testMachine(ctx)
	if err != nil {
		return nil, err
	}
	r := &testRun{load: l, out: o.home(), commit: report.Commit(ctx), prepared: time.Since(begin)}
	if o.merge {
		before, err := report.ReadMachine(filepath.Join(r.out, report.File))
		if err != nil {
			return nil, err
		}
		r.before = &before
	}
	return r, r.run(ctx, m, r.results)
}

func (l *load) testMachine(ctx context.Context) (*machine.Machine, error) {
	var j job.Job
	for _, pkg := range l.packageList() {
		s, err := l.step(ctx, pkg)
		if err != nil {
			return nil, err
		}
		j.Steps = append(j.Steps, s)
	}
	return l.withDisk(ctx, j)
}

// A testRun is one boot and what came of it.
type testRun struct {
	*load
	out      string          // directory for logs and results
	commit   string          // under test
	before   *report.Machine // the run whose results this one's are merged into
	again    *testRun        // of what had failed, in a machine of its own
	report   report.Report
	events   []job.Event
	prepared time.Duration
	failed   []string  // boots that were tried again, and why
	panic    string    // why the kernel died, if it did
	died     string    // the same of a machine before this one
	begin    time.Time // of the last boot
	booted   time.Duration
	ran      time.Duration
	down     time.Time // the guest is done, and asks for the power to be turned off
	off      time.Duration
}

// run boots the machine and has what the steps print read to its end.
func (r *testRun) run(ctx context.Context, m *machine.Machine, output func(context.Context, io.Reader) error) error {
	fmt.Printf("%s/%s: Linux %s, prepared in %s\n", r.arch, r.init, r.set.Release(), report.Round(r.prepared))
	if err := errors.Join(os.RemoveAll(r.out), os.MkdirAll(r.out, 0o755)); err != nil {
		return err
	}
	console, err := os.Create(filepath.Join(r.out, "console.log"))
	if err != nil {
		return err
	}
	defer console.Close()
	file, err := os.Create(filepath.Join(r.out, "output.txt"))
	if err != nil {
		return err
	}
	defer file.Close()
	m.Console = console
	r.begin = time.Now()
	running, err := m.Boot(ctx, r.reboot)
	if err != nil {
		return err
	}
	r.booted = time.Since(r.begin)
	fmt.Printf("booted in %s\n", report.Round(r.booted))
	read := make(chan error, 1)
	go func() { read <- output(ctx, io.TeeReader(running.Output, file)) }()
	for e := range running.Events {
		r.happened(e)
	}
	err = errors.Join(running.Wait(), <-read)
	r.panic = running.Panic()
	if !r.down.IsZero() {
		r.off = time.Since(r.down)
	}
	if ctx.Err() != nil {
		err = errors.Join(err, context.Cause(ctx))
	}
	return err
}

// reboot hears that a boot failed and that another one begins.
func (r *testRun) reboot(failed string) {
	r.failed = append(r.failed, failed)
	fmt.Fprintf(os.Stderr, "vm: boot %d failed, trying again: %s\n", len(r.failed), failed)
	r.begin = time.Now()
}

func (r *testRun) happened(e job.Event) {
	r.events = append(r.events, e)
	switch e.What {
	case job.Started:
		fmt.Printf("%s:\n", e.Step)
	case job.Ended:
		r.ran = time.Since(r.begin) - r.booted
	case job.Down:
		r.down = time.Now()
	}
}

// results hands the output of each step to the report.
func (r *testRun) results(ctx context.Context, output io.Reader) error {
	r.report.Progress = os.Stdout
	lines := bufio.NewReader(output)
	var errs []error
	var step io.WriteCloser
	done := make(chan error, 1)
	finish := func() {
		if step != nil {
			step.Close()
			errs = append(errs, <-done)
		}
	}
	for {
		line, err := lines.ReadBytes('\n')
		if name, ok := bytes.CutPrefix(line, []byte(job.Boundary[1:])); ok { // its first byte ended the line before
			finish()
			from, to := io.Pipe()
			step = to
			pkg := strings.TrimSpace(string(name))
			go func() {
				err := r.report.Read(ctx, pkg, from)
				from.CloseWithError(err)
				done <- err
			}()
		} else if step != nil {
			step.Write(line)
		}
		if err != nil {
			finish()
			return errors.Join(errs...)
		}
	}
}

// ended reports whether each test binary came to its end and the machine lived.
func (r *testRun) ended() bool {
	ended := 0
	for _, e := range r.events {
		switch e.What {
		case job.Failed:
			return false
		case job.Ended:
			ended++
		}
	}
	return ended == len(r.packageList())
}

// conclude writes the results and says whether they are good.
func (r *testRun) conclude(results []report.Result) error {
	table, err := os.Create(filepath.Join(r.out, "results.txt"))
	if err != nil {
		return err
	}
	defer table.Close()
	counts := report.Count(results)
	summary := fmt.Sprintf("%s/%s: %s; prepared in %s, booted in %s, ran for %s, off in %s\n", r.arch, r.init, counts,
		report.Round(r.prepared), report.Round(r.booted), report.Round(r.ran), report.Round(r.off))
	for n, failed := range r.failed {
		summary += fmt.Sprintf("boot %d failed: %s\n", n+1, failed)
	}
	if r.died != "" {
		summary += fmt.Sprintf("the kernel of a first machine died under the tests: %s\n", r.died)
	}
	fmt.Fprint(table, summary)
	report.Table(table, results)
	machine := report.Machine{Name: r.arch + "/" + r.init, Kernel: r.set.Release(), Commit: r.commit, Selection: report.Selection(r.short, r.suite), Results: results}
	if r.before != nil {
		machine = r.before.With(machine)
	}
	if err := machine.Write(r.out); err != nil {
		return err
	}
	r.show(results)
	report.Unsteady(os.Stdout, results)
	fmt.Print(summary, "logs and results: ", r.out, "\n")
	return errors.Join(r.verdict(counts), table.Close())
}

// shown is how many lines of a failed test are printed; results.txt has them all.
const shown = 12

// show prints what did not pass.
func (r *testRun) show(results []report.Result) {
	for _, x := range results {
		switch x.Outcome {
		case "skip":
			fmt.Printf("skipped %s: %s\n", x.Test, x.Reason)
		case "fail", "cut":
			lines := strings.SplitAfter(x.Output, "\n")
			fmt.Printf("--- %s %s\n%s", x.Outcome, x.Test, strings.Join(lines[:min(len(lines), shown)], ""))
		}
	}
}

// verdict says whether the run is good. Where what had failed was tried again, the codes of that run count.
func (r *testRun) verdict(counts report.Counts) error {
	var errs []error
	ended := 0
	for _, e := range cmp.Or(r.again, r).events {
		if e.What == job.Failed {
			errs = append(errs, fmt.Errorf("the machine failed: %s", e.Detail))
		}
		if e.What == job.Ended {
			ended++
			if e.Code != 0 {
				errs = append(errs, fmt.Errorf("the tests of %s ended with code %d", e.Step, e.Code))
			}
		}
	}
	if want := len(r.packageList()); ended < want {
		errs = append(errs, fmt.Errorf("%d of %d test binaries ended", ended, want))
	}
	if r.off > offLimit {
		errs = append(errs, fmt.Errorf("the machine took %s to turn off, more than %s: somebody does not end when asked to", report.Round(r.off), offLimit))
	}
	if counts.Passed == 0 {
		errs = append(errs, errors.New("no test passed"))
	} else if !counts.Good() {
		errs = append(errs, errors.New("tests failed"))
	}
	if len(errs) > 0 {
		r.tail()
	}
	return errors.Join(errs...)
}

// tail prints the end of the console, where a kernel says why it died.
func (r *testRun) tail() {
	data, _ := os.ReadFile(filepath.Join(r.out, "console.log"))
	lines := strings.Split(strings.TrimSpace(string(data)), "\n")
	fmt.Printf("the console's last words:\n  %s\n", strings.Join(lines[max(0, len(lines)-15):], "\n  "))
}
