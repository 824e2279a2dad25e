package main

import (
	"os"
	"reflect"
	"regexp"
	"strings"
	"testing"

	"github.com/spf13/cobra"

	"github.com/evenkeel/evenkeel/cri/operator"
	"github.com/evenkeel/evenkeel/sandbox"
)

// answers are what each tool prints with --output json.
var answers = map[string][]any{
	"version": {versions{}, engineVersion{}},
	"run":     {podEvent{}, portEvent{}, containerEvent{}, logRecord{}, exitEvent{}},
	"pods":    {podRow{}}, "ps": {containerRow{}}, "stats": {statsRow{}}, "inspect": {inspected{}},
	"explain": {explanation{}, explainedContainer{}, sandbox.Operation{}, sandbox.Step{}},
	"logs":    {logRecord{}}, "exec": {execResult{}}, "stop": {done{}}, "rm": {done{}},
	"images": {imageRow{}}, "images explain": {operator.Explanation{}, operator.HostExplanation{}},
	"pull": {fetched{}}, "import": {fetched{}}, "export": {fetched{}}, "rmi": {done{}},
	"fsck":  {operator.CheckResult{}, operator.Damage{}, operator.BrokenImage{}},
	"check": {checked{}}, "config": {setting{}}, "leftovers": {finding{}},
}

// elsewhere are fields that a tool's row leaves to another's, or has none of.
var elsewhere = map[string]string{"run": "type time stream partial text", "import": "reference"}

// TestToolsAreDocumented: each tool that prints JSON has a row in docs/TOOLS.md, with its fields and no others.
func TestToolsAreDocumented(t *testing.T) {
	text, err := os.ReadFile("../../docs/TOOLS.md")
	if err != nil {
		t.Fatal(err)
	}
	rows := map[string]string{} // the last cell
	for line := range strings.Lines(string(text)) {
		if cells := strings.Split(strings.TrimSpace(line), " | "); strings.HasPrefix(line, "| `") {
			rows[strings.Trim(cells[0], "| `")] = cells[len(cells)-1]
		}
	}
	eachCommand(rootCommand(), func(c *cobra.Command) {
		name := strings.TrimPrefix(c.CommandPath(), "evenkeel ")
		row, found := rows[name]
		types, prints := answers[name]
		switch {
		case c.Flags().Lookup("output") == nil:
		case !found:
			t.Errorf("docs/TOOLS.md does not tell of %s", name)
		case !prints:
			t.Errorf("this test does not know what %s prints", name)
		default:
			sameFields(t, name, row, types)
		}
	})
	for name := range rows {
		if c, _, err := rootCommand().Find(strings.Fields(name)); err != nil || c.CommandPath() != "evenkeel "+name {
			t.Errorf("docs/TOOLS.md tells of %s, which there is not", name)
		}
	}
}

func eachCommand(c *cobra.Command, do func(*cobra.Command)) {
	do(c)
	for _, below := range c.Commands() {
		eachCommand(below, do)
	}
}

var field = regexp.MustCompile("`([A-Za-z]+)`(\\??)")

// sameFields compares a row with the types; a question mark stands for omitempty.
func sameFields(t *testing.T, tool, row string, types []any) {
	t.Helper()
	known := map[string]bool{}
	for _, of := range types {
		for f := range reflect.TypeOf(of).Fields() {
			known[strings.Replace(f.Tag.Get("json"), ",omitempty", "?", 1)] = false
		}
	}
	for _, m := range field.FindAllStringSubmatch(row, -1) {
		if _, is := known[m[1]+m[2]]; is {
			known[m[1]+m[2]] = true
		} else {
			t.Errorf("docs/TOOLS.md names %s%s of %s, which is no field of it", m[1], m[2], tool)
		}
	}
	for name, told := range known {
		if !told && !strings.Contains(" "+elsewhere[tool]+" ", " "+strings.TrimSuffix(name, "?")+" ") {
			t.Errorf("docs/TOOLS.md does not name %s of %s", name, tool)
		}
	}
}
