package main

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/evenkeel/evenkeel/integration/vm/report"
)

// junit is a part of what critest writes.
const junit = `<?xml version="1.0" encoding="UTF-8"?>
<testsuites tests="6"><testsuite name="CRI validation" package="/x" tests="6">
<testcase name="[BeforeSuite]" status="passed" time="0.1"></testcase>
<testcase name="[It] basics" classname="CRI validation" status="passed" time="0.5"></testcase>
<testcase name="[It] windows" status="skipped" time="0"><skipped message="skipped - no | Windows"></skipped></testcase>
<testcase name="[It] benchmark" status="skipped" time="0"><skipped message="skipped"></skipped></testcase>
<testcase name="[AfterSuite]" status="failed" time="1"><failure message="no"></failure></testcase>
<testcase name="[It] broken" status="failed" time="1"><failure message="no"></failure></testcase>
</testsuite></testsuites>`

func TestPage(t *testing.T) {
	dir := t.TempDir()
	source := "package x\nfunc TestGood(t *testing.T) {}\nfunc TestBad(t *testing.T) {}\nfunc TestLong(t *testing.T) {}\n"
	write(t, filepath.Join(dir, "things_test.go"), source)
	write(t, filepath.Join(dir, "critest.xml"), junit)
	m := report.Machine{Name: "arm64/bare", Kernel: "6.12", Commit: "abc", Selection: "without the long tests", Results: []report.Result{
		{Package: "integration", Test: "TestGood", Outcome: "pass", Unsteady: true}, {Package: "integration", Test: "TestGood/sub", Outcome: "pass"},
		{Package: "integration", Test: "TestBad", Outcome: "fail"}, {Package: "integration", Test: "TestLong", Outcome: "skip", Reason: "too long"},
	}}
	if err := m.Write(dir); err != nil {
		t.Fatal(err)
	}
	p := page{suites: map[string]string{}}
	if err := p.findSuites(dir); err != nil {
		t.Fatal(err)
	}
	for _, d := range []string{dir, filepath.Join(dir, "nothing")} {
		if err := p.read(d); err != nil {
			t.Fatal(err)
		}
	}
	var text strings.Builder
	p.write(&text)
	for _, want := range []string{
		"| arm64/bare | 6.12 | abc | 3 | 3 | 3 | 0 | without the long tests |\n",
		"| things | 2 1F 1S |\n", "| critest | 1 2F 2S |\n",
		"| TestLong | arm64/bare | too long |\n", `| [It] windows | arm64/bare | no \| Windows |` + "\n",
		"| [It] benchmark | arm64/bare | left out by a filter", "| TestBad | arm64/bare |  |\n", "Unsteady on arm64/bare: TestGood\n",
	} {
		if !strings.Contains(text.String(), want) {
			t.Errorf("the page lacks %q:\n%s", want, text.String())
		}
	}
}

func write(t *testing.T, file, text string) {
	t.Helper()
	if err := os.WriteFile(file, []byte(text), 0o644); err != nil {
		t.Fatal(err)
	}
}
