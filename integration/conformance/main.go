// Command conformance keeps what test runs came to, and makes docs/CONFORMANCE.md of it.
//
//	conformance record DIR ARGS…    run `go test ARGS…`, print what it would, and leave results.json in DIR
//	conformance table DIR…          print the page; each DIR is of one machine
//
// A directory may also hold critest.xml, which critest writes with --ginkgo.junit-report or --report-dir.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"

	"github.com/evenkeel/evenkeel/integration/vm/report"
)

func main() {
	if err := run(os.Args[1:]); err != nil {
		fmt.Fprintln(os.Stderr, "conformance:", err)
		os.Exit(1)
	}
}

func run(args []string) error {
	flags := flag.NewFlagSet("conformance", flag.ContinueOnError)
	name := flags.String("name", "host", "`machine` whose results are recorded")
	short := flags.Bool("short", false, "the long tests were left out")
	if err := flags.Parse(args); err != nil {
		return err
	}
	switch flags.Arg(0) {
	case "record":
		if flags.NArg() > 1 {
			return record(*name, *short, flags.Arg(1), flags.Args()[2:])
		}
	case "table":
		return table(flags.Args()[1:])
	}
	return errors.New("usage: conformance [-name NAME] [-short] record DIR ARGS… | table DIR…")
}

// record fails when a test failed, also when it was tried again alone (report.Again).
func record(name string, short bool, dir string, args []string) error {
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return err
	}
	kernel, err := exec.Command("uname", "-r").Output()
	if err != nil {
		return err
	}
	results, failed := goTest(args)
	if tests := report.Again(results); len(tests) > 0 {
		fmt.Printf("once more, alone: %s\n", strings.Join(tests, ", "))
		var second []report.Result
		second, failed = goTest(append(slices.Clone(args), "-run", report.Suite(tests)))
		results = report.SecondTry(results, second)
		report.Unsteady(os.Stdout, results)
	}
	version, _, _ := strings.Cut(strings.TrimSpace(string(kernel)), "-") // the rest is whose build it is
	m := report.Machine{Name: name, Kernel: version, Commit: report.Commit(context.Background()), Selection: report.Selection(short, ""), Results: results}
	for _, x := range m.Results {
		if x.Outcome == "cut" {
			fmt.Printf("%s did not end:\n%s", x.Test, x.Output)
		}
	}
	counts := report.Count(results)
	fmt.Println(counts)
	if failed == nil && !counts.Good() {
		failed = errors.New("tests failed, or none ran")
	}
	return errors.Join(failed, m.Write(dir))
}

// goTest returns what became of the tests, and an error when `go test` says that not all is well.
func goTest(args []string) ([]report.Result, error) {
	c := exec.Command("go", append([]string{"test", "-json"}, args...)...)
	c.Stderr = os.Stderr
	out, err := c.StdoutPipe()
	if err != nil {
		return nil, err
	}
	if err := c.Start(); err != nil {
		return nil, err
	}
	r := report.Report{Echo: os.Stdout}
	err = r.Events("", out)
	if ended := c.Wait(); ended != nil {
		err = errors.Join(err, fmt.Errorf("go test: %w", ended))
	}
	return r.Results(), err
}

func table(dirs []string) error {
	page := page{suites: map[string]string{}}
	if err := page.findSuites("integration"); err != nil {
		return err
	}
	for _, dir := range dirs {
		if err := page.read(dir); err != nil {
			return err
		}
	}
	if len(page.machines) == 0 {
		return fmt.Errorf("no results in %s: run `make test-integration` or `make vm-test` first", strings.Join(dirs, " "))
	}
	page.write(os.Stdout)
	return nil
}

// read reads what is in a machine's directory; nothing is not an error.
func (p *page) read(dir string) error {
	m, err := report.ReadMachine(filepath.Join(dir, report.File))
	if errors.Is(err, os.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	critest, err := readCritest(filepath.Join(dir, "critest.xml"))
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		return err
	}
	m.Results = append(m.Results, critest...)
	p.machines = append(p.machines, m)
	return nil
}
