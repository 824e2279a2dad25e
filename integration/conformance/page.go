package main

import (
	"cmp"
	"fmt"
	"go/ast"
	"go/parser"
	"go/token"
	"io"
	"maps"
	"path/filepath"
	"slices"
	"strings"

	"github.com/evenkeel/evenkeel/integration/vm/report"
)

// A page is docs/CONFORMANCE.md in the making.
type page struct {
	suites   map[string]string // the suite of each top-level test: the file it stands in
	machines []report.Machine
}

// findSuites learns in which file each test stands.
func (p *page) findSuites(dir string) error {
	files, err := filepath.Glob(filepath.Join(dir, "*_test.go"))
	if err != nil {
		return err
	}
	for _, file := range files {
		parsed, err := parser.ParseFile(token.NewFileSet(), file, nil, parser.SkipObjectResolution)
		if err != nil {
			return err
		}
		for _, d := range parsed.Decls {
			if f, ok := d.(*ast.FuncDecl); ok && f.Recv == nil && strings.HasPrefix(f.Name.Name, "Test") {
				p.suites[f.Name.Name] = strings.TrimSuffix(filepath.Base(file), "_test.go")
			}
		}
	}
	return nil
}

// suite of a result. Other packages than integration are one suite each.
func (p *page) suite(r report.Result) string {
	top, _, _ := strings.Cut(r.Test, "/")
	pkg := strings.TrimPrefix(r.Package, "github.com/evenkeel/evenkeel/")
	if pkg == "integration" {
		return cmp.Or(p.suites[top], pkg)
	}
	return pkg
}

const head = `# Conformance

What the integration suite, and critest where it ran, came to on each machine. Made by ` + "`make conformance`" + ` from the last
run on each; not written by hand. The commit is that of the suite; critest ran on one near it. A suite is a file of ` + "`integration/`" + `, subtests count. A cell has the number that passed, then
those that failed (F), were skipped (S) and did not end (E). On emulated machines things are repeated less often
(docs/VM.md), and kill and failure points strike every fourth effect once, which is why there are fewer of those.

`

func (p *page) write(w io.Writer) {
	fmt.Fprint(w, head)
	p.summary(w)
	p.matrix(w)
	p.list(w, "Failed", "fail", "cut")
	p.list(w, "Skipped", "skip")
	p.unsteady(w)
}

// unsteady names what passed at its second try only.
func (p *page) unsteady(w io.Writer) {
	for _, m := range p.machines {
		for _, r := range m.Results {
			if r.Unsteady {
				fmt.Fprintf(w, "\nUnsteady on %s: %s\n", m.Name, r.Test)
			}
		}
	}
}

func (p *page) summary(w io.Writer) {
	fmt.Fprint(w, "| machine | kernel | commit | passed | failed | skipped | did not end | tests |\n|---|---|---|---:|---:|---:|---:|---|\n")
	for _, m := range p.machines {
		c := report.Count(m.Results)
		fmt.Fprintf(w, "| %s | %s | %s | %d | %d | %d | %d | %s |\n", m.Name, m.Kernel, m.Commit, c.Passed, c.Failed, c.Skipped, c.Cut,
			cell(cmp.Or(m.Selection, "all")))
	}
}

func (p *page) matrix(w io.Writer) {
	rows := map[string][][]report.Result{}
	for i, m := range p.machines {
		for _, r := range m.Results {
			suite := p.suite(r)
			if rows[suite] == nil {
				rows[suite] = make([][]report.Result, len(p.machines))
			}
			rows[suite][i] = append(rows[suite][i], r)
		}
	}
	fmt.Fprint(w, "\n| suite |")
	for _, m := range p.machines {
		fmt.Fprintf(w, " %s |", m.Name)
	}
	fmt.Fprint(w, "\n|---|", strings.Repeat("---:|", len(p.machines)), "\n")
	for _, suite := range slices.Sorted(maps.Keys(rows)) {
		fmt.Fprintf(w, "| %s |", suite)
		for _, results := range rows[suite] {
			fmt.Fprintf(w, " %s |", counted(report.Count(results)))
		}
		fmt.Fprintln(w)
	}
}

func counted(c report.Counts) string {
	if c == (report.Counts{}) {
		return "-"
	}
	s := fmt.Sprint(c.Passed)
	for _, other := range []struct {
		count int
		sign  string
	}{{c.Failed, "F"}, {c.Skipped, "S"}, {c.Cut, "E"}} {
		if other.count > 0 {
			s += fmt.Sprintf(" %d%s", other.count, other.sign)
		}
	}
	return s
}

// list names the tests with an outcome and the reason that they gave, machines with the same reason together.
func (p *page) list(w io.Writer, title string, outcomes ...string) {
	machines := map[[2]string][]string{}
	for _, m := range p.machines {
		for _, r := range m.Results {
			if slices.Contains(outcomes, r.Outcome) {
				key := [2]string{r.Test, r.Reason}
				machines[key] = append(machines[key], m.Name)
			}
		}
	}
	if len(machines) == 0 {
		return
	}
	fmt.Fprintf(w, "\n## %s\n\n| test | machines | reason |\n|---|---|---|\n", title)
	keys := slices.SortedFunc(maps.Keys(machines), func(a, b [2]string) int { return cmp.Or(cmp.Compare(a[0], b[0]), cmp.Compare(a[1], b[1])) })
	for _, key := range keys {
		fmt.Fprintf(w, "| %s | %s | %s |\n", cell(key[0]), strings.Join(machines[key], ", "), cell(key[1]))
	}
}

// cell keeps a text within a cell of a table.
func cell(text string) string {
	return strings.NewReplacer("|", "\\|", "\n", " ").Replace(text)
}
