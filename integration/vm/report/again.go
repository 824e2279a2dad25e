package report

import (
	"fmt"
	"io"
	"slices"
	"strings"
)

// againLimit is how many tests may have a second try. More failures than that are no accident.
const againLimit = 3

// Again names the top-level tests to try once more, alone and on a machine that does nothing else. Their second try does not mend
// the run, which has failed: it tells the reader of a log, who cannot ask the machine any more, whether a test fails always, or only
// beside others or now and then. There is none when too many failed, or when a test ended the whole run.
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

// MarkUnsteady marks what failed in the first try and passed in the second. It has failed all the same.
func MarkUnsteady(first, second []Result) []Result {
	marked := slices.Clone(first)
	for i, r := range marked {
		again := find(second, r)
		marked[i].Unsteady = r.Outcome == "fail" && again >= 0 && second[again].Outcome == "pass"
	}
	return marked
}

func find(results []Result, r Result) int {
	return slices.IndexFunc(results, func(x Result) bool { return x.Package == r.Package && x.Test == r.Test })
}

// Unsteady names what failed and passed when it was tried again.
func Unsteady(w io.Writer, results []Result) {
	for _, r := range results {
		if r.Unsteady {
			fmt.Fprintf(w, "UNSTEADY: %s failed, and passed when it was tried again alone\n", r.Test)
		}
	}
}
