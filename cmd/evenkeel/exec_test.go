package main

import (
	"strings"
	"testing"
)

// TestExecTakesNoFlagOfTheCommand: what stands after the command's name is the command's, with and without --.
func TestExecTakesNoFlagOfTheCommand(t *testing.T) {
	for line, want := range map[string]string{
		"web ls -t":                     "web: ls -t; ",
		"web -- ls -t":                  "web: ls -t; ",
		"-it web sh -c -i":              "web: sh -c -i; stdin tty",
		"web -c server ls -c":           "web: ls -c; container=server",
		"web -i -c server -- ls -o x":   "web: ls -o x; stdin container=server",
		"-c server web ls -- -t":        "web: ls -- -t; container=server",
		"-- web -t":                     "web: -t; ",
		"web -- -t":                     "web: -t; ",
		"web ls --help":                 "web: ls --help; ",
		"--address unix:///a web ls":    "web: ls; ",
		"web":                           "requires a command to run in web",
		"web --":                        "requires a command to run in web",
		"web -i":                        "requires a command to run in web",
		"-i":                            "requires a container and a command",
		"web -x ls":                     "unknown shorthand flag: 'x' in -x",
		"web ls -x --unknown --timeout": "web: ls -x --unknown --timeout; ",
	} {
		c := execCommand()
		got := ""
		args := strings.Fields(line)
		if err := c.ParseFlags(args); err != nil {
			got = err.Error()
		} else if ref, command, err := splitCommand(c, c.Flags().Args()); err != nil {
			got = err.Error()
		} else {
			var flags []string
			for _, name := range []string{"stdin", "tty"} {
				if set, _ := c.Flags().GetBool(name); set {
					flags = append(flags, name)
				}
			}
			if name, _ := c.Flags().GetString("container"); name != "" {
				flags = append(flags, "container="+name)
			}
			got = ref + ": " + strings.Join(command, " ") + "; " + strings.Join(flags, " ")
		}
		if got != want {
			t.Errorf("exec %s: %s, want %s", line, got, want)
		}
	}
}
