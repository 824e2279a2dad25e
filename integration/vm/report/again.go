package report

import (
	"fmt"
	"io"
	"slices"
	"strings"
)

// againLimit is how many tests may have a second try. More failures than that are no accident.
const againLimit = 3

// Again names the top-level tests to try once more, alone and on a machine that does nothing else. A test that passes then is
// unsteady: the run stands, so that one bad moment in two thousand tests costs nobody an hour, and the test is named with what
// it had said, since it has a defect, or found one. There is no second try when too many failed, or when a test ended the whole run.
func Again(results []Result) (tests []string) {
	for _, r := range results {
		if r.Outcome == "cut" || strings.Contains("\n"+r.Output, "\npanic: ") {
			return nil
		}
		if r.Outcome == "fail" && !strings.Contains(r.Test, "/") {
			tests = append(tests, r.Test)
		}
	}
	if len(tests) > againLimit {
		return nil
	}
	return tests
}

// Suite is the regular expression that selects exactly these top-level tests.
func Suite(tests []string) string { return "^(" + strings.Join(tests, "|") + ")$" }

// Merge puts what became of tests in a later run in the place of an earlier one.
func Merge(earlier, later []Result) []Result {
	merged := slices.Clone(earlier)
	for _, r := range later {
		if i := find(merged, r); i >= 0 {
			merged[i] = r
		} else { // a subtest that the earlier run did not come to
			merged = append(merged, r)
		}
	}
	return merged
}

// SecondTry is Merge for tests that had failed: what passes now is unsteady, and keeps what it had said the first time.
func SecondTry(first, second []Result) []Result {
	merged := Merge(first, second)
	for i, r := range first {
		if r.Outcome == "fail" && merged[i].Outcome == "pass" {
			merged[i].Unsteady, merged[i].Output = true, r.Output
		}
	}
	return merged
}

func find(results []Result, r Result) int {
	return slices.IndexFunc(results, func(x Result) bool { return x.Package == r.Package && x.Test == r.Test })
}

// Unsteady prints what passed at its second try only, and what it had said before.
func Unsteady(w io.Writer, results []Result) {
	for _, r := range results {
		if r.Unsteady {
			fmt.Fprintf(w, "--- UNSTEADY %s failed, and passed when it was tried again alone. That is a defect. It had said:\n%s", r.Test, r.Output)
		}
	}
}
