package main

import (
	"encoding/xml"
	"fmt"
	"os"
	"strings"

	"github.com/evenkeel/evenkeel/integration/vm/report"
)

// critest is the suite of critest's tests: https://github.com/kubernetes-sigs/cri-tools.
const critest = "critest"

// readCritest reads the JUnit report that Ginkgo writes.
func readCritest(file string) (results []report.Result, err error) {
	data, err := os.ReadFile(file)
	if err != nil {
		return nil, err
	}
	var suites struct {
		Cases []struct {
			Name    string    `xml:"name,attr"`
			Status  string    `xml:"status,attr"`
			Seconds float64   `xml:"time,attr"`
			Failure *struct{} `xml:"failure"`
			Error   *struct{} `xml:"error"`
			Skipped *struct {
				Message string `xml:"message,attr"`
			} `xml:"skipped"`
		} `xml:"testsuite>testcase"`
	}
	if err := xml.Unmarshal(data, &suites); err != nil {
		return nil, fmt.Errorf("cannot read the report %s: %w", file, err)
	}
	for _, c := range suites.Cases {
		r := report.Result{Package: critest, Test: c.Name, Outcome: "pass", Seconds: c.Seconds}
		switch {
		case c.Failure != nil || c.Error != nil || c.Status == "interrupted" || c.Status == "timedout":
			r.Outcome = "fail"
		case c.Skipped != nil:
			r.Outcome, r.Reason = "skip", reason(c.Skipped.Message)
		case !strings.HasPrefix(c.Name, "[It] "):
			continue // set-up of the suite, which critest does not count either
		}
		results = append(results, r)
	}
	return results, nil
}

// reason of a skip. Ginkgo gives none for what a filter left out.
func reason(message string) string {
	if message == "skipped" {
		return "left out by a filter, as critest does with its benchmarks"
	}
	return strings.TrimPrefix(message, "skipped - ")
}
