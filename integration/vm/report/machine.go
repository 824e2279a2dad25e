package report

import (
	"context"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
)

// A Machine is what became of one run of tests on one machine.
type Machine struct {
	Name      string // host, or architecture/init
	Kernel    string
	Commit    string // of the project; several where runs were merged
	Selection string `json:",omitempty"` // why not all tests ran; empty: they did
	Results   []Result
}

// With puts a later run of some of the tests into the place of the same tests.
func (m Machine) With(later Machine) Machine {
	if !strings.Contains(m.Commit, later.Commit) {
		m.Commit += ", " + later.Commit
	}
	m.Results = Merge(m.Results, later.Results)
	return m
}

// Commit names the commit that is checked out here, with a plus sign where files differ from it. It is empty outside a checkout.
func Commit(ctx context.Context) string {
	git := func(args ...string) string {
		out, _ := exec.CommandContext(ctx, "git", append([]string{"-c", "safe.directory=*"}, args...)...).Output()
		return strings.TrimSpace(string(out))
	}
	commit := git("rev-parse", "--short=10", "HEAD")
	if git("status", "--porcelain") != "" {
		commit += "+"
	}
	return commit
}

// File of a Machine in its directory.
const File = "results.json"

// Write writes the file into a directory that exists.
func (m Machine) Write(dir string) error {
	data, err := json.MarshalIndent(m, "", " ")
	if err != nil {
		return err
	}
	return os.WriteFile(filepath.Join(dir, File), append(data, '\n'), 0o644)
}

// ReadMachine reads what Write wrote.
func ReadMachine(file string) (m Machine, err error) {
	data, err := os.ReadFile(file)
	if err != nil {
		return m, err
	}
	if err := json.Unmarshal(data, &m); err != nil {
		return m, fmt.Errorf("cannot read the results in %s: %w", file, err)
	}
	return m, nil
}

// Selection says in words which tests the flags of a run left out.
func Selection(short bool, suite string) string {
	var words []string
	if short {
		words = append(words, "without the long tests")
	}
	if suite != "" {
		words = append(words, "only "+suite)
	}
	return strings.Join(words, ", ")
}
