// Package report turns the output of test binaries into a table of what passed, failed and was skipped, and why.
package report

import (
	"bufio"
	"cmp"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"os/exec"
	"slices"
	"strings"
	"sync"
	"time"
)

// A Result is what became of one test.
type Result struct {
	Package string
	Test    string
	Outcome string  // pass, fail, skip; "cut" when the output ended first
	Seconds float64 `json:",omitempty"`
	Reason  string  `json:",omitempty"` // why it was skipped
	Output  string  `json:",omitempty"` // of a test that did not pass at once

	Unsteady bool `json:",omitempty"` // it failed, and passed when it was tried again alone
}

// A Report collects results while tests run.
type Report struct {
	// Progress gets a line for each top-level test that ends.
	Progress io.Writer
	// Echo gets what go test prints without -v: the output of what fails, and a line for each package.
	Echo io.Writer

	mu      sync.Mutex // guards what follows
	results []*Result
	index   map[string]*Result
}

// event is what `go tool test2json` prints.
type event struct {
	Action, Package, Test, Output string
	Elapsed                       float64
}

// Read reads the output of one package's test binary, run with -test.v=test2json, to its end.
func (r *Report) Read(ctx context.Context, pkg string, output io.Reader) error {
	c := exec.CommandContext(ctx, "go", "tool", "test2json", "-t")
	c.Stdin = output
	out, err := c.StdoutPipe()
	if err != nil {
		return err
	}
	if err := c.Start(); err != nil {
		return err
	}
	if err := r.Events(pkg, out); err != nil {
		return err
	}
	return c.Wait()
}

// Events reads what test2json or `go test -json` prints. The package is that of events which name none.
func (r *Report) Events(pkg string, events io.Reader) error {
	lines := bufio.NewScanner(events)
	lines.Buffer(nil, 16<<20)
	for lines.Scan() {
		var e event
		if err := json.Unmarshal(lines.Bytes(), &e); err != nil {
			return fmt.Errorf("cannot read the words of test2json: %w", err)
		}
		r.add(cmp.Or(e.Package, pkg), e)
	}
	return lines.Err()
}

func (r *Report) add(pkg string, e event) {
	if e.Test == "" {
		if r.Echo != nil && e.Output != "PASS\n" {
			io.WriteString(r.Echo, e.Output)
		}
		return
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	result := r.of(pkg, e.Test)
	if r.Echo != nil && e.Action == "fail" {
		io.WriteString(r.Echo, result.Output)
	}
	switch e.Action {
	case "output":
		result.Output += e.Output
	case "pass", "fail", "skip":
		result.Outcome, result.Seconds = e.Action, e.Elapsed
		if e.Action == "skip" {
			result.Reason = reason(result.Output)
		}
		if e.Action != "fail" {
			result.Output = ""
		}
		if r.Progress != nil && !strings.Contains(e.Test, "/") {
			fmt.Fprintf(r.Progress, "  %s %6.1f s  %s\n", e.Action, e.Elapsed, e.Test)
		}
	}
}

func (r *Report) of(pkg, test string) *Result {
	key := pkg + " " + test
	if found := r.index[key]; found != nil {
		return found
	}
	if r.index == nil {
		r.index = map[string]*Result{}
	}
	found := &Result{Package: pkg, Test: test, Outcome: "cut"}
	r.index[key], r.results = found, append(r.results, found)
	return found
}

// reason is what the test said last before it was skipped.
func reason(output string) string {
	last := ""
	for line := range strings.SplitSeq(output, "\n") {
		line = strings.TrimSpace(line)
		if line != "" && !strings.HasPrefix(line, "===") && !strings.HasPrefix(line, "---") {
			last = line
		}
	}
	if _, after, ok := strings.Cut(last, ".go:"); ok {
		_, last, _ = strings.Cut(after, ": ")
	}
	return last
}

// Results lists all tests by package, in the order in which they ran.
func (r *Report) Results() []Result {
	r.mu.Lock()
	defer r.mu.Unlock()
	list := make([]Result, 0, len(r.results))
	for _, x := range r.results {
		list = append(list, *x)
	}
	slices.SortStableFunc(list, func(a, b Result) int { return cmp.Compare(a.Package, b.Package) })
	return list
}

// Counts of outcomes, subtests included.
type Counts struct {
	Passed, Failed, Skipped, Cut int
	Unsteady                     int // of the passed
}

func (c Counts) String() string {
	s := fmt.Sprintf("%d passed, %d failed, %d skipped", c.Passed, c.Failed, c.Skipped)
	if c.Cut > 0 {
		s += fmt.Sprintf(", %d did not end", c.Cut)
	}
	if c.Unsteady > 0 {
		s += fmt.Sprintf(", %d of the passed UNSTEADY", c.Unsteady)
	}
	return s
}

// Good reports whether something ran and all of it passed.
func (c Counts) Good() bool { return c.Passed > 0 && c.Failed == 0 && c.Cut == 0 }

func Count(results []Result) (c Counts) {
	for _, r := range results {
		switch r.Outcome {
		case "pass":
			c.Passed++
			if r.Unsteady {
				c.Unsteady++
			}
		case "fail":
			c.Failed++
		case "skip":
			c.Skipped++
		default:
			c.Cut++
		}
	}
	return c
}

// Table writes one line per test, and for those that did not pass what they said.
func Table(w io.Writer, results []Result) {
	for _, r := range results {
		line := fmt.Sprintf("%-4s %7.1f s  %s", r.Outcome, r.Seconds, r.Test)
		if r.Reason != "" {
			line += "  (" + r.Reason + ")"
		}
		if r.Unsteady {
			line += "  (at the second try, alone)"
		}
		fmt.Fprintln(w, line)
	}
	for _, r := range results {
		if r.Outcome == "fail" || r.Outcome == "cut" {
			fmt.Fprintf(w, "\n--- %s %s\n%s", r.Outcome, r.Test, r.Output)
		}
	}
}

// Round makes a duration readable.
func Round(d time.Duration) time.Duration { return d.Round(100 * time.Millisecond) }
