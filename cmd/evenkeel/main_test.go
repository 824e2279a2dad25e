package main

import (
	"flag"
	"os"
	"testing"

	"github.com/rogpeppe/go-internal/testscript"
)

var update = flag.Bool("update", false, "write golden files anew")

func TestMain(m *testing.M) {
	testscript.Main(m, map[string]func(){"evenkeel": func() { os.Exit(execute(os.Args[1:], os.Stdin, os.Stdout, os.Stderr)) }})
}

// TestScripts are the commands as a user types them, where no engine is needed.
func TestScripts(t *testing.T) {
	testscript.Run(t, testscript.Params{Dir: "testdata/script", UpdateScripts: *update})
}
