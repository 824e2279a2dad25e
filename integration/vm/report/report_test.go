package report

import (
	"strings"
	"testing"
)

// output is what a test binary prints with -test.v=test2json and dies in the middle of a test.
const output = "\x16=== RUN   TestGood\n\x16--- PASS: TestGood (1.50s)\n" +
	"\x16=== RUN   TestBad\n    bad_test.go:7: the sky is down\n\x16--- FAIL: TestBad (0.10s)\n" +
	"\x16=== RUN   TestLong\n    long_test.go:9: too long for -short: run it at night\n\x16--- SKIP: TestLong (0.00s)\n" +
	"\x16=== RUN   TestCut\n    cut_test.go:1: begun\n"

func TestOutcomes(t *testing.T) {
	r := &Report{}
	if err := r.Read(t.Context(), "integration", strings.NewReader(output)); err != nil {
		t.Fatal(err)
	}
	results := r.Results()
	counts := Count(results)
	// test2json takes the end of the output for the end of what still ran.
	if counts.Passed != 1 || counts.Failed+counts.Cut != 2 || counts.Skipped != 1 || counts.Good() {
		t.Errorf("%s: %+v", counts, results)
	}
	for _, x := range results {
		switch x.Test {
		case "TestGood":
			if x.Outcome != "pass" || x.Seconds != 1.5 {
				t.Errorf("%+v", x)
			}
		case "TestBad":
			if x.Outcome != "fail" || !strings.Contains(x.Output, "the sky is down") {
				t.Errorf("%+v", x)
			}
		case "TestLong":
			if x.Outcome != "skip" || x.Reason != "too long for -short: run it at night" {
				t.Errorf("%+v", x)
			}
		}
	}
}

func TestNothingIsNotGood(t *testing.T) {
	if Count(nil).Good() {
		t.Error("no test at all counts as good")
	}
}

func TestSecondTry(t *testing.T) {
	first := []Result{
		{Package: "p", Test: "TestGood", Outcome: "pass"},
		{Package: "p", Test: "TestBad/sub", Outcome: "fail", Output: "sub"}, {Package: "p", Test: "TestBad", Outcome: "fail", Output: "bad"},
		{Package: "p", Test: "TestWorse", Outcome: "fail", Output: "worse"},
	}
	if got := Suite(Again(first)); got != "^(TestBad|TestWorse)$" {
		t.Errorf("again: %s", got)
	}
	second := []Result{
		{Package: "p", Test: "TestBad/sub", Outcome: "pass"}, {Package: "p", Test: "TestBad", Outcome: "pass"},
		{Package: "p", Test: "TestWorse", Outcome: "fail", Output: "worse again"},
	}
	tried := SecondTry(first, second)
	if c := Count(tried); c != (Counts{Passed: 3, Failed: 1, Unsteady: 2}) || c.Good() {
		t.Errorf("after a second try that failed: %+v", c)
	}
	var told strings.Builder
	Table(&told, tried)
	Unsteady(&told, tried)
	for _, want := range []string{"TestBad  (at the second try, alone)", "UNSTEADY TestBad failed", "It had said:\nbad", "worse again"} {
		if !strings.Contains(told.String(), want) {
			t.Errorf("the table lacks %q:\n%s", want, told.String())
		}
	}
	if strings.Contains(told.String(), "UNSTEADY TestWorse") {
		t.Error("what fails again is called unsteady")
	}
	if c := Count(SecondTry(first[:3], second[:2])); c != (Counts{Passed: 3, Unsteady: 2}) || !c.Good() {
		t.Errorf("after a second try that passed: %+v", c)
	}
	if c := Count(SecondTry(first[:3], second[1:2])); c.Good() {
		t.Errorf("a subtest that was not tried again counts as passed: %+v", c)
	}
	if merged := Merge(first, second); len(merged) != len(first) || Count(merged) != (Counts{Passed: 3, Failed: 1}) {
		t.Errorf("a later run in the place of the first: %+v", merged)
	}
	if got := Again(append(first, Result{Test: "TestCut", Outcome: "cut"})); got != nil {
		t.Errorf("a run that was cut short is tried again: %v", got)
	}
	if got := Again(append(first, Result{Test: "TestPanic", Outcome: "fail", Output: "--- FAIL: TestPanic (0.00s)\npanic: boom\n"})); got != nil {
		t.Errorf("a run that a panic ended is tried again: %v", got)
	}
	many := append(first, Result{Test: "TestX", Outcome: "fail"}, Result{Test: "TestY", Outcome: "fail"})
	if got := Again(many); got != nil {
		t.Errorf("four failures are tried again: %v", got)
	}
}
